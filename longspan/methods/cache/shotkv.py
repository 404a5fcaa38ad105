"""Whole examples of a few-shot prompt stay or go; what is decoded after them is kept apart, token by token.

The last `window_tokens` tokens of a text, which always stay, attend to all before them; summed over the heads of all layers,

    score(shot) = mean over its tokens t of sum over layers, heads and window queries of softmax(q K^T / sqrt(D))[t]

and shots are taken in the order of their scores as long as the next one fits into `keep`. All heads of all layers hold the
same shots. Of the tokens that come after the text, `keep_decoded` stay in each layer, those that the latest ones attend to.

Paper: Can LLMs Maintain Fundamental Abilities under KV Cache Compression? (2025).

Differs from the paper: shots are blocks of `shot_tokens`, or begin at the tokens that `starts` lists, since what is stored
tells nothing of blank lines; the attention is that of the last tokens; decoded tokens are ranked by the heads of their own
layer, not of all; shots that fit are added below one that does not.

Fails when: blocks cut examples in two (give `starts`); one shot is longer than the budget, which then stays unused; the
question does not stand at the text's end. A question behind the text counts as decoded; on the reference model, at 2K
tokens, such a one finds 3 needles of 5 with keep=0.5 and blocks of 64, 4 with blocks of 32, and all with keep=0.75.

    model = longspan.load("reference", methods="shotkv(keep=0.5, shot_tokens=64)")
    context = model.read(text)
    context.kept_tokens  # half of context.num_tokens or up to a shot less
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longspan.budget import check_keep, resolve_keep
from longspan.eviction import SLACK_TOKENS, attention_received, places_of, remember_last
from longspan.roles import Event, Held, Step, Storage, Together

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Can LLMs Maintain Fundamental Abilities under KV Cache Compression?",
    "year": 2025,
    "paper_id": 229,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "when keep covers the text and keep_decoded is 1.0",
    "frees": "frees",
    "needs": ["where shots begin, or how long they are", "the question at the end of the text"],
    "claim": {
        "text": "with half of the cache freed in whole blocks a needle is still found, even by a question that comes after",
        "spec": "shotkv(keep=0.5, shot_tokens=64)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "shotkv(keep=0.5, shot_tokens=20, window_tokens=16)",
    "identity": "shotkv(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class ShotKV(Storage):
    """Keeps whole shots; see the module.

    Args:
        keep: share of the text's tokens, or number of tokens a kv head, that whole shots and the window may fill.
        keep_decoded: the same for the tokens behind the text.
        shot_tokens: length of the blocks that are taken for shots.
        starts: the token at which each shot begins, ascending, instead; what comes before the first is one more.
        window_tokens: last tokens, which vote and stay.
    """

    keep: float | int = 0.4  # a rate of the paper's LG-GSM8K runs
    keep_decoded: float | int = 1.0  # all: answers are short beside a text
    shot_tokens: int = 128  # ours: the paper cuts where examples end
    starts: tuple[int, ...] = ()  # a method sees no blank lines
    window_tokens: int = 32  # SnapKV's observation window

    def __post_init__(self) -> None:
        for name in ("shot_tokens", "window_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is 1 or more")
        for name in ("keep", "keep_decoded"):
            check_keep(getattr(self, name), name=name)
            if 1 < getattr(self, name) < self.window_tokens:
                raise ValueError(
                    f"got {name}={getattr(self, name):g}, less than the {self.window_tokens} tokens of the window, which always "
                    f"stay; set {name} to {self.window_tokens} or more, or lower window_tokens"
                )
        if any(a >= b for a, b in zip((0, *self.starts), self.starts, strict=False)):
            raise ValueError(
                f"got starts={list(self.starts)}; allowed are tokens after the first, ascending, such as [120, 250]"
            )

    def together(self) -> Together:
        return "model"

    def observe(self, step: Step) -> None:
        if step.phase == "prefill" or self.keep_decoded != 1:
            remember_last(step, self.window_tokens)

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        if event == "chunk":
            return [None] * len(held)
        if event == "token":
            return [self._decoded(h) if self.keep_decoded != 1 else None for h in held]
        kept = self._shots(held)
        for h in held:
            h.state["text_tokens"] = h.store.positions.amax(dim=(1, 2)) + 1
            if self.keep_decoded == 1:
                del h.state["queries"], h.state["positions"]
        return [kept] * len(held)

    def _shots(self, held: Sequence[Held]) -> Tensor | None:
        """Places of the window and of the best shots that fit, `[B, 1, n]`, one choice for all; None where all do."""
        positions = held[0].store.positions[:, 0]
        ends = positions.amax(dim=1, keepdim=True) + 1
        budgets = [resolve_keep(self.keep, int(end)) for end in ends]
        if all(budget >= int((row >= 0).sum()) for budget, row in zip(budgets, positions, strict=True)):
            return None
        votes = sum(_votes(h) for h in held)
        assert isinstance(votes, torch.Tensor)
        window = positions >= ends - self.window_tokens
        shots = self._shot_of(positions)
        stays = torch.zeros_like(window)
        for row, budget in enumerate(budgets):
            room = budget - int((window[row] & (positions[row] >= 0)).sum())
            if room < 0:
                raise ValueError(
                    f"keep={self.keep} of {int(ends[row])} tokens is {budget}, less than the {self.window_tokens} tokens of the "
                    "window, which always stay; raise keep, or lower window_tokens"
                )
            far = (positions[row] >= 0) & ~window[row]
            chosen = _fill(shots[row][far], votes[row][far], room)
            stays[row] = window[row] & (positions[row] >= 0)
            stays[row] |= far & torch.isin(shots[row], chosen)
        return places_of(stays[:, None])

    def _shot_of(self, positions: Tensor) -> Tensor:
        """The number of the shot that each token belongs to."""
        if not self.starts:
            return positions.div(self.shot_tokens, rounding_mode="floor")
        return torch.bucketize(positions, positions.new_tensor(self.starts), right=True)

    def _decoded(self, held: Held) -> Tensor | None:
        """Places of the text and of the best tokens behind it, once a few more than may stay have come."""
        positions = held.store.positions[:, 0]
        text = held.state["text_tokens"][:, None]
        later, ends = positions >= text, positions.amax(dim=1, keepdim=True) + 1
        allowed = [
            max(self.window_tokens, resolve_keep(self.keep_decoded, max(1, int(n)))) for n in ends - text
        ]
        budget = torch.tensor(allowed, device=positions.device)[:, None]
        if bool((later.sum(dim=1, keepdim=True) <= budget + SLACK_TOKENS).all()):
            return None
        votes = _votes(held).masked_fill(positions >= ends - self.window_tokens, torch.inf)
        ranks = votes.masked_fill(~later, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        best = later & (ranks.argsort(dim=1) < budget)
        return places_of((best | ((positions >= 0) & ~later))[:, None])


def _votes(held: Held) -> Tensor:
    """Attention that each token gets from the window, summed over heads, `[B, S]`."""
    return attention_received(held.store, held.state["queries"], held.state["positions"]).sum(dim=1)


def _fill(shots: Tensor, votes: Tensor, room: int) -> Tensor:
    """Numbers of the shots with the highest mean vote, of tokens in shots `[n]`, that fit into `room` tokens one after the other."""
    numbers, members, sizes = shots.unique(return_inverse=True, return_counts=True)
    means = votes.new_zeros(len(numbers)).index_add(0, members, votes) / sizes
    chosen = []
    for number in means.sort(descending=True, stable=True).indices.tolist():
        size = int(sizes[number])
        if size <= room:
            chosen.append(number)
            room -= size
    return numbers[chosen]
