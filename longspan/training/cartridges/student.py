"""The model with trained keys and values in place of the document, and its distance from the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from longspan.engine.model import SpanModel
from longspan.engine.seam import cos_and_sin
from longspan.methods.cache.cartridges.cartridge import Cartridge
from longspan.ops.rotary import rotate
from longspan.training.cartridges.beside import Beside
from longspan.training.cartridges.self_study import Conversation


class Student(nn.Module):
    """Keys before rotation and values of p slots; all but the first slot are trained, the model is not.

    Args:
        span: the model, attached.
        keys, values: of each layer, `[K, p, D]`, float32.
    """

    def __init__(self, span: SpanModel, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.__dict__["span"] = span  # no module of it: its weights are not trained
        self.num_tokens = keys[0].shape[1]
        for name, parts in (("keys", keys), ("values", values)):
            self.register_module(name, nn.ParameterList([nn.Parameter(x[:, 1:].clone()) for x in parts]))
            for layer, x in enumerate(parts):
                self.register_buffer(f"first_{name}_{layer}", x[:, :1].clone())

    def whole(self, name: str) -> list[Tensor]:
        """Keys or values of each layer, the frozen slot included, `[K, p, D]`."""
        return [
            torch.cat([getattr(self, f"first_{name}_{layer}"), x], dim=1)
            for layer, x in enumerate(getattr(self, name))
        ]

    def logits(self, ids: Tensor, beside: Beside | None = None) -> Tensor:
        """Logits `[B, T, V]` of rows that follow the cartridge, alone or among passages."""
        span: SpanModel = self.__dict__["span"]
        B, T = ids.shape
        info, cache, stored = span.info, DynamicCache(), self.num_tokens
        for layer, keys, values in zip(info.layers, self.whole("keys"), self.whole("values"), strict=True):
            if beside is not None:
                keys, values = beside.with_passages(keys, values, layer.index)
                stored = keys.shape[-2]
            if layer.rope is not None:
                at = torch.arange(stored, device=ids.device)
                keys = rotate(keys, *cos_and_sin(layer.rope, at, keys.dtype))
            shape = (B, *keys.shape[-3:])
            cache.update(keys.to(info.dtype).expand(shape), values.to(info.dtype).expand(shape), layer.index)
        places = torch.arange(stored, stored + T, device=ids.device)
        out = span.hf_model(
            input_ids=ids, position_ids=places.expand(B, T), past_key_values=cache, use_cache=True
        )
        logits: Tensor = out.logits
        return logits.float()

    def loss(self, rows: Sequence[Conversation], beside: Beside | None = None) -> Tensor:
        """KL from the teacher, the mean over the tokens of the answers."""
        device = self.keys[0].device  # type: ignore[index]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found.ids)] = found.ids  # what stands behind is seen by no token before it
        logits = self.logits(ids.to(device), beside)
        picked = torch.cat(
            [logits[i, len(row.ids) - len(row.top_ids) - 1 : len(row.ids) - 1] for i, row in enumerate(rows)]
        )
        top_ids = torch.cat([row.top_ids for row in rows]).to(device)
        top_logprobs = torch.cat([row.top_logprobs for row in rows]).to(device)
        return divergence(picked, top_ids, top_logprobs).mean()


def divergence(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor) -> Tensor:
    """KL `[n]` of a teacher's distribution from the student's `logits` `[n, V]`, all tokens but the teacher's likeliest k
    (`[n, k]`) counted as one."""
    mine = torch.log_softmax(logits, dim=-1).gather(1, top_ids)
    rest, my_rest = ((1 - x.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log() for x in (top_logprobs, mine))
    theirs, own = torch.cat([top_logprobs, rest], -1), torch.cat([mine, my_rest], -1)
    return (theirs.exp() * (theirs - own)).sum(-1)


def as_cartridge(student: Student, **facts: object) -> Cartridge:
    """What was trained, as a cartridge."""
    keys, values = (tuple(x.detach().cpu() for x in student.whole(name)) for name in ("keys", "values"))
    return Cartridge(keys=keys, values=values, **facts)  # type: ignore[arg-type]
