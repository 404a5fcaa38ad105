"""InfiniteBench's six made tasks at any length: keys in noise, a pair of many, numbers of a list, sums, and running code.

The published samples of these tasks have one length, about 100K tokens; `infinitebench` reads them.

Paper: InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens (Zhang et al., 2024)

Scored by the official rules: the first number of the answer, the value as a word of it, the values in order, its last word.
"""

from __future__ import annotations

import random
from typing import Any

from longspan.evaluation.metrics.retrieval import kv_retrieval
from longspan.evaluation.metrics.text_numbers import code_run, math_calc, math_find, number_string, passkey
from longspan.evaluation.suites._call_chains import called_functions
from longspan.evaluation.suites.ruler import random_uuid
from longspan.evaluation.task import Puzzle, Room, Sample, Task

CARD: dict[str, Any] = {
    "name": "infinitebench_made",
    "title": "InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens",
    "year": 2024,
    "version": 1,
    "metric": "by task: first number, value as a word of the answer, part of the values in order, last word; mean over samples",
    "differs": [
        "any length; the original makes one, with 5,220 lines of noise, 2,500 pairs, 60,000 numbers, 30,000 terms, 550 functions",
        "the instructions are worded anew, one for all models",
        "a key stands at any sentence end of the noise; the original tries 59 places in turn",
        "kv_retrieval's asked pair stands anywhere, or at the depth asked for; the original goes through the places in turn",
        "math_calc shares the room between the expression and the values that the answer must list",
        "code_run's other functions call any made before them, or of the chain asked for; the original has layers of equal size",
        "tokens to generate allow for tokenizers that read digits one by one",
    ],
    "paper_id": 264,
    "lengths": "any; code_run from 1K tokens",
    "needs": "nothing",
    "licence": "generated here",
}

LARGEST = 99
RANGE = 20
PLACES = ("largest", "second largest", "third largest", "smallest", "second smallest", "third smallest")
MEASURED_TERMS = 256
Labelled = dict[str, Any]


def _needle(sentence: str, key: str, question: str, start: str, max_new_tokens: int) -> Puzzle:
    return Puzzle(
        needles=(sentence.replace("{key}", key),),
        preamble="One important piece of information is hidden in the text below. Remember it.",
        question=question,
        answer_prefix=start,
        references=(key,),
        answer=key,
        max_new_tokens=max_new_tokens,
    )


def hidden_passkey(rng: random.Random, room: Room) -> Puzzle:
    """Five digits in noise, told twice."""
    key = "".join(rng.choices("0123456789", k=5))
    return _needle(
        "The pass key is {key}. Remember it. {key} is the pass key.", key, "What is the pass key?", "The pass key is", 12
    )  # fmt: skip


def hidden_number_string(rng: random.Random, room: Room) -> Puzzle:
    """Ten digits, the last five of which each repeat one beside itself: easy to write one time too few."""
    digits = rng.choices("0123456789", k=5)
    for _ in range(5):
        place = rng.randrange(len(digits))
        digits.insert(place, digits[place])
    return _needle(
        "The sequence of digits is {key}. Remember it. {key} is the sequence of digits.", "".join(digits),
        "What is the sequence of digits?", "The sequence of digits is", 20,
    )  # fmt: skip


def one_pair_of_many(rng: random.Random, room: Room) -> Puzzle:
    """The value of one uuid in a JSON object of uuids."""
    key, value = random_uuid(rng), random_uuid(rng)
    asked = f'"{key}": "{value}"'
    question = f'Which value does this key have in the JSON object above?\nKey: "{key}"'
    start = "The value associated with the specified key is:"
    left = room.left("JSON data:\n{}", asked, question, start, max_new_tokens=64)
    others = room.fill_exactly(
        (f'"{random_uuid(rng)}": "{random_uuid(rng)}"' for _ in iter(int, 1)), left, joiner=", "
    )
    pairs = room.scatter((asked,), others, rng)
    return Puzzle(
        needles=(),
        context=f"JSON data:\n{{{', '.join(pairs)}}}",
        question=question,
        answer_prefix=start,
        references=(value,),
        answer=value,
        evidence=(asked,),
        max_new_tokens=64,
    )


