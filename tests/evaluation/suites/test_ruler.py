"""RULER's solved examples, long word lists, and questions over documents."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.published import DATA_VARIABLE, DataMissing
from longspan.evaluation.suites import ruler
from longspan.evaluation.suites.ruler.counting import _form
from longspan.evaluation.suites.ruler.documents import cut_words, documents_around, hotpot_qa, squad
from longspan.evaluation.task import Puzzle, Room


def room(tokens: int, depth: float | None = None) -> Room:
    return Room(tokens=tokens, count=lambda text: len(text) // 4 + 1, depth=depth)


def make(name: str, tokens: int, seed: int = 0, depth: float | None = None) -> Puzzle:
    return ruler.TASKS[name].make(random.Random(seed), room(tokens, depth))


def test_common_words_example_is_solved_right() -> None:
    for tokens, counts in ((2000, (3, 1)), (4084, (10, 3))):
        context = make("cwe", tokens).context
        assert context is not None
        example, main = context.split("\n\n", 1)
        listed, answer = example.split("\nQuestion: ")
        seen = Counter(re.findall(r"\d+\. (\S+)", listed))
        assert set(seen.values()) == set(counts) and len(seen) == (20 if tokens < 4000 else 40)
        common = {word for word, number in seen.items() if number == counts[0]}
        assert set(re.findall(r"\d+\. (\S+)", answer)) == common and len(common) == 10
        assert not common & set(re.findall(r"\d+\. (\S+)", main))


def test_common_words_at_128k_are_distinct_and_regular() -> None:
    puzzle = make("cwe", 131_072)
    assert puzzle.context is not None
    seen = Counter(re.findall(r"\d+\. (\S+)", puzzle.context.split("\n\n", 1)[1]))
    assert sorted(set(seen.values())) == [3, 30]
    assert {word for word, number in seen.items() if number == 30} == set(puzzle.references)
    assert len(seen) > 8166, "more words than wonderwords has"


def test_added_words_are_spelt_as_english_ones() -> None:
    pairs = {("lady", "s"): "ladies", ("box", "s"): "boxes", ("boy", "s"): "boys", ("make", "ing"): "making"}
    pairs |= {
        ("happy", "ly"): "happily",
        ("copy", "ing"): "copying",
        ("bike", "er"): "biker",
        ("tree", "less"): "treeless",
    }
    for (word, suffix), form in pairs.items():
        assert _form(word, suffix) == form


def test_training_puzzles_have_no_example() -> None:
    plain = ruler.common_words(random.Random(1), room(2000))
    assert plain.context is not None and plain.context.count("Below is a numbered list") == 1
    assert "Answer:" not in ruler.variable_tracking(random.Random(1), room(2000)).preamble


def test_variable_example_follows_its_own_chain() -> None:
    for seed in range(20):
        puzzle = make("vt", 4000, seed)
        example, rest = puzzle.preamble.split("Question: ", 1)
        value = re.search(r"assigned the value (\d{5}) in", rest)
        assert value is not None and value[1] not in puzzle.question
        held = set[str]()
        for name, source in re.findall(r"VAR ([A-Z]{3}) = (?:VAR )?(\w+)", example):
            if source == value[1] or source in held:
                held.add(name)
        assert set(rest.split("they are: ")[1].split("\n")[0].split()) == held and len(held) == 5


def test_three_frequent_words_are_clear_even_in_short_texts() -> None:
    for tokens in (260, 300, 400, 700):
        puzzle = make("fwe", tokens)
        assert puzzle.context is not None
        ranked = Counter(re.findall(r"\b[a-z]{6}\b", puzzle.context.split("coded words. ")[1])).most_common(4)
        assert {word for word, _ in ranked[:3]} == set(puzzle.references)
        assert len(ranked) == 3 or ranked[2][1] > ranked[3][1]


def test_one_asked_key_leaves_the_depth_free_and_several_keep_their_order() -> None:
    assert not make("niah_multikey_1", 2000).ordered
    assert make("niah_multivalue", 2000).ordered and make("niah_multiquery", 2000).ordered


SQUAD_ROWS: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": f"{title} paragraph {number} says that the answer is {title}{number}. "
                    + "Words follow. " * 6,
                    "qas": [
                        {
                            "question": f"{title} {number}?",
                            "is_impossible": False,
                            "answers": [{"text": f"{title}{number}"}] * 3,
                        },
                        {"question": "None?", "is_impossible": True, "answers": []},
                    ],
                }
                for number in range(4)
            ],
        }
        for title in ("Ants", "Bees", "Cats", "Dogs", "Eels", "Foxes", "Gulls", "Hens")
    ],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ruler").mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return tmp_path / "ruler"


def test_squad_question_stands_among_its_own_article_first(data: Path) -> None:
    with pytest.raises(DataMissing, match="dev-v2.0.json"):
        make("qa_1", 900)
    (data / "dev-v2.0.json").write_text(json.dumps(SQUAD_ROWS))
    found = squad("ruler")
    assert len(found.texts) == len(found.questions) == 32
    assert found.questions[5].answers == ("Bees1",) and len(found.questions[5].related) == 3
    puzzle = make("qa_1", 600, seed=3)
    assert puzzle.context is not None
    assert re.findall(r"Document (\d+):\n", puzzle.context) == [str(number) for number in range(1, 15)]
    title = re.split(r"\d", puzzle.answer)[0]
    assert puzzle.context.count(f"{title} paragraph") == 4, "all of the article before any other"
    gold = f"{title} paragraph {puzzle.answer[-1]} says"
    assert puzzle.evidence is not None and puzzle.evidence[0].startswith(gold)
    first = make("qa_1", 600, seed=3, depth=0.0).context
    assert first is not None and "Document 1:\n" + gold in first


def test_documents_of_a_small_data_set_come_round_again() -> None:
    around = documents_around(["gold text"], ["near one", "gold text"], ["far one", "far two"], 200, room(0))
    assert around[0] == "near one" and "gold text" not in around
    assert around.count("far one") > 3
    assert cut_words("one two three four", 3, lambda text: len(text.split())) == "one two three"


def test_hotpot_is_read_in_both_published_shapes(data: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "Ann",
        "supporting_facts": [["A", 0], ["B", 0], ["A", 1]],
        "context": [["A", ["Ann ", "is."]], ["B", ["Bob."]], ["C", ["Cy."]]],
    }
    for text in (json.dumps([row, row]), json.dumps(row) + "\n" + json.dumps(row) + "\n"):
        (data / "hotpotqa.json").unlink(missing_ok=True)
        (data / "hotpotqa.json").write_text(text)
        found = hotpot_qa("ruler")
        assert found.texts == ("A\nAnn is.", "B\nBob.", "C\nCy.") and len(found.questions) == 2
        assert found.questions[0].gold == (0, 1) and found.questions[0].related == (2,)
    (data / "hotpotqa.json").write_text(json.dumps([{"question": "Who?"}]))
    with pytest.raises(ValueError, match="row 1 of"):
        hotpot_qa("ruler")


def test_real_questions_can_be_answered_from_their_documents(data: Path, shared_data: Path) -> None:
    for source in ("squad-v2-dev-half.json", "hotpotqa-200.json"):
        (data / source).symlink_to(shared_data / "qa" / source)
    assert len(squad("ruler").questions) == 2910 and len(squad("ruler").texts) == 646
    assert len(hotpot_qa("ruler").questions) == 200
    for seed in range(6):
        puzzle = make("qa_1", 4000, seed)
        assert puzzle.evidence is not None and puzzle.answer in puzzle.evidence[0]
        paired = make("qa_2", 4000, seed)
        assert paired.context is not None and paired.evidence is not None
        assert len(paired.evidence) == 2 and all(paired.context.count(text) == 1 for text in paired.evidence)
