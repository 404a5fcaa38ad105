"""Adapters alone are trained, and added to the weights in the end."""

from __future__ import annotations

import pytest
import torch

from longspan.errors import UserInputError
from longspan.training import weights
from tests.models import random_ids
from tests.training.tiny import tiny_model, tiny_trainer, train_steps

peft = pytest.importorskip("peft")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_adapters_on_all_projections_are_trained_and_nothing_else() -> None:
    trainer = tiny_trainer("pose", lora_rank=4, steps=8)
    names = list(trainer.weights.parameters)
    assert len(names) == 2 * 2 * len(PROJECTIONS)
    assert all(".lora_" in name for name in names)
    assert {name.split(".")[4] for name in names} == set(PROJECTIONS)
    fixed = {
        name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad
    }
    losses = train_steps(trainer, 8)
    assert losses[-1] < losses[0]
    for name, value in trainer.model.named_parameters():
        if name in fixed:
            assert torch.equal(value, fixed[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_norms_and_embeddings_beside_them(tied: bool) -> None:
    trainer = tiny_trainer(
        "full", model=tiny_model(tied=tied), lora_rank=2, lora_also=("norms", "embeddings")
    )
    whole = {name for name in trainer.weights.parameters if ".lora_" not in name}
    assert "model.embed_tokens.weight" in whole
    assert {name for name in whole if "norm" in name} == whole - {"model.embed_tokens.weight"}
    assert len(whole) == 2 * 2 + 1 + 1
    before = {name: value.clone() for name, value in trainer.weights.parameters.items()}
    train_steps(trainer, 3)
    assert all(not torch.equal(value, before[name]) for name, value in trainer.weights.parameters.items())


def test_merging_gives_the_trained_model_back_whole() -> None:
    trainer = tiny_trainer("full", lora_rank=4)
    keys = set(tiny_model().state_dict())
    train_steps(trainer, 4)
    ids = random_ids(60)[None]
    with torch.no_grad():
        trained = trainer.model(ids).logits
        base = tiny_model()(ids).logits
        merged = trainer.weights.merged()
        got = merged(ids).logits
    assert (trained - base).abs().max() > 1e-2
    assert torch.allclose(got, trained, atol=1e-5)
    assert set(merged.state_dict()) == keys


def test_half_precision_stays_under_adapters_in_full_precision() -> None:
    trainer = tiny_trainer("full", model=tiny_model().to(torch.bfloat16), lora_rank=2, lora_also=("norms",))
    assert all(value.dtype == torch.float32 for value in trainer.weights.parameters.values())
    assert trainer.model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert {value.dtype for value in trainer.weights.merged().parameters()} == {torch.bfloat16}


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(UserInputError, match=r"needs the library peft; run `pip install longspan\[train\]`"):
        tiny_trainer("full", lora_rank=2)


def test_all_weights_by_default() -> None:
    trainer = tiny_trainer("full")
    assert set(trainer.weights.parameters) == {name for name, _ in tiny_model().named_parameters()}
