"""Faithfulness and coverage with scripted judges; evidence in texts longer than a prompt may be."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from longspan.evaluation.judging import coverage, faithfulness, split_claims
from longspan.evaluation.judging.evidence import content_words, evidence, num_words
from longspan.evaluation.judging.judge import room_words
from tests.evaluation.judging.fakes import ScriptedJudge, always, shown

SUMMARY = "Dora keeps a lantern. She lives in Rosemere. It rained."
SOURCE = "For years Dora keeps a lantern in the cellar.\n\nIt rained."


def reader(prompt: str) -> str:
    """Splits nothing, and supports what stands in the text word by word; illegible about Rosemere."""
    if "<claim>" not in prompt:
        return "I would rather not."
    if "Rosemere" in shown(prompt, "claim"):
        return "hard to say"
    found = shown(prompt, "claim") in shown(prompt, "text")
    return json.dumps({"verdict": "supported" if found else "not supported"})


def test_claims_are_the_judges_list_or_the_sentences() -> None:
    listed = split_claims(
        SUMMARY, always('Here: ["Dora keeps a lantern.", "Dora keeps a lantern.", " It rained. "]')
    )
    assert (listed.texts, listed.by) == (("Dora keeps a lantern.", "It rained."), "judge")
    sentences = ("Dora keeps a lantern.", "She lives in Rosemere.", "It rained.")
    for reply in ("no list", "[]", "[1, 2]", '["cut off', '[""]'):
        assert split_claims(SUMMARY, always(reply)).texts == sentences
    assert split_claims(SUMMARY).by == "sentences"
    assert split_claims(" ", always('["made up"]')).texts == ()
    assert split_claims("x", always('{"claims": ["y"]}')).texts == ("y",)


def test_faithfulness_is_the_share_supported_among_legible_verdicts() -> None:
    report = faithfulness(ScriptedJudge(reader), SUMMARY + " The moon fell.", SOURCE)
    assert [found.supported for found in report.verdicts] == [False, None, True, False]
    # "Dora keeps a lantern." ends in a stop that the source does not have there.
    assert report.score == pytest.approx(1 / 3) and report.unparsable == 1
    assert report.unsupported == ("Dora keeps a lantern.", "The moon fell.")
    assert report.claims_by == "sentences" and all(found.whole_source for found in report.verdicts)


def test_given_claims_are_not_split() -> None:
    judge = ScriptedJudge(reader)
    report = faithfulness(judge, SUMMARY, SOURCE, claims=["Dora keeps a lantern", "Dora sleeps"])
    assert report.score == 0.5 and report.claims_by == "given" and len(judge.prompts) == 2


def test_coverage_lists_what_is_missing() -> None:
    report = coverage(ScriptedJudge(reader), "It rained. Dora slept.", "It rained. The roof leaked.")
    assert report.score == 0.5 and report.unsupported == ("The roof leaked.",)
    with pytest.raises(ValueError, match="reference summary is empty"):
        coverage(always("x"), "It rained.", " ")


def test_nothing_legible_is_no_score_and_no_claim_is_none_either() -> None:
    report = faithfulness(always("hm"), SUMMARY, SOURCE)
    assert report.score is None and report.unparsable == 3
    assert faithfulness(always("hm"), "", SOURCE).verdicts == ()
    with pytest.raises(ValueError, match="source is empty"):
        faithfulness(always("hm"), SUMMARY, "\n")
    with pytest.raises(ValueError, match="room=0"):
        faithfulness(always("hm"), SUMMARY, SOURCE, room=0)


def test_a_long_source_is_shown_in_passages_that_share_the_claims_words() -> None:
    filler = [
        f"On day {day} nothing of note was written down by anybody in the village." for day in range(400)
    ]
    filler[250] = "Dora Harker lent the brass lantern to the vicar."
    filler[50] = "The vicar preached about patience."
    source = " ".join(filler)
    judge = always('{"verdict": "supported"}')
    report = faithfulness(judge, "x", source, claims=["Dora lent the vicar her lantern."], room=300)
    text = shown(judge.prompts[0], "text")
    assert filler[250] in text and filler[50] in text and "[...]" in text
    assert text.index(filler[50]) < text.index(filler[250])
    assert 0 < num_words(text) <= 301
    assert [found.whole_source for found in report.verdicts] == [False]


def test_evidence_is_whole_where_it_fits_and_cut_where_one_passage_does_not() -> None:
    assert evidence("  One two. Three. ", "three", 3) == "One two. Three."
    assert evidence("word " * 200, "word", 10) == ("word " * 10).strip()
    assert num_words("\u6f22\u5b57 and kana \u304b") == 5
    assert len(evidence("\u6f22\u5b57" * 300, "\u5b57", 50)) == 50


def test_content_words_leave_out_what_every_text_holds() -> None:
    assert content_words("The lantern of the Vicar's house, the lantern") == ["lantern", "vicar's", "house"]
    assert content_words("it is so") == ["it", "is", "so"]


def test_room_follows_the_window() -> None:
    judge = always("x")
    assert room_words(judge) == int((8192 - 600) * 0.6)
    judge.window_tokens = 4096  # type: ignore[attr-defined]
    assert room_words(judge) == int((4096 - 600) * 0.6)


def test_evidence_holds_the_paragraph_that_answers(shared_data: Path) -> None:
    """Real questions: of an article of some 40 paragraphs, 600 words chosen by question and answer hold the right one."""
    articles = json.loads((shared_data / "qa" / "squad-v2-dev-half.json").read_text(encoding="utf-8"))["data"]
    rng = random.Random(0)
    found = total = 0
    for article in articles:
        source = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        paragraph = rng.choice([p for p in article["paragraphs"] if any(q["answers"] for q in p["qas"])])
        for asked in [q for q in paragraph["qas"] if q["answers"]][:3]:
            answer = asked["answers"][0]
            around = paragraph["context"][max(0, answer["answer_start"] - 30) :][: 30 + len(answer["text"])]
            chosen = evidence(source, f"{asked['question']} {answer['text']}", 600)
            assert num_words(chosen) < 0.5 * num_words(source)
            found += around.strip() in chosen
            total += 1
    assert total > 30
    assert found / total > 0.85
