"""The report's parts that read several specs at once: lengths, pairs, the matrix, the samples."""

from __future__ import annotations

import re

import pytest

from longspan.evaluation.report.heatmap import heatmaps
from longspan.evaluation.report.matrix import task_matrix
from longspan.evaluation.report.samples import MAX_SAMPLES, sample_list
from longspan.evaluation.report.trend import effective_table, score_lines, task_lines
from longspan.evaluation.report.versus import paired_section
from longspan.evaluation.summary import summarise_lengths
from tests.evaluation.result_rows import likelihood, row


def test_evidence_of_unasked_depth_is_placed_by_quarters() -> None:
    rows = [row(depth=None, depths=[0.3]), row(depth=None, depths=[0.1, 0.9], score=0.0)]
    drawn = heatmaps(rows)
    assert re.findall(r'class="cell">(\d+)<', drawn) == ["100", "0"]
    assert "depth 25%" in drawn and "depth spread" in drawn
    assert heatmaps(rows[1:]) == ""


def test_score_by_length_and_effective_length() -> None:
    rows = [
        row(task=task, length_tokens=length, score=score)
        for task, scores in {"vt": (1.0, 0.9, 0.2), "kv": (1.0, 0.9, 1.0)}.items()
        for length, score in zip((1024, 2048, 4096), scores, strict=True)
    ] + [row(task="cwe", length_tokens=4096), row("tail", score=0.0, length_tokens=1024)]
    dense, tail = summarise_lengths(rows)
    assert dense.scores == {1024: 1.0, 2048: 0.9, 4096: 0.6}
    assert (dense.tasks, dense.left_out) == (("vt", "kv"), ("cwe",))
    assert (dense.effective_tokens, dense.effective_relative_tokens) == (2048, 2048)
    assert dense.rising_average == pytest.approx((1 * 1.0 + 2 * 0.9 + 3 * 0.6) / 6)
    assert (tail.effective_tokens, tail.effective_relative_tokens) == (None, 1024)
    drawn = score_lines(rows)
    assert (drawn.count("<figure>"), drawn.count("<circle"), drawn.count("whisker")) == (1, 4, 4)
    # cwe was run at one length only, which makes no line.
    assert task_lines(rows).count("<figure>") == 2
    table = effective_table(rows)
    assert "<td>2K</td><td>2K</td>" in table and "fails already" in table and "≥ 1K" in table
    assert "dense: cwe" in table
    stopped = [*rows, row(task="vt", length_tokens=8192)]
    dense = summarise_lengths(stopped)[0]
    assert (list(dense.scores), dense.left_out, dense.left_out_tokens) == (
        [1024, 2048, 4096],
        ("cwe",),
        (8192,),
    )
    assert "dense: cwe, 8K tokens" in effective_table(stopped)
    assert score_lines([row()]) == effective_table([row()]) == task_lines([row()]) == ""


def test_specs_are_compared_on_the_same_samples() -> None:
    rows = [row(seed=seed, score=float(seed < 8)) for seed in range(8)]
    rows += [row("tail", seed=seed, score=float(seed == 9)) for seed in range(9)]
    shown = paired_section(rows)
    assert "<code>tail</code> minus <code>dense</code>" in shown
    assert "<strong>−100</strong></td><td>0.0078</td>" in shown
    assert "1 of vt: not measured with dense" in shown
    assert paired_section(rows[:8]) == paired_section([]) == ""


def test_matrix_has_a_cell_a_task_and_spec_by_suite() -> None:
    rows = [
        row(task="ruler/vt", ability="tracing", diffusion="high", scope="low"),
        row("tail", task="ruler/vt", score=0.25),
        row(task="facts/single", ability="retrieval", diffusion="low", scope="low"),
        row("tail", task="facts/single", status="skipped", reason="<too> long", score=None),
    ]
    shown = task_matrix(rows)
    assert re.findall(r'data-value="([^"]*)"', shown) == ["1", "0.25", "1", "-1"]
    assert re.findall(r'class="group"><th[^>]*>(\w+)<', shown) == ["ruler", "facts"]
    assert "<td>tracing</td><td>high</td><td>low</td>" in shown and "&lt;too&gt; long" in shown
    assert "ability" not in task_matrix([row()])
    assert task_matrix([likelihood("dense", 3.0)]) == ""


def test_samples_show_the_worst_first_and_mark_the_evidence() -> None:
    fields = {
        "question": "Who <keeps> it?",
        "references": ["Ann"],
        "excerpt": [["a & b ", "Ann keeps it.", " c"]],
    }
    rows = [
        row(seed=1, prediction="Ann", **fields),
        row("tail", seed=1, prediction="Bob", score=0.0, **fields),
    ]
    rows += [
        row(seed=2, prediction=" ", score=0.0, **fields),
        row(seed=3, prediction="Ann or", score=0.5, **fields),
    ]
    rows += [row(seed=4, prediction="Ann", **fields), row(seed=5)]
    shown = sample_list(rows)
    assert re.findall(r"seed (\d)<", shown) == ["2", "1", "3", "4"]
    assert "a &amp; b <mark>Ann keeps it.</mark> c" in shown and "Who &lt;keeps&gt; it?" in shown
    assert re.findall(r'class="verdict (\w+)"', shown) == ["wrong", "right", "wrong", "partly", "right"]
    assert "<i>nothing</i>" in shown and "◐ 50%" in shown
    assert "4 samples, 3 of them" in shown and "left out" not in shown
    many = [row(seed=seed, prediction="x" * 2000, **fields) for seed in range(MAX_SAMPLES + 7)]
    shown = sample_list(many)
    assert shown.count("<details") == MAX_SAMPLES and "7 more are left out" in shown
    assert "(500 characters more)" in shown
    assert sample_list([row()]) == ""
