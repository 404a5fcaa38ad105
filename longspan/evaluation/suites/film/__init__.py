"""VaL Probing of FILM: a key is given, and what stands after it, before it, or on both sides is to be retrieved.

Three kinds of text: a document of sentences (from the user's prose), code of short functions (from the standard library), a
database of invented records. Forward, the key is the start of a sentence, the name of a function, the ID of a record; backward,
the end of a sentence, a line of a function, the description of a record; in both directions, the middle of each. The paper has
`document_bi`, `code_backward` and `database_forward`; the others complete the table.

Paper: Make Your LLM Fully Utilize the Context (An et al., 2024)
Scored by word recall: the share of the different words of the right text that the answer has.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from longspan.evaluation.metrics.text import best_of
from longspan.evaluation.suites._source_tree import source_tree
from longspan.evaluation.suites.film.sources import functions_of, records_of, sentences_of
from longspan.evaluation.task import Puzzle, Room, Sample, Task, place_at

CARD: dict[str, Any] = {
    "name": "film",
    "title": "Make Your LLM Fully Utilize the Context",
    "year": 2024,
    "version": 1,
    "metric": "share of the different words of the right text that stand in the answer, letter case ignored; mean over samples",
    "differs": [
        "sentences are the user's prose, in random order, with invented facts where it has too few; the original has abstracts "
        "of papers",
        "functions are whole ones of 4 to 24 lines of the running Python's standard library (or LONGSPAN_SOURCE); the original "
        "has three lines of each of many repositories",
        "records are invented; the original has Wikidata entities",
        "six of the nine combinations of text and direction are not in the original",
        "keys occur once in the text; the original leaves out the samples where they do not when it scores",
        "the words of the key count in `document_bi` as in the original, so that repeating the key scores about a third",
        "any length and depth; the original has 800 places in 32K tokens",
    ],
    "paper_id": 37,
    "lengths": "from 1K tokens; code up to about 300K in the standard library",
    "needs": "nothing",
    "licence": "generated here; code of the standard library is under the PSF licence",
}

Direction = Literal["forward", "backward", "bi"]

KEY_WORDS = 8
FEWEST_WORDS, MOST_WORDS = 20, 40
NEW_TOKENS = {"document": 128, "code": 128, "name": 32, "database": 64}
SMALL_TOKENS = 24
LARGE_TOKENS = 48  # of a function, at least


def word_recall(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Share of the different words of a reference that are words of the answer, case ignored; best of the references.

    Official scorer: FILM's `plot.py`. Its faults: punctuation belongs to the word beside it, and long answers lose nothing.
    """
    said = set(prediction.strip().lower().split())

    def recall(reference: str) -> float:
        words = set(reference.strip().lower().split())
        return len(words & said) / len(words)

    return best_of(recall, references)


