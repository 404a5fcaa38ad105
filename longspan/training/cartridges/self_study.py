"""Self-study: conversations about a document that a model has with itself, and what it answers with all of it in context.

A question comes out of a part of the document; the answer is the teacher's, greedy, with the whole document in its context,
and of each of its distributions over the next token the likeliest are kept. Two ways to questions: `asked` shows the model
the part and a seed prompt, and samples what it asks; `spans` needs no conversation: it takes words out of a sentence and puts a
question word before the rest, so that the teacher is led to what is missing, and now and then quotes it to be continued.
Each sentence is first asked about several times, another name, number or phrase taken out each time; then those are preferred of
which few questions had an answer, or none. Neither way knows what the document will be asked about. Several questions are
answered side by side, as rows that share the document's keys and values.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from longspan.engine.context import Context, stop_ids
from longspan.engine.model import SpanModel
from longspan.engine.prompt import Prompt, encode
from longspan.evaluation.haystacks import split_sentences
from longspan.training.cartridges.config import CartridgeConfig

NUMBER_WORDS = ("How many", "Which", "What", "When")
NAME_WORDS = ("Who", "What", "Where", "Which", "Whose", "When")
OTHER_WORDS = ("What", "Which", "Where", "How", "Who", "When")
KEY_QUESTIONS = ("{}?", "What is {}?", "Who is {}?", "What is said of {}?", "Where is {}?", "What does {}?")
AUXILIARIES = frozenset("is was are were has had can could will would may might must shall should".split())
SEEDS = (
    "Ask one question about a detail of the text above: a name, a number, a date or a place. Write only the question.",
    "Ask one question that takes several parts of the text above to answer. Write only the question.",
    "Ask for a summary of one part of the text above, and say of which. Write only the request.",
    "Ask to put a part of the text above into a list or a table. Write only the request.",
    "Ask for something that a reader of the text above would use it for. Write only the request.",
    "Ask something unusual that the text above answers. Write only the question.",
)
QUOTES = 0.1
PROBES = 6  # questions about each sentence before those with few answers are preferred
UNANSWERED = 0.15  # weight of a sentence without an answer, against 1 for one that had one
MAX_WORDS = 16
QUESTION_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A question with the teacher's answer: ids `[T]`, the last `len(top_ids)` of which are the answer's.

    top_ids: int64 `[n, k]`, top_logprobs: float32 `[n, k]`: the teacher's likeliest tokens for each place of the answer.
    sentence: the number of the sentence that was asked about; 0 where it was no sentence.
    answered: the answer is about that sentence.
    """

    ids: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    sentence: int = 0
    answered: bool = True


def study(
    teacher: Context, text: str, config: CartridgeConfig, talks: Sequence[Conversation] = ()
) -> Iterator[list[Conversation]]:
    """Conversations without end, `study_rows` at a time, behind those that were had already; the same settings and the same
    beginning, cut where such a batch ends, give the same ones.

    Args:
        teacher: the whole document, read.
        text: the document.
    """
    model, prompt = teacher.model, Prompt.of(teacher.model.tokenizer)
    sentences = split_document(text)
    had = list(talks)
    while True:
        chosen, questions = [], []
        hits = count_answers(had, len(sentences))
        for number in range(len(had), len(had) + config.study_rows):
            rng = random.Random(f"{config.seed}/{number}")
            if config.questions == "asked":
                chosen.append(0)
                questions.append(asked_question(model, text, config, rng))
            else:
                chosen.append(choose(number, hits, rng, config.seed))
                turn = number // len(sentences)
                probe = turn if turn < PROBES else None
                questions.append(span_question(sentences[chosen[-1]], rng, probe, config.seed))
        asked = [encode(model.tokenizer, prompt.question(question, "")) for question in questions]
        batch = []
        for index, question, (ids, top_ids, top_logprobs) in zip(
            chosen, questions, answer(teacher, asked, config), strict=True
        ):
            said = model.tokenizer.decode(ids[-len(top_ids) :], skip_special_tokens=True)
            batch.append(
                Conversation(
                    ids=ids,
                    top_ids=top_ids,
                    top_logprobs=top_logprobs,
                    sentence=index,
                    answered=config.questions == "asked" or is_about(sentences[index], question, said),
                )
            )
        had += batch
        yield batch


