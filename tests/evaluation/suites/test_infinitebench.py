"""InfiniteBench: each task's rows as published, the start of its answer, and its official score by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

NOISE = "The hill is steep. The road is dusty. On we walk.\n" * 200
BOOK = "Mr. Varn bought the mill. " + "Years went by in the valley. " * 400
MILL = ["the mill", "the farm", "an inn", "a boat"]
ROWS: dict[str, dict[str, Any]] = {
    "passkey": {"context": NOISE + "The pass key is 71432. Remember it.\n" + NOISE, "input": "What is the pass key?", "answer": "71432"},
    "number_string": {"context": NOISE + "The sequence of digits is 1133557792.\n", "input": "What is the sequence of digits?",
                      "answer": ["1133557792"]},
    "kv_retrieval": {"context": 'JSON data:\n{"k-1": "v-1", "k-2": "v-2"}',
                     "input": '\nKey: "k-2"\nThe value associated with the specified key is: ', "answer": "v-2", "id": 7},
    "longbook_sum_eng": {"context": BOOK, "answer": ["Mr. Varn buys a mill."], "id": 0},
    "longbook_qa_eng": {"context": BOOK, "input": "What did Mr. Varn buy?", "answer": ["the mill", "a mill"]},
    "longbook_choice_eng": {"context": BOOK, "input": "What did Mr. Varn buy?", "answer": ["a boat"], "options": MILL},
    "longbook_qa_chn": {"context": "小王住在山上。" * 50, "input": "小王住在哪里？", "answer": ["山上"]},
    "longdialogue_qa_eng": {"context": "ANNA: Hello.\n$$MASK$$: Hello, Anna.\n", "input": "", "answer": ["BORIS"]},
    "math_find": {"context": "[3, 9, 4, 9, 1]", "input": "You should answer with only one number, no other words. The second largest "
                  "number of the list is: ", "answer": 4},
    "math_calc": {"context": "1 + 3 - 2", "input": "The value of the numerical expression is: ", "answer": [4, 2]},
    "code_run": {"context": "def func_1(x):\n    return func_2(x) - 4\n\ndef func_2(x):\n    return x + 9\n",
                 "input": "Please give me the exact number of the return value of func_1(-3).", "answer": 2},
    "code_debug": {"context": "def add(a, b):\n    return a - b\n", "input": "", "answer": ["add", "C"],
                   "options": ["load", "save", "add", "quit"]},
}  # fmt: skip
RIGHT = {
    "passkey": ("71432 is the key", "The pass key is"),
    "number_string": ("1133557792", "The sequence of digits is"),
    "kv_retrieval": ("v-2.", "The value associated with the specified key is:"),
    "longbook_sum_eng": ("Mr. Varn buys a mill.", "Summary:"),
    "longbook_qa_eng": ("A mill", "Answer:"),
    "longbook_choice_eng": ("D", "The letter of the correct answer is"),
    "longbook_qa_chn": ("山上。", "答案："),
    "longdialogue_qa_eng": ("Boris", "The hidden name is"),
    "math_find": ("4", "The second largest number of the list is:"),
    "math_calc": ("[4, 2]", "Values:"),
    "code_run": ("2.", "The value of func_1(-3) is"),
    "code_debug": ("C. add", "The correct option is:"),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    for name, row in ROWS.items():
        put(tmp_path, f"infinitebench/{name}.jsonl", [row])
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_each_task_asks_and_scores(data: Path, name: str) -> None:
    asked = sample(f"infinitebench/{name}", length=40_000)
    answer, start = RIGHT[name]
    assert asked.answer_prefix == start
    assert str(ROWS[name]["context"]) in asked.context
    assert scored_long(name, answer) == scored_long(name, asked.answer) == 1.0
    assert scored_long(name, "z") == 0.0


def scored_long(name: str, prediction: str) -> float:
    return scored(f"infinitebench/{name}", prediction, length=40_000)["score"]


def test_questions_hold_what_the_rows_ask(data: Path) -> None:
    assert sample("infinitebench/kv_retrieval").question.endswith('\nKey: "k-2"')
    assert sample("infinitebench/kv_retrieval").evidence == ('"k-2": "v-2"',)
    assert sample("infinitebench/passkey", length=20_000).evidence == ("The pass key is 71432. Remember it.",)
    assert (
        "A. the mill\nB. the farm\nC. an inn\nD. a boat"
        in sample("infinitebench/longbook_choice_eng").question
    )
    assert sample("infinitebench/longbook_choice_eng").references == ("a boat", "D")
    assert "func_1(-3)" in sample("infinitebench/code_run").question
    assert sample("infinitebench/kv_retrieval").details["id"] == 7
    check_the_cut_spares_the_question("infinitebench/longbook_qa_eng")


def test_partial_credit_and_the_fixed_rules(data: Path) -> None:
    assert scored_long("math_calc", "4, 3") == 0.5
    assert scored("infinitebench/longbook_qa_eng", "mill in the valley")["score"] == pytest.approx(0.5)
    assert scored("infinitebench/code_debug", " C")["score"] == 0.0
    assert scored("infinitebench/code_debug_fixed", " C")["score"] == 1.0
    assert scored("infinitebench/longbook_choice_eng", "Doubtless A")["score"] == 1.0
    assert scored("infinitebench/longbook_choice_eng_fixed", "Doubtless A")["score"] == 0.0


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, file = ROWS["longbook_choice_eng"], "infinitebench/longbook_choice_eng.jsonl"
    check_rows_are_checked(
        data, "infinitebench/longbook_choice_eng", file, row, ("context", "answer", "options")
    )
    for change, message in (
        ({"answer": ["a cart"]}, r"`answer` \['a cart'\] is not one of the options"),
        ({"options": MILL[:3]}, "`options` has 3 entries, four are expected|not one of the options"),
    ):
        put(data, "infinitebench/longbook_choice_eng.jsonl", [{**row, **change}])
        with pytest.raises(ValueError, match=message):
            sample("infinitebench/longbook_choice_eng_fixed")
    put(data, "infinitebench/code_run.jsonl", [{**ROWS["code_run"], "input": "Run it."}])
    with pytest.raises(ValueError, match="`input` 'Run it.' names no call such as func_12"):
        sample("infinitebench/code_run")
    check_data_are_asked_for(
        "infinitebench/math_calc", monkeypatch, "put math_calc.jsonl into", "InfiniteBench"
    )
