"""A causal model turned both ways: what it sees, where it predicts, under which frequencies, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import longspan
from longspan.errors import UnsupportedLayerError
from longspan.training.diffusion.denoiser import load_causal, load_denoiser, make_denoiser
from tests.models import VOCAB, random_ids, random_model, word_tokenizer
from tests.training.diffusion.tiny import tiny_denoiser
from tests.training.tiny import tiny_model


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_a_later_token_changes_an_earlier_output(family: str) -> None:
    denoiser = make_denoiser(load_causal(random_model(family), tokenizer=word_tokenizer()), shift=False)
    ids = random_ids(40)[None]
    other = ids.clone()
    other[0, 30] = 7 if ids[0, 30] != 7 else 8
    before, after = denoiser.hidden(ids), denoiser.hidden(other)
    assert (before - after).abs().amax(-1).min() > 1e-6


def test_attention_is_full_attention() -> None:
    """Equal to eager attention over a mask that hides nothing."""
    denoiser = tiny_denoiser()
    ids = random_ids(48).view(2, 24)
    found = denoiser.hidden(ids)
    stock = tiny_model()
    stock.load_state_dict(denoiser.model.state_dict())
    stock.set_attn_implementation("eager")
    expected = stock.model(ids, attention_mask=torch.zeros(2, 1, 24, 24)).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_outputs_predict_their_own_place_or_the_next(shift: bool) -> None:
    denoiser = tiny_denoiser(shift=shift)
    ids = random_ids(30).view(2, 15)
    places = torch.tensor([4, 20, 29])
    with torch.no_grad():
        logits = denoiser.model(ids).logits.flatten(0, 1)[places - int(shift)]
    found = denoiser.logits_at(ids, places)
    assert (found[:, denoiser.mask_id] == float("-inf")).all()
    kept = [token for token in range(VOCAB) if token != denoiser.mask_id]
    assert torch.allclose(found[:, kept], logits[:, kept], atol=1e-6)


def test_ntk_is_longspans_own() -> None:
    """`under` rotates as `longspan.applied` does, and leaves the model as it was."""
    denoiser = tiny_denoiser()
    ids = random_ids(100)[None]
    own = denoiser.hidden(ids)
    with denoiser.under("ntk(factor=4)"):
        found = denoiser.hidden(ids)
    assert torch.equal(denoiser.hidden(ids), own)
    with longspan.applied(denoiser.model, "ntk(factor=4)"):
        applied = denoiser.model(ids, output_hidden_states=True).hidden_states[-1]
    assert (found - own).abs().max() > 1e-3
    assert torch.allclose(found, applied, atol=1e-5)


@pytest.mark.parametrize("spec", ["snapkv(keep=0.5)", "self_extend(group_size=4, window_tokens=16)"])
def test_what_does_not_set_frequencies_is_refused(spec: str) -> None:
    denoiser = tiny_denoiser()
    with pytest.raises(ValueError, match="give one method that sets frequencies"), denoiser.under(spec):
        pass


def test_saved_and_loaded(tmp_path: Path) -> None:
    denoiser = tiny_denoiser(shift=False)
    ids = random_ids(20)[None]
    denoiser.save(tmp_path / "model", {"steps": 3})
    loaded = load_denoiser(tmp_path / "model")
    assert torch.equal(loaded.hidden(ids), denoiser.hidden(ids))
    assert (loaded.mask_id, loaded.shift, loaded.window_tokens) == (0, False, 64)
    card = json.loads((tmp_path / "model" / "longspan.json").read_text())
    assert (card["kind"], card["steps"]) == ("masked diffusion", 3)
    assert not AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.is_causal


def test_a_folder_without_a_denoiser_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no masked-diffusion model; give a folder that"):
        load_denoiser(tmp_path)


def test_a_mask_is_added_where_no_token_is_free() -> None:
    known = word_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known.backend_tokenizer, pad_token="<eos>", bos_token="<bos>", eos_token="<eos>"
    )
    base = load_causal(tiny_model(), tokenizer=tokenizer)
    denoiser = make_denoiser(base, shift=True)
    assert denoiser.mask_id == VOCAB
    weights = denoiser.model.get_input_embeddings().weight
    assert weights.shape[0] == VOCAB + 1
    assert torch.allclose(weights[VOCAB], weights[:VOCAB].mean(0), atol=1e-3)


def test_layers_with_a_window_of_their_own_are_refused() -> None:
    base = load_causal(random_model("Gemma3"), tokenizer=word_tokenizer())
    with pytest.raises(UnsupportedLayerError, match="sliding window of their own"):
        make_denoiser(base, shift=True)
