"""The trained model as a folder that stock transformers loads, its rotary frequencies in the config where it has the type.

Any frequencies but zero fit the type "longrope", with one factor for each pair; a plainer type is taken where one fits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from longspan._files import whole_folder
from longspan.engine.inspect import inspect_model
from longspan.model_info import Rope
from longspan.roles import Positions
from longspan.spec import resolve
from longspan.training.trainer import Trainer

MODEL = "model"
CARD = "longspan.json"
SCHEME_WEIGHTS = "scheme.safetensors"
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class _NotedRope(Rope):
    """A rope that notes the `rope_parameters` it is made of, where a method makes it by transformers' own formulas."""

    parameters: Mapping[str, Any] | None = None

    def with_parameters(self, **parameters: object) -> Rope:
        made = super().with_parameters(**parameters)
        noted = {
            "rope_theta": self.theta,
            "original_max_position_embeddings": self.window_tokens,
            **{key: value for key, value in parameters.items() if value is not None},
        }
        assert isinstance(made, _NotedRope)
        return replace(made, parameters=noted)


def export(trainer: Trainer, folder: Path, card: Mapping[str, Any]) -> str:
    """Write model, tokenizer, scheme weights and `longspan.json` to `folder`, whole or not at all; ends the training.

    Returns:
        the spec that the written model is run with: "dense" where its config says everything.
    """
    scheme, target = trainer.config.scheme, trainer.config.length_tokens
    with whole_folder(folder) as made:
        if trainer.module is not None:
            weights = trainer.module.state_dict()
            own = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            save_file(own, made / SCHEME_WEIGHTS)
        method = scheme.spec(trainer.rope, target)
        model = trainer.weights.merged()
        model.eval()
        spec = DENSE if write_config(model, method, trainer.base.rope, target) else method
        model.save_pretrained(made)
        trainer.base.tokenizer.save_pretrained(made)
        text = json.dumps({"spec": spec, "method": method, **card}, indent=2) + "\n"
        (made / CARD).write_text(text, encoding="utf-8")
    return spec


def write_config(model: PreTrainedModel, spec: str, rope: Rope, target_tokens: int) -> bool:
    """Raise the config's window to the target, and put the spec's frequencies into it where transformers has their type.

    Args:
        spec: of one method that sets frequencies, or "dense". rope: the base model's.

    Returns:
        True where the config says everything; otherwise the model is run with `spec`.
    """
    config = model.config.get_text_config(decoder=True)
    own = deepcopy(config.rope_parameters)
    config.max_position_embeddings = target_tokens
    method = resolve(spec)[0].method
    if not isinstance(method, Positions):
        return True
    plain = _NotedRope(**vars(rope))
    wanted = method.rope(plain)
    assert isinstance(wanted, _NotedRope), "methods make a rope by replacing parts of the one they get"
    for parameters in _candidates(plain, wanted):
        if _fits(model, _with(own, parameters), wanted):
            return True
    # Methods count from the trained window, which the raised one hides: keep it where they look for it.
    kept = {
        "rope_type": "default",
        "rope_theta": rope.theta,
        "original_max_position_embeddings": rope.window_tokens,
    }
    fits = _fits(model, _with(own, kept), rope)
    assert fits, "the model's own frequencies fit its config"
    return False


def _candidates(rope: _NotedRope, wanted: _NotedRope) -> Iterator[dict[str, Any]]:
    """`rope_parameters` that may give the wanted frequencies, the plainest first."""
    if wanted.parameters is not None:
        yield dict(wanted.parameters)
    yield {"rope_type": "default", "rope_theta": wanted.theta}
    slowed = (rope.inv_freq.double() / wanted.inv_freq.double()).tolist()
    if not all(map(math.isfinite, slowed)):
        return
    for factor in (round(slowed[0], 5), slowed[0]):
        if factor >= 1:
            yield {"rope_type": "linear", "rope_theta": rope.theta, "factor": factor}
    yield {
        "rope_type": "longrope",
        "rope_theta": rope.theta,
        "short_factor": slowed,
        "long_factor": slowed,
        "attention_factor": wanted.scaling,
        "original_max_position_embeddings": rope.window_tokens,
    }


def _with(own: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The config's own parameters with these in place, in full-attention layers where layer types differ."""
    if "full_attention" in own:
        return own | {"full_attention": _with(own["full_attention"], parameters)}
    partial = {key: own[key] for key in ("partial_rotary_factor",) if key in own}
    return parameters | partial


def _fits(model: PreTrainedModel, parameters: dict[str, Any], wanted: Rope) -> bool:
    """Put the parameters into the model's config and rebuild its rotary embedding: does it give the wanted one?"""
    config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    if wanted.start_inv_freq is not None:
        return False
    config.rope_parameters = deepcopy(parameters)
    try:
        config.validate_rope()
        decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(model.device)
    except (KeyError, TypeError, ValueError):  # a model that does not take this type
        return False
    found = inspect_model(model, "the trained model").open_layers[0].rope
    assert found is not None
    near = torch.allclose(found.inv_freq.cpu(), wanted.inv_freq.detach().cpu(), rtol=1e-6, atol=0.0)
    return near and abs(found.scaling - wanted.scaling) < 1e-6
