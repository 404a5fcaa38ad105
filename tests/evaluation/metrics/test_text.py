"""Matches of strings and numbers, and constraints, on cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.evaluation.metrics import Metric, grade
from longspan.evaluation.metrics import text as strings
from longspan.evaluation.metrics import text_numbers as numbers
from longspan.evaluation.metrics.text_constraints import constraints, numbered_blocks, sgt_completion


def score(metric: Metric, prediction: str, *references: str, **details: Any) -> float:
    return grade(metric, prediction, references, details)["score"]


def test_ruler_averages_needles_and_takes_the_best_answer() -> None:
    assert score(strings.string_match_all, "12 and ABC", "12", "abc", "77") == pytest.approx(2 / 3)
    assert score(strings.string_match_part, "in the NORTH sea", "baltic", "north sea") == 1
    assert score(strings.string_match_part, "in the north", "baltic", "north sea") == 0


def test_grade_gives_a_dict_and_refuses_what_is_no_score() -> None:
    assert grade(lambda *_: 1, "", []) == {"score": 1.0}
    assert grade(lambda *_: {"score": 0.25, "recall": 1}, "", []) == {"score": 0.25, "recall": 1.0}
    with pytest.raises(ValueError, match="divide percentages"):
        grade(lambda *_: 50.0, "", [])
    with pytest.raises(ValueError, match="named 'score'"):
        grade(lambda *_: {"f1": 0.5}, "", [])
    with pytest.raises(ValueError, match="divide"):
        grade(lambda *_: float("nan"), "", [])


@pytest.mark.parametrize(
    "metric",
    [
        strings.string_match_all,
        strings.string_match_part,
        strings.soft_match_all,
        strings.exact_match,
        strings.mrcr,
        numbers.passkey,
        numbers.math_calc,
    ],
)
def test_no_references_is_an_error(metric: Metric) -> None:
    with pytest.raises(ValueError, match="no references"):
        metric("answer", [], {})


def test_word_error_rate_counts_edits_per_wanted_word() -> None:
    assert strings.word_error_rate("a b c", "a b c") == 0
    assert strings.word_error_rate("a x c d", "a b c") == pytest.approx(2 / 3)  # one changed, one added
    assert strings.word_error_rate("", "a b") == 1
    assert strings.word_error_rate("a", "") == float("inf")


def test_soft_match_gives_part_of_a_nearly_right_copy() -> None:
    assert score(strings.soft_match_all, "the quick red fox", "the quick brown fox") == 0.75
    assert score(strings.soft_match_all, "a long answer that has fox in it", "fox", "hen") == 0.5
    assert score(strings.soft_match_two_steps, "fox\n\nhen", "fox") == 0
    assert score(strings.soft_match_part, "Document 1: fox\nlong\n\nhen", "fox") == 0
    assert score(strings.soft_match_part, "Document 1: fox\nlong\n\nhen", "hen") == 1


def test_after_prefix_reads_the_line_of_the_answer() -> None:
    assert strings.after_prefix("Well.\nANSWER: Answer: blue \nmore") == "blue"
    assert strings.after_prefix("blue\nmore") == "blue"
    assert strings.after_prefix("") == ""


def test_normalised_substring_and_label() -> None:
    assert score(strings.substring_exact_match, "It was the 'Old Bridge'.", "an old bridge") == 1
    assert score(strings.substring_exact_match, "It was old.", "old bridge") == 0
    assert score(strings.label_exact_match, "label: 17\nlabel: 3", "17") == 1
    assert score(strings.label_exact_match, "label: 170", "17") == 0
    assert score(strings.label_exact_match, "class: x", "x", prefix="class:") == 1
    assert score(strings.substring, "Das Haus", "haus") == 0
    assert score(strings.exact_match, " aBc\n", "aBc") == 1


def test_first_line_skips_blank_lines() -> None:
    assert strings.first_line("\n\none\ntwo") == "one"
    assert strings.first_line("") == ""


def test_mrcr_takes_the_last_hash_and_the_fixed_one_only_the_start() -> None:
    target = "abcdef123456 red sun"
    assert score(strings.mrcr, target, target) == score(strings.mrcr_fixed, target, target) == 1
    late = "Sure: abcdef123456 blue. abcdef123456 red sun"
    assert score(strings.mrcr, late, target) == 1
    assert score(strings.mrcr_fixed, late, target) == 0
    assert score(strings.mrcr, "red sun", target) == 0
    # "red" of "red sun": 2 * 3 / (7 + 3)
    assert score(strings.mrcr, "abcdef123456red", target) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "wanted"),
    [
        (numbers.passkey, "The key is 71432, not 9.", ("71432",), 1),
        (numbers.passkey, "1. The key is 71432", ("71432",), 0),
        (numbers.number_string, "none", ("5",), 0),
        (numbers.math_find, "about 12.5 then 3", ("12.5",), 1),
        (numbers.math_find, "12.5", ("12",), 0),
        (numbers.math_calc, "[4, 7, 9, 1]", ("4", "7", "8", "1"), 0.5),
        (numbers.math_calc, "4", ("4", "7"), 0.5),
        (numbers.code_run, "so it returns `-32`.", ("-32",), 1),
        (numbers.code_run, "it is 32 here", ("32",), 0),
        (numbers.gsm, "The answer is $1,250.00", ("So 1250. The answer is 1250",), 1),
        (numbers.gsm, "first 3 then 8 apples\n\n9", ("The answer is 8",), 1),
        (numbers.gsm, "none", ("The answer is 8",), 0),
        (numbers.needle_chain, "## Answer: 1,600 dollars", ("1600.0",), 0),
        (numbers.needle_chain, "## Answer: $1,600", ("1600.0",), 1),
        (numbers.needle_chain_fixed, "## Answer: 1,600 dollars", ("1600.0",), 1),
        (numbers.needle_chain, "## Answer: 21362.9", ("21362.5",), 1),
        (numbers.needle_chain_fixed, "## Answer: 21362.9", ("21362.5",), 0),
        (numbers.needle_chain_fixed, "400? ## Answer: 21,362.5", ("21362.5",), 1),
        (numbers.needle_chain_fixed, "unknown", ("21362.5",), 0),
    ],
)
def test_numbers(metric: Metric, prediction: str, references: tuple[str, ...], wanted: float) -> None:
    assert score(metric, prediction, *references) == wanted


def test_math_calc_may_drop_the_repeated_operand() -> None:
    assert score(numbers.math_calc, "3, 4, 7", "4", "7", drop_first_number=True) == 1
    assert score(numbers.math_calc, "3, 4, 7", "4", "7") == 0


def test_references_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="'many' is not a number"):
        numbers.math_find("7", ["many"], {})


def test_judge_mark() -> None:
    assert numbers.judge_mark("Rating: [[85]] of [100]") == 0.85
    assert numbers.judge_mark("[7.5]", highest=10) == 0.75
    assert numbers.judge_mark("85") is None
    with pytest.raises(ValueError, match="the highest is 10"):
        numbers.judge_mark("[[85]]", highest=10)


def test_blocks_are_found_by_their_first_mention() -> None:
    assert numbered_blocks("#*# Week 1: sun #*# Week 2: rain, as in Week 1 #*# Week 1 again", "Week") == {
        1: " Week 1: sun ",
        2: " Week 2: rain, as in Week 1 ",
    }
    assert set(numbered_blocks("Floor 1: hall\nFloor 2: shop\nFloor 4: bar", "Floor")) == {1, 2, 4}


def test_sgt_counts_blocks_and_mentions() -> None:
    answer = "#*# Week 1: planting tulips #*# Week 2: rain #*# Week 4: a birthday of my aunt"
    details = {
        "type": "Week",
        "number": 4,
        "checks_once": {"1": "planting of tulips", "2": "visit to the zoo", "3": "a concert"},
        "checks_periodic": {"4": "birthday of the aunt"},
    }
    assert sgt_completion(answer, [], details) == {"score": 0.75, "once": 0.5, "periodic": 1.0}
    with pytest.raises(ValueError, match="needs 'type' and 'number'"):
        sgt_completion(answer, [], {"type": "Week"})


def test_constraints_are_counted_one_by_one() -> None:
    details = {"min_words": 3, "max_words": 4, "must_contain": ["Sea", "sky"], "must_not_contain": ["storm"]}
    assert constraints("the sea is calm", [], details) == pytest.approx(4 / 5)
    assert constraints("storm", [], details) == pytest.approx(1 / 5)
    with pytest.raises(ValueError, match="name a constraint"):
        constraints("x", [], {})
