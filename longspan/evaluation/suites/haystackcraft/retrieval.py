"""Rankings of documents for a question: sparse (BM25), dense (embeddings), hybrid (both, by reciprocal rank fusion).

Scores are rounded and ties go to the earlier document, so that the same documents and query always give the same ranking.
The dense retriever needs no model: documents and query are compared by their TF-IDF weights in the space of the largest
singular vectors (latent semantic analysis). With `LONGSPAN_EMBEDDER` set to a model of `sentence-transformers`, its embeddings
are compared instead.

Papers: Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond*, 2009; Deerwester et al., *Indexing by
Latent Semantic Analysis*, 1990; Cormack et al., *Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods*, 2009; Halko et al., *Finding structure with randomness*, 2011.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from longspan.evaluation.haystacks import TokenizerLike, count_tokens
from longspan.evaluation.published import DataMissing

__all__ = ["EMBEDDER_VARIABLE", "Corpus", "Retriever", "fuse"]

EMBEDDER_VARIABLE = "LONGSPAN_EMBEDDER"
Retriever = Literal["sparse", "dense", "hybrid"]

FUSION_CONSTANT = 60  # of Cormack et al.
DIMENSIONS = 64
OVERSAMPLING = 8
POWER_STEPS = 2
MOST_WORDS = 4096  # of the vocabulary of the dense retriever: the most frequent
DECIMALS = 4


class Corpus:
    """Documents and their indexes, each built when it is first asked for."""

    def __init__(self, documents: Sequence[str]) -> None:
        """documents: the texts, all different."""
        self.documents = tuple(documents)
        self._tokens: WeakKeyDictionary[TokenizerLike, dict[int, int]] = WeakKeyDictionary()

    def tokens(self, number: int, tokenizer: TokenizerLike) -> int:
        """Tokens of a document with an empty line before it; counted once for each tokenizer."""
        known = self._tokens.setdefault(tokenizer, {})
        if number not in known:
            known[number] = count_tokens(tokenizer, "\n\n" + self.documents[number])
        return known[number]

    def rank(self, query: str, retriever: Retriever) -> list[int]:
        """Numbers of all documents, best first.

        Raises:
            DataMissing: the library that this retriever needs is not installed.
        """
        if retriever == "hybrid":
            return fuse([self.rank(query, "sparse"), self.rank(query, "dense")])
        scores = self._sparse(query) if retriever == "sparse" else self._dense(query)
        return list(np.argsort(-np.round(scores, DECIMALS), kind="stable").tolist())

    @cached_property
    def _sparse(self) -> Callable[[str], np.ndarray]:
        if find_spec("bm25s") is None:
            raise DataMissing("sparse retrieval needs bm25s; run `pip install longspan[retrieval]`")
        index = import_module("bm25s").BM25()
        index.index([_words(text) for text in self.documents], show_progress=False)

        def scores(query: str) -> np.ndarray:
            known = [word for word in _words(query) if word in index.vocab_dict]
            found: np.ndarray = index.get_scores(known) if known else np.zeros(len(self.documents))
            return found

        return scores

    @cached_property
    def _dense(self) -> Callable[[str], np.ndarray]:
        name = os.environ.get(EMBEDDER_VARIABLE)
        embed = _sentence_embedder(name) if name else _latent_embedder(self.documents)
        documents = embed(self.documents)
        return lambda query: documents @ embed([query])[0]


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion: each ranking gives 1 / (60 + rank) to a document; ties go to the lower number."""
    total: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, start=1):
            total[number] = total.get(number, 0.0) + 1 / (FUSION_CONSTANT + rank)
    return sorted(total, key=lambda number: (-round(total[number], 9), number))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _latent_embedder(documents: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Unit vectors of texts in the space of the documents' first singular vectors."""
    bags = [Counter(_words(text)) for text in documents]
    spread: Counter[str] = Counter(word for bag in bags for word in bag)
    often = [word for word, count in spread.most_common(MOST_WORDS) if count > 1]
    column = {word: number for number, word in enumerate(often)}
    rarity = np.log((1 + len(documents)) / (1 + np.array([spread[word] for word in often]))) + 1

    def weights(chosen: Sequence[Counter[str]]) -> np.ndarray:
        table = np.zeros((len(chosen), len(often)), dtype=np.float32)
        for row, bag in enumerate(chosen):
            for word, count in bag.items():
                if word in column:
                    table[row, column[word]] = (1 + np.log(count)) * rarity[column[word]]
        return _unit(table)

    axes = _singular_axes(weights(bags))
    return lambda texts: _unit(weights([Counter(_words(text)) for text in texts]) @ axes)


def _singular_axes(table: np.ndarray) -> np.ndarray:
    """The first right singular vectors, by a random projection that is the same in every run."""
    width = min(DIMENSIONS + OVERSAMPLING, *table.shape)
    start = np.random.default_rng(0).standard_normal((table.shape[1], width)).astype(np.float32)
    basis = np.linalg.qr(table @ start)[0]
    for _ in range(POWER_STEPS):
        basis = np.linalg.qr(table @ np.linalg.qr(table.T @ basis)[0])[0]
    axes = np.linalg.svd(basis.T @ table, full_matrices=False)[2]
    found: np.ndarray = axes[:DIMENSIONS].T
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return scaled


@lru_cache(maxsize=2)
def _sentence_embedder(name: str) -> Callable[[Sequence[str]], np.ndarray]:
    if find_spec("sentence_transformers") is None:
        raise ValueError(
            f"{EMBEDDER_VARIABLE} is {name!r}, and sentence-transformers is not installed; run "
            "`pip install sentence-transformers`, or unset the variable to retrieve without a model"
        )
    model: Any = import_module("sentence_transformers").SentenceTransformer(name)

    def embed(texts: Sequence[str]) -> np.ndarray:
        found: np.ndarray = model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return found

    return embed
