"""Rows are rotated as a scheme says, and attention reaches over skips of positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.errors import UnsupportedLayerError
from longspan.model_info import Rope
from longspan.training.rotation import Rotation
from longspan.training.schemes._frequencies import scaled_rope
from tests.models import random_ids, random_model
from tests.training.tiny import TARGET, WINDOW, tiny_base, tiny_config, tiny_trainer

SKIP_AT = 20


def skipped(num_tokens: int, skip: int) -> Tensor:
    positions = torch.arange(num_tokens)
    positions[SKIP_AT:] += skip
    return positions[None]


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma3", "Phi3", "Qwen3Moe"])
def test_tokens_behind_a_skip_attend_to_those_before_it(family: str) -> None:
    base = tiny_base(replace(tiny_config("pose"), length_tokens=1024), random_model(family))
    ids = random_ids(48)[None]
    changed = ids.clone()
    changed[0, 3] = ids[0, 3] % 400 + 5
    positions = skipped(48, 700)
    with Rotation(base.modules) as rotation, torch.no_grad():
        logits = []
        for row in (ids, changed):
            rotation.set(positions, [base.rope])
            logits.append(base.model(row, attention_mask=torch.ones_like(row), position_ids=positions).logits)
    moved = (logits[0] - logits[1]).abs().amax(dim=-1)[0]
    assert (moved[:3] == 0).all()
    assert (moved[SKIP_AT:] > 1e-6).all()


def test_the_trainer_passes_the_mask_that_keeps_attention_over_skips() -> None:
    """Against attention computed from its definition: every token sees all before it, at the positions given."""
    trainer = tiny_trainer("pose")
    ids = random_ids(WINDOW)[None]
    positions = skipped(WINDOW, TARGET - WINDOW)
    seen = torch.ones(WINDOW, WINDOW, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        wanted = trainer.model(ids, attention_mask=seen, position_ids=positions).logits
        with trainer:
            got = trainer.logits(ids, positions, [trainer.rope])
    assert torch.allclose(got, wanted, atol=1e-5)
    with torch.no_grad():
        plain = trainer.model(ids).logits
    assert (got - plain).abs().max() > 1e-3


def test_each_row_has_its_own_positions_and_frequencies() -> None:
    trainer = tiny_trainer("full")
    ids = random_ids(40).expand(2, -1)
    positions = torch.stack([torch.arange(40), torch.arange(40) * 3])
    ropes = [trainer.rope, replace(trainer.rope, inv_freq=trainer.rope.inv_freq / 3)]
    with trainer, torch.no_grad():
        both = trainer.logits(ids, positions, ropes)
        alone = trainer.logits(ids[:1], positions[:1], ropes[:1])
    assert torch.allclose(both[0], both[1], atol=1e-5)
    assert torch.allclose(both[:1], alone, atol=1e-6)


def test_the_models_own_rotation_is_reproduced_and_restored() -> None:
    trainer = tiny_trainer("full")
    ids = random_ids(50)[None]
    with torch.no_grad():
        wanted = trainer.model(ids).logits
        with trainer:
            got = trainer.logits(ids, torch.arange(50)[None], [trainer.rope])
        assert torch.equal(got, wanted)
        assert torch.equal(trainer.model(ids).logits, wanted)
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())


def test_first_tokens_may_turn_by_frequencies_of_their_own() -> None:
    """LongRoPE's: positions below start_tokens are rotated as the model does, the others as the method says."""
    rotation, inv_freq = Rotation([]), torch.tensor([1.0, 0.1])
    rope = Rope(inv_freq=inv_freq, scaling=1.0, theta=100.0, window_tokens=8, rotary_dims=4)
    made = scaled_rope("longrope(factors=2, start_tokens=3, attention_factor=1)", rope)
    rotation.set(torch.arange(6)[None], [made])
    assert rotation._embeddings is not None
    angles = torch.outer(torch.arange(6.0), inv_freq)
    angles[3:] /= 2
    assert torch.allclose(rotation._embeddings[0][0], torch.cat([angles, angles], dim=-1).cos(), atol=1e-6)
    assert torch.allclose(rotation._embeddings[1][0], torch.cat([angles, angles], dim=-1).sin(), atol=1e-6)


def test_a_layer_that_makes_its_own_rotation_is_refused() -> None:
    class BareAttention(torch.nn.Module):
        layer_idx = 3

        def forward(self, x: Tensor) -> Tensor:
            return x

    module = BareAttention()
    with (
        Rotation([module]),
        pytest.raises(UnsupportedLayerError, match="layer 3 .BareAttention. is not handed"),
    ):
        module(torch.zeros(1))
