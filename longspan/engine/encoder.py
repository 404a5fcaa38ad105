"""A spec on an encoder: a bidirectional transformer that reads a text at once, with rotary positions or a learned table.

An encoder keeps nothing between calls, so only methods that change positions, or that cut a text into windows, have
something to do. Rotary layers get new frequencies, a scale on their logits, or bands in both directions; a learned table is
looked up at other places. Rows of a batch that a learned table holds keep their positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from longspan.engine import encoder_attention
from longspan.engine.encoder_attention import CALL, EncoderCall
from longspan.engine.encoder_plan import encoder_info, encoder_plan, rotary_modules
from longspan.engine.encoder_rows import (
    PlacedTable,
    Table,
    cut_windows,
    find_table,
    gather_windows,
    join_windows,
    named_arguments,
    placed,
    row_lengths,
)
from longspan.engine.inspect import TOLERANCES
from longspan.engine.plan import LayerPlan
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.spec import Spec, resolve
from longspan.visit import Band

_PARITY_TOKENS = 12
_ACTIVE: WeakSet[PreTrainedModel] = WeakSet()


class AppliedEncoder:
    """Context manager behind `longspan.applied` for encoders: the model's own forward, under a spec."""

    def __init__(self, model: PreTrainedModel, name: str, methods: Spec) -> None:
        self.model, self.name = model, name
        self.modules = rotary_modules(model)
        self.table = None if self.modules else find_table(model)
        self.info = encoder_info(model, name, self.modules, self.table)
        self.plan = encoder_plan(resolve(methods), self.info)
        self._names = list(inspect.signature(model.forward).parameters)
        self._handles: list[Any] = []
        self._changed = any(
            p.new_rope or p.bands or p.positions is not None for p in self.plan.layers
        ) or bool(self.table and self.plan.window_tokens is None)
        if self._changed and self.modules:
            self._check_parity()

    @property
    def reach_tokens(self) -> int | None:
        """Tokens of the longest text that the encoder takes under the spec; None for any."""
        return self.plan.reach_tokens

    def __enter__(self) -> AppliedEncoder:
        if self.model in _ACTIVE:
            raise UserInputError(
                f"{self.name} is under a spec already; leave that block first, or write one spec for both"
            )
        _ACTIVE.add(self.model)
        self._attach(self.plan.layers)
        return self

    def __exit__(self, *exc: object) -> None:
        self._detach()
        _ACTIVE.discard(self.model)

    def _attach(self, layers: Sequence[LayerPlan]) -> None:
        model = self.model
        self._own_forward = vars(model).get("forward")
        self._stock_forward = model.forward
        self._layers = dict(zip(self.modules, layers, strict=True)) if layers else {}
        model.forward = self._forward
        if not self._changed:
            return
        if self.table is not None:
            self.table.owner.position_embeddings = PlacedTable(self.table.stock)
            return
        encoder_attention.register()
        self._previous = model.config._attn_implementation
        model.set_attn_implementation(encoder_attention.NAME)
        self._handles = [
            module.register_forward_pre_hook(encoder_attention.before_attention, with_kwargs=True)
            for module in self.modules
        ]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._own_forward is None:
            del self.model.forward
        else:
            self.model.forward = self._own_forward
        if not self._changed:
            return
        if self.table is not None:
            self.table.owner.position_embeddings = self.table.stock
        else:
            self.model.set_attn_implementation(self._previous)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        given = named_arguments(self._names, args, kwargs)
        what = given.get("input_ids", given.get("inputs_embeds"))
        if what is None or (self.plan.window_tokens is None and not self._changed and self.table is None):
            return self._stock_forward(**given)
        shape = (what.shape[0], what.shape[1])
        mask = given.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise UserInputError(
                "longspan builds its own masks; pass a 2-D attention_mask of [batch, tokens] with 0 for padding"
            )
        lengths = row_lengths(mask, shape, what.device)
        if self.plan.window_tokens is not None:
            return self._in_windows(given, shape, self.plan.window_tokens)
        if self.table is not None:
            return self._stock_forward(**given | self._table_arguments(given, shape, lengths, self.table))
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(shape[1], device=what.device)[None]
        token = CALL.set(EncoderCall(layers=self._layers, positions=positions.long(), lengths=lengths))
        try:
            return self._stock_forward(**given)
        finally:
            CALL.reset(token)

    def _table_arguments(
        self, given: dict[str, Any], shape: tuple[int, int], lengths: Tensor, table: Table
    ) -> dict[str, Any]:
        """Position ids as places in the table, and token types, which encoders else look up by position."""
        positions = table.positions(given.get("input_ids"), given.get("position_ids"), shape)
        longest, reach = int(lengths.max()), self.plan.reach_tokens
        if reach is not None and longest > max(reach, table.window_tokens):
            raise UserInputError(
                f"{self.plan.spec} reaches {reach:,} tokens in {self.name}, but a text has {longest:,}; raise its factor or "
                f"take a method that reaches further, or cut texts with truncation=True and max_length={reach}"
            )
        own = self.plan.places or (lambda at: at)
        more: dict[str, Any] = {"position_ids": placed(positions, lengths, own, table)}
        if "token_type_ids" in self._names and "token_type_ids" not in given:
            more["token_type_ids"] = torch.zeros(shape, dtype=torch.long, device=lengths.device)
        return more

    def _in_windows(self, given: dict[str, Any], shape: tuple[int, int], window_tokens: int) -> Any:
        for name in ("position_ids", "inputs_embeds", "labels"):
            if name in given:
                raise UserInputError(f"{self.plan.spec} cuts token ids into windows; leave {name} out")
        ids = given["input_ids"]
        mask = given.get("attention_mask", torch.ones_like(ids)).bool()
        rows, places = cut_windows(mask, window_tokens)
        padding = getattr(self.model.config, "pad_token_id", None) or 0
        cut: dict[str, Any] = {
            "input_ids": gather_windows(ids, rows, places, padding),
            "attention_mask": (places >= 0).long(),
        }
        if "token_type_ids" in given:
            cut["token_type_ids"] = gather_windows(given["token_type_ids"], rows, places, 0)
        if "use_cache" in self._names:
            cut["use_cache"] = False
        output = self._stock_forward(**given | cut)
        if not isinstance(output, ModelOutput):
            raise UserInputError(
                f"{self.plan.spec} joins outputs by name; call the encoder with return_dict=True"
            )
        return join_windows(output, rows, places, shape)

    @torch.no_grad()
    def _check_parity(self) -> None:
        """Compare every attention layer with stock attention; raise naming the first that differs."""
        same = Band(low=lambda p: p * 0, high=lambda p: p + 1, query=lambda p: p, key=lambda p: p)
        stock = self._attention_outputs()
        for bands in ((), (same,)):
            if bands and not any(layer.bands for layer in self.plan.layers):
                continue
            layers = [
                LayerPlan(info=info, new_rope=info.rope is not None, bands=bands if wanted.bands else ())
                for info, wanted in zip(self.info.layers, self.plan.layers, strict=True)
            ]
            self._attach(layers)
            try:
                ours = self._attention_outputs()
            finally:
                self._detach()
            for index, (got, wanted) in enumerate(zip(ours, stock, strict=True)):
                wrong = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
                if not wrong <= TOLERANCES[got.dtype]:
                    raise UnsupportedLayerError(
                        f"layer {index} ({type(self.modules[index]).__name__}) of {self.name} does not reproduce its own "
                        f"attention (relative error {wrong:.1e}); this encoder cannot be served with this spec"
                    )

    def _attention_outputs(self) -> list[Tensor]:
        """Outputs of the attention layers on two rows, the second padded, at the tokens that are not."""
        outputs: list[Tensor] = []
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        handles = [
            module.register_forward_hook(lambda m, a, out: outputs.append(out[0].detach()))
            for module in self.modules
        ]
        windows = [layer.sliding_window_tokens or 0 for layer in self.info.layers]
        count = _PARITY_TOKENS + max(windows)
        config = self.model.config.get_text_config()
        ids = torch.arange(7, 7 + 31 * count, 31, device=self.model.device).expand(2, -1) % config.vocab_size
        mask = torch.ones_like(ids)
        mask[1, -_PARITY_TOKENS // 2 :] = 0
        try:
            self.model(input_ids=ids, attention_mask=mask)
        finally:
            for handle in handles:
                handle.remove()
            for module in training:
                module.training = True
        return [out[mask.bool()] for out in outputs]
