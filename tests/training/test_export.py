"""The exported folder loads in stock transformers and gives the logits that training had at the target's frequencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import longspan
from longspan.training.export import export
from longspan.training.scheme import Scheme
from tests.models import full_logits, random_ids, random_model
from tests.training.tiny import TARGET, WINDOW, Learned, target_logits, tiny_trainer, train_steps

IN_CONFIG = {
    "full": {"rope_type": "default", "rope_theta": 1e4},
    "e2_llm": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    'full(positions="pi(factor=5)")': {"rope_type": "linear", "rope_theta": 1e4, "factor": 5.0},
    'full(positions="abf(theta=500000)")': {"rope_type": "default", "rope_theta": 5e5},
    'pose(positions="ntk(factor=6)")': {"rope_type": "default", "rope_theta": 1e4 * 6 ** (16 / 14)},
    'pose(positions="yarn(factor=4, beta_fast=16)")': {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "beta_fast": 16.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": WINDOW,
    },
    'full(positions="longrope(factors=[1,1,2,3,4,4,5,6], factor=4)")': {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "short_factor": [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0],
        "long_factor": [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0],
        "original_max_position_embeddings": WINDOW,
    },
}
BY_SPEC = {
    'pose(positions="truncated_basis()")': "truncated_basis",
    'full(positions="longrope(factors=[4], start_tokens=8)")': "longrope(factors=[4.0], start_tokens=8)",
}


def exported(scheme: str | Scheme, folder: Path, **changes: Any) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Ids, the logits that training has for them at the target, and the spec that export returns."""
    trainer = tiny_trainer(scheme, **changes)
    train_steps(trainer, 2)
    ids = random_ids(TARGET)[None]
    logits = target_logits(trainer, ids)
    return ids, logits, export(trainer, folder, {"steps": 2})


@pytest.mark.parametrize("scheme", IN_CONFIG)
def test_stock_transformers_gives_the_trained_logits(scheme: str, tmp_path: Path) -> None:
    ids, wanted, spec = exported(scheme, tmp_path / "model")
    assert spec == "dense"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert stock.config.max_position_embeddings == TARGET
    parameters = dict(stock.config.rope_parameters)
    assert parameters.pop("rope_theta") == pytest.approx(IN_CONFIG[scheme]["rope_theta"], rel=1e-6)
    assert parameters == {key: value for key, value in IN_CONFIG[scheme].items() if key != "rope_theta"}
    with torch.no_grad():
        got = stock(ids).logits
    assert torch.allclose(got, wanted, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("w5 w6").input_ids == [5, 6]
    assert longspan.load(tmp_path / "model").window_tokens == TARGET


@pytest.mark.parametrize("scheme", BY_SPEC)
def test_frequencies_without_a_type_in_transformers_are_run_by_their_spec(
    scheme: str, tmp_path: Path
) -> None:
    ids, wanted, spec = exported(scheme, tmp_path / "model")
    assert spec == BY_SPEC[scheme]
    card = json.loads((tmp_path / "model" / "longspan.json").read_text())
    assert (card["spec"], card["method"], card["steps"]) == (spec, spec, 2)
    model = longspan.load(tmp_path / "model", methods=card["spec"])
    assert model.window_tokens == TARGET
    assert torch.allclose(full_logits(model, ids[0]), wanted[0], atol=1e-5)


def test_the_card_says_what_the_config_holds(tmp_path: Path) -> None:
    _, _, spec = exported('full(positions="yarn(factor=4)")', tmp_path / "model")
    card = json.loads((tmp_path / "model" / "longspan.json").read_text())
    assert (spec, card["spec"], card["method"]) == ("dense", "dense", "yarn(factor=4.0)")
    assert not (tmp_path / "model.part").exists()


def test_weights_of_a_scheme_are_saved_beside_the_model(tmp_path: Path) -> None:
    ids, wanted, spec = exported(Learned(), tmp_path / "model")
    saved = load_file(tmp_path / "model" / "scheme.safetensors")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert spec == "dense"
    assert config["rope_parameters"]["factor"] == pytest.approx(float(saved["log_factor"].exp()), rel=1e-6)
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("scheme", ['full(positions="power_basis(power=0.9)")', "clex"])
def test_other_frequencies_are_a_longrope_with_a_factor_each(scheme: str, tmp_path: Path) -> None:
    ids, wanted, spec = exported(scheme, tmp_path / "model")
    assert spec == "dense"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    parameters = stock.config.rope_parameters
    assert (parameters["rope_type"], parameters["attention_factor"]) == ("longrope", 1.0)
    assert parameters["short_factor"] == parameters["long_factor"]
    assert len(set(parameters["long_factor"])) == 8
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, wanted, atol=1e-5)
        assert torch.allclose(stock(ids[:, :40]).logits, wanted[:, :40], atol=1e-5)


def test_adapters_are_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ids, wanted, spec = exported(
        'full(positions="pi(factor=4)")', tmp_path / "model", lora_rank=4, lora_also=("norms",)
    )
    assert spec == "dense"
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3", "Phi3"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Phi3's config takes no type but longrope; Gemma3's has one for each type of layer."""
    trainer = tiny_trainer(
        'full(positions="pi(factor=4)")',
        model=random_model(family),
        length_tokens=1024,
        batch_tokens=1024,
    )
    ids = random_ids(600)[None]
    wanted = target_logits(trainer, ids)
    assert export(trainer, tmp_path / "model", {}) == "dense"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, wanted, atol=1e-4)
    parameters = stock.config.rope_parameters
    if family == "Gemma3":
        assert parameters["sliding_attention"]["rope_type"] == "default"
        parameters = parameters["full_attention"]
    assert parameters["rope_type"] == ("longrope" if family == "Phi3" else "linear")
