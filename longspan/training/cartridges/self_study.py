"""Self-study: conversations about a document that a model has with itself, and what it answers with all of it in context.

A question comes out of a part of the document; the answer is the teacher's, greedy, with the whole document in its context,
and of each of its distributions over the next token the likeliest are kept. Two ways to questions: `asked` shows the model
the part and a seed prompt, and samples what it asks; `spans` needs no conversation: it takes words out of a sentence and puts a
question word before the rest, so that the teacher is led to what is missing, and now and then quotes it to be continued.
Sentences are first asked about alike; then those more often whose questions the teacher answered out of them. Neither way knows
what the document will be asked about.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.engine.context import Context, stop_ids
from longspan.engine.model import SpanModel
from longspan.engine.prompt import Prompt, encode
from longspan.evaluation.haystacks import split_sentences
from longspan.training.cartridges.config import CartridgeConfig

QUESTION_WORDS = ("Who", "What", "Where", "When", "Which", "How many", "Whose")
KEY_QUESTIONS = ("{}?", "What is {}?", "Who is {}?", "What is said of {}?", "Where is {}?", "What does {}?")
SEEDS = (
    "Ask one question about a detail of the text above: a name, a number, a date or a place. Write only the question.",
    "Ask one question that takes several parts of the text above to answer. Write only the question.",
    "Ask for a summary of one part of the text above, and say of which. Write only the request.",
    "Ask to put a part of the text above into a list or a table. Write only the request.",
    "Ask for something that a reader of the text above would use it for. Write only the request.",
    "Ask something unusual that the text above answers. Write only the question.",
)
QUOTES = 0.1
PROBES = 4  # questions about each sentence before those are preferred that have answers
MAX_WORDS = 16
QUESTION_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A question with the teacher's answer: ids `[T]`, the last `len(top_ids)` of which are the answer's.

    top_ids: int64 `[n, k]`, top_logprobs: float32 `[n, k]`: the teacher's likeliest tokens for each place of the answer.
    """

    ids: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


def study(
    teacher: Context, text: str, config: CartridgeConfig, talks: Sequence[Conversation] = ()
) -> Iterator[Conversation]:
    """Conversations without end, behind those that were had already; the same settings give the same ones.

    Args:
        teacher: the whole document, read.
        text: the document.
    """
    model, prompt = teacher.model, Prompt.of(teacher.model.tokenizer)
    sentences = split_document(text)
    hits, number = [0] * len(sentences), 0
    had = iter(talks)
    while True:
        rng = random.Random(f"{config.seed}/{number}")
        if config.questions == "asked":
            chosen, question = 0, ""
        else:
            chosen, turn = choose(number, hits, rng), number // len(sentences)
            question = span_question(sentences[chosen], rng, turn if turn < PROBES else None)
        talk = next(had, None)
        if talk is None:
            question = question or asked_question(model, text, config, rng)
            talk = answer(teacher, encode(model.tokenizer, prompt.question(question, "")), config)
            yield talk
        if config.questions == "spans" and number < PROBES * len(sentences):
            said = model.tokenizer.decode(talk.ids[-len(talk.top_ids) :], skip_special_tokens=True)
            hits[chosen] += is_about(sentences[chosen], question, said)
        number += 1


def choose(number: int, hits: Sequence[int], rng: random.Random) -> int:
    """The sentence that a question is about: in turn each `PROBES` times, then those more often that could be asked about, where
    the answer had words of the sentence that the question had not."""
    if number < PROBES * len(hits):
        return number % len(hits)
    return rng.choices(range(len(hits)), [1.0 if count else 0.02 for count in hits])[0]


def is_about(sentence: str, question: str, said: str) -> bool:
    """Does an answer have a word of weight of the sentence that the question does not have?"""
    asked, told, given = (set(map(str.lower, re.findall(r"\w+", x))) for x in (question, sentence, said))
    return any(len(word) > 3 or word.isdigit() for word in (told & given) - asked)


def split_document(text: str) -> list[str]:
    """Sentences of two words or more."""
    sentences = [" ".join(piece.split()) for piece in split_sentences(text)]
    return [sentence for sentence in sentences if len(sentence.split()) > 1] or [text]


