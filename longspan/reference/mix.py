"""What the reference model is trained to do: puzzles in many wordings, built on the suites' own makers.

The suites ask in fixed words. Training varies them, so that the model follows a question and not a phrase.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, replace

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites import ruler
from longspan.evaluation.suites._words import word_list
from longspan.evaluation.suites.facts import draw_facts, fact_puzzle
from longspan.evaluation.task import Puzzle, Room
from longspan.reference.relations import draw_relations


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Several puzzles that share one context; `haystack` is "text", "noise", "lines" (filler given) or "own"."""

    kind: str
    puzzles: tuple[Puzzle, ...]
    haystack: str
    filler: tuple[str, ...] = ()


SMALL_ROOM_TOKENS = 700
CROWD_SHARE = 0.6
CROWD_ROOM_TOKENS = 900
CROWD_PART_TOKENS = 450
MAX_CROWD = 8

_NOUNS = (
    "magic number",
    "secret code",
    "access number",
    "lucky number",
    "pass code",
    "order number",
    "reference number",
)
_WORD_NOUNS = ("magic word", "secret word", "pass phrase", "code name", "watchword", "password")
_NEEDLES = (
    "One of the special {noun}s for {key} is: {value}.",
    "The {noun} for {key} is {value}.",
    "The {noun} of {key} is {value}.",
    "Remember: the {noun} for {key} is {value}.",
    "For {key}, the {noun} is {value}.",
    "The special {noun} for {key} is: {value}.",
)
_QUESTIONS = (
    "What is the {noun} for {key}?",
    "What is the {noun} for {key} mentioned in the text?",
    "Which {noun} belongs to {key}?",
    "Tell me the {noun} for {key}.",
    "What is the special {noun} for {key} mentioned in the provided text?",
    "According to the text, what is the {noun} of {key}?",
)
_PREFIXES = ("", "", "", "The {noun} for {key} is", "The {noun} for {key} mentioned in the text is", "It is")
_MANY_QUESTIONS = (
    "What are all the {noun}s for {keys} mentioned in the provided text?",
    "List all {noun}s for {keys}.",
    "What are the {noun}s for {keys}?",
)


def _number(rng: random.Random) -> str:
    digits = rng.choice((4, 5, 6, 7, 7, 7, 8, 10))
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def _noun(rng: random.Random) -> str:
    return rng.choice(word_list("noun"))


def _person(rng: random.Random) -> str:
    return f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"


def _two_words(rng: random.Random) -> str:
    return f"{rng.choice(word_list('adjective'))} {rng.choice(word_list('noun'))}"


KEYS: tuple[Callable[[random.Random], str], ...] = (
    ruler.random_word, ruler.random_word, ruler.random_word, _noun, _person, _two_words, ruler.random_uuid, _number,
)  # fmt: skip
NUMBERS: tuple[Callable[[random.Random], str], ...] = (ruler.random_number, ruler.random_number, _number)
WORDS: tuple[Callable[[random.Random], str], ...] = (ruler.random_word, ruler.random_word, _noun, _two_words)


def _magic(kind: str, rng: random.Random, room: Room) -> Episode:
    """RULER's own needle tasks in RULER's words, alone or several in one text; `lines`: the haystack is needles."""
    if kind == "lines":
        uuids = rng.random() < 0.3
        key, value = ("uuids", "uuids") if uuids else ("words", "numbers")
        makers = ruler.MAKERS
        count = room.tokens // (40 if uuids else 20) + 4
        filler = tuple(ruler.magic_needle(value, makers[key](rng), makers[value](rng)) for _ in range(count))
        puzzles = [
            replace(ruler.niah(key=key, value=value)(rng, room), style="line")
            for _ in range(_turns(rng, room))
        ]
        return Episode(kind="lines", puzzles=_plain(puzzles, rng), haystack="lines", filler=filler)
    value = rng.choice(("numbers", "numbers", "words", "uuids")) if kind != "multiquery" else "numbers"
    shape = {"keys": 1, "values": 1, "queries": 1}
    if kind == "multikey":
        shape["keys"] = rng.choice((2, 4, 6))
    elif kind == "multivalue":
        shape["values"] = rng.choice((2, 3, 4, 4))
    elif kind == "multiquery":
        shape["keys"] = rng.choice((2, 3, 4, 4))
        shape["queries"] = rng.randint(2, shape["keys"])
    if room.tokens < SMALL_ROOM_TOKENS and value == "uuids" and kind != "single":
        value = "numbers"
    small = room.tokens < SMALL_ROOM_TOKENS
    turns = 1 if small and (kind in ("multivalue", "multiquery") or value == "uuids") else _turns(rng, room)
    puzzles = [
        ruler.niah(value=value, keys=shape["keys"], values=shape["values"], queries=shape["queries"])(
            rng, room
        )
        for _ in range(min(turns, 2 if kind != "single" else 4))
    ]
    haystack = "noise" if rng.random() < 0.2 else "text"
    return Episode(kind=kind, puzzles=_plain(puzzles, rng), haystack=haystack)


