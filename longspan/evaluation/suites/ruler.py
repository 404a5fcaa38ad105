"""RULER: needles, variable tracking and counting at any length, made from word lists and numbers.

Paper: RULER: What's the Real Context Size of Your Long-Context Language Models? (Hsieh et al., 2024)
Needles are "One of the special magic numbers for <key> is: <value>."; the haystack is prose, five noise sentences, or
needle lines only (multikey_2 and multikey_3).
"""

import itertools
import random
import string
import uuid
from collections.abc import Callable
from typing import Any

from longspan.evaluation.haystacks.lines import Lines
from longspan.evaluation.task import Puzzle, Room, Task
from longspan.evaluation.suites._words import word_list

CARD: dict[str, Any] = {
    "name": "ruler",
    "title": "RULER: What's the Real Context Size of Your Long-Context Language Models?",
    "year": 2024,
    "version": 1,
    "metric": "share of the reference strings found in the answer, letter case ignored; mean over samples",
    "differs": [
        "the prose haystack is the caller's text, not Paul Graham's essays",
        "the question-answering tasks qa_1 and qa_2 are not here: they need SQuAD and HotpotQA",
        "vt and cwe come without the one-shot example",
        "cwe draws its words from wonderwords only, so that lists beyond about 8,000 distinct words repeat more",
        "the chat template's own `Answer:` stands where RULER writes it before the answer prefix",
    ],
}

MAGIC_TOKENS = 128


def random_number(rng: random.Random) -> str:
    """Seven digits, not led by zero."""
    return str(rng.randint(1_000_000, 9_999_999))


def random_uuid(rng: random.Random) -> str:
    """A version 4 uuid."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def random_word(rng: random.Random) -> str:
    """An adjective and a noun, joined with a hyphen."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "numbers": random_number,
    "words": random_word,
    "uuids": random_uuid,
}


def distinct(make: Callable[[random.Random], str], count: int, rng: random.Random) -> list[str]:
    """`count` different values of a maker, in the order drawn."""
    values: dict[str, None] = {}
    while len(values) < count:
        values[make(rng)] = None
    return list(values)


def join_words(items: list[str]) -> str:
    """ "a", "a, and b", "a, b, and c": as RULER writes several keys."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + ", and " + items[-1]


def magic_needle(kind: str, key: str, value: str) -> str:
    """RULER's needle sentence."""
    return f"One of the special magic {kind} for {key} is: {value}."


