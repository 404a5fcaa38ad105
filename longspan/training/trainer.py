"""One step of training: rows under the scheme's positions and frequencies, the loss, and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from longspan.errors import UserInputError
from longspan.model_info import Rope
from longspan.reference.feed import StepData
from longspan.training.base import Base
from longspan.training.config import ExtendConfig, Schedule
from longspan.training.rotation import Rotation
from longspan.training.weights import TrainedWeights

LOSS_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Mean losses of a step: as weighted for training, of plain text, and of answers (None where it has none); and the
    gradient's length before clipping."""

    loss: float
    text: float | None
    answers: float | None
    grad_norm: float


class Trainer:
    """Steps one model on one device. Use `with trainer:` around the steps: the model is changed inside it only."""

    def __init__(self, base: Base, config: ExtendConfig, schedule: Schedule, device: torch.device) -> None:
        self.base, self.config, self.schedule, self.device = base, config, schedule, device
        torch.manual_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.model = base.model.to(device)
        self.weights = TrainedWeights(self.model, config)
        self.rope = replace(base.rope, inv_freq=base.rope.inv_freq.to(device))
        self.module = config.scheme.module(self.rope)
        self.parameters = list(self.weights.parameters.values())
        if self.module is not None:
            self.parameters += self.module.to(device).parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=config.adam_betas,
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self.rotation = Rotation(base.modules)
        self._own_attention = self.model.config._attn_implementation

    def __enter__(self) -> Trainer:
        name = self.config.scheme.attention()
        if name is not None:
            self.model.set_attn_implementation(name)
        if self.config.checkpointing:
            _checkpoint_layers(self.model)
        self.model.train()
        self.rotation.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.rotation.__exit__()
        self.model.eval()
        if self.config.checkpointing:
            _keep_layers(self.model)
        self.model.set_attn_implementation(self._own_attention)

    def rotations(self, step: int, rows: range) -> tuple[Tensor, list[Rope]]:
        """Positions int64 `[rows, T]` and frequencies of some rows of a step, as seed, step and row decide."""
        scheme, target = self.config.scheme, self.config.length_tokens
        places, ropes = [], []
        for row in rows:
            seed = (self.config.seed, step, row)
            places.append(scheme.positions(self.schedule.row_tokens, target, np.random.default_rng(seed)))
            ropes.append(scheme.rope(self.rope, target, np.random.default_rng(seed)))
        return torch.from_numpy(np.stack(places)).to(self.device), ropes

    def logits(self, ids: Tensor, positions: Tensor, ropes: list[Rope]) -> Tensor:
        """Logits `[B, T, V]` of rows `[B, T]` under these positions and frequencies."""
        self.rotation.set(positions, ropes)
        # Without a mask, a skip of positions is read as the border of a packed document (transformers 5.23).
        mask = torch.ones_like(ids)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def step(self, data: StepData) -> StepLosses:
        """One step at the schedule's learning rate.

        Raises:
            UserInputError: the loss or a gradient is not finite; the weights are as before the step.
        """
        torch.manual_seed(self.config.seed + data.step)
        shape = (self.schedule.rows, self.schedule.row_tokens)
        ids = torch.from_numpy(data.tokens.astype(np.int64)).view(shape).to(self.device)
        weights = torch.from_numpy(data.weights.astype(np.float32)).view(shape).to(self.device)
        total, losses = weights[:, 1:].sum(), []
        rows = max(1, self.config.forward_tokens // self.schedule.row_tokens)
        for first in range(0, self.schedule.rows, rows):
            part = range(first, min(first + rows, self.schedule.rows))
            positions, ropes = self.rotations(data.step, part)
            given = ids[part.start : part.stop]
            found = token_losses(self.logits(given, positions, ropes), given)
            loss = (found * weights[part.start : part.stop, 1:]).sum() / total
            loss.backward()
            losses.append(found.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self._update(data.step, norm)
        return _summary(torch.cat(losses), weights[:, 1:], norm)

    def _update(self, step: int, norm: Tensor) -> None:
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise UserInputError(
                f"the loss is not finite at step {step + 1}; lower --lr and start anew, or resume from the last checkpoint"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.schedule.share(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _checkpoint_layers(model: PreTrainedModel) -> None:
    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:  # its name in older versions of transformers
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _keep_layers(model: PreTrainedModel) -> None:
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy `[B, T - 1]` of predicting `ids[:, 1:]` from `logits[:, :-1]`, float32.

    In pieces that are computed again in backward, so that float32 logits are never held for all tokens.
    """
    wanted = ids[:, 1:].reshape(-1)
    given = logits[:, :-1].flatten(0, 1)
    pieces = [
        checkpoint(_cross_entropy, part, target, use_reentrant=False)
        for part, target in zip(given.split(LOSS_TOKENS), wanted.split(LOSS_TOKENS), strict=True)
    ]
    return torch.cat(pieces).view(ids.shape[0], -1)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), wanted, reduction="none")


def _summary(losses: Tensor, weights: Tensor, norm: Tensor) -> StepLosses:
    """The figures of a step, fetched from the device at once."""
    text, answers = (weights == 1).float(), (weights > 1).float()
    sums = [(losses * part).sum() for part in (weights, text, answers)]
    counts = [part.sum() for part in (weights, text, answers)]
    *found, length = torch.stack([*sums, *counts, norm]).tolist()
    mean = [total / count if count else None for total, count in zip(found[:3], found[3:], strict=True)]
    assert mean[0] is not None, "every row has something to predict"
    return StepLosses(loss=mean[0], text=mean[1], answers=mean[2], grad_norm=length)
