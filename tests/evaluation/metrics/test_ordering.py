"""Orders, procedures, rankings and citations, on cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from longspan.evaluation.metrics import Metric, citation, grade, ordering, retrieval
from longspan.evaluation.metrics import ordering_steps as steps


def score(metric: Metric, prediction: str, *references: str, **details: Any) -> float:
    return grade(metric, prediction, references, details)["score"]


def test_orders_are_read_from_lists_or_digits() -> None:
    assert ordering.parse_order("Answer: [2, 4, 1, 3]") == [2, 4, 1, 3]
    assert ordering.parse_order("first 2, then 4, 1 and 3") == [2, 4, 1, 3]
    assert ordering.parse_order("1 2 3 4 1 2 3 4") is None
    assert ordering.parse_order("none") is None


def test_order_exact_match_and_its_fault() -> None:
    gold = "[2, 4, 1, 3]"
    for metric in (ordering.order_exact_match, ordering.order_exact_match_fixed):
        assert score(metric, "Answer: [2, 4, 1, 3]", gold) == 1
        assert score(metric, "Answer: [2, 4, 3, 1]", gold) == 0
    assert score(ordering.order_exact_match, "Answer: [2, 4]", gold) == 1
    assert score(ordering.order_exact_match_fixed, "Answer: [2, 4]", gold) == 0
    assert score(ordering.order_exact_match_fixed, "It is [2, 4, 1, 3], since 1 came after 4", gold) == 1


def test_deviations_of_an_order() -> None:
    found = ordering.order_deviation("[2, 1, 3, 4]", ["[1, 2, 3, 4]"], {})
    assert found == {"score": 0.75, "location_square": 0.5, "location_mean": 0.5, "swap": 1.0}
    assert grade(ordering.order_deviation, "[1, 2, 3, 4]", ["[1, 2, 3, 4]"])["score"] == 1
    assert grade(ordering.order_deviation, "[4, 3, 2, 1]", ["[1, 2, 3, 4]"])["score"] == 0
    # The reversed order: distances 3, 1, 1, 3.
    assert ordering.order_deviation("?", ["[1, 2, 3, 4]"], {})["location_square"] == 5


def test_best_answer_takes_the_highest_name() -> None:
    assert score(ordering.best_answer, "A12 is best", "A12", num_choice=12) == 1
    assert score(ordering.best_answer, "A1, not A3", "A1", num_choice=12) == 0
    assert score(ordering.best_answer, "number 7", "A7", num_choice=8) == 1
    with pytest.raises(ValueError, match="num_choice"):
        ordering.best_answer("A1", ["A1"], {})


def test_cloze() -> None:
    gold = '{"<mask-0>": "Ann Lee", "<mask-1>": "Rome"}'
    assert ordering.cloze('x {"<mask-0>": "Ann", "<mask-1>": "Rome"}', [gold], {}) == {
        "score": 0.5,
        "partial": 1.0,
    }
    assert ordering.cloze("no", [gold], {}) == {"score": 0.0, "partial": 0.0}


@pytest.mark.parametrize(
    ("solution", "solved"),
    [
        ("21 + 16 = 37\n37 - 17 = 20\n26 + 20 = 46", True),
        ("21+16=37\n37-17=20\n26+20=46", True),
        ("21 + 16 = 37\n37 - 17 = 20\n26 + 20 = 47", False),
        ("21 + 16 = 37\n26 + 20 = 46", False),
        ("21 + 16 = 37\n37 - 16 = 21\n26 + 21 = 47", False),
        ("21 / 16 = 1\n17 + 26 = 43\n43 + 1 = 44", False),
        ("print(1)\n\n", False),
    ],
)
def test_countdown_solutions(solution: str, solved: bool) -> None:
    assert steps.countdown_solved([21, 16, 17, 26], 46, solution) is solved


def test_countdown_divides_only_without_rest() -> None:
    assert steps.countdown_solved([8, 4, 3, 2], 10, "8 / 4 = 2\n2 * 2 = 4\n4 + 3 = 7") is False
    assert steps.countdown_solved([8, 4, 3, 2], 7, "8 / 4 = 2\n2 * 2 = 4\n4 + 3 = 7") is True
    assert steps.countdown_solved([8, 0, 3, 2], 7, "8 / 0 = 2\n2 * 2 = 4\n4 + 3 = 7") is False


def test_countdown_search_is_scored_to_its_first_mistake() -> None:
    gold = "\n".join(
        [
            "# Search Procedure",
            "Initial number set: [1, 2]",
            " |- Pick two numbers (1, 2)",
            " |- Try 2 + 1 = 3. Evaluate 3 != 2, drop this branch.",
            " |- Try 2 - 1 = 1. Evaluate 1 != 2, drop this branch.",
            " |- Try 2 * 1 = 2. Evaluate 2 == 2, target found!",
            "Now we have found the target",
        ]
    )
    details = {"nums": [1, 2], "target": 2}
    wrong = gold.replace("2 - 1 = 1", "2 - 2 = 0")
    assert grade(steps.countdown, wrong, [gold], details)["partial"] == 0.5
    assert grade(steps.countdown_fixed, wrong, [gold], details)["partial"] == 0.5
    whole = gold.removesuffix("\nNow we have found the target")
    assert grade(steps.countdown, whole, [gold], details)["partial"] == 0.75
    assert grade(steps.countdown_fixed, whole, [gold], details)["partial"] == 1
    begun = "# Search Procedure\nInitial number set: [1, 2]"
    assert grade(steps.countdown, begun, [gold], details) == {"score": 0.0, "partial": 0.0, "extracted": 0.0}
    with pytest.raises(ValueError, match="'nums' and 'target'"):
        steps.countdown("x", [gold], {})


def test_route_counts_the_wrong_line_officially() -> None:
    gold = "a to b\nb to c\nc to d\nd to e"
    assert grade(steps.path_traversal, f"<Route>\n{gold}\n</Route>", [gold])["score"] == 1
    wrong = "<Route>\na to b\nb to x\n</Route>"
    assert grade(steps.path_traversal, wrong, [gold])["partial"] == 0.5
    assert grade(steps.path_traversal_fixed, wrong, [gold])["partial"] == 0.25
    assert grade(steps.path_traversal_fixed, "a to b", [gold])["extracted"] == 0


def test_rows_of_a_table() -> None:
    gold = "name\tprice\nThe Pen\t$2\nInk\t$3"
    found = steps.html_to_tsv("```tsv\nname\tprice\nink\t3\npen\t2.\ncap\t9\n```", [gold], {})
    assert found == {
        "score": pytest.approx(0.8),
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "extracted": 1.0,
    }
    assert grade(steps.html_to_tsv, "name\nink", [gold])["score"] == 0
    # The last row is cut off, and is not counted.
    assert grade(steps.html_to_tsv, "name\tprice\nInk\t$3\nPe", [gold])["precision"] == 1


def test_beliefs() -> None:
    gold = "- Step 1: the cat, in the pantry\n- Step 2: the cat in hall"
    assert grade(steps.tom_tracking, "So:\n- step 1 cat pantry\n- Step 2: cat, hall", [gold])["score"] == 1
    assert grade(steps.tom_tracking, "- 1 cat pantry\n- 2 cat attic", [gold])["partial"] == 0.5
    assert grade(steps.tom_tracking, "- 1 cat pantry", [gold])["partial"] == 0.5
    with pytest.raises(ValueError, match="no belief"):
        steps.tom_tracking("- x", ["x"], {})


def test_counts_and_paragraphs() -> None:
    assert score(retrieval.count, "12, or 13", "12") == 0.5
    assert score(retrieval.count, "twelve", "12") == 0
    assert score(retrieval.retrieval, "Paragraph 3", "Paragraph 3") == 1
    assert score(retrieval.retrieval_zh, "段落3 或 4", "段落3") == 0.5
    with pytest.raises(ValueError, match="names no paragraph"):
        retrieval.retrieval("3", ["3"], {})
    assert score(retrieval.kv_retrieval, 'It is: "ab-12".', "ab-12") == 1
    assert score(retrieval.kv_retrieval, "ab-123", "ab-12") == 0
    assert score(retrieval.longdialogue_qa, "It was Ace, I think", "ACE") == 1


def test_rankings() -> None:
    assert retrieval.parse_ranking("Ranking: [ID: 3] > [ID: 1] > 3 > 2\n7 > 8") == ["3", "1", "2"]
    assert retrieval.parse_ranking("none") == ["none"]
    # Grades 1 and 2 at ranks 1 and 2; ideal the other way round.
    wanted = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert retrieval.ndcg(["a", "b", "c"], {"a": 1, "b": 2}) == pytest.approx(wanted)
    assert retrieval.ndcg(["x"], {"a": 1}) == retrieval.ndcg(["x"], {}) == 0
    assert score(retrieval.rerank, "5 > 7", "7") == pytest.approx(1 / math.log2(3))
    assert score(retrieval.rerank, "5 > 7", "7", cut=1) == 0
    assert score(retrieval.rerank, "5 > 7", relevance={5: 1, 7: 0}) == 1
    with pytest.raises(ValueError, match="cut is 0"):
        retrieval.ndcg(["a"], {"a": 1}, cut=0)


def test_citations() -> None:
    assert citation.cited("As said [3][12], and [3].") == [3, 12, 3]
    assert citation.without_citations("It was red [3][12].") == "It was red."
    found = citation.citation_f1("red [3], blue [5], green [5]", [], {"citations": [3, 4]})
    assert found == {"score": 0.5, "precision": 0.5, "recall": 0.5}
    assert citation.citation_f1("red", [], {"citations": [3]})["score"] == 0
    needle = {"citations": [2]}
    assert citation.citation_needle("x [2][2]\n[2]", [], needle)["precision"] == 0.5
    assert citation.citation_needle("x [1][3][4][2]", [], needle)["score"] == 0
    with pytest.raises(ValueError, match="'citations'"):
        citation.citation_f1("x [1]", [], {})


def test_cited_answers() -> None:
    found = citation.cited_answer_f1("The red car [3].\nMore", ["red car", "red"], {})
    assert found == {"score": 1.0, "precision": 1.0, "recall": 1.0}


def test_long_bio() -> None:
    assert score(citation.long_bio, "Rome, then Paris", "rome", "paris") == 1
    assert score(citation.long_bio, "Paris, then Rome", "rome", "paris") == 0
    assert score(citation.long_bio, "He was 30, she 40", "40", number=True) == 1
    assert score(citation.long_bio, "unknown", "40", number=True) == 0
    found = citation.long_bio_cite("Rome [4] and Paris [2]", ["Rome", "Paris"], {"citations": [2, 4]})
    assert found == {"score": 0.0, "answer": 1.0, "citation": 0.0}
