"""LV-Eval's techniques on made-up facts: confusing facts, replaced keywords, and a metric that looks for keywords first.

Passages about institutions of one kind or another are mixed. Facts that differ from the one asked for in the name only
stand in other passages (confusing facts insertion), and what the world knows is replaced by what only the text says (keyword
and phrase replacement), so that neither a glance nor memory gives the answer.

Paper: LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K (Yuan et al., 2024)
Scored by LV-Eval's two-stage F1: an answer with fewer than a fifth of the answer's keywords gets 0, any other its token F1.
`replaced` also reports as `memory` the same score against the answer that is true outside the text.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.overlap_keywords import keyword_f1
from longspan.evaluation.suites.lveval_made.facts import (
    ATTRIBUTES,
    QUESTIONS,
    TRUTHS,
    Institution,
    alike,
    institutions,
    loan,
    passage,
    some_name,
    tell,
    two_hops,
)
from longspan.evaluation.task import Puzzle, Room, Sample, Task

CARD: dict[str, Any] = {
    "name": "lveval_made",
    "title": "LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K",
    "year": 2024,
    "version": 1,
    "metric": "token F1, 0 where less than a fifth of the answer's keywords is found",
    "differs": [
        "all facts and passages are generated; the original mixes passages of published question sets and keeps the questions the "
        "same at all lengths",
        "confusing facts and replacements come from templates; the original's were written by a language model and people",
        "our own short list of words that do not count as keywords found",
        "facts in prose are scored by the same metric; the original scores its factrecall by plain F1",
        "`memory`, the score against the answer that was replaced, is ours",
        "English only; passages are headed by their subject, not numbered",
    ],
    "paper_id": 168,
    "lengths": "from 1K tokens",
    "needs": "nothing",
    "licence": "generated here; the original's data are MIT",
}

INSTRUCTION = (
    "Answer the question from the passages above; only some of them have to do with it, and some speak of things with similar "
    "names. Give the answer only, without explanation."
)
BLACKLIST = (
    "a an and as at by for from in is it its of on or that the this to was were which who with".split()
)
MAX_NEW_TOKENS = 64
NUM_CONFUSING = 3


def _details(answer: str, **more: str) -> dict[str, Any]:
    return {"keywords": answer, "blacklist": BLACKLIST, **more}


def _context(
    wanted: Sequence[Institution],
    supporting: Sequence[str],
    confusing: Sequence[str],
    barred: Sequence[str],
    question: str,
    room: Room,
    rng: random.Random,
) -> str:
    """Passages: the supporting ones among others, and in some of the others, or alone, a confusing fact each."""
    left = room.left(question, *supporting, *confusing, max_new_tokens=MAX_NEW_TOKENS)
    if left < 100:
        raise ValueError(
            f"this task needs more than {room.tokens} tokens; ask for {room.tokens - left + 200} or more"
        )
    names = {one.name for one in wanted}
    others = (passage(one, rng) for one in institutions(rng, without=barred) if one.name not in names)
    fillers = room.fill_exactly(others, left, joiner="\n\n")
    for fact in confusing:
        place = rng.randrange(len(fillers))
        fillers[place] += " " + fact
    return "\n\n".join(room.scatter(supporting, fillers, rng))


def one_hop(rng: random.Random, room: Room) -> Puzzle:
    """One fact of one passage, with facts that are alike in other passages."""
    one, key = next(institutions(rng)), rng.choice(ATTRIBUTES)
    answer = one.values[key]
    twins = alike(one.name, NUM_CONFUSING, rng)
    values = _values(key, NUM_CONFUSING, [answer], rng)
    confusing = [tell(key, name, value, rng) for name, value in zip(twins, values, strict=True)]
    question = f"{INSTRUCTION}\n\nQuestion: {QUESTIONS[key].format(name=one.name)}"
    fact = tell(key, one.name, answer, rng)
    return Puzzle(
        needles=(),
        context=_context(
            [one], [passage(one, rng, facts={key: fact})], confusing, [answer], question, room, rng
        ),
        evidence=(fact,),
        question=question,
        references=(answer,),
        answer=answer,
        max_new_tokens=MAX_NEW_TOKENS,
        details=_details(answer),
    )


def two_hop(rng: random.Random, room: Room) -> Puzzle:
    """Two facts of two passages: which institution keeps a thing, and what is true of it."""
    keeper, lender = itertools.islice(institutions(rng), 2)
    hops = two_hops(keeper, lender, rng)
    twins = alike(keeper.name, NUM_CONFUSING, rng)
    values = _values(hops.key, NUM_CONFUSING, [hops.answer], rng)
    confusing = [tell(hops.key, name, value, rng) for name, value in zip(twins, values, strict=True)]
    other_thing = _values("treasure", 1, [hops.thing], rng)[0]
    confusing.append(loan(other_thing, alike(lender.name, 1, rng)[0], twins[0]))
    question = f"{INSTRUCTION}\n\nQuestion: {hops.question}"
    context = _context([keeper, lender], hops.passages, confusing, [hops.answer], question, room, rng)
    return Puzzle(
        needles=(),
        context=context,
        evidence=hops.facts,
        question=question,
        references=(hops.answer,),
        answer=hops.answer,
        max_new_tokens=MAX_NEW_TOKENS,
        details=_details(hops.answer),
    )


def replaced(rng: random.Random, room: Room) -> Puzzle:
    """A fact that the world knows, with its keyword replaced throughout the text."""
    truth = rng.choice(TRUTHS)
    subject, memory = rng.choice(truth.pairs)
    answer, *values = truth.values(NUM_CONFUSING + 1, rng)
    fact = truth.statement.format(subject=subject, value=answer)
    confusing = [
        twin.format(subject=subject, value=value) for twin, value in zip(truth.twins, values, strict=True)
    ]
    question = (
        f"{INSTRUCTION} Names in the passages may differ from what you know; go by the passages.\n\n"
        f"Question: {truth.question.format(subject=subject)}"
    )
    supporting = f"### {some_name(rng)} and the wider world\n{truth.before.format(subject=subject)} {fact} {truth.after}"
    return Puzzle(
        needles=(),
        context=_context([], [supporting], confusing, [answer], question, room, rng),
        evidence=(fact,),
        question=question,
        references=(answer,),
        answer=answer,
        max_new_tokens=MAX_NEW_TOKENS,
        details=_details(answer, memory=memory),
    )


def fact_recall(rng: random.Random, room: Room) -> Puzzle:
    """A fact in prose, with facts that are alike in the same prose."""
    one, key = next(institutions(rng)), rng.choice(ATTRIBUTES)
    answer = one.values[key]
    twins = alike(one.name, NUM_CONFUSING, rng)
    values = _values(key, NUM_CONFUSING, [answer], rng)
    fact = tell(key, one.name, answer, rng)
    confusing = [tell(key, name, value, rng) for name, value in zip(twins, values, strict=True)]
    return Puzzle(
        needles=(fact, *confusing),
        evidence=(fact,),
        question=f"Answer the question from the text above. Give the answer only.\n\nQuestion: {QUESTIONS[key].format(name=one.name)}",
        references=(answer,),
        answer=answer,
        max_new_tokens=MAX_NEW_TOKENS,
        details=_details(answer),
    )


def _values(key: str, count: int, barred: Sequence[str], rng: random.Random) -> list[str]:
    return [one.values[key] for one in itertools.islice(institutions(rng, without=barred), count)]


def keyword_f1_memory(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`keyword_f1`, and under "memory" the same against the answer that is true outside the text.

    Args:
        details: as for `keyword_f1`, and "memory", the true answer.
    """
    known = {**details, "keywords": details["memory"]}
    return {
        "score": keyword_f1(prediction, references, details),
        "memory": keyword_f1(prediction, [details["memory"]], known),
    }


def _from_memory(rng: random.Random, sample: Sample) -> str:
    return str(sample.details["memory"])


MULTI: dict[str, Any] = {"ability": "multi-hop", "diffusion": "high", "scope": "low"}
RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low"}

TASKS: dict[str, Task] = {
    "one_hop": Task(make=one_hop, metric=keyword_f1, places=True, **RETRIEVAL),
    "two_hop": Task(make=two_hop, metric=keyword_f1, **MULTI),
    "replaced": Task(make=replaced, metric=keyword_f1_memory, guess=_from_memory, places=True, **RETRIEVAL),
    "fact_recall": Task(make=fact_recall, metric=keyword_f1, **RETRIEVAL),
}
