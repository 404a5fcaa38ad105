"""Loong: documents found by their names, prompts of the data, answers compared by rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.loong_rules import first_value, loong
from longspan.evaluation.published import DataMissing
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

FILE = "loong/loong.jsonl"
MATCHING = "阅读以上判决文书，我将给你若干份判决结果：{'判决结果1': '驳回。'}"


def row(level: int, kind: str, doc: list[str], answer: Any, **more: Any) -> dict[str, Any]:
    return {
        "level": level, "set": 1, "length": 100, "type": kind, "language": "en", "question": "Which?",
        "instruction": "Use the documents only.", "prompt_template": "{docs}\n\n{instruction}\n\n{question}",
        "doc": doc, "answer": answer, "shuffle_doc": False, "id": f"{level}-{kind}", **more,
    }  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    folder = tmp_path / "loong" / "doc"
    for kind in ("financial", "paper", "legal"):
        (folder / kind).mkdir(parents=True)
    (folder / "financial" / "7-2024-ACME [B] Inc.txt").write_text("Sales were $5.")
    (folder / "financial" / "8-2023-ACME [B] Inc.txt").write_text("Sales were $4.")
    (folder / "paper" / "1.md").write_text("# A Paper \nWe cite nothing.")
    (folder / "paper" / "2.md").write_text("# B Paper\nWe cite A Paper.")
    put(tmp_path, "loong/doc/legal/legal.json", {"案一": {"content": "事实。", "result": "驳回。"}})
    put(
        tmp_path,
        FILE,
        [
            row(1, "financial", ["ACME [B] Inc"], "$5"),
            row(2, "financial", ["ACME [B] Inc"], "ACME [B] Inc, $5"),
            row(3, "paper", ["1.md", "2.md"], {"Reference": ["# A Paper "], "Citation": []}),
            row(4, "paper", ["1.md", "2.md"], ["# B Paper", "# A Paper "],
                prompt_template="{instruction}\n\n#Papers:\n{docs}", question=""),
            row(4, "legal", ["案一"], {"《判决文书1》": "判决结果1"}, question=MATCHING),
        ],
    )  # fmt: skip
    return tmp_path


def test_documents_and_prompts(data: Path) -> None:
    report = sample("loong/spotlight")
    assert report.context == "《ACME [B] Inc》\nSales were $5."
    assert report.question == "Use the documents only.\n\nWhich?"
    papers = sample("loong/clustering").context
    assert papers == "A Paper\n# A Paper \nWe cite nothing.\n\nB Paper\n# B Paper\nWe cite A Paper."
    chain = sample("loong/chain")
    assert (
        chain.context.startswith("Use the documents only.\n\n#Papers:\nA Paper")
        and chain.question == "#Answer:"
    )
    ruling = sample("loong/chain", 1)
    assert ruling.context == "《判决文书1》\n事实。驳回。"
    assert sample("loong/chain_fixed", 1).context == "《判决文书1》\n事实。"


def test_documents_are_shuffled_where_the_row_says_so(data: Path) -> None:
    for place in range(9):
        (data / "loong" / "doc" / "paper" / f"x{place}.md").write_text(f"# P{place}")
    names = [f"x{place}.md" for place in range(9)]
    put(data, FILE, [row(3, "paper", names, {}, shuffle_doc=True, id="s")])
    once = sample("loong/clustering").context
    assert sorted(once.split("\n\n")) == [f"P{place}\n# P{place}" for place in range(9)]
    assert (
        once != "\n\n".join(f"P{place}\n# P{place}" for place in range(9))
        and once == sample("loong/clustering").context
    )


@pytest.mark.parametrize(
    ("task", "number"), [("spotlight", 0), ("comparison", 0), ("clustering", 0), ("chain", 0), ("chain", 1)]
)
def test_the_ideal_answer_scores_all_and_another_nothing(data: Path, task: str, number: int) -> None:
    asked = sample(f"loong/{task}", number)
    assert scored(f"loong/{task}", asked.answer, number) == {"score": 1.0, "perfect": 1.0}
    assert scored(f"loong/{task}", "I cannot tell.", number) == {"score": 0.0, "perfect": 0.0}


def test_partial_credit() -> None:
    groups = json.dumps({"high": ["ACME", "Bolt"], "low": ["Core"]})
    # two of three pairs given, one of them right: precision 1/2, recall 1/3
    assert grade(loong, 'So: {"high": ["acme"], "low": ["Bolt"]}', (groups,))["score"] == pytest.approx(0.4)
    assert grade(loong, "{'high': ['ACME', 'Bolt'], 'low': ['Core']}", (groups,))["perfect"] == 1.0
    matches = json.dumps({"《判决文书1》": "判决结果2", "《判决文书2》": "判决结果1"})
    assert grade(loong, '{"判决文书1": "判决结果2", "判决文书2": "判决结果2"}', (matches,))["score"] == 0.5
    chain = json.dumps(["A", "B", "C"])
    assert grade(loong, '["A", "C"]', (chain,))["score"] == pytest.approx(2 / 3)
    assert grade(loong, '["C", "B", "A"]', (chain,))["score"] == pytest.approx(1 / 3)
    assert (
        grade(loong, "《判决文书6》", ("《判决文书6》，《判决文书8》",), {"answer_type": "text"})["score"]
        == 0.5
    )
    assert grade(loong, "It is $1,234 there", ("$1,234",))["score"] == 1.0
    assert grade(loong, "It is $12345", ("$1,234",))["score"] == 0.0
    assert grade(loong, "11.5", ("1.5",))["score"] == 0.0
    empty = json.dumps({"high": [], "low": []})
    assert grade(loong, '{"high": []}', (empty,))["score"] == 1.0
    assert grade(loong, '{"high": ["x"]}', (empty,))["score"] == 0.0


def test_the_numbers_of_a_long_answer_count() -> None:
    answer = "The item rose sharply over the years: it was 3,291,817,780.74 in the first and 17,854,769,474.09 in the second."
    assert grade(loong, "3291817780.74, later more", (answer,))["score"] == 0.5
    words = (
        "Because the harbour master refused to open the northern gate before the autumn storms had passed."
    )
    assert 0 < grade(loong, "The harbour master refused.", (words,))["score"] < 1


def test_values_in_a_text() -> None:
    assert first_value('See [1]. {"a": 1}', dict) == {"a": 1}
    assert first_value("Broken {'a': } then ['b']", list) == ["b"]
    assert first_value("none { ] here", dict, list) is None


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        data,
        FILE,
        [row(3, "paper", ["9.md"], {}), row(3, "poem", ["1.md"], {}), row(3, "legal", ["案二"], {})],
    )
    with pytest.raises(DataMissing, match=r"put paper/9.md into .*loong .*Apache-2.0"):
        sample("loong/clustering")
    with pytest.raises(ValueError, match=r"row 2 of loong.jsonl .* must be financial, paper or legal"):
        sample("loong/clustering", 1)
    with pytest.raises(ValueError, match=r"row 3 of loong.jsonl .*KeyError: '案二'"):
        sample("loong/clustering", 2)
    check_data_are_asked_for("loong/spotlight", monkeypatch, "loong.jsonl")


def test_long_documents_lose_their_middle(data: Path) -> None:
    (data / "loong" / "doc" / "financial" / "7-2024-ACME [B] Inc.txt").write_text(
        "Sales were $5. " * 2000 + "End."
    )
    check_the_cut_spares_the_question("loong/spotlight", length=1400)