def count_answers(talks: Sequence[Conversation], num_sentences: int) -> list[int]:
    """Of each sentence, the conversations that had an answer."""
    hits = [0] * num_sentences
    for talk in talks:
        hits[talk.sentence] += talk.answered
    return hits


def choose(number: int, hits: Sequence[int], rng: random.Random, seed: int = 0) -> int:
    """The sentence that a question is about: `PROBES` times each in turn, in an order that changes; then one by chance, rather one
    with few answers than one with many, and now and then one that had none."""
    turn, place = divmod(number, len(hits))
    if turn < PROBES:
        order = list(range(len(hits)))
        random.Random(f"{seed}/turn/{turn}").shuffle(order)
        return order[place]
    return rng.choices(range(len(hits)), [1 / count if count else UNANSWERED for count in hits])[0]


def is_about(sentence: str, question: str, said: str) -> bool:
    """Are most of an answer's words of weight that the question does not have the sentence's?"""
    asked, told, given = (_weighty(x) for x in (question, sentence, said))
    new = given - asked
    return 2 * len(new & told) > len(new)


def _weighty(text: str) -> set[str]:
    words = map(str.lower, re.findall(r"\w+", text))
    return {word for word in words if len(word) > 3 or word.isdigit()}


def split_document(text: str) -> list[str]:
    """Sentences of two words or more."""
    sentences = [" ".join(piece.split()) for piece in split_sentences(text)]
    return [sentence for sentence in sentences if len(sentence.split()) > 1] or [text]


