"""The reference recipe's optimisers for the weights of any model: Muon for the layers' matrices, AdamW for all else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from longspan.reference.config import RecipeConfig
from longspan.reference.optimizer import orthogonalise


class MatrixOptimizer:
    """Steps a model at a given share of the recipe's learning rates. Matrices of one shape are orthogonalised at once."""

    def __init__(self, model: nn.Module, decoder: nn.Module, config: RecipeConfig) -> None:
        self.config = config
        layers: Any = decoder.layers
        inside = {id(weight) for weight in layers.parameters() if weight.dim() == 2}
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in weights:
            if id(weight) in inside:
                groups[tuple(weight.shape)].append(weight)
        self.groups = list(groups.values())
        self.momenta = [[torch.zeros_like(weight) for weight in group] for group in self.groups]
        self.parameters = weights
        self.adam = torch.optim.AdamW(
            [weight for weight in weights if id(weight) not in inside],
            lr=config.adam_lr,
            betas=config.adam_betas,
            weight_decay=0.0,
            fused=weights[0].is_cuda,
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the learning rates; clears the gradients."""
        config, rate = self.config, self.config.muon_lr * share
        for group, momenta in zip(self.groups, self.momenta, strict=True):
            gradients = [weight.grad for weight in group if weight.grad is not None]
            assert len(gradients) == len(group), "every matrix takes part in the loss"
            torch._foreach_lerp_(momenta, gradients, 1 - config.muon_momentum)
            torch._foreach_lerp_(gradients, momenta, config.muon_momentum)
            updates = orthogonalise(torch.stack(gradients))
            rows, columns = group[0].shape
            scale = max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - rate * config.muon_weight_decay)
            torch._foreach_add_(group, list(updates.to(group[0].dtype).unbind(0)), alpha=-rate * scale)
        for settings in self.adam.param_groups:
            settings["lr"] = config.adam_lr * share
        self.adam.step()
        for weight in self.parameters:
            weight.grad = None