def number_of_a_list(rng: random.Random, room: Room) -> Puzzle:
    """The largest, smallest or middle one of as many numbers as fit; how far the list reaches is drawn anew each time."""
    kind = rng.choice((*PLACES, "median"))
    low, high = 0, LARGEST
    if "largest" in kind or (kind == "median" and rng.random() < 0.5):
        high = rng.randint(LARGEST - RANGE, LARGEST)
    else:
        low = rng.randint(0, RANGE)
    question = f"What is the {kind} of the numbers above? Each value counts once. Answer with one number and nothing else."
    if kind == "median":
        question = "What is the median of the numbers above? Answer with one number and nothing else."
    start, head = f"The {kind} number of the list is:", "A list of numbers:\n\n"
    left = room.left(head, "[]", question, start, max_new_tokens=8)
    lines = room.fill_exactly((str(rng.randint(low, high)) for _ in iter(int, 1)), left, joiner=", ")
    answer = _found(kind, sorted(map(int, lines)))
    return Puzzle(
        needles=(),
        context=f"{head}[{', '.join(lines)}]",
        question=question,
        answer_prefix=start,
        references=(answer,),
        answer=answer,
        evidence=(),
        max_new_tokens=8,
        details={"kind": kind},
    )


def _found(kind: str, numbers: list[int]) -> str:
    if kind == "median":
        middle = (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
        return f"{middle:g}"
    values = sorted(set(numbers), reverse="largest" in kind)
    return str(values[("second" in kind) + 2 * ("third" in kind)])


def guess_number(rng: random.Random, sample: Sample) -> str:
    """A number from where the answers of this kind lie."""
    low = {"l": LARGEST - RANGE, "s": 0, "m": (LARGEST - RANGE) // 2}[
        str(sample.details["kind"]).split()[-1][0]
    ]
    return str(rng.randint(low, low + RANGE))


def running_values(rng: random.Random, room: Room) -> Puzzle:
    """All running values of a long expression of + and -, each from 0 to 99."""
    before = (
        "Work out an expression from left to right and give the value after each operation. For 1 + 3 + 4 that is [4, 8], for "
        "8 - 3 + 2 - 4 it is [5, 7, 3].\n\nExpression: "
    )
    question, start = "Give the values as a list and nothing else.", "Values:"
    value = rng.randint(0, LARGEST)
    first, terms, values = str(value), list[str](), list[str]()

    def go_on(count: int) -> None:
        nonlocal value
        for _ in range(count):
            plus, other = rng.random() > 0.5, rng.randint(0, LARGEST)
            if plus and value + other > LARGEST:
                other = rng.randint(0, LARGEST - value)
            if not plus and value < other:
                other = rng.randint(0, value)
            value += other if plus else -other
            terms.append(f" {'+' if plus else '-'} {other}")
            values.append(str(value))

    left = room.left(before, first, question, start, max_new_tokens=16)
    if left < 64:
        raise ValueError(f"an expression has no room in {room.tokens} tokens; ask for 256 or more")

    def cost(count: int) -> int:
        return room.count("".join(terms[:count])) + room.count(" " + ", ".join(values[:count]))

    go_on(MEASURED_TERMS)
    rate = cost(MEASURED_TERMS) / MEASURED_TERMS
    number = max(1, int(left / rate))
    go_on(max(0, number - MEASURED_TERMS))
    while (over := cost(number) - left) > 0:
        number -= max(1, int(over / rate))
    answer = f"[{', '.join(values[:number])}]"
    return Puzzle(
        needles=(),
        context=f"{before}{first}{''.join(terms[:number])}",
        question=question,
        answer_prefix=start,
        references=tuple(values[:number]),
        answer=answer,
        evidence=(),
        max_new_tokens=room.count(" " + answer) + 12,
    )


NEEDLE: Labelled = {"ability": "retrieval", "diffusion": "low", "scope": "low"}
TASKS: dict[str, Task] = {
    "passkey": Task(make=hidden_passkey, haystack="noise", metric=passkey, **NEEDLE),
    "number_string": Task(make=hidden_number_string, haystack="noise", metric=number_string, **NEEDLE),
    "kv_retrieval": Task(make=one_pair_of_many, haystack="own", places=True, metric=kv_retrieval, **NEEDLE),
    "math_find": Task(
        make=number_of_a_list,
        haystack="own",
        metric=math_find,
        ability="aggregation",
        diffusion="low",
        scope="high",
        chance=1 / 21,
        guess=guess_number,
        answers="derived",
    ),
    "math_calc": Task(
        make=running_values,
        haystack="own",
        metric=math_calc,
        ability="arithmetic",
        diffusion="high",
        scope="high",
        answers="derived",
    ),
    "code_run": Task(
        make=called_functions,
        haystack="own",
        metric=code_run,
        ability="code execution",
        diffusion="high",
        scope="low",
        chance=1 / 75,
        answers="derived",
    ),
}
