"""`longspan bench score` and `longspan bench samples`: prompts for models that run elsewhere, and marks for their answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from longspan.cli._bench_options import read_lengths, read_tasks
from longspan.cli._output import (
    EXIT_SKIPPED,
    JSON_HELP,
    check_writable,
    console,
    loading,
    open_whole,
    write_json,
)
from longspan.errors import UserInputError

DATA_HELP = "Folder of published data, with a folder for each suite; also $LONGSPAN_DATA."


def score(
    task: Annotated[str, typer.Argument(help="SUITE/TASK whose metric is used.")],
    predictions: Annotated[Path, typer.Argument(help="JSONL file: one object a line with pred and answers.")],
    judge: Annotated[
        str | None,
        typer.Option(
            help="Let a model grade instead: http://host:port/v1#model, reference, a folder or hub id."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
) -> None:
    """Score predictions made elsewhere with a task's official metric, 0 to 100.

    Example: longspan bench score longbench/hotpotqa predictions.jsonl --json score.json
    """
    from longspan.evaluation.registry import find_task
    from longspan.evaluation.scoring import score_predictions
    from longspan.evaluation.task import metric_name

    check_writable(json_file)
    entry = find_task(task)
    if entry.exam.labels is None:
        raise UserInputError(f"{entry.name} scores likelihoods, not predictions; choose a task with answers")
    metric = entry.exam.labels.metric if judge is None else _judged(judge)
    found = score_predictions(metric, predictions)
    parts = "".join(f", {name} {value:.2f}" for name, value in found.parts.items())
    line = f"{entry.name}: {found.score:.2f} over {found.num_samples} samples ({metric_name(metric)}{parts})"
    if json_file is None or str(json_file) != "-":
        console().print(line)
    if json_file is not None:
        write_json(json_file, {**found.as_dict(), "task": entry.name, "metric": metric_name(metric)})


def _judged(where: str) -> Any:
    from functools import partial

    from longspan.evaluation.judging import open_judge, open_metric

    return partial(open_metric, judge=open_judge(where))


def samples(
    tasks: Annotated[str, typer.Argument(help="Tasks or suites, comma-separated.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, such as 4096,8K.")] = "4096",
    count: Annotated[int, typer.Option("--samples", min=1, help="Samples of each task and length.")] = 10,
    model: Annotated[
        str, typer.Option(help="Whose tokenizer counts: reference, a hub id, or a folder.")
    ] = "reference",
    haystack: Annotated[
        str, typer.Option(help="pydoc, noise, keyvalue, or a text file or folder.")
    ] = "pydoc",
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
) -> None:
    """Write samples as JSONL, for a model that runs elsewhere: prompt, answers, max_new_tokens.

    Example: longspan bench samples ruler --lengths 8K --samples 100 --out ruler.jsonl
    """
    check_writable(out)
    use_data(data)
    names, wanted = read_tasks(tasks), read_lengths(lengths)
    with loading():
        from longspan.evaluation.registry import find_task
        from longspan.evaluation.runner import grid, open_haystack

        _, text = open_haystack(haystack)
        tokenizer = _tokenizer(model)
    jobs = grid(
        specs=(),
        tasks=names,
        lengths=wanted,
        depths=(None,),
        seeds=(_first_seed(),),
        tokenizer=tokenizer,
        samples=count,
    )
    written, problems = 0, dict[str, None]()
    with open_whole(out) as stream:
        for job in jobs:
            try:
                item = find_task(job.case.task).exam.build(
                    length_tokens=job.case.length_tokens,
                    depth=None,
                    seed=job.case.seed,
                    haystack=text,
                    tokenizer=tokenizer,
                )
            except ValueError as error:
                problems[f"skipped {job.case.task} at {job.case.length_tokens} tokens: {error}"] = None
                continue
            if not hasattr(item, "references"):
                problems[f"skipped {job.case.task}: it has no single question"] = None
                continue
            stream.write(json.dumps(_line(item), ensure_ascii=False) + "\n")
            written += 1
        for problem in problems:
            console().print(problem)
        if not written:
            raise UserInputError("no sample could be made; see above")
    console().print(f"{written} samples: {out}")
    if problems:
        raise typer.Exit(EXIT_SKIPPED)


def use_data(folder: Path | None, download: bool = False) -> None:
    """Make a folder of published data known to the suites, and whether they may download what is not there."""
    from longspan.evaluation.published import DATA_VARIABLE, DOWNLOAD_VARIABLE

    if download:
        os.environ[DOWNLOAD_VARIABLE] = "1"
    if folder is None:
        return
    if not folder.is_dir():
        raise UserInputError(f"--data {str(folder)!r} is no folder; give one with a folder for each suite")
    os.environ[DATA_VARIABLE] = str(folder)


def _first_seed() -> int:
    from longspan.evaluation.exams import FIRST_SEED

    return FIRST_SEED


def _tokenizer(model: str) -> Any:
    if model == "reference":
        from longspan.reference import ASSETS
        from longspan.reference.tokenizer import load_tokenizer

        return load_tokenizer(ASSETS)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserInputError(
            f"no tokenizer could be loaded from {model!r}; give 'reference', a hub id, or a model folder"
        ) from error


def _line(item: Any) -> dict[str, Any]:
    prompt = f"{item.context}\n\n{item.question}" + (f"\n{item.answer_prefix}" if item.answer_prefix else "")
    return {
        "task": item.task,
        "length": item.length_tokens,
        "seed": item.seed,
        "prompt": prompt,
        "context": item.context,
        "question": item.question,
        "answer_prefix": item.answer_prefix,
        "answers": list(item.references),
        "max_new_tokens": item.max_new_tokens,
        "details": dict(item.details),
    }
