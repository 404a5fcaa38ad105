"""HaystackCraft: the text around the needed documents is what a retriever finds for the question.

Distractors are taken from the top of a ranking, by words (BM25), by meaning (embeddings) or by both, until the length is
reached; the documents stand in the order of the ranking or in a random one. In the `refined` tasks the question was rewritten
over several rounds: each was led astray by an article on another society, its findings stand before the articles, and what it
retrieved is among them. Questions take two documents, of which the second is named in the first only.

Paper: Haystack Engineering: Context Engineering for Heterogeneous and Agentic Long-Context Evaluation (Li et al., 2025)
Scored by token F1 of the answer after "The correct answer is", best of the references.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from longspan.evaluation.haystacks import cut_at_word
from longspan.evaluation.metrics.overlap import qa_f1
from longspan.evaluation.suites.haystackcraft.published import SETS, collection
from longspan.evaluation.suites.haystackcraft.retrieval import Corpus, Retriever
from longspan.evaluation.suites.haystackcraft.world import ASKED, Society, World, world_of
from longspan.evaluation.task import SEAM_TOKENS, Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "haystackcraft",
    "title": "Haystack Engineering: Context Engineering for Heterogeneous and Agentic Long-Context Evaluation",
    "year": 2025,
    "version": 1,
    "metric": "token F1 of the answer after SQuAD's normalisation, best of the references; mean over samples",
    "differs": [
        "documents are an invented encyclopedia, made anew on every machine, or those of MuSiQue, HotpotQA or SQuAD themselves; "
        "the original retrieves from all of Wikipedia, for Natural Questions and MuSiQue",
        "the dense retriever is latent semantic analysis, or the model named by LONGSPAN_EMBEDDER; the original has "
        "Qwen3-Embedding-0.6B",
        "no reranking by personalised PageRank over hyperlinks",
        "the rounds of the refined tasks are written, with an error in each, and the same for every model; in the original each "
        "model writes its own, so that good models make fewer errors",
        "in the refined tasks articles of all rounds are in the text, in turn; the original shows those of the last round and "
        "keeps of earlier ones the findings only",
        "random order is drawn anew for each sample; the original has three fixed permutations",
        "published questions in the order of the ranking are those of MuSiQue only: for HotpotQA and SQuAD nearly all needed "
        "documents would come first",
        "questions whose documents would take more than a quarter of the room are passed over",
        "the start of the answer is given, so that models need not repeat it",
    ],
    "paper_id": 148,
    "lengths": "from 1K tokens; as long as the documents of a published set reach, about 200K tokens for 200 questions",
    "needs": "bm25s (extra `retrieval`) for sparse and hybrid; the musique, hotpotqa and squad tasks need their development files",
    "licence": "generated here; MuSiQue CC BY 4.0, HotpotQA and SQuAD CC BY-SA 4.0",
}

Order = Literal["ranked", "random"]
PREFIX = "The correct answer is"
HEAD = "Read the following articles and answer the question below."
ANSWER_TOKENS = 48
OWN_TOKENS = 150  # question, instruction and answer, at most about
DOCUMENT_TOKENS = 50  # the least that an article of the encyclopedia has, about
LEAST_DOCUMENTS = 1024
FEWEST_QUESTIONS = 50  # to draw from: of a few, the answers would be known soon


def answer_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 of what follows "The correct answer is", or of the first line where that is not said.

    Official scorer: HaystackCraft's `eval_f1` on `extract_answer`, which reads an answer in brackets, in quotes, or up to the
    first full stop, and scores 0 without the phrase. A full stop inside the answer cuts it there as here.
    """
    text = prediction.replace("*", "").strip()
    after = re.search(rf"{PREFIX}\s*:?\s*(.*)", text, re.IGNORECASE | re.DOTALL)
    text = (after[1] if after else text).strip()
    bracket = re.match(r"\(([^)]+)\)?|\"([^\"]+)\"?", text)
    plain = (bracket[1] or bracket[2]) if bracket else re.split(r"\.(?:\s|$)|\n", text)[0]
    return qa_f1(plain, references, details)


def _puzzle(
    corpus: Corpus,
    needed: Sequence[int],
    ranking: Sequence[int],
    order: Order,
    *,
    question: str,
    answers: tuple[str, ...],
    room: Room,
    rng: random.Random,
    notes: str = "",
) -> Puzzle:
    """The needed documents and as many of the ranking's first as fit, in the order of the ranking or a random one."""
    asked = f"Question: {question} Answer with the words asked for only."
    head = f"{HEAD}\n\n{notes}" if notes else HEAD
    left = room.left(head, asked, PREFIX, max_new_tokens=ANSWER_TOKENS)
    texts = {number: corpus.documents[number] for number in needed}
    left -= sum(corpus.tokens(number, room.tokenizer) for number in texts)
    if left < 0:
        raise ValueError(
            f"the documents that the question needs do not fit {room.tokens} tokens; ask for {2 * room.tokens} or more"
        )
    for number in (number for number in ranking if number not in needed):
        tokens, whole = corpus.tokens(number, room.tokenizer), corpus.documents[number]
        if tokens > left:
            texts[number] = cut_at_word(whole, left - SEAM_TOKENS, room.tokenizer)
            break
        texts[number], left = whole, left - tokens
    else:
        raise ValueError(
            f"the {len(corpus.documents)} documents are fewer than fill {room.tokens} tokens; ask for fewer tokens"
        )
    place = {number: rank for rank, number in enumerate(ranking)}
    shown = sorted(texts, key=place.__getitem__)
    if order == "random":
        rng.shuffle(shown)
    return Puzzle(
        needles=(),
        context="\n\n".join([head, *(texts[number] for number in shown if texts[number])]),
        evidence=tuple(corpus.documents[number] for number in needed),
        question=asked,
        answer_prefix=PREFIX,
        references=answers,
        answer=f'"{answers[0]}".' if ")" in answers[0] else f"({answers[0]}).",
        max_new_tokens=ANSWER_TOKENS,
    )


