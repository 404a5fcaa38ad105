"""A block of masks is filled, the surest first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.training.diffusion.denoiser import Denoiser
from longspan.training.diffusion.sampling import fill
from tests.models import random_ids
from tests.training.diffusion.tiny import tiny_denoiser


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_all_masks_are_filled_and_the_same_way_each_time(steps: int) -> None:
    denoiser = tiny_denoiser()
    prompts = random_ids(60).view(5, 12)
    found = fill(denoiser, prompts, block_tokens=7, steps=steps)
    assert found.shape == (5, 7)
    assert (found != denoiser.mask_id).all()
    assert torch.equal(fill(denoiser, prompts, block_tokens=7, steps=steps), found)
    assert torch.equal(fill(denoiser, prompts, block_tokens=7, steps=steps, batch_tokens=20), found)


def test_the_surest_stay_and_the_rest_is_masked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = tiny_denoiser()
    sure = torch.tensor([1.0, 4.0, 2.0, 3.0])  # of the block's places
    seen: list[list[int]] = []

    def logits_at(self: Denoiser, ids: Tensor, places: Tensor) -> Tensor:
        seen.append(ids[0, 3:].tolist())
        logits = torch.zeros(4, 50)
        logits[torch.arange(4), 10 + torch.arange(4)] = sure
        return logits

    monkeypatch.setattr(Denoiser, "logits_at", logits_at)
    found = fill(denoiser, random_ids(3)[None], block_tokens=4, steps=3)
    mask = denoiser.mask_id
    assert seen == [[mask] * 4, [mask, 11, mask, 13], [mask, 11, 12, 13]]
    assert found.tolist() == [[10, 11, 12, 13]]


@pytest.mark.parametrize("steps", [0, 5])
def test_steps_that_cannot_be_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {steps} steps for a block of 4 tokens; allowed are 1 to 4"):
        fill(tiny_denoiser(), random_ids(3)[None], block_tokens=4, steps=steps)


def test_a_block_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="prompts without a token"):
        fill(tiny_denoiser(), torch.empty(1, 0, dtype=torch.int64), block_tokens=4, steps=2)
