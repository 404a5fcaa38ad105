"""LongRoPE: slow every frequency by a factor of its own, found by a search, and leave the first tokens alone.

Equation: the token at position n is turned in rotary pair i by

    n * theta_i               where n < n_hat
    n * theta_i / lambda_i    otherwise,      1 <= lambda_i <= lambda_(i+1)

and cos and sin are multiplied by sqrt(1 + ln(s) / ln(L)), with L the trained window and s the text's length
over it. The lambda_i (`factors`) and n_hat (`start_tokens`) are those under which the model's perplexity on
long texts is least; `search.search_factors` looks for them by evolution from those of linear interpolation,
NTK and YaRN.

Paper: LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens (2024).

Differs from the paper: factors and attention factor are transformers' own ("longrope", as Phi-3 has it),
which knows no n_hat; the paper's equation has no attention factor, which `attention_factor=1` gives. One set
of factors serves every length; the paper has another for short texts. It goes on to fine-tune and to search
again, which is up to you. The search has an eighth of the paper's population and a tenth of its generations
by default.

Fails when: the text is much longer than the factors were searched for, or another model's factors are used.

    found = search_factors(model, ids_of_8192_tokens)
    write_factors(found, "factors.json")
    model.with_methods("longrope(factors='factors.json')").read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from longspan.methods.positions._scaling import MAX_FACTOR, check_factor, check_rotary
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens",
    "year": 2024,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "calibration",
    "exact": "at factors=1 only",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "factors of the model, from search_factors; those of the reference model are bundled",
    ],
    "claim": {
        "text": "with searched factors, without training, the model finds a hidden fact at twice its window, where "
        "as it is it fails",
        "spec": "longrope()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "longrope(factors=3, start_tokens=4)",
    "identity": "longrope(factors=1)",
}

BUNDLED = Path(__file__).with_name("reference.json")
HOW = (
    "find them with longspan.methods.positions.longrope.search.search_factors and pass "
    "factors='FILE.json', or a list"
)


@dataclass(frozen=True, kw_only=True)
class LongRope(Positions):
    """Settings of LongRoPE."""

    factors: tuple[float, ...] | str | None = None  # lambda, fastest pair first; one for all; or a file
    factor: float | None = None  # s, for the attention factor; by default the file's, or the largest lambda
    start_tokens: int | None = None  # n_hat; by default the file's, or 0; the paper searches 0 to 256
    attention_factor: float | None = None  # on cos and sin; by default transformers' own, of s

    def __post_init__(self) -> None:
        if self.factor is not None:
            check_factor(self.factor)
        if self.start_tokens is not None and self.start_tokens < 0:
            raise ValueError(f"got start_tokens={self.start_tokens}; allowed is 0 or more, or none")
        if self.attention_factor is not None and not 0 < self.attention_factor <= MAX_FACTOR:
            raise ValueError(
                f"got attention_factor={self.attention_factor:g}; allowed is above 0 (1: no change) and up to "
                f"{MAX_FACTOR:,.0f}, or none"
            )
        if self.factors is not None:
            assert self._given

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and factors that are another model's."""
        check_rotary("longrope", model)
        if self.factors is None and model.fingerprint not in self._given["fingerprints"]:
            raise ValueError(
                f"there are no factors for {model.name} ({model.fingerprint}): those bundled are of "
                f"{self._given['model']}; {HOW}"
            )
        given = len(self._given["factors"])
        for layer in model.open_layers:
            if layer.rope is not None and given not in (1, layer.rope.rotary_dims // 2):
                raise ValueError(
                    f"longrope: got {given} factors, but layer {layer.index} of {model.name} has "
                    f"{layer.rope.rotary_dims // 2} rotary pairs; give one factor for each, or one for all"
                )

    def rope(self, rope: Rope) -> Rope:
        """transformers' own longrope frequencies and scaling, with the first tokens left as they are."""
        given = self._given
        pairs = rope.rotary_dims // 2
        factors = given["factors"] * (pairs if len(given["factors"]) == 1 else 1)
        times = given["factor"] if self.factor is None else self.factor
        start = given["start_tokens"] if self.start_tokens is None else self.start_tokens
        scaled = rope.with_parameters(
            rope_type="longrope",
            short_factor=factors,
            long_factor=factors,
            factor=times,
            attention_factor=self.attention_factor,
        )
        if set(factors) == {1.0} and scaled.scaling == 1.0:
            return rope
        return replace(scaled, start_tokens=start, start_inv_freq=rope.inv_freq) if start else scaled

    @cached_property
    def _given(self) -> dict[str, Any]:
        if self.factors is None:
            return read_factors(BUNDLED)
        if isinstance(self.factors, str):
            return read_factors(self.factors)
        return _checked({"factors": list(self.factors)}, "factors")


def read_factors(path: str | Path) -> dict[str, Any]:
    """What `write_factors` wrote: at least `factors`, `factor`, `start_tokens`, `model` and `fingerprints`.

    A file of a list alone gives the factors; the rest follows from them.

    Raises:
        ValueError: there is no such file, or it holds no factors.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read factors={str(path)!r} ({error}); {HOW}") from error
    return _checked(plain if isinstance(plain, dict) else {"factors": plain}, str(path))


def _checked(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Factors as floats, with what follows from them where it is not said."""
    factors = given.get("factors")
    if not isinstance(factors, list) or not factors or not all(map(_is_factor, factors)):
        raise ValueError(
            f"got {where} = {factors!r}; allowed is a list of numbers above 0 and up to {MAX_FACTOR:,.0f}, one for "
            f"each rotary pair, fastest first; {HOW}"
        )
    filled = {"factor": max(1.0, *factors), "start_tokens": 0, "model": None, "fingerprints": [], **given}
    return filled | {"factors": [float(value) for value in factors]}


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_FACTOR
