"""The comparison of what is kept: who runs at which share, the page's cells and what is best of a column, the figure."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.card import all_cards
from longspan.evaluation import compression as page
from longspan.evaluation.compression import (
    DENSE,
    MODES,
    SHARES,
    compression_figure,
    compression_page,
    compression_specs,
)
from longspan.spec import resolve

WHOLE = 1000


def row(spec: str, task: str, score: float, kv_bytes: int) -> dict[str, Any]:
    return {
        "status": "done",
        "suite": "ruler",
        "kind": "answer",
        "spec": spec,
        "task": task,
        "score": score,
        "kv_bytes": kv_bytes,
        "length_tokens": 4096,
        "seed": 1,
        "device": "cpu",
        "dtype": "float32",
        "haystack": "pydoc",
        "commit": "abc",
        "versions": {},
        "longspan": "0",
    }


def rows() -> list[dict[str, Any]]:
    """Two tasks in both modes: the smaller is the worse; gemfilter is best but holds all; one task ran under dense only."""
    specs = compression_specs()
    found = []
    for mode in MODES:
        for task, harder in ((f"{mode}ruler/niah_single_1", 0.0), (f"{mode}ruler/vt", 0.2)):
            found.append(row(DENSE, task, 1.0 - harder, WHOLE))
            for name in ("snapkv", "kivi", "gemfilter"):
                for share, spec in specs[name].items():
                    score = 0.9 if name == "gemfilter" else share if name == "snapkv" else share + 0.05
                    held = WHOLE if name == "gemfilter" else round(share * WHOLE)
                    found.append(row(spec, task, score - harder, held))
        found.append(row(DENSE, f"{mode}ruler/cwe", 0.0, WHOLE))
    return found


def test_every_storage_method_and_codec_has_a_place() -> None:
    specs = compression_specs()
    unplaced = {
        name
        for name, card in all_cards().items()
        if {"Storage", "Codec"} & set(card.roles) and card.frees == "frees" and name not in specs
    }
    assert unplaced <= {"lm_infinite", "cartridges"}, unplaced
    for found in specs.values():
        assert set(found) <= set(SHARES)
        for spec in found.values():
            resolve(spec)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'ntk' cannot be asked to keep a share; allowed are"):
        compression_specs(["ntk"])


def test_cells_are_means_over_the_tasks_that_all_ran_and_the_best_within_the_bytes_is_bold() -> None:
    text = compression_page(rows())
    assert text.count("2 tasks. `dense` keeps everything: 90.0 in 1 kB.") == 2
    assert (
        "| `snapkv` | **65.0** in 750 B | 40.0 in 500 B | 15.0 in 250 B | 2.5 in 125 B | **-4.0** in 60 B |"
        in text
    )
    assert "| `kivi` | – | **45.0** in 500 B | **20.0** in 250 B | **7.5** in 125 B | – |" in text
    assert "**80.0**" not in text  # gemfilter, which holds everything
    assert "| 50% | `kivi(bits=8, group_tokens=128)` |" in text
    assert "| 50% | `snapkv" not in text


def test_the_figure_has_a_point_for_each_share_and_names_what_was_run() -> None:
    drawn = compression_figure(rows())
    points = len(MODES) * sum(len(compression_specs()[name]) for name in ("snapkv", "kivi", "gemfilter"))
    assert drawn.count("<circle") == points
    named = re.findall(r">([a-z_ +]+)</text>", drawn)
    assert [name for name in named if name in compression_specs()] == ["gemfilter", "kivi", "snapkv"]


def test_lines_differ_in_colour_or_dash() -> None:
    methods = compression_specs()
    strokes = [tuple(page._stroke(methods, name).items()) for name in methods]
    assert len(set(strokes)) == len(strokes)