def span_question(sentence: str, rng: random.Random, probe: int | None = None, seed: int = 0) -> str:
    """A question about a sentence, of its own words.

    Args:
        probe: ask with all words but those of a span: a name or number where this is even, another one each time as long as there
            are more; None: with some of the words, in many ways.
        seed: of the order in which `probe` goes through the spans.
    """
    written = [word for word in sentence.split() if re.search(r"\w", word)] or ["it"]
    named, others = spans(written, rng if probe is None else random.Random(f"{seed}/{sentence}"))
    words = list(map(_bare, written))
    by_name = rng.random() < 0.6 if probe is None else probe % 2 == 0
    found = (named if by_name else others) or named or others
    start, stop = found[0 if probe is None else probe // 2 % len(found)]
    if stop - start > MAX_WORDS // 2:  # a table
        start = rng.randrange(start, stop)
        stop = min(stop, start + rng.randint(1, 3))
    first = rng.randint(max(0, stop - MAX_WORDS), start) if len(words) > MAX_WORDS else 0
    before, span, after = words[first:start], words[start:stop], words[stop : first + MAX_WORDS]
    if probe is None and rng.random() < QUOTES:
        whole = before + span + after
        return " ".join(whole[: max(1, len(whole) // 2)])
    if probe is None and rng.random() < 0.2:
        return rng.choice(KEY_QUESTIONS).format(" ".join(span))
    asked = _question_word(span, rng)
    if before and rng.random() < 0.25:
        *before, asked_for = before  # "the code 95405" becomes "Which code"
        asked += f" {asked_for}"
    left = after + before if rng.random() < 0.3 else before + after
    kept = [word for word in left if probe is not None or rng.random() < 0.85] or words[:1]
    if kept[0] == words[0] and not _marks(words)[0] and rng.random() < 0.5:
        kept = [kept[0][:1].lower() + kept[0][1:], *kept[1:]]
    if rng.random() < 0.5:
        kept = _auxiliary_first(kept)
    return f"{asked} {' '.join(kept)}?"


def _question_word(span: Sequence[str], rng: random.Random) -> str:
    """One that fits what is missing, the first of its kind most often."""
    words: tuple[str, ...] = NAME_WORDS if span[0][:1].isupper() else OTHER_WORDS
    if any(map(str.isdigit, "".join(span))):
        words = NUMBER_WORDS
    return rng.choices(words, [2.0, 2.0, 1.0, 1.0, 0.5, 0.5][: len(words)])[0]


def _auxiliary_first(words: list[str]) -> list[str]:
    """Words in the order of a question: "was the mill built" of "the mill was built"."""
    at = next((i for i, word in enumerate(words) if word in AUXILIARIES), None)
    return words if at is None else [words[at], *words[:at], *words[at + 1 :]]


def spans(words: Sequence[str], rng: random.Random) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Start and end of what may be asked for, in an order by chance: whole names and numbers, and other pieces of up to three
    words that end in a word of weight."""
    marked, named, others = _marks(words), [], []
    broken = [word[-1:] in ",;:" for word in words]
    for start in range(len(words)):
        if marked[start] and not (start and marked[start - 1] and not broken[start - 1]):
            stop = start + 1
            while stop < len(words) and marked[stop] and not broken[stop - 1]:
                stop += 1
            named.append((start, stop))
        for stop in range(start + 1, min(start + 3, len(words)) + 1):
            if (
                not any(marked[start:stop])
                and not any(broken[start : stop - 1])
                and len(_bare(words[stop - 1])) > 3
            ):
                others.append((start, stop))
    rng.shuffle(named)
    rng.shuffle(others)
    return named, others or [(len(words) - 1, len(words))]


def _marks(words: Sequence[str]) -> list[bool]:
    """Which words are of a name or a number; a long first one is where the second is, too."""
    numbers = [any(map(str.isdigit, word)) for word in words]
    marked = [number or _bare(word)[:1].isupper() for number, word in zip(numbers, words, strict=True)]
    return [numbers[0] or (all(marked[:2]) and len(words[0]) > 3), *marked[1:]]


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    return re.sub(r"^\W+|[^\w%]+$", "", word)


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


@torch.no_grad()
def answer(
    teacher: Context, asked: Sequence[Tensor], config: CartridgeConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The teacher's greedy answers to questions `[n]` side by side, their ends included: ids of question and answer, and
    the teacher's likeliest tokens with their logprobs, `[n, k]`."""
    span, stops, device = teacher.model, stop_ids(teacher.model), teacher.model.info.device
    num_read, longest = len(teacher.run.ids), max(map(len, asked))
    cache = DynamicCache()
    for layer, store in zip(span.info.layers, teacher.run.layers, strict=True):
        (slab,) = store.slabs
        shape = (len(asked), *slab.keys.shape[1:])
        cache.update(slab.keys.expand(shape), slab.values.expand(shape), layer.index)
    ids = torch.zeros(len(asked), longest, dtype=torch.long)
    mask = torch.ones(len(asked), num_read + longest, dtype=torch.bool)
    for row, (question, padded) in enumerate(zip(asked, ids, strict=True)):
        padded[longest - len(question) :] = question
        mask[row, num_read : num_read + longest - len(question)] = False
    at = torch.stack([torch.arange(longest) + num_read - longest + len(question) for question in asked])
    ids, mask, at = ids.to(device), mask.to(device), at.to(device)
    rows = list(range(len(asked)))
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in asked]
    while True:
        logits = span.hf_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=at.clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        top = logprobs.topk(min(config.top_logits, logprobs.shape[1]))
        top_ids, top_logprobs = top.indices.cpu(), top.values.cpu()
        for row, pair in zip(rows, zip(top_ids, top_logprobs, strict=True), strict=True):
            found[row].append(pair)
        going = [
            i
            for i, row in enumerate(rows)
            if int(top_ids[i, 0]) not in stops and len(found[row]) < config.answer_tokens
        ]
        if not going:
            break
        left = torch.tensor(going, device=device)
        if len(going) < len(rows):
            cache.batch_select_indices(left)
        rows = [rows[i] for i in going]
        ids, at = top.indices[left, :1], at[left, -1:] + 1
        mask = torch.nn.functional.pad(mask[left], (0, 1), value=True)
    answers = []
    for question, pairs in zip(asked, found, strict=True):
        ids_of, logprobs_of = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        answers.append((torch.cat([question, ids_of[:, 0]]), ids_of, logprobs_of))
    return answers