def _plain(puzzles: list[Puzzle], rng: random.Random) -> tuple[Puzzle, ...]:
    """Preamble and answer prefix only on some; the preamble only on the first."""
    changed = []
    for index, puzzle in enumerate(puzzles):
        keep_preamble = index == 0 and rng.random() < 0.7
        prefix = puzzle.answer_prefix if rng.random() < 0.6 else ""
        changed.append(
            replace(puzzle, preamble=puzzle.preamble if keep_preamble else "", answer_prefix=prefix)
        )
    return tuple(changed)


def _turns(rng: random.Random, room: Room) -> int:
    return rng.choice((1, 1, 2, 3)) if room.tokens < SMALL_ROOM_TOKENS else rng.choice((1, 2, 3, 4, 6, 8))


def _puzzle(
    needles: list[str], question: str, answers: list[str], prefix: str, style: str = "sentence"
) -> Puzzle:
    return Puzzle(
        needles=tuple(needles),
        question=question,
        answer_prefix=prefix,
        references=tuple(answers),
        answer=", ".join(answers) + ".",
        style="line" if style == "line" else "sentence",
        max_new_tokens=64,
    )


def _keys(rng: random.Random, room: Room) -> Episode:
    """Needles of one wording that differ in key and value; some of the keys asked one after the other, or together."""
    numeric = rng.random() < 0.5
    noun = rng.choice(_NOUNS if numeric else _WORD_NOUNS)
    key = rng.choice(KEYS)
    value = rng.choice(NUMBERS if numeric else WORDS)
    most = 8 if room.tokens < SMALL_ROOM_TOKENS else 14
    keys = ruler.distinct(key, rng.choice((2, 4, 8, 8, 8, most)), rng)
    table = {name: value(rng) for name in keys}
    wording = rng.choice(_NEEDLES)
    needles = [wording.format(noun=noun, key=name, value=found) for name, found in table.items()]
    asked = rng.sample(keys, min(len(keys), _turns(rng, room)))
    question, prefix = rng.choice(_QUESTIONS), rng.choice(_PREFIXES)
    puzzles = []
    for name in asked:
        words = {"noun": noun, "key": name}
        puzzles.append(_puzzle([], question.format(**words), [table[name]], prefix.format(**words)))
    if rng.random() < 0.15 and len(keys) > 2:
        several = sorted(rng.sample(keys, rng.choice((2, 3))), key=keys.index)
        text = rng.choice(_MANY_QUESTIONS).format(
            noun=noun, keys=ruler.join_words(rng.sample(several, len(several)))
        )
        puzzles[-1] = _puzzle([], text, [table[name] for name in several], "")
    puzzles[0] = replace(puzzles[0], needles=tuple(needles), ordered=True)
    return Episode(kind="keys8", puzzles=tuple(puzzles), haystack="noise" if rng.random() < 0.1 else "text")


_PAIR_QUESTIONS = (
    "Which value belongs to the key {key}?", "Which value belongs to the key {key}?", "What is the value of {key}?",
    "What is the value for the key {key}?", "Give the value of {key}.", "{key}?",
)  # fmt: skip


