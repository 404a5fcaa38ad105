"""Prompt templates with a place for the text: taken apart into what stands before the question and the question.

A template as published lies in the local folder of a suite; without it, the suite's own wording of the same instruction serves.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from longspan.evaluation.published import DataMissing, Source, data_file
from longspan.evaluation.task import Sample

__all__ = ["guess_letter", "posed", "published_templates"]

TEXT = "{context}"


def published_templates(suite: str, file: str, source: Source) -> Mapping[str, str]:
    """Templates by task from a JSON file of the suite's local folder; empty where there is none.

    Raises:
        ValueError: the file is not an object of strings; names it.
    """
    try:
        path = data_file(suite, file, source)
    except DataMissing:
        return {}
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Mapping[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the published file anew") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path} must hold one object of strings, task to template; fetch it anew")
    return found


def posed(template: str, context: str, **fields: str) -> tuple[str, str]:
    """Context and question of a filled template; a field right behind the text is a part of it, as code to complete is.

    Args:
        template: holds {context} once, and fields in braces.
        context: the long text, put in as it is.
        fields: what the fields stand for.

    Raises:
        ValueError: the template has no {context}.
    """
    before, place, after = template.partition(TEXT)
    if not place:
        raise ValueError(f"the template {template[:60]!r} has no {TEXT}; give one that has")
    for name, value in fields.items():
        if after.startswith(f"{{{name}}}"):
            context, after = context + value, after.removeprefix(f"{{{name}}}")
    return _fill(before, fields) + context, _fill(after, fields).strip("\n")


def _fill(text: str, fields: Mapping[str, str]) -> str:
    # Not by str.format: templates and values may hold other braces. In one pass, so that no value is filled in turn.
    names = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({names})\}}", lambda found: fields[found[1]], text) if names else text


def guess_letter(rng: random.Random, sample: Sample) -> str:
    """A letter of the choices at random, as an answerer who never saw the text would give it."""
    return rng.choice(list(sample.details["choices"]))
