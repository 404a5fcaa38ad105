"""The grid, resuming, skipping and what stands in a row, with a model that costs nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.errors import UserInputError
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.limits import Limits, free_memory, refusal
from longspan.evaluation.registry import find_task
from longspan.evaluation.results import ResultLog
from longspan.evaluation.runner import FIRST_SEED, Case, Job, Runner, Setup, grid, open_haystack
from tests.evaluation.fake_model import FakeModel

TEXT = " ".join(f"Sentence number {count} says little about the sea." for count in range(3000))
VERSIONS = {"longspan": "0.1.0", "torch": "2", "transformers": "5", "python": "3"}


def make_runner(path: Path, *, limits: Limits | None = None, **changes: Any) -> Runner:
    setup = {
        "model": "fake",
        "fingerprint": "f00d",
        "device": "cpu",
        "dtype": "float32",
        "haystack": "sea",
        "versions": VERSIONS,
        "commit": "abc",
    }
    return Runner(
        model=FakeModel(),
        haystack=Haystack(TEXT),
        setup=Setup(**(setup | changes)),
        log=ResultLog(path / "results.jsonl"),
        limits=limits or Limits(),
    )


def jobs_of(model: FakeModel, **changes: Any) -> list[Job]:
    settings: dict[str, Any] = {
        "specs": ["dense", "tail"],
        "tasks": ["niah_single_2"],
        "lengths": [600],
        "depths": [0.0, 0.5, 1.0],
        "seeds": [FIRST_SEED, FIRST_SEED + 1],
    }
    return grid(**(settings | changes), tokenizer=model.tokenizer)


def test_grid_runs_short_lengths_first_and_every_depth_with_every_seed() -> None:
    jobs = jobs_of(FakeModel(), lengths=[1200, 600], tasks=["niah_single_2", "kv64"])
    lengths = [job.case.length_tokens for job in jobs]
    assert lengths == sorted(lengths)
    assert len(jobs) == 2 * 2 * 3 * 2
    assert jobs[0] == Job(
        case=Case(task="ruler/niah_single_2", length_tokens=600, depth=0.0, seed=FIRST_SEED),
        specs=("dense", "tail"),
    )
    assert [job.case.task for job in jobs[:4]] == ["ruler/niah_single_2", "keyvalue/kv64"] * 2
    assert len({job.case for job in jobs}) == len(jobs)


def test_tasks_that_spread_their_needles_take_no_depth() -> None:
    assert [job.case.depth for job in jobs_of(FakeModel(), tasks=["vt"])] == [None, None]
    assert [job.case.depth for job in jobs_of(FakeModel(), tasks=["perplexity"])] == [None, None]
    assert [job.case.depth for job in jobs_of(FakeModel(), tasks=["niah_multivalue"])] == [None, None]


def test_samples_take_as_many_seeds_as_they_need() -> None:
    cases = [job.case for job in jobs_of(FakeModel(), samples=7, seeds=[5])]
    assert [(case.seed, case.depth) for case in cases] == [
        (5, 0.0), (5, 0.5), (5, 1.0), (6, 0.0), (6, 0.5), (6, 1.0), (7, 0.0),
    ]  # fmt: skip
    assert [job.case.seed for job in jobs_of(FakeModel(), tasks=["vt"], samples=3, seeds=[5])] == [5, 6, 7]
    assert jobs_of(FakeModel(), depths=[0.5, 0.5], seeds=[1, 1]) == jobs_of(
        FakeModel(), depths=[0.5], seeds=[1]
    )


def test_rows_hold_what_was_measured(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    rows = [outcome.row for outcome in runner.run(jobs_of(runner.model))]
    assert len(rows) == 12
    by_depth = {(row["spec"], row["depth"]): row["score"] for row in rows}
    assert by_depth == {
        ("dense", 0.0): 1.0, ("dense", 0.5): 1.0, ("dense", 1.0): 1.0,
        ("tail", 0.0): 0.0, ("tail", 0.5): 0.0, ("tail", 1.0): 1.0,
    }  # fmt: skip
    row = rows[1]
    assert (row["read_seconds"], row["prefill_seconds"], row["decode_seconds"]) == (0.5, 0.25, 0.5)
    assert row["kv_bytes"] * 3.9 < row["peak_kv_bytes"] <= row["kv_bytes"] * 4
    assert 400 < row["actual_tokens"] <= 600
    assert row["references"][0] in row["evidence"][0]
    assert row["versions"] == VERSIONS
    assert (row["suite"], row["kind"], row["commit"]) == ("ruler", "answer", "abc")


def test_each_sample_is_built_once_and_put_to_every_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(tmp_path)
    built = []
    exam_class = type(find_task("niah_single_2").exam)
    build = exam_class.build
    monkeypatch.setattr(exam_class, "build", lambda self, **case: built.append(case) or build(self, **case))
    list(runner.run(jobs_of(runner.model)))
    assert len(built) == 6
    questions = [question for _, question in runner.model.questions]
    assert questions[0::2] == questions[1::2]
    list(make_runner(tmp_path).run(jobs_of(runner.model)))
    assert len(built) == 6


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = make_runner(tmp_path)
    stopped = first.run(jobs_of(first.model))
    for _ in range(5):
        next(stopped)
    stopped.close()
    second = make_runner(tmp_path)
    outcomes = list(second.run(jobs_of(second.model)))
    assert [outcome.resumed for outcome in outcomes] == [True] * 5 + [False] * 7
    assert len(second.model.questions) == 7
    assert len(ResultLog(tmp_path / "results.jsonl").rows) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "beef"}, {"model": "other"}, {"device": "H200"}, {"dtype": "bfloat16"}, {"haystack": "land"},
        {"versions": VERSIONS | {"longspan": "0.2.0"}},
    ],
)  # fmt: skip
def test_other_settings_are_measured_again(tmp_path: Path, change: dict[str, Any]) -> None:
    first = make_runner(tmp_path)
    list(first.run(jobs_of(first.model, seeds=[1])))
    second = make_runner(tmp_path, **change)
    assert not any(outcome.resumed for outcome in second.run(jobs_of(second.model, seeds=[1])))


def test_another_seed_or_spec_is_measured_and_another_commit_is_not(tmp_path: Path) -> None:
    first = make_runner(tmp_path)
    list(first.run(jobs_of(first.model, seeds=[1], specs=["dense"])))
    second = make_runner(tmp_path, commit="def", versions=VERSIONS | {"torch": "3"})
    resumed = [
        outcome.resumed
        for outcome in second.run(jobs_of(second.model, seeds=[1, 2], specs=["dense", "tail"]))
    ]
    assert resumed == [True, False] * 3 + [False] * 6


def test_what_cannot_run_is_skipped_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    jobs = jobs_of(
        runner.model, specs=["short", "huge", "unknown"], lengths=[600, 1200], depths=[0.5], seeds=[1]
    )
    rows = [outcome.row for outcome in runner.run(jobs)]
    assert [row["status"] for row in rows] == ["done", "skipped", "skipped"] + ["skipped"] * 3
    assert rows[1]["reason"].startswith("out of memory: DefaultCPUAllocator")
    assert rows[2]["reason"] == "unknown cannot serve this model; use another"
    assert rows[3]["reason"] == "short reads at most 700 words; split the text"
    again = make_runner(tmp_path)
    assert [outcome.resumed for outcome in again.run(jobs)] == [True] + [False] * 5


def test_a_puzzle_that_does_not_fit_is_skipped_for_every_spec(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    rows = [
        outcome.row for outcome in runner.run(jobs_of(runner.model, lengths=[64], depths=[0.5], seeds=[1]))
    ]
    assert [row["status"] for row in rows] == ["skipped", "skipped"]
    assert "length_tokens is 64" in rows[0]["reason"]


def test_a_bug_is_not_taken_for_a_limit(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(runner.run(jobs_of(runner.model, specs=["dense", "broken"])))
    assert len(ResultLog(tmp_path / "results.jsonl").rows) == 1


def test_lengths_that_would_take_too_long_are_not_tried(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, limits=Limits(seconds=2.0))
    jobs = jobs_of(runner.model, lengths=[600, 900, 1200], depths=[0.5], seeds=[1], specs=["dense"])
    rows = [outcome.row for outcome in runner.run(jobs)]
    # 1.25 s at each length: 600 -> 900 predicts 1.875 s, 900 -> 1200 predicts 1.67 s.
    assert [row["status"] for row in rows] == ["done", "done", "done"]
    runner = make_runner(tmp_path, limits=Limits(seconds=2.0))
    jobs = jobs_of(runner.model, lengths=[600, 1200], depths=[0.5], seeds=[2], specs=["dense"])
    rows = [outcome.row for outcome in runner.run(jobs)]
    assert [row["status"] for row in rows] == ["done", "skipped"]
    assert rows[1]["reason"].startswith("would take at least 2 s a sample (it took 1.2 s at 600 tokens)")


def test_limits_on_memory_go_by_the_peak() -> None:
    limits = Limits(free_bytes=lambda: 10_000_000_000)
    assert limits.too_costly("dense", 4096, "answer") is None
    limits.learn(
        {"status": "done", "spec": "dense", "kind": "answer", "length_tokens": 1024, "peak_kv_bytes": 3e9}
    )
    assert limits.too_costly("dense", 2048, "answer") is None
    assert (
        limits.too_costly("dense", 4096, "answer")
        == "needs at least 12.0 GB for keys and values, 10.0 GB are free"
    )
    assert limits.too_costly("dense", 4096, "likelihood") is None
    limits.learn({"status": "skipped", "spec": "tail", "kind": "answer", "length_tokens": 1024})
    assert limits.too_costly("tail", 10**9, "answer") is None
    free = free_memory("cpu")()
    assert free is None or 10**6 < free < 10**14


def test_refusals_are_told_from_bugs() -> None:
    assert refusal(ValueError("no")) == "no"
    assert refusal(MemoryError()) == "out of memory"
    assert (
        refusal(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"))
        == "out of memory: CUDA out of memory. Tried"
    )
    assert refusal(RuntimeError("index out of range")) is None


def test_perplexity_by_position_shows_where_the_model_stops_knowing(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    jobs = jobs_of(runner.model, tasks=["perplexity"], lengths=[2048], seeds=[1], specs=["dense"])
    row = next(iter(runner.run(jobs))).row
    assert (row["kind"], row["actual_tokens"]) == ("likelihood", 2048)
    assert "score" not in row
    buckets = [(start, end, round(math.exp(nll), 3), count) for start, end, nll, count in row["buckets"]]
    # 297 against 99 others of weight 1: p = 3/4 in the first half; 1/100 after it.
    assert buckets == [(0, 512, 1.333, 511), (512, 1024, 1.333, 512), (1024, 2048, 100.0, 1024)]
    assert row["nll"] == pytest.approx((1023 * math.log(4 / 3) + 1024 * math.log(100)) / 2047, rel=1e-5)


def test_passages_are_exact_contiguous_and_never_wrap() -> None:
    exam, tokenizer = find_task("perplexity").exam, FakeModel().tokenizer
    haystack = Haystack(TEXT)
    all_ids = tokenizer.encode(TEXT)
    for seed in range(5):
        ids = exam.build(
            length_tokens=5000, depth=None, seed=seed, haystack=haystack, tokenizer=tokenizer
        ).ids
        assert len(ids) == 5000
        assert ids[0] == tokenizer.bos_token_id
        words = tokenizer.encode("".join(haystack.sentences))
        assert any(tuple(words[at + 1 : at + 4999]) == ids[2:] for at in range(len(words) - 4998))
    with pytest.raises(ValueError, match=f"has {len(all_ids):,} tokens"):
        exam.build(length_tokens=10**6, depth=None, seed=0, haystack=haystack, tokenizer=tokenizer)


def test_haystack_names_carry_a_digest_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "sea.txt").write_text(TEXT)
    name, haystack = open_haystack(str(tmp_path / "sea.txt"))
    assert name.startswith("sea.txt:") and "".join(haystack.sentences) == TEXT
    (tmp_path / "sea.txt").write_text(TEXT + " More.")
    assert open_haystack(str(tmp_path / "sea.txt"))[0] != name
    assert open_haystack("noise")[0].startswith("noise:")
    assert "One of the special magic numbers" in open_haystack("keyvalue")[1].sentences[7]
    with pytest.raises(UserInputError, match="allowed are 'pydoc', 'noise', 'keyvalue'"):
        open_haystack("pydco")


def test_a_text_too_large_to_make_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(self: Haystack, *_: Any) -> list[str]:
        raise MemoryError

    monkeypatch.setattr(Haystack, "slice", too_large)
    runner = make_runner(tmp_path)
    rows = [outcome.row for outcome in runner.run(jobs_of(runner.model, specs=["dense"])[:1])]
    assert [(row["status"], row["reason"]) for row in rows] == [("skipped", "out of memory")]
