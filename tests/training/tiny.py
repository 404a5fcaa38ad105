"""A tiny Llama with a window of 64 tokens, text that it can learn in a few steps, and schemes for tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longspan.model_info import Rope
from longspan.reference.feed import StepData
from longspan.training.base import Base, load_base
from longspan.training.config import ExtendConfig, make_schedule
from longspan.training.registry import resolve_scheme
from longspan.training.scheme import Scheme
from longspan.training.trainer import Trainer
from tests.models import VOCAB, word_tokenizer

WINDOW = 64
TARGET = 256


def tiny_model(seed: int = 0, *, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def tiny_config(scheme: str | Scheme, **changes: Any) -> ExtendConfig:
    """Two rows of the target a step, or eight of the window."""
    given: dict[str, Any] = {
        "scheme": resolve_scheme(scheme) if isinstance(scheme, str) else scheme,
        "length_tokens": TARGET,
        "steps": 6,
        "batch_tokens": 2 * TARGET,
        "forward_tokens": TARGET,
        "lr": 1e-2,
        "warmup_steps": 2,
        "task_share": 0.0,
    }
    return ExtendConfig(**{**given, **changes})


def tiny_base(config: ExtendConfig, model: Any = None) -> Base:
    return load_base(model or tiny_model(), config.scheme, config.length_tokens, tokenizer=word_tokenizer())


def tiny_trainer(scheme: str | Scheme, *, model: Any = None, **changes: Any) -> Trainer:
    config = tiny_config(scheme, **changes)
    base = tiny_base(config, model)
    return Trainer(base, config, make_schedule(config, base.window_tokens), torch.device("cpu"))


def step_data(trainer: Trainer, step: int) -> StepData:
    """Words that count up, so that the next one can be learned."""
    rows, length = trainer.schedule.rows, trainer.schedule.row_tokens
    starts = np.random.default_rng(step).integers(3, VOCAB, rows)
    tokens = np.concatenate([3 + (start + np.arange(length)) % 20 for start in starts])
    return StepData(step=step, tokens=tokens, weights=np.ones(len(tokens), dtype=np.uint8), answers=[])


def train_steps(trainer: Trainer, steps: int) -> list[float]:
    with trainer:
        return [trainer.step(step_data(trainer, step)).loss for step in range(steps)]


def target_logits(trainer: Trainer, ids: Tensor) -> Tensor:
    """Logits `[B, T, V]` as training computes them, at plain positions and the spec's frequencies."""
    from longspan.training.schemes._frequencies import scaled_rope

    spec = trainer.config.scheme.spec(trainer.rope, trainer.config.length_tokens)
    rope = trainer.rope if spec == "dense" else scaled_rope(spec, trainer.rope)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with trainer, torch.no_grad():
        return trainer.logits(ids, positions, [rope] * len(ids))


def text_folder(folder: Path, *, documents: int = 3, words: int = 600) -> Path:
    """Files of counted words."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        text = " ".join(f"w{3 + (number + place) % 20}" for place in range(words))
        (folder / f"{number}.txt").write_text(text)
    return folder


class _Slowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.tensor(math.log(4.0)))


@dataclass(frozen=True, kw_only=True)
class Learned(Scheme):
    """A scheme with everything that a scheme can have: frequencies that are learned, and an attention of its own."""

    calls: Callable[[], None] = lambda: None

    @cached_property
    def _slowing(self) -> _Slowing:
        return _Slowing()

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        return replace(rope, inv_freq=rope.inv_freq / self._slowing.log_factor.exp())

    def module(self, rope: Rope) -> nn.Module:
        return self._slowing

    def attention(self) -> str:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls()
            return sdpa_attention_forward(*args, **kwargs)

        AttentionInterface.register("counted_for_tests", counted)
        return "counted_for_tests"

    def spec(self, rope: Rope, target_tokens: int) -> str:
        return f"pi(factor={float(self._slowing.log_factor.detach().exp())!r})"
