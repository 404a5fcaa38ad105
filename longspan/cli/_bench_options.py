"""Reads the options of `longspan bench`, and writes them out again as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from longspan.errors import UserInputError

__all__ = ["MAX_LENGTH_TOKENS", "read_depths", "read_lengths", "read_seeds", "read_tasks", "rerun_command"]

MAX_LENGTH_TOKENS = 2**27


def rerun_command(model: str, settings: dict[str, Any], haystack: str, more: Mapping[str, Any]) -> str:
    """The command line that measures the same again, every setting written out."""
    words = ["longspan", "bench", "--model", model]
    for spec in settings["specs"]:
        words += ["--methods", spec]
    words += ["--tasks", ",".join(settings["tasks"]), "--lengths", ",".join(map(str, settings["lengths"]))]
    words += ["--depths", ",".join(f"{depth * 100:g}" for depth in settings["depths"])]
    words += ["--seeds", ",".join(map(str, settings["seeds"])) + ("," if len(settings["seeds"]) == 1 else "")]
    words += ["--haystack", haystack]
    for name, value in {"--samples": settings["samples"], **more}.items():
        words += [name, str(value)] if value is not None else []
    return shlex.join(words)


def read_tasks(text: str) -> list[str]:
    """Task names; the name of a suite stands for all its tasks."""
    from longspan.evaluation.registry import tasks_named

    names: list[str] = []
    for word in _words("--tasks", text):
        names += tasks_named(word)
    return list(dict.fromkeys(names))


def read_lengths(text: str) -> list[int]:
    lengths = []
    for word in _words("--lengths", text):
        number, factor = (
            (word[:-1], {"k": 1024, "m": 2**20}[word[-1].lower()]) if word[-1] in "kKmM" else (word, 1)
        )
        if not number.isdecimal() or not 0 < int(number) * factor <= MAX_LENGTH_TOKENS:
            raise UserInputError(
                f"--lengths has {word!r}, allowed are token counts such as 4096, 8K or 1M, up to 128M"
            )
        lengths.append(int(number) * factor)
    return lengths


def read_depths(text: str) -> list[float]:
    depths = []
    for word in _words("--depths", text):
        try:
            depth = float(word.removesuffix("%"))
        except ValueError:
            depth = -1.0
        if not 0 <= depth <= 100:
            raise UserInputError(
                f"--depths has {word!r}, allowed are percentages from 0 (start of the text) to 100 (its end)"
            )
        depths.append(depth / 100)
    return depths


def read_seeds(text: str) -> list[int]:
    """A number alone is how many; with a comma it is a list."""
    from longspan.evaluation.runner import FIRST_SEED

    words = _words("--seeds", text)
    if not all(word.isdecimal() for word in words) or (words == ["0"] and "," not in text):
        raise UserInputError(
            f"--seeds is {text!r}, allowed is how many (3), or a list of seeds (7,8,9; one alone: 7,)"
        )
    numbers = [int(word) for word in words]
    return numbers if "," in text else list(range(FIRST_SEED, FIRST_SEED + numbers[0]))


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserInputError(f"{option} is empty; give at least one, comma-separated")
    return words
