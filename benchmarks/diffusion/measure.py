"""What is measured: perplexity by length, and the needle by depth and length, of a denoiser and of its causal twin."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from longspan.evaluation.exams import FIRST_SEED
from longspan.evaluation.suites.ruler import niah
from longspan.evaluation.task import Room
from longspan.model_info import Rope
from longspan.reference.joints import Joints
from longspan.training.base import Base
from longspan.training.diffusion.denoiser import Denoiser, on_gpu
from longspan.training.diffusion.likelihood import bound
from longspan.training.diffusion.objective import masked_losses
from longspan.training.diffusion.sampling import fill
from longspan.training.rotation import Rotation
from longspan.training.schemes._frequencies import scaled_rope

BLOCK_TOKENS = 12
NEW_TOKENS = BLOCK_TOKENS
BATCH_TOKENS = 524_288


class Causal:
    """The causal model that a denoiser was made of, under the frequencies of a spec."""

    def __init__(self, base: Base, device: torch.device) -> None:
        self.model, self.tokenizer = base.model.to(device).eval(), base.tokenizer
        self.device, self.modules = device, base.modules
        self.rope = replace(base.rope, inv_freq=base.rope.inv_freq.to(device))
        self._used, self._rotation = self.rope, Rotation(base.modules)

    def computing(self) -> AbstractContextManager[Any]:
        return on_gpu(None) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def under(self, spec: str) -> Iterator[None]:
        self._used = self.rope if spec == "dense" else scaled_rope(spec, self.rope)
        with self._rotation:
            yield
        self._used = self.rope

    def hidden(self, ids: Tensor, cache: Any = None) -> Tensor:
        start = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape)
        self._rotation.set(positions, [self._used] * len(ids))
        found: Tensor = self.model.get_decoder()(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return found

    @torch.no_grad()
    def losses(self, ids: Tensor) -> Tensor:
        """-log p of each place, float64 `[T]`, averaged over texts `[B, T]`; 0 for the first."""
        total = torch.zeros(ids.shape[1], dtype=torch.float64)
        head = self.model.get_output_embeddings()
        for part in ids.split(max(1, BATCH_TOKENS // 2 // ids.shape[1])):
            given = part.to(self.device)
            with self.computing():
                hidden = self.hidden(given)[:, :-1].flatten(0, 1)
                found = masked_losses(hidden, head, given[:, 1:].flatten())
            total[1:] += found.double().cpu().view(len(part), -1).sum(0)
        return total / len(ids)

    @torch.no_grad()
    def answers(self, prompts: Tensor) -> Tensor:
        """Greedy tokens behind each prompt, int64 `[B, NEW_TOKENS]`."""
        found = []
        for part in prompts.split(max(1, BATCH_TOKENS // prompts.shape[1])):
            cache, ids, tokens = DynamicCache(config=self.model.config), part.to(self.device), []
            for _ in range(NEW_TOKENS):
                with self.computing():
                    ids = self.model.lm_head(self.hidden(ids, cache)[:, -1:]).argmax(-1)
                tokens.append(ids.cpu())
            found.append(torch.cat(tokens, dim=1))
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class NeedlePrompts:
    """Prompts of one length. ids: int64 `[B, P]`. values: what is to be found. depths: wished places, 0 to 1. distances: tokens
    from the needle's first to the end of prompt and block."""

    ids: Tensor
    values: list[str]
    depths: list[float]
    distances: list[int]


