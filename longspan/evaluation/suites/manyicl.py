"""ManyICLBench's two sorts of many-shot learning: from similar samples, and from all samples.

`similar` is learnt from the few examples that are like the one asked about (similar-sample learning): the same thing and the
same town, among many with only one of the two. `prices` and `translation` are not (all-sample learning): each example tells a
little of a hidden system, unit prices or the words and the word order of an invented language, and the answer needs them
together.

Paper: On Many-Shot In-Context Learning for Long-Context Evaluation (Zou, Khalifa and Wang, 2024)
Scored by accuracy: the label, the number, or the whole sentence is right. `translation` also gives `words`, the share of
words that stand where they belong.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import after_prefix, best_of, label_exact_match
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.licon.utterances import ACTIONS, QUESTIONS, THINGS
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "manyicl",
    "title": "On Many-Shot In-Context Learning for Long-Context Evaluation",
    "year": 2024,
    "version": 1,
    "metric": "accuracy",
    "differs": [
        "the original collects published sets (BANKING77 and others are similar-sample, mathematics and science questions "
        "all-sample); here one generated task for the first sort and two for the second, which no model can know beforehand",
        "BANKING77 itself is in the suite `licon`",
        "a hidden system of prices or of a language stands for all-sample learning: what is right can be worked out exactly",
        "the sample learning ratio, which compares runs with and without the most similar samples, is not computed",
        "prompts are our own",
    ],
    "paper_id": 205,
    "lengths": "from 1K tokens; similar from 2K or 4K",
    "needs": "nothing",
    "licence": "generated here",
}

NUM_THINGS, NUM_TOWNS = 8, 6
NUM_LABELS = NUM_THINGS * NUM_TOWNS
FRAMES = (
    "In {town}, {core}",
    "From {town}: {core}",
    "I have moved to {town} and {core}",
    "Good morning {town}, {core}",
    "To the office in {town}: {core}",
    "{name}, {town}: {core}",
)
GOODS = "candle kettle ribbon basket lantern cushion trumpet broom teapot ladder blanket mirror".split()
ENGLISH: Mapping[str, Sequence[str]] = {
    "adjective": "old red small tall quiet young wet bright".split(),
    "noun": "fox miller horse bridge girl tree boat goose priest dog king well".split(),
    "verb": "sees finds follows paints keeps fears knows praises".split(),
}
ORDERS = tuple("".join(order) for order in itertools.permutations("SVO"))


def _fill(
    head: Sequence[str],
    rest: Iterator[str],
    question: str,
    prefix: str,
    tokens: int,
    room: Room,
    rng: random.Random,
) -> str:
    """`head` and as many of `rest` as fit, shuffled."""
    left = room.left(question, prefix, "\n\n".join(head), max_new_tokens=tokens)
    if left < 0:
        least = room.tokens - left + 64
        raise ValueError(
            f"the fewest examples of this task do not fit {room.tokens} tokens; ask for {least} or more"
        )
    lines = [*head, *room.fill_exactly(rest, left, joiner="\n\n")]
    rng.shuffle(lines)
    return "\n\n".join(lines)


def similar(rng: random.Random, room: Room) -> Puzzle:
    """48 labels, one for each thing in each town; examples with the same thing and town tell."""
    things = rng.sample(sorted(THINGS), NUM_THINGS)
    towns = [
        head + rng.choice(lists.PLACE_TAILS) for head in rng.sample(lists.PLACE_HEADS, NUM_TOWNS)
    ]  # fmt: skip
    classes = list(itertools.product(things, towns))
    labels = dict(zip(classes, rng.sample(range(NUM_LABELS), NUM_LABELS), strict=True))
    known = set[str]()
    wanted = rng.choice(classes)
    asked = next(_requests(wanted, rng, known))
    makers = {one: _requests(one, rng, known) for one in classes}
    shown = (
        f"{next(makers[one])}\nlabel: {labels[one]}"
        for _ in itertools.count()
        for one in rng.sample(classes, NUM_LABELS)
    )
    question = (
        "The texts above are examples, each with its label. Give the text below the label that examples like it have. "
        f'Only write "label: " and the label.\n\n{asked}'
    )
    context = _fill(list(itertools.islice(shown, NUM_LABELS)), shown, question, "label:", 12, room, rng)
    held = [item for item in context.split("\n\n") if item.endswith(f"\nlabel: {labels[wanted]}")]
    return Puzzle(
        needles=(),
        context=context,
        evidence=tuple(item for item in held if context.count(item) == 1),
        question=question,
        answer_prefix="label:",
        references=(str(labels[wanted]),),
        answer=str(labels[wanted]),
        max_new_tokens=12,
    )


def _requests(wanted: tuple[str, str], rng: random.Random, known: set[str]) -> Iterator[str]:
    while True:
        core = rng.choice(ACTIONS[rng.choice(sorted(ACTIONS))]).format(thing=rng.choice(THINGS[wanted[0]]))
        name = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
        mark = "?" if core.split()[0] in QUESTIONS else "."
        text = rng.choice(FRAMES).format(town=wanted[1], core=core, name=name) + mark
        if text not in known:
            known.add(text)
            yield text


def prices(rng: random.Random, room: Room) -> Puzzle:
    """Bills without unit prices: twelve goods whose prices all bills together tell."""
    price = {good: rng.randint(2, 40) for good in GOODS}
    goods = rng.sample(GOODS, len(GOODS))

    def bill(bought: Sequence[str]) -> tuple[str, int]:
        counts = {good: rng.randint(1, 6) for good in bought}
        listed = ", ".join(f"{count} x {good}" for good, count in counts.items())
        return f"bought: {listed}", sum(price[good] * count for good, count in counts.items())

    def shown(bought: Sequence[str]) -> str:
        listed, total = bill(bought)
        return f"{listed}\ntotal: {total}"

    # The n-th good is first bought with earlier ones only, so that the prices can be worked out one by one.
    head = [
        shown(rng.sample([good, *rng.sample(goods[:place], min(place, 2))], min(place, 2) + 1))
        for place, good in enumerate(goods)
    ]
    rest = (shown(rng.sample(goods, rng.randint(2, 4))) for _ in itertools.count())
    asked, total = bill(rng.sample(goods, 4))
    question = (
        "The bills above are from one shop, in which each thing always has the same price. Work out the total of this bill. "
        f'Only write "total: " and the number.\n\n{asked}'
    )
    return Puzzle(
        needles=(),
        context=_fill(head, rest, question, "total:", 16, room, rng),
        evidence=(),
        question=question,
        answer_prefix="total:",
        references=(str(total),),
        answer=str(total),
        max_new_tokens=16,
    )


def first_number(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first whole number of the answer is a reference."""
    found = re.search(r"\d+", prediction.replace(",", ""))
    return best_of(lambda reference: float(found is not None and found[0] == reference), references)


