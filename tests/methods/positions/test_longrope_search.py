"""The search of LongRoPE's factors: what it tries, what it finds, and what it writes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.longrope import read_factors
from longspan.methods.positions.longrope.search import (
    Candidate,
    crossed,
    known_methods,
    mutated,
    search_factors,
    write_factors,
)
from tests.methods.positions.small import WINDOW, one_rope, read_logits, small_llama, some_ids
from tests.models import random_model

IDS = some_ids(WINDOW + 96)
SMALL = {"population": 5, "parents": 3, "mutations": 3, "crossovers": 2, "iterations": 3}


@pytest.fixture(scope="module")
def model() -> Any:
    return load(small_llama())


@pytest.fixture(scope="module")
def found(model: Any) -> dict[str, Any]:
    return search_factors(model, IDS, **SMALL)


def perplexity_of(span: Any, ids: torch.Tensor) -> float:
    logits = read_logits(span, ids, chunk_tokens=1024).log_softmax(-1)
    return math.exp(-float(logits[:-1].gather(1, ids[1:, None]).mean()))


def test_the_search_lowers_perplexity_against_every_start(model: Any, found: dict[str, Any]) -> None:
    assert set(found["start"]) == {"pi", "ntk", "yarn"}
    assert found["perplexity"] < min(found["start"].values())
    history = found["history"]
    assert len(history) == 4 and all(later <= earlier for earlier, later in pairwise(history))
    assert found["perplexity"] == history[-1]


def test_what_it_finds_rises_within_the_papers_bounds(found: dict[str, Any]) -> None:
    factors = found["factors"]
    assert len(factors) == 8 and all(low <= high for low, high in pairwise(factors))
    assert found["factor"] == len(IDS) / WINDOW
    assert factors[0] >= 1 and factors[-1] <= 1.25 * found["factor"]
    assert found["start_tokens"] in (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def test_the_file_gives_the_perplexity_that_was_found(
    model: Any, found: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "factors.json"
    path.write_text("of an earlier search")
    write_factors(found, path)
    assert list(tmp_path.iterdir()) == [path]
    assert read_factors(path) == found == json.loads(path.read_text())
    got = perplexity_of(model.with_methods(f"longrope(factors='{path}')"), IDS)
    assert got == pytest.approx(found["perplexity"], rel=1e-4)


def test_the_methods_it_starts_from_have_the_perplexities_of_their_frequencies(
    model: Any, found: dict[str, Any]
) -> None:
    times = len(IDS) / WINDOW
    attention = math.sqrt(1 + math.log(times) / math.log(WINDOW))
    for name in ("pi", "ntk", "yarn"):
        known = known_methods(one_rope(), times, math.floor(125 * times))[name]
        listed = ", ".join(f"{value / 100:g}" for value in known.factors)
        span = model.with_methods(f"longrope(factors=[{listed}], attention_factor={attention:.9f})")
        assert perplexity_of(span, IDS) == pytest.approx(found["start"][name], rel=1e-3)


def test_the_same_seed_finds_the_same(model: Any, found: dict[str, Any]) -> None:
    assert search_factors(model, IDS, **SMALL) == found
    assert search_factors(model, IDS, **SMALL, seed=1)["factors"] != found["factors"]


def test_known_methods_in_hundredths() -> None:
    known = known_methods(one_rope(), 2.0, 250)
    assert known["pi"].factors == (200,) * 8
    assert known["ntk"].factors == tuple(round(100 * 2 ** (2 * i / 14)) for i in range(8))
    assert known["yarn"].factors[0] == 100 and known["yarn"].factors[-1] == 200
    assert known_methods(one_rope(), 2.0, 150)["pi"].factors == (150,) * 8


def test_children_rise_and_stay_within_bounds() -> None:
    rng = Random(3)
    one, other = Candidate((100, 100, 120, 180, 200, 200)), Candidate((100, 150, 160, 170, 210, 250), 8)
    seen = set()
    for _ in range(300):
        for child in (mutated(one, 250, (0, 4), rng), crossed(one, other, 250, (0, 4), rng)):
            assert all(low <= high for low, high in pairwise(child.factors))
            assert child.factors[0] >= 100 and child.factors[-1] <= 250
            assert child.start_tokens in (0, 4, 8)
            seen.add(child)
    assert len(seen) > 200


def test_a_pair_without_a_mix_that_rises_is_mutated() -> None:
    one, other = Candidate((100, 100)), Candidate((100, 100), 4)
    child = crossed(one, other, 200, (0,), Random(0))
    assert child.factors[0] <= child.factors[1] <= 200 and child.start_tokens == 0


def test_what_the_search_cannot_serve(model: Any) -> None:
    with pytest.raises(ValueError, match=r"got a text of 100 tokens, but .* was trained on 256"):
        search_factors(model, IDS[:100])
    with pytest.raises(ValueError, match=r"searched on the model as it is, but it runs pi\(factor=2.0\)"):
        search_factors(model.with_methods("pi(factor=2)"), IDS)
    with pytest.raises(ValueError, match="got parents=1 and population=8; allowed is 2 <= parents"):
        search_factors(model, IDS, parents=1)
    with pytest.raises(ValueError, match="no rotary positions of one size"):
        search_factors(load(random_model("MistralSliding")), IDS)
