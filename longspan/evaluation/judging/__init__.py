"""Grades for what has no exact answer: by a judge model whose own error rate is measured, or without one.

judge = open_judge("http://127.0.0.1:8000/v1#my-model")
print(calibration_table([error_rate(judge, labelled_facts(200))]))
print(grade_open("Dora Harker keeps it.", ["Dora Harker"], {"question": "Who keeps the lantern?"}, judge))
"""

from longspan.evaluation.judging.answers import judge_answer
from longspan.evaluation.judging.calibration import Calibration, calibration_table, error_rate, error_rate_of
from longspan.evaluation.judging.claims import ClaimReport, coverage, faithfulness, split_claims
from longspan.evaluation.judging.endpoint import EndpointJudge
from longspan.evaluation.judging.fallbacks import Constraints, keyword_recall, rouge
from longspan.evaluation.judging.grading import grade_open, open_metric
from longspan.evaluation.judging.judge import Judge, LocalJudge, open_judge
from longspan.evaluation.judging.labelled import LabelledPair, labelled_facts, read_labelled
from longspan.evaluation.judging.pairwise import OpenQuestion, PairwiseReport, compare, compare_all
from longspan.evaluation.judging.rubric import RUBRICS, Check, Rubric, RubricGrade, fit_weights, grade_rubric

__all__ = [
    "RUBRICS",
    "Calibration",
    "Check",
    "ClaimReport",
    "Constraints",
    "EndpointJudge",
    "Judge",
    "LabelledPair",
    "LocalJudge",
    "OpenQuestion",
    "PairwiseReport",
    "Rubric",
    "RubricGrade",
    "calibration_table",
    "compare",
    "compare_all",
    "coverage",
    "error_rate",
    "error_rate_of",
    "faithfulness",
    "fit_weights",
    "grade_open",
    "grade_rubric",
    "judge_answer",
    "keyword_recall",
    "labelled_facts",
    "open_judge",
    "open_metric",
    "read_labelled",
    "rouge",
    "split_claims",
]