def niah(
    *,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    key: str = "words",
    value: str = "numbers",
    lines: bool = False,
) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of needle tasks: `keys` keys with `values` values each, `queries` of the keys asked for.

    With `lines`, the haystack is needles about other keys.
    """

    def make(rng: random.Random, room: Room) -> Puzzle:
        names = distinct(MAKERS[key], keys, rng)
        table = [(name, MAKERS[value](rng)) for name in names for _ in range(values)]
        asked = rng.sample(names, queries)
        rng.shuffle(table)
        needles = tuple(magic_needle(value, name, found) for name, found in table)
        answers = [found for name, found in table if name in asked]
        one = queries * values == 1
        noun = value.removesuffix("s") if one else value
        preamble = (
            f"{'A' if one else 'Some'} special magic {noun} {'is' if one else 'are'} hidden within the following text. "
            f"Make sure to memorize it. I will quiz you about the {noun} afterwards."
        )
        asked_for = f"special magic {noun} for {join_words(asked)} mentioned in the provided text"
        return Puzzle(
            needles=needles,
            ordered=True,
            evidence=tuple(needle for needle, (name, _) in zip(needles, table, strict=True) if name in asked),
            preamble=preamble,
            question=f"What {'is' if one else 'are all'} the {asked_for}?",
            answer_prefix=f"The {asked_for} {'is' if one else 'are'}",
            references=tuple(answers),
            answer=", ".join(answers) + ".",
            max_new_tokens=MAGIC_TOKENS,
            own_haystack=_needle_lines(key, value) if lines else None,
            style="line" if lines else "sentence",
        )

    return make


def _needle_lines(key: str, value: str) -> Lines:
    return Lines(lambda rng: magic_needle(value, MAKERS[key](rng), MAKERS[value](rng)))


def variable_tracking(rng: random.Random, room: Room) -> Puzzle:
    """One chain of four assignments in the noise: name all five variables that hold the value."""
    names = distinct(lambda source: "".join(source.choices(string.ascii_uppercase, k=5)), 5, rng)
    value = str(rng.randint(10_000, 99_999))
    needles = [f"VAR {names[0]} = {value}"]
    needles += [f"VAR {later} = VAR {earlier}" for earlier, later in zip(names, names[1:], strict=False)]
    return Puzzle(
        needles=tuple(needles),
        ordered=True,
        style="line",
        preamble="Memorize and track the chain(s) of variable assignment hidden in the following text.\n",
        question=f"Question: Find all variables that are assigned the value {value} in the text above.",
        answer_prefix=(
            "According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value "
            f"{value}, they are:"
        ),
        references=tuple(names),
        answer=" ".join(names) + ".",
        max_new_tokens=30,
    )


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def common_words(rng: random.Random, room: Room) -> Puzzle:
    """Ten words occur 30 times in a numbered list, the others 3 times (6 and 1 under 4,096 tokens): name the ten."""
    often, seldom = (30, 3) if room.tokens >= 4000 else (6, 1)
    head = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    question = "Question: What are the 10 most common words in the above list?"
    prefix = "The top 10 words that appear most often in the list are:"
    limit = room.tokens - 120 - sum(room.count(part) + 2 for part in (question, prefix))
    vocabulary = list(dict.fromkeys((*word_list("noun"), *word_list("adjective"), *word_list("verb"))))
    rng.shuffle(vocabulary)
    common, rest = vocabulary[:10], vocabulary[10:]
    costs = sum(room.count(" " + word) + 6 for word in common)
    often = min(often, limit // (costs + costs // 3))
    if often < 2:
        raise ValueError(
            f"cwe needs more than {room.tokens} tokens to repeat ten words; ask for 1024 or more"
        )
    budget = float(limit)
    for _ in range(4):
        words, used = common * often, float(room.count(head) + often * costs)
        for word in itertools.cycle(rest):
            used += seldom * (room.count(" " + word) + 2 + len(str(len(words) + seldom)))
            if used > budget:
                break
            words += [word] * seldom
        rng.shuffle(words)
        context = head + _numbered(words)
        made = room.count(context)
        if 0.99 * limit <= made <= limit:
            break
        budget *= 0.997 * limit / made
    while room.count(context) > limit:
        words.remove(next(word for word in words if word not in common))
        context = head + _numbered(words)
    common.sort(key=words.index)
    return Puzzle(
        needles=(),
        context=context,
        question=question,
        answer_prefix=prefix,
        references=tuple(common),
        answer=_numbered(common),
        max_new_tokens=120,
    )


def frequent_words(rng: random.Random, room: Room) -> Puzzle:
    """Coded words with Zipf counts (exponent 2); the most frequent is written "...": name the next three."""
    head = (
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. "
    )
    question = (
        "Question: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?"
    )
    prefix = "According to the coded text above, the three most frequently appeared words are:"
    limit = room.tokens - 50 - sum(room.count(part) + 2 for part in (question, prefix))
    if limit < 100:
        raise ValueError(f"fwe needs more than {room.tokens} tokens; ask for 400 or more")
    vocabulary = distinct(
        lambda source: "".join(source.choices(string.ascii_lowercase, k=6)), max(8, room.tokens // 50), rng
    )
    costs = [room.count(" ...")] + [room.count(" " + word) for word in vocabulary]
    weights = [1 / rank**2 for rank in range(1, len(vocabulary) + 2)]
    zeta = 1.6449340668482264
    num_words = int(limit * zeta / sum(weight * cost for weight, cost in zip(weights, costs, strict=True)))
    for _ in range(20):
        words: list[str] = []
        for word, weight in zip(["...", *vocabulary], weights, strict=True):
            words += [word] * int(num_words * weight / zeta)
        rng.shuffle(words)
        context = head + " ".join(words)
        made = room.count(context)
        if 0.985 * limit <= made <= limit:
            break
        num_words = int(num_words * 0.995 * limit / made)
    top = vocabulary[:3]
    return Puzzle(
        needles=(),
        context=context,
        question=question,
        answer_prefix=prefix,
        references=tuple(top),
        answer=", ".join(top) + ".",
        max_new_tokens=50,
    )


RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low"}
COUNTING: dict[str, Any] = {"ability": "aggregation", "diffusion": "high", "scope": "high", "answers": "derived"}

TASKS: dict[str, Task] = {
    "niah_single_1": Task(make=niah(), haystack="noise", **RETRIEVAL),
    "niah_single_2": Task(make=niah(), **RETRIEVAL),
    "niah_single_3": Task(make=niah(value="uuids"), **RETRIEVAL),
    "niah_multikey_1": Task(make=niah(keys=4), **RETRIEVAL),
    "niah_multikey_2": Task(make=niah(lines=True), haystack="own", **RETRIEVAL),
    "niah_multikey_3": Task(
        make=niah(key="uuids", value="uuids", lines=True), haystack="own", **RETRIEVAL
    ),
    "niah_multivalue": Task(make=niah(values=4), **RETRIEVAL),
    "niah_multiquery": Task(make=niah(keys=4, queries=4), **RETRIEVAL),
    "vt": Task(make=variable_tracking, haystack="noise", ability="tracing", diffusion="high", scope="low"),
    "cwe": Task(make=common_words, haystack="own", **COUNTING),
    "fwe": Task(make=frequent_words, haystack="own", **COUNTING),
}
