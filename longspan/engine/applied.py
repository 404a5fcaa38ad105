"""A spec under stock `generate()`: the model's own code runs, with a longspan cache handed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longspan.engine.model import LoadedModel
from longspan.engine.plan import Plan
from longspan.engine.reader import CHUNK_TOKENS
from longspan.engine.run import Run
from longspan.engine.seam import SpanCache
from longspan.errors import UserInputError
from longspan.roles import Steering
from longspan.spec import Spec


class Applied:
    """Context manager behind `longspan.applied`."""

    def __init__(self, loaded: LoadedModel, methods: Spec) -> None:
        self.loaded = loaded
        try:
            self.plan: Plan = loaded.plan(methods)
            _refuse_readings(self.plan)
        except ValueError:
            loaded.seam.detach()
            raise
        self._handles: list[Any] = []
        self._had_generate = "generate" in vars(loaded.model)

    def __enter__(self) -> Applied:
        model = self.loaded.model
        self._generate = model.generate
        model.generate = self._with_cache
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        model = self.loaded.model
        if self._had_generate:
            model.generate = self._generate
        else:
            del model.generate
        self.loaded.seam.detach()

    def _new_cache(self, prompt_tokens: int | None) -> SpanCache:
        device = self.loaded.info.device.type
        run = Run(plan=self.plan, chunk_tokens=CHUNK_TOKENS.get(device, 1024))
        run.prompt_tokens = prompt_tokens
        return SpanCache(run)

    def _with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` with a cache of ours, which knows how long the prompt is, also when it comes in chunks."""
        if kwargs.get("past_key_values") is None:
            ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            kwargs["past_key_values"] = self._new_cache(None if ids is None else ids.shape[1])
        elif not isinstance(kwargs["past_key_values"], SpanCache):
            raise UserInputError(
                "inside longspan.applied the cache is longspan's own; call generate without past_key_values"
            )
        return self._generate(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = kwargs.get("past_key_values")
        if given is None:
            kwargs["past_key_values"], kwargs["use_cache"] = self._new_cache(None), True
        elif not isinstance(given, SpanCache):
            raise UserInputError(
                "inside longspan.applied the cache is longspan's own; call the model without past_key_values"
            )
        return args, kwargs

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        run = kwargs["past_key_values"].run
        if run.phase == "prefill" and run.seen >= (run.prompt_tokens or 0):
            with torch.no_grad():
                run.finish_reading()


def _refuse_readings(plan: Plan) -> None:
    if plan.reading_name is not None:
        raise UserInputError(
            f"{plan.reading_name} reads a text in its own order, which generate() cannot do; "
            "use longspan.load(model, methods=...).read(text).ask(question)"
        )
    measuring = [
        s.name
        for s in plan.methods
        if isinstance(s.method, Steering) and type(s.method).prepare is not Steering.prepare
    ]
    if measuring:
        raise UserInputError(
            f"{measuring[0]} measures a context before each question, and generate() has no question apart from its "
            "prompt; use longspan.load(model, methods=...).read(text).ask(question)"
        )
