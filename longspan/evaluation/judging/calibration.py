"""How often a judge errs, measured on answers whose label is known. A score by a judge means little without it.

    accuracy = verdicts that equal the label;  false accept = wrong answers called correct;  false reject = right ones called wrong

Each is a share of the verdicts that could be read, with Wilson's 95% interval; illegible replies are a share of all.

Papers: *Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena*, 2023 (position bias); Wilson, *Probable inference, the law
of succession, and statistical inference*, 1927.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longspan.errors import UserInputError
from longspan.evaluation.judging.answers import judge_answer
from longspan.evaluation.judging.judge import Judge
from longspan.evaluation.judging.labelled import LabelledPair
from longspan.evaluation.metrics.interval import wilson_interval
from longspan.evaluation.wording import percent

__all__ = ["Calibration", "Share", "calibration_table", "error_rate", "error_rate_of"]

Decide = Callable[[LabelledPair], bool | None]


@dataclass(frozen=True, kw_only=True)
class Share:
    """`count` of `total`."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """The share, in [0, 1]; None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share; (0, 1) of nothing."""
        return wilson_interval(self.value or 0.0, self.total)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A judge's errors.

    accuracy, false_accept, false_reject: among legible verdicts, all of them, those on wrong and those on right answers.
    flips: verdicts that change when reference and answer swap places, among pairs legible both ways; nothing is counted
    where there was one order only. unparsable: illegible replies, in whatever order, among all replies.
    by_kind: errors by the kind of answer.
    """

    name: str
    accuracy: Share
    false_accept: Share
    false_reject: Share
    flips: Share
    unparsable: Share
    by_kind: dict[str, Share]


def error_rate(judge: Judge, pairs: Sequence[LabelledPair], *, swap: bool = True) -> Calibration:
    """Put every labelled pair to a judge.

    Args:
        pairs: see `labelled_facts` and `read_labelled`.
        swap: also ask with the answer before the reference, to count flips (twice the replies); the verdict that counts
            as the judge's is that with the reference first.

    Raises:
        ValueError: there is no pair, or the judge cannot be reached.
    """

    def decide(reference_first: bool) -> Decide:
        return lambda pair: judge_answer(
            judge, pair.question, [pair.reference], pair.prediction, reference_first=reference_first
        )

    return error_rate_of(judge.name, pairs, decide(True), decide(False) if swap else None)


def error_rate_of(
    name: str, pairs: Sequence[LabelledPair], decide: Decide, decide_swapped: Decide | None = None
) -> Calibration:
    """Errors of any way to decide whether an answer is right, such as a threshold on a deterministic score.

    Args:
        name: shown in tables.
        decide: True, False, or None when it cannot tell.
        decide_swapped: the same with reference and answer in the other order.
    """
    if not pairs:
        raise UserInputError(
            "there is no labelled pair to measure a judge by; give some, or use labelled_facts(200)"
        )
    first = [decide(pair) for pair in pairs]
    second = [decide_swapped(pair) for pair in pairs] if decide_swapped is not None else []
    read = [(pair, called) for pair, called in zip(pairs, first, strict=True) if called is not None]
    both = [
        (one, two) for one, two in zip(first, second, strict=False) if one is not None and two is not None
    ]
    return Calibration(
        name=name,
        accuracy=_share(called == pair.label for pair, called in read),
        false_accept=_share(called for pair, called in read if not pair.label),
        false_reject=_share(not called for pair, called in read if pair.label),
        flips=_share(one != two for one, two in both),
        unparsable=_share(called is None for called in [*first, *second]),
        by_kind={
            kind: _share(called != pair.label for pair, called in read if pair.kind == kind)
            for kind in dict.fromkeys(pair.kind for pair in pairs)
        },
    )


def _share(hits: Iterable[bool]) -> Share:
    listed = list(hits)
    return Share(count=sum(listed), total=len(listed))


def calibration_table(rows: Sequence[Calibration]) -> str:
    """A Markdown table, one row a judge, with 95% intervals; a dash where nothing was counted."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.by_kind))
    heads = [
        "judge",
        "accuracy",
        "false accept",
        "false reject",
        "flips",
        "illegible",
        *(f"{kind}: wrong" for kind in kinds),
    ]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in rows:
        measured = [row.accuracy, row.false_accept, row.false_reject]
        plain = [
            row.flips,
            row.unparsable,
            *(row.by_kind.get(kind, Share(count=0, total=0)) for kind in kinds),
        ]
        lines.append(
            _line([row.name, *map(_with_interval, measured), *(percent(share.value) for share in plain)])
        )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(share: Share) -> str:
    if share.value is None:
        return percent(None)
    low, high = share.interval
    return f"{percent(share.value)} ({percent(low)}–{percent(high)})"
