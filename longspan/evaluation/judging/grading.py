"""One entry to grade what has no exact answer: by a judge where there is one, else by a deterministic score that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longspan.errors import UserInputError, did_you_mean
from longspan.evaluation.judging.answers import judge_answer
from longspan.evaluation.judging.claims import coverage, faithfulness
from longspan.evaluation.judging.fallbacks import Constraints, keyword_recall, rouge
from longspan.evaluation.judging.judge import Judge
from longspan.evaluation.judging.rubric import grade_rubric, open_rubric

__all__ = ["GRADINGS", "grade_open", "open_metric"]

GRADINGS = ("answer", "rubric", "claims", "coverage")


def grade_open(
    prediction: str, references: Sequence[str], details: Mapping[str, Any], judge: Judge | None = None
) -> dict[str, Any]:
    """Grade one open answer. `open_metric` is the same in numbers only, as metrics are.

    Args:
        references: right answers, or reference summaries, of which the first counts for coverage.
        details: what else is known. "grading" says how a judge grades: "answer" (default: right or wrong; needs
            references), "rubric" ("rubric": a built-in rubric's name, or a list of questions; default "answer"), "claims"
            (faithfulness to "source") or "coverage" (of "key_facts", or of the first reference). "question" is what was
            asked. Without a judge, "constraints" are checked, or "keywords" looked for, or ROUGE-L taken over the
            references, whichever of the three is there first.
        judge: who grades; None takes the deterministic score.

    Returns:
        "score" in [0, 1]; "by": "judge NAME", or "fallback constraints", "fallback keywords" or "fallback rouge-l". With a
        judge also "unparsable": how many of its verdicts could not be read. When none could, the score is the fallback's,
        and "by" says so.

    Raises:
        ValueError: details lack what the grading needs, or the judge cannot be reached.
    """
    if judge is None:
        return _fallback(prediction, references, details)
    score, unparsable = _judged(judge, prediction, references, details)
    if score is not None:
        return {"score": score, "by": f"judge {judge.name}", "unparsable": unparsable}
    if not unparsable:
        # An empty summary makes no claim, so there is nothing to be faithful to.
        return {"score": 0.0, "by": f"judge {judge.name}", "unparsable": 0}
    if not (references or details.get("constraints") or details.get("keywords")):
        raise UserInputError(
            f"the reply of the judge {judge.name} could not be read, and there is nothing to grade by "
            "instead; give references, keywords or constraints, or use a better judge"
        )
    return {**_fallback(prediction, references, details), "unparsable": unparsable}


def open_metric(
    prediction: str, references: Sequence[str], details: Mapping[str, Any], judge: Judge | None = None
) -> dict[str, float]:
    """`grade_open` as a metric: bind the judge with `functools.partial(open_metric, judge=judge)`.

    Returns:
        "score" in [0, 1]; "by_judge": 1 where the judge gave it, 0 where the fallback did, so that its mean is the share
        graded by the judge; "unparsable": verdicts that could not be read.
    """
    grade = grade_open(prediction, references, details, judge)
    return {
        "score": float(grade["score"]),
        "by_judge": float(grade["by"].startswith("judge ")),
        "unparsable": float(grade.get("unparsable", 0)),
    }


def _judged(
    judge: Judge, prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> tuple[float | None, int]:
    """The judge's score, None where nothing could be read, and how many verdicts could not be."""
    grading = details.get("grading", "answer")
    question = str(details.get("question", ""))
    if grading == "answer":
        called = judge_answer(judge, question, references, prediction)
        return (None, 1) if called is None else (float(called), 0)
    if grading == "rubric":
        grade = grade_rubric(judge, open_rubric(details.get("rubric", "answer")), question, prediction)
        return grade.score, grade.unparsable
    if grading == "claims":
        report = faithfulness(judge, prediction, str(details.get("source", "")))
        return report.score, report.unparsable
    if grading == "coverage":
        reference = references[0] if references else ""
        report = coverage(judge, prediction, reference, key_facts=details.get("key_facts"))
        return report.score, report.unparsable
    raise UserInputError(f"got grading={grading!r}; {did_you_mean(str(grading), GRADINGS)}")


def _fallback(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, Any]:
    constraints = details.get("constraints")
    if constraints:
        asked = constraints if isinstance(constraints, Constraints) else Constraints.of(constraints)
        return {"score": asked.score(prediction), "by": "fallback constraints"}
    if details.get("keywords"):
        return {"score": keyword_recall(prediction, details["keywords"]), "by": "fallback keywords"}
    return {"score": rouge(prediction, references), "by": "fallback rouge-l"}
