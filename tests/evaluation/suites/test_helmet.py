"""HELMET: the official draws, worked examples before the context, rankings, citations and many examples."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.helmet_rules import asqa, qampari, qampari_answers
from longspan.evaluation.published import DataMissing
from longspan.evaluation.suites.helmet import TASKS
from longspan.evaluation.suites.helmet.draws import balanced, examples_for, first_shuffled, with_keys
from longspan.evaluation.suites.helmet.examples import SHOTS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    return tmp_path


def passages(*texts: str) -> list[dict[str, Any]]:
    return [
        {"id": str(number), "title": f"T{number}", "text": text, "has_answer": "Oslo" in text}
        for number, text in enumerate(texts, 1)
    ]


def test_there_is_a_task_for_every_set_and_length() -> None:
    names = {name.rsplit("_", 1)[0] for name in TASKS}
    assert names == {
        "json_kv", "nq", "triviaqa", "hotpotqa", "popqa", "msmarco", "asqa", "qampari",
        "trec_coarse", "trec_fine", "banking77", "clinic150", "nlu",
    }  # fmt: skip
    assert len(TASKS) == 13 * 5
    assert TASKS["nq_128k"].file == "kilt/nq-dev-multikilt_1000_k1000_dep6.jsonl"
    assert TASKS["hotpotqa_8k"].file == "kilt/hotpotqa-dev-multikilt_1000_k50_dep3.jsonl"


def test_draws() -> None:
    rows = [{"id": f"q{number // 3}", "place": number} for number in range(450)]
    chosen = with_keys(rows, lambda row: row["id"])
    assert len(chosen) == 300 and set(Counter(row["id"] for row in chosen).values()) == {3}
    assert {row["id"] for row in chosen} == set(
        random.Random(42).sample(sorted({row["id"] for row in rows}), 100)
    )
    # numpy.random.default_rng(42).permutation(5), the order in which `datasets` shuffles five rows
    assert [row["place"] for row in first_shuffled(rows[:5])] == [4, 2, 3, 1, 0]
    first, second = examples_for("q", rows, lambda row: row["id"])
    assert first["id"] != second["id"]
    with pytest.raises(ValueError, match="1 different questions; 2 are needed"):
        examples_for("q", rows[:3], lambda row: row["id"])


def test_balanced_rounds_hold_each_label_once() -> None:
    rows = [{"text": f"t{number}", "label": number % 3} for number in range(9)]
    drawn = balanced(rows, "label", 12, 5)
    for start in range(0, 12, 3):
        assert sorted(row["label"] for row in drawn[start : start + 3]) == [0, 1, 2]
    assert (
        len({row["text"] for row in balanced(rows, "label", 6, 5)}) == 6
    )  # fewer rounds than rows of a label
    assert balanced(rows, "label", 12, 5) == drawn != balanced(rows, "label", 12, 6)


def test_json_kv(data: Path) -> None:
    row = {
        "context": '{"k1": "v-one",\n "k2": "v-two"}',
        "question": "k2",
        "answer": "v-two",
        "num_kvs": 2,
        "demos": [["d1", "x1"], ["d2", "x2"], ["d3", "x3"]],
    }
    put(data, "helmet/json_kv/test_k105_dep6.jsonl", [row])
    asked = sample("helmet/json_kv_8k")
    assert "Key: d2\nCorresponding value: x2\n\nKey: k2" in asked.question and "d3" not in asked.question
    assert asked.evidence == ('"k2": "v-two"',) and asked.max_new_tokens == 100
    assert scored("helmet/json_kv_8k", "Corresponding value: v-two.")["score"] == 1.0
    assert scored("helmet/json_kv_8k", "v-one")["score"] == 0.0


def test_retrieved_passages(data: Path) -> None:
    examples = [
        {"question": f"Example {number}?", "answers": [f"E{number}"], "ctxs": passages(f"Text {number}.")}
        for number in range(4)
    ]
    put(data, "helmet/kilt/nq-train-multikilt_1000_k3_dep6.jsonl", examples)
    rows = [
        {
            "question": f"Which town {number}?",
            "answers": ["Oslo", "Christiania"],
            "ctxs": passages("Rome.", "Oslo."),
        }
        for number in range(3)
    ]
    put(data, "helmet/kilt/nq-dev-multikilt_1000_k50_dep6.jsonl", rows)
    asked = sample("helmet/nq_8k")
    assert asked.context.endswith("Document (Title: T1): Rome.\n\nDocument (Title: T2): Oslo.")
    assert asked.context.count("Question: Example") == 2 and asked.question == "Question: Which town 0?"
    assert asked.evidence == ("Document (Title: T2): Oslo.",)
    assert scored("helmet/nq_8k", "Answer: the town of Christiania")["score"] == 1.0
    assert scored("helmet/nq_8k", "Rome")["score"] == 0.0
    put(
        data,
        "helmet/kilt/nq-dev-multikilt_1000_k50_dep6.jsonl",
        [rows[0], {"question": "a", "answers": ["b"]}],
    )
    with pytest.raises(ValueError, match=r"row 2 of kilt/nq-dev.* is not a row of helmet .*KeyError: 'ctxs'"):
        sample("helmet/nq_8k", 1)


def test_popqa_takes_rare_subjects_and_other_questions_as_examples(data: Path) -> None:
    rows = [
        {"id": number, "s_pop": 10 ** (number % 5), "question": f"Q{number}?", "answers": ["Oslo"], "ctxs": passages("Oslo.")}
        for number in range(10)
    ]  # fmt: skip
    put(data, "helmet/kilt/popqa_test_1000_k50_dep6.jsonl", rows)
    put(data, "helmet/kilt/popqa_test_1000_k3_dep6.jsonl", rows)
    assert exam("helmet/popqa_8k").num_items() == 6
    for number in range(6):
        asked = sample("helmet/popqa_8k", number)
        assert (
            asked.question not in asked.context and "Q3?" not in asked.context and "Q4?" not in asked.context
        )


def test_ranking(data: Path) -> None:
    def row(query: int, *labels: int) -> dict[str, Any]:
        listed = [
            {"id": f"{10 * query + place}", "text": f"Text {place}.", "label": grade}
            for place, grade in enumerate(labels)
        ]
        return {"qid": f"q{query}", "query": f"Query {query}?", "ctxs": listed}

    put(data, "helmet/msmarco/test_reranking_data_k10_dep3.jsonl", [row(number, 0, 2) for number in range(5)])
    put(data, "helmet/msmarco/test_reranking_data_k50_dep3.jsonl", [row(1, 0, 3, 1)])
    asked = sample("helmet/msmarco_8k")
    assert asked.answer == "11 > 12 > 10" and asked.details["relevance"] == {"10": 0, "11": 3, "12": 1}
    assert asked.evidence == ("[ID: 11] Document: Text 1.",)
    assert "Query: Query 1?" not in asked.context and asked.context.count("\nRanking: ") == 3
    assert scored("helmet/msmarco_8k", "Ranking: ID11 > ID12 > ID10")["score"] == 1.0
    # gains 1 and 3 in places 1 and 2: (1 + 3 / log2 3) / (3 + 1 / log2 3)
    assert scored("helmet/msmarco_8k", "12 > 11")["score"] == pytest.approx(2.8928 / 3.6309, abs=1e-4)
    assert scored("helmet/msmarco_8k", "nothing")["score"] == 0.0


ASQA = {
    "question": "Who won?",
    "qa_pairs": [{"short_answers": ["Ada Lind"]}, {"short_answers": ["Ben Orr", "B. Orr"]}],
    "docs": [
        {"title": "A", "text": "Ada Lind won in 1990."},
        {"title": "B", "text": "It rained."},
        {"title": "C", "text": "Later Ben Orr won."},
    ],
}


def test_citations_against_the_passages_that_hold_the_answers(data: Path) -> None:
    put(data, "helmet/alce/asqa_eval_gtr_top2000.json", [ASQA])
    asked = sample("helmet/asqa_8k")
    assert asked.context.startswith("Document [1](Title: A): Ada Lind won in 1990.")
    assert asked.details["holders"] == [[1], [3]]
    assert asked.evidence == (
        "Document [1](Title: A): Ada Lind won in 1990.",
        "Document [3](Title: C): Later Ben Orr won.",
    )
    whole = scored("helmet/asqa_8k", asked.answer)
    assert asked.answer == "Ada Lind [1], Ben Orr [3]" and set(whole.values()) == {1.0}
    part = scored("helmet/asqa_8k", "Ada Lind won [1][2]. So did B. Orr [2].")
    assert part == {"score": 1.0, "citation_precision": 0.5, "citation_recall": 0.5}
    assert scored("helmet/asqa_8k", "Nobody.")["score"] == 0.0


def test_official_prompts_are_used_where_they_are(data: Path) -> None:
    put(data, "helmet/alce/asqa_eval_gtr_top2000.json", [ASQA])
    demos = [
        {"question": f"D{number}?", "answer": "So [1].", "docs": [{"title": "X", "text": "Y."}]}
        for number in range(3)
    ]
    put(data, "helmet/prompts/asqa_revised.json", {"instruction": "Cite well.", "demos": demos})
    asked = sample("helmet/asqa_8k")
    assert asked.question == "Cite well.\n\nQuestion: Who won?"
    assert asked.context.startswith(
        "Cite well.\n\nQuestion: D0?\n\nDocument [1](Title: X): Y.\n\nAnswer: So [1]."
    )
    assert "D1?" in asked.context and "D2?" not in asked.context


def test_lists_of_answers(data: Path) -> None:
    details = {
        "answers": [[f"A{number}", f"alias {number}"] for number in range(8)],
        "holders": [[number] for number in range(8)],
    }
    found = grade(qampari, "A0 [0], Alias 1 [5], wrong [9].", (), details)
    assert found["score"] == pytest.approx(2 / 5) and found["recall"] == 2 / 8
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["citation_precision"] == pytest.approx(2 / 3) and found["citation_recall"] == 0.5
    assert grade(qampari, ", ".join(f"A{number}" for number in range(6)), (), details)["score"] == 1.0
    assert qampari_answers("The Wall [3], In\nthe Wet,.") == ["wall", "in wet"]
    row = {"question": "Which?", "answers": [["Oslo"], ["Rome", "Roma"]], "docs": passages("Oslo.", "Roma.")}
    put(data, "helmet/alce/qampari_eval_gtr_top2000.json", [row])
    asked = sample("helmet/qampari_8k")
    assert scored("helmet/qampari_8k", asked.answer)["score"] == 1.0
    with pytest.raises(ValueError, match="the details name no 'answers'"):
        asqa("x", (), {})


def labelled(data: Path, suffix: str = "jsonl") -> None:
    rows = [
        {"text": f"word{label} number {number}", "label": label, "category": "x"}
        for number in range(6)
        for label in range(77)
    ]
    put(data, "helmet/icl/banking77/train.jsonl", rows[: 77 * 5])
    put(data, "helmet/icl/banking77/test.jsonl", rows[77 * 5 :])


def test_many_examples_share_their_numbers_with_the_question(data: Path) -> None:
    labelled(data)
    asked = sample("helmet/banking77_8k", 3, 60_000)
    blocks = asked.context.split("\n\n")[1:]
    assert len(blocks) == SHOTS["banking77"][0] == 360
    numbers: dict[str, set[str]] = {}
    for block in blocks:
        text, label = block.split("\nlabel: ")
        numbers.setdefault(text.split()[0], set()).add(label)
    assert all(len(found) == 1 for found in numbers.values()) and len(numbers) == 77
    assert numbers[asked.question.split()[0]] == set(asked.references)
    assert numbers["word1"] != {"1"} or numbers["word2"] != {"2"}
    assert scored("helmet/banking77_8k", f"label: {asked.references[0]}", 3)["score"] == 1.0
    assert scored("helmet/banking77_8k", "label: 77", 3)["score"] == 0.0
    check_the_cut_spares_the_question("helmet/banking77_8k")


def test_examples_with_named_labels(data: Path, shared_data: Path) -> None:
    for part in ("train", "test"):
        target = data / "helmet" / "icl" / "banking77" / f"{part}.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((shared_data / "labels" / f"banking77-{part}.csv").read_bytes())
    assert exam("helmet/banking77_8k").num_items() == 500
    asked = sample("helmet/banking77_8k", 0, 20_000)
    assert asked.context.count("\nlabel: ") == 360
    guessed = exam("helmet/banking77_8k").labels
    assert guessed.guess is not None and 0 <= int(guessed.guess(random.Random(0), asked)) < 77


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, "helmet/icl/nlu/train.jsonl", [{"sentence": "a", "label": 1}])
    with pytest.raises(DataMissing, match="icl/nlu/test.jsonl"):
        sample("helmet/nlu_8k")
    put(data, "helmet/icl/nlu/test.jsonl", [{"sentence": "a", "label": 1}])
    with pytest.raises(ValueError, match="has no columns 'text' and label; export them"):
        sample("helmet/nlu_8k")
    put(data, "helmet/icl/trec_coarse/train.jsonl", [{"text": "a", "coarse_label": 6}])
    put(data, "helmet/icl/trec_coarse/test.jsonl", [{"text": "a", "coarse_label": 1}])
    with pytest.raises(ValueError, match="has the label number 6; trec_coarse has 6 labels"):
        sample("helmet/trec_coarse_8k")
    check_data_are_asked_for("helmet/nq_8k", monkeypatch, "nq-dev-multikilt_1000_k50_dep6.jsonl", "MIT")
    check_data_are_asked_for("helmet/nlu_8k", monkeypatch, "icl/nlu/train.jsonl")
