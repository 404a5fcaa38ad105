"""L-CiteEval: answers cite the numbered passages that they are from, and the citations are checked.

The text is a list of passages "Passage [12]: ...", each with three invented facts on different people, towns and projects; what
is asked for stands in one passage, in two of which the second is named in the first, or in five. Dialogue tasks have
conversations in place of passages. As the passages that hold each answer are known, no entailment model judges them.

Paper: L-CiteEval: Do Long-Context Models Truly Leverage Context for Responding? (Tang et al., 2024)
Scored by the product of the answer's correctness and the F1 of its citations, both reported besides, as are the citations'
precision and recall.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.citation import cited, without_citations
from longspan.evaluation.suites.facts import with_article
from longspan.evaluation.suites.lciteeval.passages import DAYS, DEEDS, PROJECT_KINDS, Facts
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "lciteeval",
    "title": "L-CiteEval: Do Long-Context Models Truly Leverage Context for Responding?",
    "year": 2024,
    "version": 1,
    "metric": "correctness times citation F1; parts: correctness, citation_f1, citation_precision, citation_recall",
    "differs": [
        "all passages are invented, where the original has eleven published sets; the tasks are its five kinds: single-document "
        "and multi-document questions, counting, summarising (as a list of facts, so that it can be checked), and dialogue",
        "whether a statement follows from what it cites is looked up, where the original asks an entailment model: it is "
        "supported if it holds a right answer and cites all passages that this answer takes",
        "correctness is the share of right answers found, where the original has token F1, Rouge-L or accuracy by set",
        "one score, the product, stands beside the parts, which the original reports apart",
        "no example is given before the question, where the original gives one",
        "counting asks for each number with its citation, where the original wants two lists in JSON",
    ],
    "paper_id": 28,
    "lengths": "from 1K tokens",
    "needs": "nothing",
    "licence": "generated here",
}

MOST_CITATIONS = 3
LABEL_STRIDE = 7919  # prime: the numbers of trial labels are spread evenly
COUNTS = 5
SMALL_TOKENS = 32
CITE = (
    "Use only the {noun}s above. Write after every answer the number of the {noun} that it is from, in brackets like these: "
    "[0]; if it takes two {noun}s, write both, like this: [0][0]."
)


def cited_claims(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """ "score": correctness times citation F1; and these, with the citations' precision and recall.

    A statement is what stands before a group of citations, of which the first three count. It is supported if it holds a
    reference and cites all passages that this reference takes; recall is the share of statements supported, precision the
    share of citations whose passage holds a reference of their statement; correctness is the share of references found.
    Official scorer: L-CiteEval `compute_autoais`, with an entailment model in place of `support`.

    Args:
        details: "support", for each reference the numbers of the passages that it takes.
    """
    plain = without_citations(prediction)
    correctness = sum(_holds(plain, reference) for reference in references) / len(references)
    statements = [(text, cited(marks)[:MOST_CITATIONS]) for text, marks in _statements(prediction)]
    supported, right, total = 0, 0, 0
    for text, numbers in statements:
        needed = [
            set(passages)
            for reference, passages in zip(references, details["support"], strict=True)
            if _holds(text, reference)
        ]
        supported += bool(needed) and all(passages <= set(numbers) for passages in needed)
        right += sum(any(number in passages for passages in needed) for number in numbers)
        total += len(numbers)
    recall = supported / len(statements) if statements else 0.0
    precision = right / total if total else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "score": correctness * f1,
        "correctness": correctness,
        "citation_f1": f1,
        "citation_precision": precision,
        "citation_recall": recall,
    }


def _holds(text: str, reference: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", text, re.IGNORECASE))


def _statements(prediction: str) -> Iterator[tuple[str, str]]:
    """Each piece of text with the citations after it; the last may have none."""
    place = 0
    for marks in re.finditer(r"(?:\[\d+\][\s,]*)+", prediction):
        yield prediction[place : marks.start()], marks[0]
        place = marks.end()
    if re.search(r"\w", prediction[place:]):
        yield prediction[place:], ""


def _puzzle(
    facts: Facts,
    sentences: Sequence[str],
    bodies: Sequence[str],
    question: str,
    references: Sequence[str],
    support: Sequence[Sequence[int]],
    room: Room,
    *,
    noun: str = "passage",
) -> Puzzle:
    """Number the passages and lay those that matter among others. support: for each reference, places in `bodies`."""
    asked = f"{question} {CITE.format(noun=noun)}"
    tokens = 48 + 32 * len(references)
    whole = room.left(asked, "Answer:", max_new_tokens=tokens)
    label = noun.title()
    shown = [f"{label} [{number}]: {body}" for number, body in enumerate(bodies, start=1)]
    left = whole - sum(room.count("\n" + text) for text in shown)
    if left < 0:
        raise ValueError(
            f"the {len(bodies)} {noun}s asked about do not fit {room.tokens} tokens; ask for 2048 or more"
        )
    make = facts.talk if noun == "conversation" else facts.passage
    expected = max(1, left // room.count(f"{label} [100]: {bodies[0]}"))
    others = (f"{label} [{1 + place * LABEL_STRIDE % expected}]: {make()}" for place in itertools.count())
    fillers = [text.split("]: ", 1)[1] for text in room.fill(others, left)]
    while True:
        mixed = room.scatter(bodies, fillers, facts.rng)
        context = "\n".join(f"{label} [{number}]: {body}" for number, body in enumerate(mixed, start=1))
        over = room.count(context) - whole
        if over <= 0:
            break
        # The labels were guessed above: drop what is too much.
        if over < SMALL_TOKENS:
            fillers.remove(min(fillers, key=len))
        else:
            del fillers[-(1 + over // SMALL_TOKENS) :]
    numbers = [[mixed.index(bodies[place]) + 1 for place in places] for places in support]
    answers = [
        f"{reference} {''.join(f'[{number}]' for number in cites)}"
        for reference, cites in zip(references, numbers, strict=True)
    ]
    return Puzzle(
        needles=(),
        context=context,
        evidence=tuple(sentences),
        question=asked,
        answer_prefix="Answer:",
        references=tuple(references),
        answer=", ".join(answers) + ".",
        max_new_tokens=tokens,
        details={"support": numbers},
    )


def single_hop(rng: random.Random, room: Room) -> Puzzle:
    """One fact, from one passage."""
    facts = Facts(rng)
    sentence, question, answer = facts.asked(rng.choice(("telephone", "treasure", "home", "work")))
    return _puzzle(facts, [sentence], [facts.passage(sentence)], question, [answer], [[0]], room)


def multi_hop(rng: random.Random, room: Room) -> Puzzle:
    """The mayor of the town where someone works or moved to, from two passages."""
    facts = Facts(rng)
    kind, link = rng.choice((("work", "where {} works"), ("home", "that {} moved to")))
    person, town = facts.new("person"), facts.new("town")
    first, _, _ = facts.asked(kind, person=person, town=town)
    second, _, mayor = facts.asked("mayor", town=town)
    bodies = [facts.passage(first), facts.passage(second)]
    question = f"Who is the mayor of the town {link.format(person)}?"
    return _puzzle(facts, [first, second], bodies, question, [mayor], [[0, 1]], room)


def counting(rng: random.Random, room: Room) -> Puzzle:
    """All numbers of stars that someone counted, from five passages: Counting-Stars."""
    facts = Facts(rng)
    person = facts.new("person")
    days = rng.sample(DAYS, COUNTS)
    told = [facts.asked("stars", person=person, day=day) for day in days]
    bodies = [facts.passage(sentence) for sentence, _, _ in told]
    question = f"How many stars did {person} count each time? List all the numbers."
    sentences, _, answers = zip(*told, strict=True)
    return _puzzle(facts, sentences, bodies, question, answers, [[place] for place in range(COUNTS)], room)


def summary(rng: random.Random, room: Room) -> Puzzle:
    """All that is told about a project, one answer for each of five points."""
    facts = Facts(rng)
    project = facts.new("project")
    told = [facts.asked(kind, project=project) for kind in PROJECT_KINDS]
    bodies = [facts.passage(sentence) for sentence, _, _ in told]
    sentences, points, answers = zip(*told, strict=True)
    question = f"Summarise in a list what is told about project {project}: {', '.join(points[:-1])} and {points[-1]}."
    places = [[place] for place in range(len(PROJECT_KINDS))]
    return _puzzle(facts, sentences, bodies, question, answers, places, room)


def dialogue(rng: random.Random, room: Room) -> Puzzle:
    """What two people bought; each told it once, and each talks of other things elsewhere."""
    facts = Facts(rng)
    people, things = [facts.new("person") for _ in range(2)], [facts.new("thing") for _ in range(2)]
    lines = [
        f'{person} said: "{with_article(DEEDS[0].format(thing))}"'
        for person, thing in zip(people, things, strict=True)
    ]
    bodies = [facts.talk(line) for line in lines]
    bodies += [facts.talk(facts.line(person, DEEDS[1:])) for person in people]
    question = f"What did {people[0]} buy, and what did {people[1]} buy?"
    return _puzzle(facts, lines, bodies, question, things, [[0], [1]], room, noun="conversation")


CITING: dict[str, Any] = {"metric": cited_claims, "haystack": "own"}

TASKS: dict[str, Task] = {
    "single_hop": Task(
        make=single_hop, ability="citation", diffusion="low", scope="low", places=True, **CITING
    ),
    "multi_hop": Task(make=multi_hop, ability="citation", diffusion="high", scope="low", **CITING),
    "counting": Task(
        make=counting, ability="citation", diffusion="low", scope="high", answers="derived", **CITING
    ),
    "summary": Task(make=summary, ability="citation", diffusion="low", scope="high", **CITING),
    "dialogue": Task(make=dialogue, ability="citation", diffusion="high", scope="low", **CITING),
}
