"""Claims are measured on equal samples, and recorded whether they hold or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longspan.errors import CardError
from longspan.evaluation import proof
from longspan.evaluation.proof import Claim, judge, load_claims, plan, proof_ledger, proof_markdown
from tests.evaluation.test_runner import make_runner


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {
        "method": "tail",
        "text": "Keeps the | answers.",
        "spec": "tail",
        "task": "ruler/niah_single_2",
        "length_tokens": 600,
        "against": "dense",
        "at_least": 0.15,
        "samples": 10,
    }
    return Claim(**(fields | changes))


def prove(path: Path, claims: list[Claim], samples: int | None = None) -> tuple[list[Any], list[Any]]:
    runner = make_runner(path)
    jobs = plan(claims, [1], runner.model.tokenizer, samples)
    rows = [outcome.row for outcome in runner.run(jobs)]
    return [judge(one, rows, samples) for one in claims], rows


def test_a_plan_builds_each_sample_once_for_all_claims_on_it() -> None:
    claims = [
        claim(),
        claim(method="short", spec="short", samples=4),
        claim(task="ruler/vt", length_tokens=900, samples=2),
    ]
    jobs = plan(claims, [1], make_runner(Path()).model.tokenizer)
    assert [job.case.task for job in jobs] == ["ruler/niah_single_2"] * 10 + ["ruler/vt"] * 2
    assert [job.specs for job in jobs[3:5]] == [("dense", "tail", "short"), ("dense", "tail")]
    assert [job.case.depth for job in jobs[:6]] == [0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
    assert len(plan(claims, [1], make_runner(Path()).model.tokenizer, samples=3)) == 6


def test_verdicts_follow_the_measured_means(tmp_path: Path) -> None:
    # The tail holds the last quarter of the text: of the five depths, the last alone, and at times the one before.
    verdicts, _ = prove(
        tmp_path,
        [
            claim(),
            claim(at_least=0.9),
            claim(at_least=None, margin=-0.9),
            claim(at_least=None, margin=0.05),
            claim(spec="dense", at_least=1.0),
        ],
    )
    measured = verdicts[0].measured.accuracy
    assert 0.2 <= measured <= 0.4
    assert verdicts[0].baseline.accuracy == 1.0
    assert [verdict.holds for verdict in verdicts] == [True, False, True, False, True]
    assert verdicts[1].clearly and verdicts[1].words == "does not hold, clearly"
    assert not verdicts[4].clearly and verdicts[4].words == "holds"
    assert verdicts[2].claim.threshold == "at most 90 points below dense"


def test_no_worse_than_a_baseline_that_fails_decides_nothing(tmp_path: Path) -> None:
    verdicts, _ = prove(
        tmp_path,
        [
            claim(spec="tail", against="tail", at_least=None, margin=-0.5),
            claim(spec="tail", against="tail", at_least=None, margin=0.0),
        ],
    )
    assert verdicts[0].holds is None
    assert verdicts[0].words.startswith("decides nothing: tail reaches ")
    assert verdicts[1].holds is True
    assert verdicts[1].claim.threshold == "no lower than tail"


def test_what_was_not_measured_says_why(tmp_path: Path) -> None:
    claims = [claim(spec="short", length_tokens=1200, samples=2), claim(samples=20)]
    verdicts, rows = prove(tmp_path, claims)
    assert verdicts[0].holds is None
    assert verdicts[0].words == "not measured: short: short reads at most 700 words; split the text"
    assert judge(claims[1], rows[:9]).words.endswith("of 20 samples are there")


def test_the_ledger_says_all_and_the_page_shows_it(tmp_path: Path) -> None:
    claims = [
        claim(),
        claim(method="proud", at_least=0.9),
        claim(method="short", spec="short", length_tokens=1200, samples=1),
    ]
    verdicts, rows = prove(tmp_path, claims)
    ledger = proof_ledger(verdicts, ["dense"], rows)
    assert [row["method"] for row in ledger["rows"]] == ["tail", "proud", "short"]
    assert ledger["numbers"]["proud"]["holds"] is False
    assert ledger["numbers"]["proud"]["measured"]["num_samples"] == 10
    assert ledger["numbers"]["short"] == {"holds": None, "clearly": False, "measured": None, "baseline": None}
    assert ledger["without_a_claim"] == ["dense"]
    assert ledger["settings"]["fingerprint"] == ["f00d"]
    page = proof_markdown(verdicts, ["dense"], rows, "longspan bench --proof")
    assert "1 hold, 1 do not hold, 1 without a verdict, 1 without a claim." in page
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [11] * 3
    assert "Keeps the \\| answers." in lines[0]
    assert "does not hold, clearly" in lines[1]
    assert "- python: 3" in page


def test_claims_come_from_the_cards_with_canonical_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {
        "text": "t",
        "spec": " dense ",
        "task": "vt",
        "length_tokens": 512,
        "against": "",
        "margin": -0.02,
    }
    cards = {"one": SimpleNamespace(claim=full), "two": SimpleNamespace(claim={})}
    monkeypatch.setattr(proof, "all_cards", lambda: cards)
    claims, silent = load_claims()
    assert claims == [
        Claim(
            method="one",
            text="t",
            spec="dense",
            task="ruler/vt",
            length_tokens=512,
            against="dense",
            margin=-0.02,
        )
    ]
    assert claims[0].samples == proof.SAMPLES
    assert silent == ["two"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "vtt"}, "of one: there is no task 'vtt'"),
        ({"task": "perplexity"}, "of one: task 'perplexity/perplexity' has no accuracy"),
        ({"spec": "densse"}, "of one: there is no method 'densse'"),
    ],
)
def test_a_claim_that_cannot_be_measured_names_its_method(
    change: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "text": "t",
        "spec": "dense",
        "task": "vt",
        "length_tokens": 512,
        "against": "",
        "at_least": 0.5,
    }
    monkeypatch.setattr(proof, "all_cards", lambda: {"one": SimpleNamespace(claim=fields | change)})
    with pytest.raises(CardError, match=sentence):
        load_claims()