def _pairs(rng: random.Random, room: Room) -> Episode:
    """Many lines "key: value" spread through the text."""
    key = rng.choice(
        (ruler.random_word, ruler.random_word, ruler.random_word, _noun, ruler.random_uuid, _number)
    )
    value = rng.choice((ruler.random_number, ruler.random_number, _number, ruler.random_word))
    cost = room.count("\n" + key(rng) + ": " + value(rng) + "\n") + 4
    fitting = max(2, int(room.tokens * 0.6) // cost)
    count = min(fitting, rng.choice((8, 16, 32, 64, 64, 64)))
    keys = ruler.distinct(key, count, rng)
    separator = rng.choice((": ", ": ", ": ", " = ", " -> "))
    table = {name: value(rng) for name in keys}
    question = rng.choice(_PAIR_QUESTIONS)
    asked = rng.sample(keys, min(count, _turns(rng, room)))
    puzzles = [_puzzle([], question.format(key=name), [table[name]], "") for name in asked]
    lines = tuple(f"{name}{separator}{found}" for name, found in table.items())
    puzzles[0] = replace(puzzles[0], needles=lines, style="line")
    return Episode(kind="kv", puzzles=tuple(puzzles), haystack="text")


def _facts(rng: random.Random, room: Room) -> Episode:
    """Natural facts, of one kind or mixed; some asked."""
    count = rng.choice((1, 2, 4, 8, 8, 8, 8 if room.tokens < SMALL_ROOM_TOKENS else 12))
    facts = draw_facts(
        count,
        rng,
        same_template=rng.random() < 0.8,
        similar=rng.random() < 0.4,
        answer_first=rng.random() < 0.5,
    )
    asked = rng.sample(facts, min(count, _turns(rng, room)))
    puzzles = [replace(fact_puzzle([fact], rng), needles=()) for fact in asked]
    puzzles[0] = replace(puzzles[0], needles=tuple(fact.statement for fact in facts))
    return Episode(kind="facts", puzzles=tuple(puzzles), haystack="noise" if rng.random() < 0.05 else "text")


def _relations(rng: random.Random, room: Room) -> Episode:
    """Facts whose kind is drawn at random too."""
    count = rng.choice((1, 1, 2, 4, 8, 8))
    drawn = draw_relations(count, rng, same_form=rng.random() < 0.5)
    asked = rng.sample(drawn, min(count, _turns(rng, room)))
    puzzles = [_puzzle([], fact.question, [fact.answer], "") for fact in asked]
    puzzles[0] = replace(puzzles[0], needles=tuple(fact.statement for fact in drawn))
    return Episode(
        kind="relations", puzzles=tuple(puzzles), haystack="noise" if rng.random() < 0.05 else "text"
    )


def _variables(rng: random.Random, room: Room) -> Episode:
    """RULER's variable tracking, now and then with other chain lengths, two chains, or prose around it."""
    chains = 2 if rng.random() < 0.3 else 1
    puzzles = [ruler.variable_tracking(rng, room) for _ in range(chains)]
    if rng.random() < 0.25:
        puzzles = [_short_chain(rng) for _ in range(chains)]
    puzzles = list(_plain(puzzles, rng))
    return Episode(kind="vt", puzzles=tuple(puzzles), haystack="noise" if rng.random() < 0.6 else "text")


def _short_chain(rng: random.Random) -> Puzzle:
    names = ruler.distinct(
        lambda source: "".join(source.choices(string.ascii_uppercase, k=5)), rng.randint(2, 4), rng
    )
    value = str(rng.randint(10_000, 99_999))
    needles = [f"VAR {names[0]} = {value}"]
    needles += [f"VAR {later} = VAR {earlier}" for earlier, later in zip(names, names[1:], strict=False)]
    question = f"Question: Find all variables that are assigned the value {value} in the text above."
    return replace(_puzzle(needles, question, names, "", "line"), ordered=True, answer=" ".join(names) + ".")


def _ready(
    make: Callable[[random.Random, Room], Puzzle], kind: str
) -> Callable[[random.Random, Room], Episode]:
    def episode(rng: random.Random, room: Room) -> Episode:
        return Episode(kind=kind, puzzles=(make(rng, room),), haystack="own")

    return episode


def _of(kind: str) -> Callable[[random.Random, Room], Episode]:
    return lambda rng, room: _magic(kind, rng, room)


def _quote(rng: random.Random, room: Room) -> Episode:
    """No needle: the text's own sentences, to be continued. The rows fill in question and answer."""
    return Episode(kind="quote", puzzles=(), haystack="text")


MIX: tuple[tuple[float, Callable[[random.Random, Room], Episode]], ...] = (
    (0.04, _of("single")),
    (0.03, _of("multikey")),
    (0.08, _of("multivalue")),
    (0.09, _of("multiquery")),
    (0.05, _of("lines")),
    (0.09, _keys),
    (0.07, _pairs),
    (0.40, _facts),
    (0.17, _relations),
    (0.05, _variables),
    (0.01, _quote),
    (0.02, _ready(ruler.common_words, "cwe")),
    (0.04, _ready(ruler.frequent_words, "fwe")),
)


def draw_episode(rng: random.Random, room: Room) -> Episode:
    """One episode of the mix, or a crowd of them: several in one text, all their questions asked in turn.

    A long row teaches in proportion to its answers, and one episode asks only a few questions.
    """
    if room.tokens < CROWD_ROOM_TOKENS or rng.random() >= CROWD_SHARE:
        return _draw(rng, room)
    size = rng.randint(2, max(2, min(MAX_CROWD, room.tokens // CROWD_PART_TOKENS)))
    part = replace(room, tokens=room.tokens // size)
    drawn = [_draw(rng, part) for _ in range(size)]
    together = [episode for episode in drawn if episode.haystack == "text" and episode.puzzles]
    if not together:
        return _draw(rng, room)
    puzzles = [
        replace(puzzle, preamble="" if index else puzzle.preamble)
        for index, episode in enumerate(together)
        for puzzle in episode.puzzles
    ]
    return Episode(kind="crowd", puzzles=tuple(puzzles), haystack="text")


def _draw(rng: random.Random, room: Room) -> Episode:
    makers = [make for _, make in MIX]
    return rng.choices(makers, weights=[weight for weight, _ in MIX])[0](rng, room)