def _puzzle(
    wanted: str,
    fillers: Callable[[int], list[str]],
    question: str,
    reference: str,
    room: Room,
    rng: random.Random,
    *,
    max_new_tokens: int,
    joiner: str = "\n",
) -> Puzzle:
    """`wanted` among as many others as fit. fillers: pieces for a number of tokens."""
    left = room.left(question, "Answer:", max_new_tokens=max_new_tokens)
    others = fillers(left - room.count(joiner + wanted))
    depth = rng.random() if room.depth is None else room.depth
    while True:
        place = place_at(depth, others)
        context = joiner.join([*others[:place], wanted, *others[place:]])
        over = room.count(context) - left
        if over <= 0:
            break
        if not others:
            raise ValueError(
                f"what is asked for does not fit {room.tokens} tokens; ask for {2 * room.tokens} or more"
            )
        # Rates of tokens were estimated at great lengths: drop what is too much.
        del others[-(1 + over * len(others) // left) :]
    return Puzzle(
        needles=(),
        context=context,
        evidence=(wanted,),
        question=question,
        answer_prefix="Answer:",
        references=(reference,),
        answer=reference,
        max_new_tokens=max_new_tokens,
    )


def document(direction: Direction) -> Callable[[random.Random, Room], Puzzle]:
    """A sentence, of which eight words are given."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        sentences = sentences_of(rng, room)
        skipped = list[str]()
        for wanted in sentences:
            if FEWEST_WORDS <= len(wanted.split()) <= MOST_WORDS:
                break
            skipped.append(wanted)
        words = wanted.split()
        start = {"forward": 0, "backward": len(words) - KEY_WORDS, "bi": (len(words) - KEY_WORDS) // 2}[
            direction
        ]
        key = " ".join(words[start : start + KEY_WORDS])
        ask, reference = {
            "forward": ("begins with these words: {}\nWrite the rest of that sentence", words[KEY_WORDS:]),
            "backward": (
                "ends with these words: {}\nWrite the part of that sentence before them",
                words[:start],
            ),
            "bi": ("has these words in it: {}\nWrite that whole sentence", words),
        }[direction]
        answer = " ".join(reference)
        others = (one for one in itertools.chain(skipped, sentences) if key not in one and answer not in one)
        return _puzzle(
            wanted,
            lambda tokens: room.fill(others, tokens),
            f"One sentence of the document above {ask.format(key)}, word for word.",
            answer,
            room,
            rng,
            max_new_tokens=NEW_TOKENS["document"],
        )

    return make


def code(direction: Direction) -> Callable[[random.Random, Room], Puzzle]:
    """A function: its first lines by its name, its name by a line, or the lines before and after a line."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        tree = source_tree("film")
        functions = rng.sample(functions_of(tree), len(functions_of(tree)))
        name, wanted = functions[0]
        lines = [line.strip() for line in wanted.split("\n")]
        place = max(range(1, len(lines) - 1), key=lambda at: len(lines[at]))
        key = name if direction == "forward" else lines[place]
        ask, reference = {
            "forward": (
                f"Write the two lines that stand below the first line of the function {name}",
                lines[1:3],
            ),
            "backward": (
                f"One function in the code above has this line:\n{key}\nWrite the name of that function",
                [name],
            ),
            "bi": (
                f"One function in the code above has this line:\n{key}\nWrite the line before it and the line after it",
                [lines[place - 1], lines[place + 1]],
            ),
        }[direction]
        clash = re.compile(rf"(?<!\w){re.escape(key)}(?!\w)")

        def fillers(tokens: int) -> list[str]:
            taken = list[str]()
            for _, other in functions[1:]:
                cost = tree.tokens(other, room.tokenizer)
                if cost <= tokens and not clash.search(other):
                    taken.append(other)
                    tokens -= cost
                elif tokens < max(SMALL_TOKENS, room.tokens // 100):
                    return taken
            if tokens > max(LARGE_TOKENS, room.tokens // 50):
                raise ValueError(
                    f"the functions are fewer than fill {room.tokens} tokens; ask for fewer tokens"
                )
            return taken

        return _puzzle(
            wanted,
            fillers,
            f"{ask}, and nothing else.",
            "\n".join(reference),
            room,
            rng,
            max_new_tokens=NEW_TOKENS["name" if direction == "backward" else "code"],
            joiner="\n\n",
        )

    return make


def database(direction: Direction) -> Callable[[random.Random, Room], Puzzle]:
    """A record of ID, name and description: two of them by the third, or the last two by the first, and so on."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        records = records_of(rng)
        number, name, about = next(records)
        ask, reference = {
            "forward": (f"has the ID {number}? Write its name and its description", f"{name} {about}"),
            "backward": (f'has the description "{about}"? Write its ID and its name', f"{number} {name}"),
            "bi": (f'has the name "{name}"? Write its ID and its description', f"{number} {about}"),
        }[direction]
        return _puzzle(
            _record(number, name, about),
            lambda tokens: room.fill((_record(*other) for other in records), tokens),
            f"Which record of the database above {ask}, without commas.",
            reference,
            room,
            rng,
            max_new_tokens=NEW_TOKENS["database"],
        )

    return make


def _record(number: str, name: str, about: str) -> str:
    return f"<id: {number}, name: {name}, description: {about}>"


def _key_of(rng: random.Random, sample: Sample) -> str:
    """The words that the question gives."""
    return sample.question.split(": ", 1)[1].split("\n")[0]


DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "bi")
PROBING: dict[str, Any] = {"ability": "retrieval", "scope": "low", "metric": word_recall, "places": True}
CHANCES = {
    "document_forward": 0.11,
    "document_backward": 0.11,
    "document_bi": 0.35,
    "code_forward": 0.1,
    "code_backward": 0.0,
    "code_bi": 0.06,
}
"""Measured: articles and keywords are shared, and `document_bi` gives 8 of 20 to 40 words."""

TASKS: dict[str, Task] = {
    **{
        f"document_{direction}": Task(
            make=document(direction),
            diffusion="low",
            guess=_key_of if direction == "bi" else None,
            chance=CHANCES[f"document_{direction}"],
            **PROBING,
        )
        for direction in DIRECTIONS
    },
    **{
        f"code_{direction}": Task(
            make=code(direction),
            diffusion="high",
            answers="derived",
            haystack="own",
            chance=CHANCES[f"code_{direction}"],
            **PROBING,
        )
        for direction in DIRECTIONS
    },
    **{
        f"database_{direction}": Task(
            make=database(direction), diffusion="low", answers="derived", haystack="own", **PROBING
        )
        for direction in DIRECTIONS
    },
}