def _new_words(count: int, rng: random.Random) -> list[str]:
    """Invented words of two or three syllables."""
    found = dict[str, None]()
    while len(found) < count:
        syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        found["".join(syllables) + rng.choice(("", "n", "s", "r"))] = None
    return list(found)


def translation(rng: random.Random, room: Room) -> Puzzle:
    """Sentences in English and in an invented language with its own words, word order and mark of the object."""
    english = [word for part in ENGLISH.values() for word in part]
    *invented, mark = _new_words(len(english) + 1, rng)
    lexicon = dict(zip(english, invented, strict=True))
    order, noun_first = rng.choice(ORDERS), rng.random() < 0.5
    known = set[str]()

    def pair(adjectives: Sequence[str], nouns: Sequence[str], verb: str) -> tuple[str, str]:
        phrases = [f"{adjective} {noun}" for adjective, noun in zip(adjectives, nouns, strict=True)]
        parts = {"S": _phrase(phrases[0]), "V": lexicon[verb], "O": f"{_phrase(phrases[1])} {mark}"}
        return f"The {phrases[0]} {verb} the {phrases[1]}.", " ".join(parts[part] for part in order) + "."

    def _phrase(phrase: str) -> str:
        both = [lexicon[word] for word in phrase.split()]
        return " ".join(reversed(both) if noun_first else both)

    def drawn() -> Iterator[tuple[str, str]]:
        while True:
            one = pair(
                rng.sample(ENGLISH["adjective"], 2),
                rng.sample(ENGLISH["noun"], 2),
                rng.choice(ENGLISH["verb"]),
            )
            if one[0] not in known:
                known.add(one[0])
                yield one

    source = drawn()
    asked, answer = next(source)
    # Every word is in one of the first examples.
    adjectives, nouns, verbs = (rng.sample(ENGLISH[part], len(ENGLISH[part])) for part in ENGLISH)
    first = [
        pair(
            [adjectives[number % 8], adjectives[(number + 3) % 8]], [nouns[number], nouns[(number + 5) % 12]], verbs[number % 8]
        )
        for number in range(len(nouns))
    ]  # fmt: skip
    head = [_example(one) for one in first if one[0] != asked]
    known.update(one[0] for one in first)
    question = (
        "The sentences above are translated into a language that is written in the second line. Translate this one. "
        f'Only write "translation: " and the sentence.\n\n{asked}'
    )
    return Puzzle(
        needles=(),
        context=_fill(head, map(_example, source), question, "translation:", 64, room, rng),
        evidence=(),
        question=question,
        answer_prefix="translation:",
        references=(answer,),
        answer=answer,
        max_new_tokens=64,
    )


def _example(pair: tuple[str, str]) -> str:
    return f"{pair[0]}\ntranslation: {pair[1]}"


def word_by_word(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the words of the answer's first line are a reference's; "words": the share of them that is in its place."""
    said = re.findall(r"\w+", after_prefix(prediction, "translation:").lower())
    wanted = [re.findall(r"\w+", reference.lower()) for reference in references]
    return {
        "score": float(said in wanted),
        "words": max(
            sum(one == other for one, other in zip(said, reference, strict=False))
            / max(len(said), len(reference))
            for reference in wanted
        ),
    }


ALL: dict[str, Any] = {
    "ability": "in-context learning", "diffusion": "high", "scope": "high", "answers": "derived",
}  # fmt: skip

TASKS: dict[str, Task] = {
    "similar": Task(
        make=similar,
        metric=label_exact_match,
        chance=1 / NUM_LABELS,
        **{**ALL, "diffusion": "low"},
    ),
    "prices": Task(make=prices, metric=first_number, **ALL),
    "translation": Task(make=translation, metric=word_by_word, **ALL),
}
