"""The proof: every method's claim, measured on the reference model, written down whether it holds or not.

A claim (`CARD["claim"]` of a method's file) names a spec, a task, a length and a spec to compare with. It holds when
the measured accuracy is `at_least` a value, or at least `margin` above the comparison's. The verdict goes by the
measured means; "clearly" is added when the 95% interval lies wholly on that side. A claim to be no worse
than a baseline that fails itself decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longspan.card import all_cards
from longspan.errors import CardError, UserInputError, did_you_mean
from longspan.evaluation.metrics.interval import newcombe_interval
from longspan.evaluation.registry import find_task
from longspan.evaluation.results import Row
from longspan.evaluation.runner import Case, Job, grid
from longspan.evaluation.summary import Summary, summarise
from longspan.evaluation.wording import bytes_text, percent, seconds_text
from longspan.spec import canonical

__all__ = [
    "DEPTHS",
    "SAMPLES",
    "Claim",
    "Verdict",
    "chosen_claims",
    "judge",
    "load_claims",
    "plan",
    "proof_ledger",
    "proof_markdown",
]

SAMPLES = 20
"""Samples a claim where its card gives no number."""

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One method's claim; specs are canonical. See `longspan.card` for the fields."""

    method: str
    text: str
    spec: str
    task: str
    length_tokens: int
    against: str
    at_least: float | None = None
    margin: float | None = None
    samples: int = SAMPLES

    @property
    def threshold(self) -> str:
        """What is asked for, in words."""
        if self.at_least is not None:
            return f"at least {percent(self.at_least)}"
        assert self.margin is not None
        if self.margin == 0:
            return f"no lower than {self.against}"
        points = abs(self.margin) * 100
        if self.margin < 0:
            return f"at most {points:g} points below {self.against}"
        return f"at least {points:g} points above {self.against}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with what was measured.

    Attributes:
        claim: the claim.
        measured, baseline: over the samples that both specs answered; None without any.
        holds: None when there is no verdict.
        clearly: the 95% interval agrees with `holds` as a whole.
        reason: why there is none.
    """

    claim: Claim
    measured: Summary | None = None
    baseline: Summary | None = None
    holds: bool | None = None
    clearly: bool = False
    reason: str = ""

    @property
    def words(self) -> str:
        """The verdict in words."""
        if self.holds is None:
            return self.reason
        return ("holds" if self.holds else "does not hold") + (", clearly" if self.clearly else "")


def load_claims() -> tuple[list[Claim], list[str]]:
    """Claims of all methods, and the names of the methods that claim nothing.

    Raises:
        CardError: a claim's specs or task cannot be used; names the method.
    """
    claims, silent = [], []
    for name, card in all_cards().items():
        if not card.claim:
            silent.append(name)
            continue
        fields = {key: value for key, value in card.claim.items() if key != "reach"}
        try:
            fields["spec"], fields["against"] = canonical(fields["spec"]), canonical(fields["against"])
            entry = find_task(fields["task"])
        except ValueError as error:
            raise CardError(f"CARD['claim'] of {name}: {error}") from error
        fields["task"] = entry.name
        if entry.exam.kind != "answer":
            raise CardError(
                f"CARD['claim'] of {name}: task {entry.name!r} has no accuracy; claim one that has answers"
            )
        claims.append(Claim(method=name, **fields))
    return claims, silent


def chosen_claims(claims: Sequence[Claim], methods: Sequence[str] | None) -> list[Claim]:
    """Those of these methods, all where none is named.

    Raises:
        UserInputError: one of the names has no claim.
    """
    names = {claim.method for claim in claims}
    for name in methods or []:
        if name not in names:
            raise UserInputError(f"--methods {name!r} is no method with a claim; {did_you_mean(name, names)}")
    return [claim for claim in claims if not methods or claim.method in methods]


def plan(
    claims: Sequence[Claim], seeds: Sequence[int], tokenizer: Any, samples: int | None = None
) -> list[Job]:
    """Jobs that measure all claims, every sample built once for all claims on the same task and length.

    Args:
        claims: what to measure.
        seeds: first seeds; more are counted up from the last as needed.
        tokenizer: of the reference model.
        samples: samples a claim; None: each claim's own number.
    """
    jobs = []
    for task, length in sorted(
        {(claim.task, claim.length_tokens) for claim in claims}, key=lambda pair: (pair[1], pair[0])
    ):
        here = [claim for claim in claims if (claim.task, claim.length_tokens) == (task, length)]
        most = samples or max(claim.samples for claim in here)
        cases = grid(
            specs=(),
            tasks=[task],
            lengths=[length],
            depths=DEPTHS,
            seeds=seeds,
            tokenizer=tokenizer,
            samples=most,
        )
        for count, job in enumerate(cases):
            wanting = [claim for claim in here if count < (samples or claim.samples)]
            specs = dict.fromkeys(spec for claim in wanting for spec in (claim.against, claim.spec))
            jobs.append(Job(case=job.case, specs=tuple(specs)))
    return jobs


def judge(claim: Claim, rows: Sequence[Row], samples: int | None = None) -> Verdict:
    """Hold a claim against rows.

    Args:
        claim: the claim.
        rows: all rows of the proof.
        samples: as in `plan`; only that many of the task's samples count.

    Returns:
        The verdict, over the samples that both specs answered.
    """
    wanted = samples or claim.samples
    mine = _by_case(claim, claim.spec, rows, wanted)
    theirs = _by_case(claim, claim.against, rows, wanted)
    for spec, found in ((claim.spec, mine), (claim.against, theirs)):
        skipped = next((row["reason"] for row in found.values() if row["status"] == "skipped"), None)
        if skipped is not None:
            return Verdict(claim=claim, reason=f"not measured: {spec}: {skipped}")
    both = [case for case in mine if case in theirs and mine[case].get("score") is not None]
    if len(both) < wanted:
        return Verdict(claim=claim, reason=f"not measured: {len(both)} of {wanted} samples are there")
    measured = summarise([mine[case] for case in both])[0]
    baseline = summarise([theirs[case] for case in both])[0]
    assert measured.accuracy is not None and measured.interval is not None and baseline.accuracy is not None
    if claim.at_least is not None:
        gained, needed, interval = measured.accuracy, claim.at_least, measured.interval
    else:
        assert claim.margin is not None
        gained, needed = measured.accuracy - baseline.accuracy, claim.margin
        interval = newcombe_interval(measured.accuracy, len(both), baseline.accuracy, len(both))
        if baseline.accuracy <= -claim.margin:
            reached = percent(baseline.accuracy)
            reason = f"decides nothing: {claim.against} reaches {reached}, so any spec would pass"
            return Verdict(claim=claim, measured=measured, baseline=baseline, reason=reason)
    holds = gained >= needed - 1e-9
    clearly = interval[0] >= needed if holds else interval[1] < needed
    return Verdict(claim=claim, measured=measured, baseline=baseline, holds=holds, clearly=clearly)


def _by_case(claim: Claim, spec: str, rows: Sequence[Row], most: int) -> dict[Case, Row]:
    found: dict[Case, Row] = {}
    for row in rows:
        if (row["task"], row["length_tokens"], row["spec"]) == (claim.task, claim.length_tokens, spec):
            case = Case(
                task=claim.task, length_tokens=claim.length_tokens, depth=row["depth"], seed=row["seed"]
            )
            if case in found or len(found) < most:
                found[case] = row
    return found


def proof_ledger(verdicts: Sequence[Verdict], silent: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """The ledger as plain values: `rows`, texts of each method; `numbers`, figures by method; `settings`."""
    lines: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {}
    for verdict in verdicts:
        claim = verdict.claim
        lines.append(
            {
                "method": claim.method,
                "claim": claim.text,
                "spec": claim.spec,
                "task": f"{claim.task}, {claim.length_tokens:,} tokens",
                "asked": claim.threshold,
                "measured": _accuracy(verdict.measured),
                "against": f"{claim.against}: {_accuracy(verdict.baseline)}",
                "verdict": verdict.words,
                **_costs(verdict.measured),
            }
        )
        sides = {"measured": verdict.measured, "baseline": verdict.baseline}
        found = {name: side and side.as_dict() for name, side in sides.items()}
        numbers[claim.method] = {"holds": verdict.holds, "clearly": verdict.clearly, **found}
    return {"settings": _settings(rows), "rows": lines, "numbers": numbers, "without_a_claim": list(silent)}


def proof_markdown(
    verdicts: Sequence[Verdict], silent: Sequence[str], rows: Sequence[Row], command: str
) -> str:
    """The ledger as a page."""
    held = sum(verdict.holds is True for verdict in verdicts)
    failed = sum(verdict.holds is False for verdict in verdicts)
    lines = [
        "# Proof",
        "",
        "Every method's claim from its paper, restated as a check on the reference model.",
        f"Generated by `{command}`; do not edit.",
        "",
        f"{held} hold, {failed} do not hold, {len(verdicts) - held - failed} without a verdict, "
        f"{len(silent)} without a claim.",
        "Verdicts go by measured means; *clearly*: the 95% interval lies wholly on that side.",
        "Seconds are the median from text to first token; bytes are keys and values held after reading, measured",
        "from storage.",
        "",
        "| method | claim | spec | task | asked | measured (95%) | against | verdict | seconds | KV bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        claim = verdict.claim
        costs = _costs(verdict.measured)
        against = f"`{claim.against}`: {_accuracy(verdict.baseline)}"
        cells = [
            f"`{claim.method}`",
            claim.text,
            f"`{claim.spec}`",
            f"{claim.task}, {claim.length_tokens:,} tokens",
        ]
        cells += [claim.threshold, _accuracy(verdict.measured), against, verdict.words]
        cells += [costs["prefill"], costs["kv_held"]]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    if silent:
        lines += ["", "Without a claim: " + ", ".join(f"`{name}`" for name in silent) + "."]
    settings = [f"- {name}: {', '.join(values)}" for name, values in _settings(rows).items()]
    return "\n".join([*lines, "", "## Measured with", "", *settings]) + "\n"


def _settings(rows: Sequence[Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        values: Mapping[str, Any] = {
            name: row[name] for name in ("model", "fingerprint", "device", "dtype", "haystack", "commit")
        }
        for name, value in {**values, **row["versions"]}.items():
            if value is not None and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return found


def _accuracy(summary: Summary | None) -> str:
    if summary is None or summary.interval is None:
        return "–"
    low, high = summary.interval
    return f"{percent(summary.accuracy)} ({percent(low)} to {percent(high)}, n={summary.num_samples})"


def _costs(summary: Summary | None) -> dict[str, str]:
    if summary is None:
        return {"prefill": "–", "decode": "–", "kv_held": "–", "kv_peak": "–"}
    return {
        "prefill": seconds_text(summary.prefill_seconds),
        "decode": seconds_text(summary.decode_seconds),
        "kv_held": bytes_text(summary.kv_bytes),
        "kv_peak": bytes_text(summary.peak_kv_bytes),
    }