class NeedleMaker:
    """RULER's single needle in RULER's words, hidden in held-out text, in token space: exact in length."""

    def __init__(self, tokenizer: Any, held_out: np.ndarray) -> None:
        self.tokenizer = tokenizer
        self.joints = Joints(tokenizer)
        self.text = self.joints.prose(held_out)

    def prompts(self, length: int, depths: Sequence[float], samples: int) -> NeedlePrompts:
        """`samples` for each depth; with the block to be filled each has `length` tokens."""
        made = [
            self._prompt(length, depth, FIRST_SEED + sample) for depth in depths for sample in range(samples)
        ]
        return NeedlePrompts(
            ids=torch.from_numpy(np.stack([ids for ids, _, _ in made])),
            values=[value for _, value, _ in made],
            depths=[depth for depth in depths for _ in range(samples)],
            distances=[length - place for _, _, place in made],
        )

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _prompt(self, length: int, depth: float, seed: int) -> tuple[np.ndarray, str, int]:
        rng = random.Random(f"{length}/{depth}/{seed}")
        puzzle = niah()(rng, Room(tokens=length, count=lambda text: len(self._encode(text))))
        head = [self.tokenizer.bos_token_id, *self._encode(puzzle.preamble + "\n")]
        tail = self._encode(f"\n\n{puzzle.question}\nAnswer:") + self._encode(f" {puzzle.answer_prefix}")
        room = length - BLOCK_TOKENS - len(head) - len(tail) - len(self._encode(" " + puzzle.needles[0]))
        begin = rng.randrange(max(1, len(self.text.tokens) - room - 300))
        ahead = np.flatnonzero(self.text.breaks[begin : begin + 300])
        begin += int(ahead[0]) if len(ahead) else 0
        body = np.resize(self.text.tokens[begin : begin + room + 2], room + 2)
        breaks = np.flatnonzero(self.text.breaks[begin : begin + room])
        places = np.unique(np.concatenate([[0], breaks, [room]]))
        place = int(places[np.abs(places - depth * room).argmin()])
        needle = self._encode((" " if place else "") + puzzle.needles[0])
        before, after = body[:place], body[place:]
        if place:
            before = self.joints.without_lead(before)
        ids = np.concatenate([head, before, needle, after]).astype(np.int64)
        ids = np.concatenate([ids[: length - BLOCK_TOKENS - len(tail)], tail]).astype(np.int64)
        return ids, puzzle.references[0], len(head) + len(before)


def texts(held_out: np.ndarray, bos: int, lengths: Sequence[int], most: int) -> Tensor:
    """Texts of the longest length, int64 `[B, T]`; shorter ones are their beginnings."""
    longest = max(lengths)
    count = max(1, min(most, len(held_out) // longest))
    ids = np.resize(held_out, count * longest).reshape(count, longest).astype(np.int64)
    ids[:, 0] = bos
    return torch.from_numpy(ids)


def perplexity(model: Denoiser | Causal, ids: Tensor, spec: str, samples: int) -> dict[str, Any]:
    """exp of nats a token over the text, and over its last quarter."""
    last = 3 * ids.shape[1] // 4
    with model.under(spec):
        if isinstance(model, Denoiser):
            drawn = bound(model, ids, samples=samples)
            found = drawn.mean(), drawn.mean(last)
        else:
            places = model.losses(ids)
            found = float(places[1:].mean()), float(places[last:].mean())
    return {
        "perplexity": round(math.exp(found[0]), 3),
        "last_quarter": round(math.exp(found[1]), 3),
        "texts": len(ids),
    }


def needle(model: Denoiser | Causal, given: NeedlePrompts, spec: str, steps: int) -> list[dict[str, Any]]:
    """One row a depth: samples, how many were right, and tokens from the needle to the end, on average."""
    with model.under(spec):
        if isinstance(model, Denoiser):
            ids = fill(model, given.ids, block_tokens=BLOCK_TOKENS, steps=steps, batch_tokens=BATCH_TOKENS)
        else:
            ids = model.answers(given.ids)
    replies = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = []
    for depth in dict.fromkeys(given.depths):
        own = [i for i, known in enumerate(given.depths) if known == depth]
        right = [given.values[i] in replies[i] for i in own]
        wrong = next((replies[i] for i, good in zip(own, right, strict=True) if not good), None)
        rows.append(
            {
                "depth": depth,
                "samples": len(own),
                "right": sum(right),
                "distance": round(sum(given.distances[i] for i in own) / len(own)),
                "wrong_reply": wrong,
            }
        )
    return rows


def law_factor(rope: Rope, length: int) -> float:
    """`factor` of the method ntk that the scaling laws of RoPE give for a length (Scaling Laws of RoPE-based Extrapolation, 2023):
    the first pair that has not turned once within the trained window turns just once within the length.

    With d rotary dims, theta' = (L / 2 pi)^(d / c) and c = 2 ceil(d / 2 * log_theta(L_trained / 2 pi)); ntk's theta' is
    theta * factor^(d / (d - 2)).
    """
    dims = rope.rotary_dims
    critical = 2 * math.ceil(dims / 2 * math.log(rope.window_tokens / (2 * math.pi), rope.theta))
    theta = (length / (2 * math.pi)) ** (dims / critical)
    return max(1.0, (theta / rope.theta) ** ((dims - 2) / dims))
