"""What stands beside a cartridge in training: passages of other texts, with conversations about them.

A cartridge that is trained alone learns that everything is asked of it: of two put behind one another, one draws the attention of
all questions. So in a share of the steps keys and values of other texts stand before or behind it, as many tokens each as it has
slots, one passage or two, in an order by chance, each row with its own. Some rows ask about the document, and the answer must be
found among the others; some ask about a passage, which the teacher read alone, and the cartridge must not come between.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from longspan.engine.model import SpanModel
from longspan.engine.prompt import text_chunks
from longspan.errors import UserInputError
from longspan.evaluation.haystacks import Haystack
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import Conversation, study
from longspan.training.cartridges.slots import slots_of

TWO = 0.25  # share of the steps with passages that have two of them
ABOUT_PASSAGES = 0.3  # share of the rows of such a step that ask about a passage
OTHERS = 0.2  # share of the rows that have conversations of which the answer is not about the sentence
SPARE_TOKENS = 64  # beyond a passage, which is cut from whole sentences that may join into fewer tokens


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Keys before rotation and values of n passages of p tokens, of each layer `[n, K, p, D]`, and conversations about each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    talks: tuple[tuple[Conversation, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Which passages stand beside the cartridge in a step.

    chosen: of each row, int64 `[B, m]`; order: of the cartridge (0) and these (1 .. m) from front to back, `[B, m + 1]`.
    """

    passages: Passages
    chosen: Tensor
    order: Tensor

    def with_passages(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The cartridge's keys and values `[K, p, D]` among the passages': `[B, K, (m + 1) p, D]`."""
        found = []
        for own, theirs in ((keys, self.passages.keys[layer]), (values, self.passages.values[layer])):
            chosen, order = self.chosen.to(own.device), self.order.to(own.device)
            blocks = torch.cat([own.expand(len(chosen), 1, *own.shape), theirs[chosen]], dim=1)
            ordered = blocks[torch.arange(len(chosen), device=own.device)[:, None], order]
            found.append(ordered.transpose(1, 2).flatten(2, 3))
        return found[0], found[1]


def draw_passages(model: SpanModel, text: str, config: CartridgeConfig) -> list[Tensor]:
    """Ids `[p]` of passages of `text`, each with the head that the model puts before a text.

    Raises:
        ValueError: the text is empty.
    """
    rng, haystack = random.Random(f"{config.seed}/beside"), Haystack(text)
    vocabulary = model.hf_model.get_input_embeddings().num_embeddings
    found = []
    for _ in range(config.passages):
        sentences = haystack.slice(config.tokens_kept + SPARE_TOKENS, model.tokenizer, rng)
        (ids,) = text_chunks(model.tokenizer, "".join(sentences).strip(), vocabulary)[0]
        found.append(ids[: config.tokens_kept])
    if any(len(ids) < config.tokens_kept for ids in found):
        raise UserInputError("the text beside is too short for a passage; give a longer one")
    return found


def study_passage(span: SpanModel, ids: Tensor, config: CartridgeConfig, number: int) -> list[Conversation]:
    """Conversations about a passage `[p]`, which the teacher has read alone."""
    text = span.tokenizer.decode(ids, skip_special_tokens=True)
    own = replace(config, study_rows=config.passage_questions, seed=config.seed + 1 + number)
    return next(study(span.read(ids, progress=False), text, own))


def read_passages(
    span: SpanModel, drawn: Sequence[Tensor], talks: Sequence[Sequence[Conversation]]
) -> Passages | None:
    """Passages `[p]` with their conversations, as they stand beside a cartridge; None where there are none."""
    if not drawn:
        return None
    read = [slots_of(span, span.read(ids, progress=False).run) for ids in drawn]
    keys, values = (tuple(map(torch.stack, zip(*parts, strict=True))) for parts in zip(*read, strict=True))
    return Passages(keys=keys, values=values, talks=tuple(map(tuple, talks)))


def weigh(talks: Sequence[Conversation]) -> np.ndarray:
    """How often each conversation is trained on, `[n]`, summing up to 1: those with an answer nearly alike for all sentences, however
    many a sentence has."""
    answered = np.array([talk.answered for talk in talks])
    counts: dict[int, int] = {}
    for talk in talks:
        counts[talk.sentence] = counts.get(talk.sentence, 0) + talk.answered
    weights = np.array([counts[talk.sentence] ** -0.5 if talk.answered else 0.0 for talk in talks])
    if not answered.all():
        total = weights.sum() or 1.0
        weights = np.where(answered, weights, OTHERS / (1 - OTHERS) * total / (~answered).sum())
    return weights / weights.sum()


def draw_step(
    talks: Sequence[Conversation],
    weights: np.ndarray,
    passages: Passages | None,
    config: CartridgeConfig,
    step: int,
) -> tuple[list[Conversation], Beside | None]:
    """Conversations of a step, and what stands beside the cartridge in it; the same for the same step."""
    rng = np.random.default_rng((config.seed, step))
    num_rows = min(config.batch_rows, len(talks))
    rows = [talks[i] for i in rng.choice(len(talks), num_rows, replace=False, p=weights)]
    if passages is None or rng.random() >= config.beside_share:
        return rows, None
    return beside_rows(rows, passages, rng)


def beside_rows(
    rows: Sequence[Conversation], passages: Passages, rng: np.random.Generator, about: float = ABOUT_PASSAGES
) -> tuple[list[Conversation], Beside]:
    """These conversations, a share of them replaced by ones about passages, and passages to stand beside the cartridge."""
    num = min(2 if rng.random() < TWO else 1, len(passages.talks))
    chosen = np.stack([rng.permutation(len(passages.talks))[:num] for _ in rows])
    order = np.stack([rng.permutation(num + 1) for _ in rows])
    asked = list(rows)
    for row, (first, *_) in enumerate(chosen):
        if rng.random() < about:
            theirs = passages.talks[first]
            asked[row] = theirs[int(rng.integers(len(theirs)))]
    return asked, Beside(passages=passages, chosen=torch.from_numpy(chosen), order=torch.from_numpy(order))
