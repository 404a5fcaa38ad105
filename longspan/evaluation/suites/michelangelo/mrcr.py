"""Multi-round coreference: a long talk in which the same piece is asked for several times; give the n-th of them again."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

from longspan.evaluation.suites.michelangelo.writer import Wish, draw_wish, write
from longspan.evaluation.task import Puzzle, Room, Sample

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
HASH_CHARACTERS = 12
ANSWER_TOKENS = 256
TURN_TOKENS = 160


def _turn(wish: Wish, piece: str) -> str:
    return f"User: Write a {wish}.\n\nAssistant: {piece}".replace("Write a essay", "Write an essay").replace(
        "Write a email", "Write an email"
    )


def _other_turns(wish: Wish, seen: set[str], rng: random.Random) -> Iterator[str]:
    """Turns about anything but the wish, every third of its form and topic or of its form and style."""
    while True:
        other = draw_wish(rng)
        if rng.random() < 1 / 3:
            near = rng.random() < 0.5
            other = Wish(
                form=wish.form,
                topic=wish.topic if near else other.topic,
                style=other.style if near else wish.style,
            )
        if other == wish:
            continue
        piece = write(other, rng)
        if piece not in seen:
            seen.add(piece)
            yield _turn(other, piece)


def mrcr(num_needles: int) -> Callable[[random.Random, Room], Puzzle]:
    """`num_needles` pieces of one kind among others; one of them is wanted, after a code that begins the answer."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        wish, seen = draw_wish(rng), set[str]()
        pieces = list[str]()
        while len(pieces) < num_needles:
            piece = write(wish, rng)
            if piece not in seen:
                seen.add(piece)
                pieces.append(piece)
        asked = rng.randrange(num_needles)
        code = "".join(rng.choices(string.ascii_letters + string.digits, k=HASH_CHARACTERS))
        question = (
            f"User: Prepend {code} to the {ORDINALS[asked]} {wish}. Reply with these two and nothing else."
        )
        turns = [_turn(wish, piece) for piece in pieces]
        joiner = "\n\n"
        left = room.left(question, "Assistant:", max_new_tokens=ANSWER_TOKENS)
        left -= sum(room.count(joiner + turn) for turn in turns)
        needed = ANSWER_TOKENS + TURN_TOKENS * max(num_needles + 2, 3 * num_needles // 2)
        if left < 0 or room.tokens < needed:
            needed = max(needed, room.tokens - left)
            raise ValueError(
                f"a talk with {num_needles} pieces of one kind needs about {needed} tokens, there are {room.tokens}; "
                f"ask for {-(-needed // 512) * 512} or more"
            )
        fillers = room.fill_exactly(_other_turns(wish, seen, rng), left, joiner=joiner)
        answer = f"{code} {pieces[asked]}"
        return Puzzle(
            needles=(),
            context=joiner.join(room.scatter(turns, fillers, rng, ordered=True)),
            evidence=(pieces[asked],),
            question=question,
            answer_prefix="Assistant:",
            references=(answer,),
            answer=answer,
            max_new_tokens=ANSWER_TOKENS,
            details={"form": wish.form, "topic": wish.topic, "style": wish.style},
        )

    return make


def guess(rng: random.Random, sample: Sample) -> str:
    """The code, and a piece of the right kind."""
    details = sample.details
    wish = Wish(form=details["form"], topic=details["topic"], style=details["style"])
    return f"{sample.references[0][:HASH_CHARACTERS]} {write(wish, rng)}"
