"""Choices, labels and code, on cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.evaluation.metrics import Metric, choice, code, grade
from longspan.evaluation.metrics.choice_labels import BABI_LABELS, babilong, babilong_fixed


def score(metric: Metric, prediction: str, *references: str, **details: Any) -> float:
    return grade(metric, prediction, references, details)["score"]


def test_classification_shares_the_point_among_named_classes() -> None:
    classes = ["Food", "Other food", "Date"]
    assert score(choice.classification, "Date", "Date", all_classes=classes) == 1
    assert score(choice.classification, "Food or Date", "Date", all_classes=classes) == 0.5
    assert score(choice.classification, "Food", "Date", all_classes=classes) == 0
    assert score(choice.classification_first_line, "Date\nFood", "Date", all_classes=classes) == 1
    with pytest.raises(ValueError, match="all_classes"):
        choice.classification("x", ["x"], {})


def test_classification_passes_over_a_class_after_a_dropped_one() -> None:
    # "ab" and "b" are parts of "abc"; dropping "ab" hides "b" from the official loop.
    classes = ["ab", "b", "abc"]
    assert score(choice.classification, "abc", "abc", all_classes=classes) == 0.5
    assert score(choice.classification_fixed, "abc", "abc", all_classes=classes) == 1


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "wanted"),
    [
        (choice.longbench_v2_choice, "**The correct answer is (B)**", ("B",), 1),
        (choice.longbench_v2_choice, "The correct answer is B.", ("B",), 1),
        (choice.longbench_v2_choice, "(B)", ("B",), 0),
        (choice.longbook_choice, "B. a ship", ("a ship", "B"), 1),
        (choice.longbook_choice, "the answer is: a ship", ("a ship", "B"), 1),
        (choice.longbook_choice, "the answer is D", ("a ship", "B"), 0),
        (choice.longbook_choice, "it must be B then", ("a ship", "B"), 1),
        (choice.longbook_choice, "", ("a ship", "B"), 0),
        (choice.longbook_choice, "Both, so B", ("a ship", "C"), 0),
        (choice.exam_letter, "(C) because", ("C",), 1),
        (choice.exam_letter, "Because it is C", ("C",), 0),
        (choice.exam_letter, "", ("C",), 0),
        (choice.exam_letter, "it is x", ("A",), 1),
        (choice.exam_letters, "DBA", ("ABD",), 1),
        (choice.exam_letters, "A. and B) fit", ("AB",), 1),
        (choice.exam_letters, "B", ("AB",), 0.25),
        (choice.exam_letters, "C", ("AB",), 0),
        (choice.exam_letters, "we take CD", ("CD",), 1),
        (choice.topic_retrieval, "The first topic is the Role of Art.", ("role of art",), 1),
        (choice.topic_retrieval, "5.0", ("5",), 1),
        (choice.option_letter, '{"option": "C"}', ("C",), 1),
        (choice.option_letter, "Option (B) is right, not A", ("B",), 1),
        (choice.option_letter, "none", ("B",), 0),
        (
            choice.true_or_false,
            "<explanation>false at first</explanation><answer>TRUE</answer>",
            ("True",),
            1,
        ),
        (choice.true_or_false, "It is not true, so: false", ("False",), 1),
        (choice.true_or_false, "untrue", ("True",), 0),
    ],
)
def test_choices(metric: Metric, prediction: str, references: tuple[str, ...], wanted: float) -> None:
    assert score(metric, prediction, *references) == wanted


def test_sci_fi_has_two_verdicts() -> None:
    assert choice.sci_fi("True. [Fact: it is false]", ["True [fact: False]"], {}) == {
        "score": 1.0,
        "loyalty": 1.0,
        "fact": 1.0,
    }
    assert grade(choice.sci_fi, "True", ["True [fact: False]"])["score"] == 0.5


def test_pairs_need_both_claims() -> None:
    assert choice.pair_accuracy([("a", 1.0), ("b", 1.0), ("a", 1.0), ("b", 0.0)]) == 0.5
    with pytest.raises(ValueError, match="both claims"):
        choice.pair_accuracy([("a", 1.0)])


def test_babilong_takes_labels_that_the_question_does_not_name() -> None:
    where = {"task": "qa1", "question": "Where is the football?"}
    assert score(babilong, "In the garden. Or the kitchen.", "garden", **where) == 1
    assert score(babilong, "garden or kitchen", "garden", **where) == 0
    asked = {"task": "qa3", "question": "Where was it before the kitchen?"}
    assert score(babilong, "Before the kitchen it was in the office", "office", **asked) == 1
    both = {"task": "qa8", "question": "What does she carry?"}
    assert score(babilong, "milk and apple", "apple,milk", **both) == 1
    assert score(babilong, "apple", "apple,milk", **both) == 0
    assert score(babilong, "s,w", "s,w", task="qa19", question="How?") == 1


def test_babilong_fixed_reads_whole_words_and_stops_at_the_next_question() -> None:
    details = {"task": "qa6", "question": "Is he here?"}
    assert score(babilong, "I know: yes", "yes", **details) == 0
    assert score(babilong_fixed, "I know: yes", "yes", **details) == 1
    where = {"task": "qa1", "question": "Where is he?"}
    assert score(babilong, "garden Question: is he in the office", "garden", **where) == 0
    assert score(babilong_fixed, "garden Question: is he in the office", "garden", **where) == 1


def test_babilong_needs_its_details() -> None:
    assert set(BABI_LABELS) == {f"qa{number}" for number in range(1, 21)}
    with pytest.raises(ValueError, match="qa1 to qa20"):
        babilong("x", ["x"], {"task": "qa21", "question": "?"})
    with pytest.raises(ValueError, match="'question'"):
        babilong("x", ["x"], {"task": "qa1"})


def test_similarity_is_rounded_and_skips_comments() -> None:
    # "abcd" and "abxd" share ab and d: 2 * 3 / 8.
    assert code.similarity_ratio("abcd", "abxd") == 0.75
    assert code.similarity_ratio("abc", "abd") == 0.67
    assert code.similarity_ratio("", "") == 1
    assert code.similarity_ratio("", "a") == 0
    assert score(code.code_similarity, "\n# note\n```python\nabcd\nzz", "abxd") == 0.75
    assert score(code.code_similarity, "x = a // b", "x = a // b") == 0


def test_code_debug() -> None:
    assert score(code.code_debug, "C. cmd_gen", "cmd_gen", "C") == 1
    assert score(code.code_debug, "The answer is: `cmd_gen`", "cmd_gen", "C") == 1
    assert score(code.code_debug, "The answer is: B", "cmd_gen", "C") == 0
    assert score(code.code_debug, "C", "cmd_gen", "C") == 0
    with pytest.raises(ValueError, match="takes two"):
        code.code_debug("C", ["C"], {})


def test_code_u_looks_at_the_last_words() -> None:
    assert score(code.code_u, "So it prints [6, 15].", "[6 15]") == 1
    assert score(code.code_u, "[6 15] at first, but then it all changes to zero", "[6 15]") == 0
    assert score(code.code_u, "the final output is 12, as a sum of many parts", "12") == 1
