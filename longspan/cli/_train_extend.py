"""`longspan train extend`: go on training a model so that its window grows; `longspan train schemes`: the ways to do it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli._output import console, loading
from longspan.cli._train_options import print_record, row_workers

DEFAULT_STEPS = 1000
SMOKE_STEPS = 8


def extend(
    model: Annotated[
        str, typer.Argument(help="The model to start from: a folder, a hub id, or the bundled reference.")
    ],
    scheme: Annotated[str, typer.Option(help="What rows show of positions; see `longspan train schemes`.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens that the window grows to.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Folder of .md, .txt or .py files; may be given again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where checkpoint, log and the model folder go.")] = Path(
        "extend-run"
    ),
    steps: Annotated[
        int | None,
        typer.Option(min=1, help=f"Length of the schedule in steps; by default {DEFAULT_STEPS:,}."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the schedule in tokens, instead of --steps.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds and write a checkpoint.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Train adapters of this rank instead of all weights.")
    ] = None,
    lora_also: Annotated[
        str, typer.Option(help="Whole weights trained beside adapters: norms, embeddings, or both.")
    ] = "",
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-5,
    warmup_steps: Annotated[int, typer.Option(min=1, help="Steps up to the highest learning rate.")] = 20,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step, in whole rows.")] = 65_536,
    forward_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one forward; a step sums the gradients of several.")
    ] = 32_768,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Compute layers again in backward: less memory, more time."),
    ] = False,
    task_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with hidden tasks, 0 to 1.")
    ] = 0.5,
    answer_weight: Annotated[
        int, typer.Option(min=1, max=255, help="Loss weight of an answer's token against 1 for text.")
    ] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of rows, positions and adapters.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make rows; by default up to four.")
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(help="A tiny random model, a sixteenth of the lengths, 8 steps: the same code, no use."),
    ] = False,
) -> None:
    """Go on training a model so that its window grows, under one protocol for all schemes, in resumable pieces.

    Example: longspan train extend reference --scheme 'full(positions="yarn(factor=4)")' --length 16384 --text books/
    """
    started = time.monotonic()
    with loading():
        from longspan.errors import UserInputError
        from longspan.training.config import ExtendConfig, smoke_config
        from longspan.training.extend import extend_piece
        from longspan.training.registry import resolve_scheme

    if not (text or smoke or resume):
        raise UserInputError("no text to train on; give --text FOLDER with .md, .txt or .py files")
    if steps is None and tokens is None:
        steps = SMOKE_STEPS if smoke else DEFAULT_STEPS
    config = ExtendConfig(
        scheme=resolve_scheme(scheme),
        length_tokens=length,
        steps=steps,
        tokens=tokens,
        batch_tokens=batch_tokens,
        forward_tokens=forward_tokens,
        lr=lr,
        warmup_steps=warmup_steps,
        lora_rank=lora,
        lora_also=tuple(word.strip() for word in lora_also.split(",") if word.strip()),
        task_share=task_share,
        answer_weight=answer_weight,
        checkpointing=checkpointing,
        seed=seed,
    )
    piece = extend_piece(
        model,
        smoke_config(config) if smoke else config,
        text=text or [],
        out=out,
        resume=resume,
        seconds=seconds,
        workers=row_workers(workers),
        smoke=smoke,
        started=started,
        report=print_record,
    )
    progress = piece.progress
    state = "finished" if progress.finished else "not finished: run again with --resume"
    typer.echo(
        f"step {progress.step:,} of {piece.schedule.steps:,}, {progress.tokens:,} tokens, {progress.seconds:.0f} s; {state}"
    )
    methods = "" if piece.spec == "dense" else f"; run it with --methods '{piece.spec}'"
    typer.echo(f"model in {piece.folder}{methods}")


def schemes() -> None:
    """List the schemes that `longspan train extend` knows.

    Example: longspan train schemes
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from longspan.training.registry import read_scheme_cards

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scheme", style="bold", no_wrap=True)
    table.add_column("trains", ratio=1)
    table.add_column("paper", ratio=1)
    for card in read_scheme_cards().values():
        paper = f"{card.title} ({card.year})" if card.year else card.title
        table.add_row(card.name, Text(card.trains), Text(paper))
    console().print(table)
