"""Overlap of words: F1 and Rouge worked out by hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from longspan.evaluation.metrics import Metric, grade, overlap, overlap_rouge
from longspan.evaluation.metrics import overlap_keywords as keywords


def score(metric: Metric, prediction: str, *references: str, **details: Any) -> float:
    return grade(metric, prediction, references, details)["score"]


def test_qa_f1_normalises_and_takes_the_best_reference() -> None:
    # Answer: cat sat on mat; reference: cat on red mat. Three in common of four and four.
    assert score(overlap.qa_f1, "The cat sat on the mat.", "a cat on red mat") == pytest.approx(0.75)
    assert score(overlap.qa_f1, "Paris", "London", "paris!") == 1
    assert score(overlap.qa_f1, "the", "the") == 0
    # Twice "no", once wanted: precision 1/2, recall 1.
    assert score(overlap.qa_f1, "no no", "no") == pytest.approx(2 / 3)
    assert score(overlap.qa_f1_first_line, "\nParis\nQuestion: more words", "Paris") == 1
    assert overlap.f1_parts(["x", "y", "z"], ["x"]) == {
        "score": pytest.approx(0.5),
        "precision": pytest.approx(1 / 3),
        "recall": 1.0,
    }


def test_rouge_counts_sets_of_words_over_sentences() -> None:
    # One sentence each; in order: a c d. Sets of 4 and 4 words: P = R = 3/4.
    assert score(overlap.rouge, "a b c d", "a c x d") == pytest.approx(0.75, abs=1e-7)
    # "a a a" is one word: P = R = 1.
    assert score(overlap.rouge, "a a a", "a") == pytest.approx(1, abs=1e-7)
    # The union over sentences: "a b" finds b, "c a" finds c or a; the order of "b. c" against "c b" costs nothing.
    assert score(overlap.rouge, "b. c", "c. b") == pytest.approx(1, abs=1e-7)
    assert score(overlap.rouge, "b c", "c b") == pytest.approx(0.5, abs=1e-7)
    assert score(overlap.rouge, "", "a") == score(overlap.rouge, "...", "a") == 0
    assert score(overlap.rouge, "A", "a") == 0
    assert score(overlap.rouge_first_line, "a\nb", "a") == pytest.approx(1, abs=1e-7)


def test_common_words_step_back_in_the_second_text_first() -> None:
    assert overlap.common_words("a b".split(), "b a".split()) == {"b"}
    assert overlap.common_words("a b c".split(), "a c b".split()) == {"a", "c"}
    assert overlap.common_words("x y".split(), "z".split()) == set()


def test_common_words_equal_the_plain_recursion() -> None:
    def plain(first: list[str], second: list[str]) -> int:
        if not first or not second:
            return 0
        if first[-1] == second[-1]:
            return 1 + plain(first[:-1], second[:-1])
        return max(plain(first[:-1], second), plain(first, second[:-1]))

    for first, second in (("abcde", "xbdae"), ("gattaca", "tacgag"), ("abc", "cba")):
        # Letters are unique in the common subsequence wherever they are unique in one text.
        if len(set(second)) == len(second) or len(set(first)) == len(first):
            assert len(overlap.common_words(list(first), list(second))) == plain(list(first), list(second))


def test_long_sentences_are_scored() -> None:
    text = " ".join(f"w{number}" for number in range(3000))
    assert score(overlap.rouge, text, text) == pytest.approx(1, abs=1e-7)


def test_chinese_characters_without_punctuation() -> None:
    assert overlap.normal_chinese("「A b」，好。") == "ab好"
    assert overlap.normal_chinese("《书》") == "《书"  # the official list lacks the opening mark
    # Three characters in common, of three and four.
    assert score(overlap_rouge.longbook_qa_chn, "北京市。", "北京大市") == pytest.approx(6 / 7)


def test_chinese_words_need_jieba() -> None:
    pytest.importorskip("jieba")
    assert score(overlap.qa_f1_zh, "北京。", "北京") == 1
    assert score(overlap.rouge_zh, "我们 北京", "北京") == pytest.approx(2 / 3, abs=1e-7)
    assert score(keywords.keyword_f1_zh, "上海", "北京") == 0
    assert score(keywords.fact_recall_zh, "在北京", "北京") == 1
    assert score(keywords.keyword_rouge_zh, "北京", "北京") == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(
    ("module", "metric", "details"),
    [
        ("jieba", overlap.qa_f1_zh, {}),
        ("rouge_score.rouge_scorer", overlap_rouge.rouge_parts, {}),
        ("nltk.stem", keywords.locomo, {"category": 4}),
    ],
)
def test_absent_packages_are_named(
    module: str, metric: Metric, details: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overlap_rouge.rouge_scorer.cache_clear()
    keywords._stemmer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="run `pip install"):
        metric("a", ["a"], details)


def test_rouge_of_rouge_score() -> None:
    pytest.importorskip("rouge_score")
    # rouge1: 3 of 4 and 4; rouge2: (a b) of 3 and 3; rougeL: a b d, 3 of 4.
    assert overlap_rouge.rouge_parts("a b c d", ["a b d e"], {}) == {
        "score": pytest.approx(0.75),
        "rouge1": pytest.approx(0.75),
        "rouge2": pytest.approx(1 / 3),
        "rougeL": pytest.approx(0.75),
    }
    assert score(overlap_rouge.rouge_stemmed, "running dogs", "run dog") == 1
    assert score(overlap_rouge.longbook_sum, "b\na", "a\nb") == 1
    assert score(overlap_rouge.longbook_sum, "b a", "a b") == 0.5


def test_libra_keeps_articles() -> None:
    assert score(overlap_rouge.libra_f1, "the cat", "cat") == pytest.approx(2 / 3)
    assert score(overlap_rouge.longbook_qa_eng, "the cat", "cat") == 1


def test_keyword_f1_is_zero_without_keywords() -> None:
    reference = "Martin began publishing books in 2020"
    answer = "publishing books is not mentioned in it"
    # In common: publishing, books, in: of 7 and 6 words.
    plain = 2 * (3 / 7) * (3 / 6) / (3 / 7 + 3 / 6)
    assert score(keywords.keyword_f1, answer, reference) == pytest.approx(plain)
    assert score(keywords.keyword_f1, answer, reference, keywords="2020") == 0
    # One of two keywords is found, but it is on the blacklist.
    assert score(keywords.keyword_f1, answer, reference, keywords="in 2020", blacklist=["in"]) == 0
    assert score(keywords.keyword_f1, answer, reference, keywords="in 2020") == pytest.approx(plain)
    assert score(keywords.fact_recall, "Ludwig", "Ludwig Beethoven") == 0.5


def test_keyword_recall_asks_for_whole_words() -> None:
    assert score(keywords.keyword_recall, "The red carpet.", "car", "red carpet", "a red") == pytest.approx(
        2 / 3
    )


def test_locomo_by_category() -> None:
    pytest.importorskip("nltk")
    assert score(keywords.locomo, "running and swimming", "run, swim", category=4) == 1
    # Parts: "hiking" found; "paint" not. Mean of the two.
    assert score(keywords.locomo, "hikes", "hiking, painting", category=1) == 0.5
    assert score(keywords.locomo, "yes", "yes; because she said so", category=3) == 1
    assert score(keywords.locomo, "It is not mentioned.", "x", category=5) == 1
    assert score(keywords.locomo, "I don't know.", "x", category=5) == 0
    with pytest.raises(ValueError, match="category"):
        keywords.locomo("x", ["x"], {})


def test_locomo_fixed_takes_any_abstention_but_not_the_trap() -> None:
    def fixed(answer: str) -> float:
        return score(keywords.locomo_fixed, answer, "", category=5, adversarial_answer="a red car")

    assert fixed("I don’t know.") == fixed("The text does not say.") == fixed("Not mentioned") == 1
    assert fixed("a red car") == fixed("Not mentioned, maybe a red car") == 0
    assert not keywords.abstains("She knows the answer")