def _is_salient(word: str) -> bool:
    return any(map(str.isdigit, word)) or word[:1].isupper()


def span_question(sentence: str, rng: random.Random, probe: int | None = None) -> str:
    """A question about a sentence, of its own words.

    Args:
        probe: ask with all words but those of a span, a name or number where this is even; None: with some of them, in many ways.
    """
    words = sentence.split()
    if len(words) > MAX_WORDS:
        start = rng.randrange(len(words) - MAX_WORDS + 1)
        words = words[start : start + MAX_WORDS]
    words = [re.sub(r"^\W+|[^\w%]+$", "", word) for word in words]
    words = [word for word in words if word] or ["it"]
    if probe is None and rng.random() < QUOTES:
        return " ".join(words[: max(1, len(words) // 2)])
    if probe is None and rng.random() < 0.2:
        return rng.choice(KEY_QUESTIONS).format(" ".join(_span(words, rng, salient=True)[1]))
    before, _, after = _span(words, rng, salient=rng.random() < 0.6 if probe is None else probe % 2 == 0)
    asked = rng.choice(QUESTION_WORDS)
    if before and rng.random() < 0.3:
        *before, asked_for = before  # "the code 95405" becomes "Which code"
        asked += f" {asked_for}"
    left = after + before if rng.random() < 0.3 else before + after
    kept = [word for word in left if probe is not None or rng.random() < 0.85] or words[:1]
    if rng.random() < 0.5 and kept[0][:1].isupper() and kept[0] == words[0]:
        kept[0] = kept[0][:1].lower() + kept[0][1:]
    return f"{asked} {' '.join(kept)}?"


def _span(words: list[str], rng: random.Random, *, salient: bool) -> tuple[list[str], list[str], list[str]]:
    """Words before, of and after a span; `salient`: a whole name or number, if there is one, else one to three words."""
    marked = [_is_salient(word) for word in words] + [False]
    marked[0] = marked[0] and (marked[1] or words[0][:1].isdigit())
    starts = [i for i, found in enumerate(marked) if found and not (i and marked[i - 1])]
    if salient and starts:
        start = rng.choice(starts)
        return words[:start], words[start : marked.index(False, start)], words[marked.index(False, start) :]
    start = rng.randrange(len(words))
    stop = min(len(words), start + rng.randint(1, 3))
    return words[:start], words[start:stop], words[stop:]


def asked_question(model: SpanModel, text: str, config: CartridgeConfig, rng: random.Random) -> str:
    """What the model asks about a random part of the document, at temperature 1."""
    ids = encode(model.tokenizer, text)
    start = rng.randrange(max(1, len(ids) - config.chunk_tokens + 1))
    part = model.tokenizer.decode(ids[start : start + config.chunk_tokens], skip_special_tokens=True)
    shown = model.read(part if part.strip() else text, progress=False)
    found = shown.ask(
        rng.choice(SEEDS),
        temperature=1.0,
        seed=rng.randrange(2**31),
        max_new_tokens=QUESTION_TOKENS,
        sources=False,
    ).text
    return found.strip() or span_question(part, rng)


def answer(teacher: Context, asked: Tensor, config: CartridgeConfig) -> Conversation:
    """The teacher's greedy answer, its end included, with its distributions."""
    reader, stops = teacher.model.reader(), stop_ids(teacher.model)
    branch = reader.open_question(teacher.run, asked)
    logits = reader.advance(branch, asked)
    tokens: list[int] = []
    top_ids, top_logprobs = [], []
    while True:
        assert logits is not None
        logprobs = torch.log_softmax(logits[0].float(), dim=-1)
        top = logprobs.topk(min(config.top_logits, len(logprobs)))
        top_ids.append(top.indices.cpu())
        top_logprobs.append(top.values.cpu())
        tokens.append(int(top.indices[0]))
        if tokens[-1] in stops or len(tokens) >= config.answer_tokens:
            break
        logits = reader.advance(branch, torch.tensor(tokens[-1:]))
    branch.give_back(teacher.run)
    return Conversation(
        ids=torch.cat([asked, torch.tensor(tokens)]),
        top_ids=torch.stack(top_ids),
        top_logprobs=torch.stack(top_logprobs),
    )
