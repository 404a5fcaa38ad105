"""`longspan train cartridge`: a small KV cache for one document."""

import time
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli._output import check_writable, loading
from longspan.cli._train_options import print_record


def cartridge(
    model: Annotated[
        str,
        typer.Argument(help="The model that will be asked: a folder, a hub id, or the bundled reference."),
    ],
    text: Annotated[Path, typer.Option(help="The document, a text file (UTF-8).")],
    out: Annotated[Path, typer.Option(help="The cartridge's file; the run stands beside it.")] = Path(
        "doc.cartridge.safetensors"
    ),
    tokens_kept: Annotated[
        int, typer.Option(min=2, help="Slots of the cartridge; its bytes are those of so many tokens.")
    ] = 218,
    steps: Annotated[int, typer.Option(min=1, help="Length of the schedule in steps.")] = 500,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds and write a checkpoint.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside --out.")] = False,
    conversations: Annotated[
        int, typer.Option(min=1, help="Questions that self-study asks about the document.")
    ] = 1024,
    questions: Annotated[
        str,
        typer.Option(
            help="spans: made by rule of its sentences; asked: the model, a chat model, invents them."
        ),
    ] = "spans",
    batch_rows: Annotated[int, typer.Option(min=1, help="Conversations of one step.")] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-2,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text files of which passages stand beside the cartridge in a share of the steps; repeat for several. "
            "[default: Python's language reference]"
        ),
    ] = None,
    beside_share: Annotated[
        float,
        typer.Option(
            help="Share of the steps with passages beside it; it is then found among several. 0: none."
        ),
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of questions and their order.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, ...: that of the model that will be asked. [default: as ask]"),
    ] = None,
) -> None:
    """Train a small KV cache that answers for one document, with the model frozen, in resumable pieces.

    Example: longspan train cartridge reference --text doc.txt --out doc.cartridge.safetensors --tokens-kept 218
    """
    started = time.monotonic()
    with loading():
        from longspan.engine.api import load
        from longspan.training.cartridges.config import CartridgeConfig
        from longspan.training.cartridges.train import train_cartridge

    check_writable(out)
    document = _text_of(text, "give one document")
    others = [_text_of(file, "give text files to --beside") for file in beside or ()]
    config = CartridgeConfig(
        tokens_kept=tokens_kept,
        steps=steps,
        conversations=conversations,
        questions=questions,  # type: ignore[arg-type]
        batch_rows=batch_rows,
        lr=lr,
        beside_share=beside_share,
        seed=seed,
    )
    piece = train_cartridge(
        load(model, device=device, dtype=dtype),
        document,
        config,
        out=out,
        beside="\n\n".join(others) or None,
        resume=resume,
        seconds=seconds,
        started=started,
        report=print_record,
    )
    state = "finished" if piece.finished else "not finished: run again with --resume"
    typer.echo(f"step {piece.step:,} of {steps:,}, {piece.seconds:.0f} s; {state}")
    if piece.trained is None:
        typer.echo("self-study is not over, so there is no cartridge yet")
        return
    typer.echo(f"KL from the model that reads it all: {piece.untrained} untrained, {piece.trained} trained")
    typer.echo(f"read the same text with --methods 'cartridges(file=\"{out}\")'")


def _text_of(file: Path, fix: str) -> str:
    from longspan.errors import UserInputError

    if not file.is_file():
        raise UserInputError(f"there is no text file {file}; {fix}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserInputError(f"{file} is not UTF-8 text; convert it first") from error
