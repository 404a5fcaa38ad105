"""The pages of docs: what is measured for them, and how rows become tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.card import all_cards
from longspan.evaluation.pages import (
    RULER_END,
    RULER_START,
    kept_section,
    plan_ruler,
    plan_suites,
    put_between,
    ruler_section,
    ruler_specs,
    suites_page,
)
from longspan.evaluation.registry import find_tasks
from longspan.evaluation.stretch import plan_stretch, stretch_figure, stretch_page, stretch_specs
from tests.evaluation.fake_model import WordTokenizer


def row(spec: str, task: str, length: int, score: float | None, **fields: Any) -> dict[str, Any]:
    base = {
        "spec": spec, "task": task, "length_tokens": length, "score": score, "device": "cpu", "dtype": "float32",
        "haystack": "sea", "seed": 1, "commit": "abc", "versions": {"torch": "2"}, "status": "skipped" if score is None else "done",
    }  # fmt: skip
    return base | fields


def test_extension_methods_go_to_16k_with_the_specs_they_name() -> None:
    cards = all_cards()
    assert ruler_specs(cards["ntk"]) == {
        2048: "ntk(factor=3.0)", 4096: "ntk(factor=3.0)", 8192: "ntk(factor=3.0)", 16384: "ntk(factor=8.0)",
    }  # fmt: skip
    assert set(ruler_specs(cards["snapkv"])) == {2048, 4096}
    assert set(ruler_specs(cards["dense"])) == {2048, 4096, 8192, 16384}
    jobs = plan_ruler(["ntk", "snapkv"], 2, 1, WordTokenizer())
    counts = {length: 0 for length in (2048, 4096, 8192, 16384)}
    for job in jobs:
        counts[job.case.length_tokens] += len(job.specs)
    tasks = [name for name, entry in find_tasks().items() if entry.suite == "ruler"]
    assert len({job.case.task for job in jobs}) == len(tasks)
    assert counts[2048] == 2 * counts[8192] == 2 * counts[16384]


def test_the_suites_are_all_planned_once_a_length() -> None:
    jobs = plan_suites(None, 1, 1, WordTokenizer())
    planned = {job.case.task for job in jobs}
    assert {"ruler/vt", "facts/single", "scbench/multi_turn_kv"} <= planned
    assert "perplexity/perplexity" not in planned and len(jobs) == 4 * len(planned)
    assert len(plan_suites(["ruler/vt"], 2, 1, WordTokenizer())) == 8


def test_the_ruler_table_shows_means_and_gaps() -> None:
    rows = [
        row("dense", "ruler/vt", 2048, 1.0), row("dense", "ruler/vt", 2048, 0.5, seed=2),
        row("dense", "ruler/vt", 2048, 0.0, seed=3), row("dense", "ruler/cwe", 2048, 0.25),
        row("snapkv(keep=0.5)", "ruler/vt", 2048, 0.0), row("snapkv(keep=0.5)", "ruler/vt", 2048, 0.0, seed=2),
        row("snapkv(keep=0.5)", "ruler/cwe", 2048, 0.5), row("ntk(factor=8.0)", "ruler/vt", 16384, 1.0),
        row("dense", "ruler/fwe", 2048, None, reason="no"),
    ]  # fmt: skip
    page = ruler_section(rows)
    assert "| `dense` | `dense` | **50.0** | 75 | 25 |" in page
    assert "| `snapkv` | `snapkv(keep=0.5)` | **25.0** | 0 | 50 |" in page
    assert page.index("### 16K tokens") < page.index("| `ntk` | `ntk(factor=8.0)` | **100.0** | 100 | – |")
    assert "### 4K" not in page and "Samples a cell: 1 to 2." in page


def test_the_suites_page_says_what_the_model_cannot_do() -> None:
    rows = [row("dense", "ruler/vt", length, 1.0) for length in (512, 1024) for _ in range(10)]
    rows += [row("dense", "ruler/cwe", 1024, 0.0) for _ in range(10)]
    page = suites_page(rows)
    assert "| `vt` | tracing | high | low | 0 | 100 | 100 | can |" in page
    assert "| `cwe` | aggregation | high | high | 0 | – | 0 | cannot |" in page


def test_a_section_is_replaced_where_it_stands(tmp_path: Path) -> None:
    page = put_between("# Proof\n\ntext\n", RULER_START, RULER_END, "one")
    assert page.endswith(f"text\n\n{RULER_START}\none\n{RULER_END}\n")
    again = put_between(page + "after\n", RULER_START, RULER_END, "two")
    assert again.endswith(f"{RULER_START}\ntwo\n{RULER_END}\nafter\n") and "one" not in again
    (tmp_path / "proof.md").write_text(again)
    assert kept_section(tmp_path / "proof.md", RULER_START, RULER_END) == "two"
    assert kept_section(tmp_path / "none.md", RULER_START, RULER_END) is None


@pytest.mark.parametrize("name", sorted(all_cards()))
def test_every_claim_has_specs_for_the_table(name: str) -> None:
    card = all_cards()[name]
    assert (2048 in ruler_specs(card)) == bool(card.claim)


def test_the_positions_family_is_planned_past_the_window() -> None:
    specs = stretch_specs()
    assert list(specs)[:2] == ["dense", "truncate"] and specs["ntk"][16384] == "ntk(factor=8.0)"
    family = {name for name, card in all_cards().items() if card.family == "positions" and card.claim}
    assert family <= set(specs)
    jobs = plan_stretch(["ntk", "dense"], 2, 1, WordTokenizer())
    assert {job.case.length_tokens for job in jobs} == {8192, 16384, 32768, 65536}
    assert {job.case.depth for job in jobs if job.case.task == "ruler/niah_single_1"} == {
        0,
        0.25,
        0.5,
        0.75,
        1,
    }
    with pytest.raises(ValueError, match="'snapkv' is no method of the positions family"):
        stretch_specs(["snapkv"])


def test_the_positions_page_has_scores_and_perplexity() -> None:
    needle = "ruler/niah_single_1"
    rows = [row("dense", needle, 8192, 0.0, depth=0.0), row("ntk(factor=3.0)", needle, 8192, 1.0, depth=0.0)]
    rows += [row("ntk(factor=3.0)", needle, 8192, 0.5, depth=1.0, seed=2)]
    buckets = [[0, 4096, 9.0, 4096], [4096, 8192, 2.0, 4096]]
    rows += [row("ntk(factor=3.0)", "perplexity/perplexity", 8192, None, buckets=buckets)]
    page = stretch_page(rows)
    assert "| `ntk` | `ntk(factor=3.0)` | 75 | – | – | – | 7.4 |" in page
    assert "| `dense` | `dense` | 0 | – | – | – | – |" in page and "## 16K tokens" not in page
    figure = stretch_figure(rows)
    assert (
        figure.startswith("<svg")
        and ">needle at 100%<" in figure
        and ">50<" in figure
        and ">pi<" not in figure
    )
