"""`longspan train`: make the reference model anew, measure one, extend a model's window, and train a document's cartridge."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli._output import check_writable, write_json
from longspan.cli._train_cartridge import cartridge
from longspan.cli._train_diffusion import diffusion
from longspan.cli._train_extend import extend, schemes
from longspan.errors import UserInputError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _train() -> None:
    """Train models: the bundled reference model's recipe, longer windows for any model, and cartridges of documents.

    Example: longspan train reference --text books/ --out run/ --seconds 540
    """


app.command()(extend)
app.command()(diffusion)
app.command()(cartridge)
app.command()(schemes)


@app.command()
def reference(
    text: Annotated[
        list[Path] | None, typer.Option(help="Folder of .md, .txt or .py files; may be given again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where checkpoint, tokenizer, shards and model go.")] = Path(
        "reference-run"
    ),
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds and write a checkpoint.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Length of the whole schedule in tokens.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Exported model to start from instead of random weights.")
    ] = None,
    peak: Annotated[
        float,
        typer.Option(min=0, max=100, help="Highest share of the learning rates, say 0.25 with --start-from."),
    ] = 1.0,
    fit: Annotated[bool, typer.Option(help="End the schedule at --seconds instead of at --tokens.")] = False,
    rows: Annotated[
        float, typer.Option(min=0, max=1000, help="Rows of each step, as a share of the recipe's.")
    ] = 1.0,
    task_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of rows with hidden tasks, 0 to 1.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make data; by default all cores but one.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option(help="A tiny model for two minutes on a CPU: the same code, no use.")
    ] = False,
) -> None:
    """Train the reference model from folders of text, in resumable pieces.

    Example: longspan train reference --text books/ --out run/ --seconds 540, then again with --resume
    """
    started = time.monotonic()
    _check_model(start_from)
    from dataclasses import replace

    from longspan.reference.config import SMOKE, RecipeConfig
    from longspan.reference.recipe import prepare, train_piece

    config = SMOKE if smoke else RecipeConfig()
    if tokens is not None:
        config = replace(config, total_tokens=tokens)
    buckets = tuple((length, max(1, round(num * rows))) for length, num in config.buckets)
    share = config.task_share if task_share is None else task_share
    config = replace(config, peak=peak, buckets=buckets, task_share=share)
    tokenizer = prepare(text or [], out, config)
    progress = train_piece(
        config=config,
        tokenizer=tokenizer,
        shards=[out / "shards"],
        out=out,
        resume=resume,
        seconds=seconds,
        workers=max(1, (os.cpu_count() or 2) - 1) if workers is None else workers,
        start_from=start_from,
        fit=fit,
        started=started,
    )
    state = "finished" if progress.finished else "not finished: run again with --resume"
    typer.echo(f"step {progress.step:,}, {progress.tokens:,} tokens, {progress.seconds:.0f} s; {state}")
    typer.echo(f"model in {out / 'model'}")


@app.command()
def measure(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    shards: Annotated[Path, typer.Option(help="Folder with the heldout shards of the run.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where the table goes.")] = Path(
        "reference-table.json"
    ),
    num_samples: Annotated[int, typer.Option(min=1, help="Samples for each task and length.")] = 200,
    seconds: Annotated[
        float, typer.Option(min=0, help="Stop after so many seconds with what there is.")
    ] = 3600.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure an exported model on held-out text and unseen seeds.

    Example: longspan train measure run/model --shards run/shards --num-samples 20
    """
    _check_model(model)
    check_writable(json_file)
    from longspan.reference.measure import measure as run_measure

    table = run_measure(
        model,
        [shards],
        num_samples=num_samples,
        device=device,
        workers=max(1, (os.cpu_count() or 2) - 1),
        seconds=seconds,
        report=lambda line: print(line, flush=True),
    )
    write_json(json_file, table)


def _check_model(folder: Path | None) -> None:
    """A name that is no folder would be looked up on the hub, for minutes."""
    if folder is not None and not (folder / "config.json").is_file():
        raise UserInputError(
            f"{folder} is not a model folder (it has no config.json); give an exported model"
        )
