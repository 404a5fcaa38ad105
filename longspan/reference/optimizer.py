"""Muon for the matrices, AdamW for embeddings and norms.

Muon: before the step, the momentum of each matrix is replaced by its nearest orthogonal matrix (five rounds of
Newton-Schulz).
Source: Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024); coefficients from there.
"""

import torch

from longspan.reference.config import RecipeConfig
from longspan.reference.network import Network

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(gradient: torch.Tensor, *, rounds: int = 5) -> torch.Tensor:
    """Matrices [..., out, in] with all singular values moved near 1; in bf16 on a GPU."""
    a, b, c = NEWTON_SCHULZ
    x = gradient.bfloat16() if gradient.is_cuda else gradient.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """Steps a `Network` at a given share of its full learning rates."""

    def __init__(self, network: Network, config: RecipeConfig) -> None:
        self.config, shape = config, network.shape
        heads, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.matrices = {
            "qkv": network.qkv,
            "out": network.out,
            "gate_up": network.gate_up,
            "down": network.down,
        }
        self.splits = {"qkv": [heads, kv, kv], "gate_up": [shape.mlp, shape.mlp]}
        self.momentum = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}
        on_gpu = network.embed.is_cuda
        self.adam = torch.optim.AdamW(
            [network.embed, network.norms],
            lr=config.adam_lr,
            betas=config.adam_betas,
            weight_decay=0.0,
            fused=on_gpu,
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the learning rates; clears the gradients."""
        config = self.config
        for name, weight in self.matrices.items():
            assert weight.grad is not None
            momentum = self.momentum[name]
            momentum.lerp_(weight.grad, 1 - config.muon_momentum)
            gradient = weight.grad.lerp_(momentum, config.muon_momentum)
            rate = config.muon_lr * share
            weight.mul_(1 - rate * config.muon_weight_decay)
            parts = self.splits.get(name, [weight.shape[1]])
            for target, update in zip(weight.split(parts, 1), gradient.split(parts, 1), strict=True):
                scale = max(1.0, target.shape[1] / target.shape[2]) ** 0.5
                target.add_(orthogonalise(update), alpha=-rate * scale)
            weight.grad = None
        for group in self.adam.param_groups:
            group["lr"] = config.adam_lr * share
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """Momentum of both optimisers."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        for name, momentum in state["momentum"].items():
            self.momentum[name].copy_(momentum)
        self.adam.load_state_dict(state["adam"])
