"""InfiniteBench's made tasks, answered by programs that read nothing but the context and the question."""

from __future__ import annotations

import json
import re
from statistics import median

import pytest

from longspan.evaluation.exams import FIRST_SEED, PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.suites.infinitebench_made import TASKS
from longspan.evaluation.task import Sample
from tests.evaluation.suites.local_data import TOKENIZER


def made(name: str, seed: int, length: int = 2048) -> Sample:
    exam = PuzzleExam(name=f"infinitebench_made/{name}", task=TASKS[name])
    return exam.build(
        length_tokens=length,
        depth=None,
        seed=FIRST_SEED + seed,
        haystack=noise_haystack(),
        tokenizer=TOKENIZER,
    )


def score(name: str, prediction: str, one: Sample) -> float:
    return grade(TASKS[name].metric, prediction, one.references, one.details)["score"]


def run_functions(text: str, question: str) -> int:
    """Follows the calls by the text of the functions, all of which must be there."""
    bodies = dict(re.findall(r"def (func_\d+)\(x\):\n    return (.+)", text))
    found = re.search(r"(func_\d+)\((-?\d+)\)", question)
    assert found is not None
    name, value = found[1], int(found[2])
    for body in bodies.values():
        called = re.match(r"func_\d+", body)
        assert called is None or called[0] in bodies
    for _ in range(11):
        inner, _, change = bodies[name].partition(" ")
        value += int(change.replace(" ", "") or 0)
        if inner == "x":
            return value
        name = inner.removesuffix("(x)")
    raise AssertionError("the chain is longer than 10")


def running(expression: str) -> list[int]:
    words = expression.split()
    value, values = int(words[0]), []
    for sign, number in zip(words[1::2], words[2::2], strict=True):
        value = value + int(number) if sign == "+" else value - int(number)
        values.append(value)
    return values


@pytest.mark.parametrize("seed", range(12))
def test_programs_find_every_answer(seed: int) -> None:
    one = made("passkey", seed)
    keys = re.findall(r"The pass key is (\d+)\. Remember it\. (\d+) is", one.context)
    assert len(keys) == 1 and score("passkey", keys[0][1], one) == 1.0 and score("passkey", "12", one) == 0.0

    one = made("number_string", seed)
    digits = re.search(r"sequence of digits is (\d{10})\.", one.context)
    assert digits is not None and score("number_string", digits[1], one) == 1.0
    assert sum(left == right for left, right in zip(digits[1], digits[1][1:], strict=False)) >= 5

    one = made("kv_retrieval", seed)
    pairs = json.loads(one.context.removeprefix("JSON data:\n"))
    asked = re.search(r'Key: "(.+)"', one.question)
    assert asked is not None and len(pairs) > 10
    assert score("kv_retrieval", pairs[asked[1]], one) == 1.0

    one = made("math_find", seed)
    numbers = json.loads(one.context.split("\n\n")[1])
    ranks = {
        "largest": -1,
        "second largest": -2,
        "third largest": -3,
        "smallest": 0,
        "second smallest": 1,
        "third smallest": 2,
    }
    kind = one.details["kind"]
    expected = median(numbers) if kind == "median" else sorted(set(numbers))[ranks[kind]]
    assert kind in one.question and score("math_find", f"{expected:g}", one) == 1.0

    one = made("math_calc", seed)
    values = running(one.context.split("Expression: ")[1])
    assert len(values) > 100 and all(0 <= value <= 99 for value in values)
    assert score("math_calc", str(values), one) == 1.0
    assert score("math_calc", str(values[:10]), one) == pytest.approx(10 / len(values))

    one = made("code_run", seed)
    assert score("code_run", f"= {run_functions(one.context, one.question)}", one) == 1.0


def test_chains_of_every_length_occur_and_the_numbers_are_sorted() -> None:
    drawn = [made("code_run", seed) for seed in range(40)]
    assert {len(one.evidence) for one in drawn} == {2, 4, 6, 8, 10}
    names = [int(name) for name in re.findall(r"def func_(\d+)", drawn[0].context)]
    assert names == sorted(set(names))


def test_long_chains_of_calls_stay_whole() -> None:
    one = made("code_run", 3, 32_768)
    assert one.context.count("def func_") > 800
    assert score("code_run", str(run_functions(one.context, one.question)), one) == 1.0


def test_too_little_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room in .* tokens; ask for 1024 or more"):
        made("code_run", 0, 150)
    with pytest.raises(ValueError, match="an expression has no room in .* tokens; ask for 256 or more"):
        made("math_calc", 0, 160)