def _world(room: Room) -> World:
    wanted = max(LEAST_DOCUMENTS, 2 * room.tokens // DOCUMENT_TOKENS)
    return world_of(1 << (wanted - 1).bit_length())


def static(retriever: Retriever, order: Order) -> Callable[[random.Random, Room], Puzzle]:
    """The encyclopedia; distractors by one retrieval for the question."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        world = _world(room)
        number, kind = rng.randrange(len(world.societies)), rng.choice(sorted(ASKED))
        society = world.societies[number]
        question = ASKED[kind][0].format(who=f"the founder of the {society.name}")
        return _puzzle(
            world.corpus,
            (number, world.place_of(society.founder)),
            world.corpus.rank(question, retriever),
            order,
            question=question,
            answers=(world.people[society.founder].values[kind],),
            room=room,
            rng=rng,
        )

    return make


def refined(num_rounds: int) -> Callable[[random.Random, Room], Puzzle]:
    """The encyclopedia; the question was rewritten `num_rounds` times, each time about a society that was not asked about."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        world = _world(room)
        number, kind = rng.randrange(len(world.societies)), rng.choice(sorted(ASKED))
        society = world.societies[number]
        question = ASKED[kind][0].format(who=f"the founder of the {society.name}")
        query, rankings, findings = question, list[list[int]](), list[str]()
        mistaken = {number}
        for round_number in range(1, num_rounds + 1):
            rankings.append(world.corpus.rank(query, "hybrid"))
            wrong = _nearest(world, rankings[-1], mistaken)
            person = world.people[wrong.founder]
            finding = ASKED[kind][1].format(name=person.name, value=person.values[kind])
            query = f"{ASKED[kind][0].format(who=person.name)} Did {person.name} found the {wrong.name}?"
            findings.append(f"Round {round_number}: {finding} Refined question: {query}")
        rankings.append(world.corpus.rank(query, "hybrid"))
        merged = dict.fromkeys(itertools.chain.from_iterable(zip(*rankings, strict=True)))
        return _puzzle(
            world.corpus,
            (number, world.place_of(society.founder)),
            list(merged),
            "ranked",
            question=question,
            answers=(world.people[society.founder].values[kind],),
            room=room,
            rng=rng,
            notes="Previous analyses, which may be wrong:\n" + "\n".join(findings),
        )

    return make


def _nearest(world: World, ranking: Sequence[int], mistaken: set[int]) -> Society:
    """The society ranked first of those not yet taken, which the round took for the one asked about."""
    place = next(number for number in ranking if number < len(world.societies) and number not in mistaken)
    mistaken.add(place)
    return world.societies[place]


def published(name: str, retriever: Retriever, order: Order) -> Callable[[random.Random, Room], Puzzle]:
    """Questions of a published set whose documents take a quarter of the room at most; distractors are documents of all of them."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        data = collection(name)
        sizes, most = data.corpus.tokens, (room.tokens - 2 * OWN_TOKENS) // 4
        fitting = [
            one
            for one in data.questions
            if sum(sizes(number, room.tokenizer) for number in one.needed) <= most
        ]
        if len(fitting) < min(FEWEST_QUESTIONS, len(data.questions)):
            raise ValueError(
                f"few questions of {name} leave three quarters of {room.tokens} tokens to other documents; "
                f"ask for {2 * room.tokens} or more"
            )
        asked = rng.choice(fitting)
        return _puzzle(
            data.corpus,
            asked.needed,
            data.corpus.rank(asked.question, retriever),
            order,
            question=asked.question,
            answers=asked.answers,
            room=room,
            rng=rng,
        )

    return make


RETRIEVERS: tuple[Retriever, ...] = ("sparse", "dense", "hybrid")
ORDERS: tuple[Order, ...] = ("ranked", "random")
HOPS: dict[str, Any] = {
    "ability": "multi-hop", "diffusion": "high", "scope": "low", "metric": answer_f1, "answers": "derived",
}  # fmt: skip

TASKS: dict[str, Task] = {
    **{
        f"{retriever}_{order}": Task(make=static(retriever, order), haystack="own", **HOPS)
        for retriever in RETRIEVERS
        for order in ORDERS
    },
    **{f"refined_{count}": Task(make=refined(count), haystack="own", **HOPS) for count in (1, 2, 3)},
    **{
        f"{name}_{retriever}_{order}": Task(make=published(name, retriever, order), haystack="own", **HOPS)
        for name in SETS
        for retriever in RETRIEVERS
        for order in ORDERS
        if name == "musique" or order == "random"  # what the others need is nearly always ranked first
    },
}
