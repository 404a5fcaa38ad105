"""`longspan train diffusion`: a masked-diffusion model out of a causal one."""

from pathlib import Path
from typing import Annotated

import typer

from longspan.cli._output import loading
from longspan.cli._train_options import print_record, row_workers

SMOKE_STEPS = 8


def diffusion(
    model: Annotated[
        str,
        typer.Argument(help="The causal model to start from: a folder, a hub id, or the bundled reference."),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of .md, .txt or .py files, or of shards; may be given again."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the model folder goes.")] = Path("diffusion-run"),
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest rows; by default the model's own window.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the schedule in steps.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Length of the schedule in seconds of training.")
    ] = None,
    step_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step, in whole rows.")] = 131_072,
    task_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with hidden tasks, 0 to 1.")
    ] = 0.5,
    peak: Annotated[
        float, typer.Option(help="Highest share of the reference recipe's learning rates.")
    ] = 0.5,
    warmup_steps: Annotated[int, typer.Option(min=1, help="Steps up to the highest learning rate.")] = 40,
    shift: Annotated[
        bool, typer.Option(help="Predict a token from the place before it, as the causal model does.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of rows and masks.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make rows; by default up to four.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option(help="A tiny random model, a sixteenth of the window, 8 steps: no use.")
    ] = False,
) -> None:
    """Make a masked-diffusion model (LLaDA's objective, attention both ways) out of a causal one.

    Example: longspan train diffusion reference --text books/ --seconds 150 --out run/
    """
    with loading():
        from longspan.training.config import SMOKE_DIVIDES
        from longspan.training.diffusion.config import DiffusionConfig
        from longspan.training.diffusion.train import train

    if smoke and window is not None:
        window //= SMOKE_DIVIDES
    config = DiffusionConfig(
        window_tokens=window,
        step_tokens=min(step_tokens, 2048) if smoke else step_tokens,
        steps=SMOKE_STEPS if smoke and steps is None and seconds is None else steps,
        seconds=seconds,
        task_share=task_share,
        peak=peak,
        warmup_steps=warmup_steps,
        shift=shift,
        seed=seed,
    )
    done = train(
        model,
        config,
        text=text or [],
        out=out,
        workers=row_workers(workers),
        smoke=smoke,
        report=print_record,
    )
    typer.echo(f"step {done.steps:,}, {done.tokens:,} tokens, {done.seconds:.0f} s")
    typer.echo(f"model in {done.folder}")
