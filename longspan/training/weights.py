"""Which weights are trained: all, or low-rank adapters beside frozen ones; and the whole model back from them."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longspan.errors import UserInputError
from longspan.training.config import ExtendConfig

LORA_ALPHA = 16  # LongLoRA, and Extending Llama-3's Context Ten-Fold Overnight


class TrainedWeights:
    """The trainable parameters of a model by name, none in half precision; the model is changed in place.

    Source of the adapters: peft, on every linear layer but the output head.
    """

    def __init__(self, model: PreTrainedModel, config: ExtendConfig) -> None:
        self.model = model
        self._dtype = next(model.parameters()).dtype
        self._adapted: Any = None
        model.requires_grad_(config.lora_rank is None)
        if config.lora_rank is not None:
            self._adapted = _with_adapters(model, config.lora_rank)
            for parameter in _also(model, config.lora_also):
                parameter.requires_grad_(True)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def state(self) -> dict[str, torch.Tensor]:
        """Name to weights, to be saved."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])

    def merged(self) -> PreTrainedModel:
        """The model with adapters added to its weights, in the base's dtype; training cannot go on behind it."""
        if self._adapted is None:
            return self.model
        merged: PreTrainedModel = self._adapted.merge_and_unload()
        for parameter in merged.parameters():
            parameter.data = parameter.data.to(self._dtype)
        return merged


def _with_adapters(model: PreTrainedModel, rank: int) -> Any:
    if find_spec("peft") is None:
        raise UserInputError("--lora needs the library peft; run `pip install longspan[train]`")
    peft = import_module("peft")
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a name that it is about to drop
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return peft.get_peft_model(model, settings)


def _also(model: PreTrainedModel, names: tuple[str, ...]) -> list[nn.Parameter]:
    """Whole weights trained beside adapters."""
    found: list[nn.Parameter] = []
    if "embeddings" in names:
        found += model.get_input_embeddings().parameters()
    if "norms" in names:
        for module in model.modules():
            if "Norm" in type(module).__name__:
                found += module.parameters(recurse=False)
    return found
