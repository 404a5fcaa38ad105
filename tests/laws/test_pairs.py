"""Every method that expresses distance beside every other: what `docs/pairs.md` says, and what composing means.

Pairs are found by the methods' cards; see `longspan/evaluation/pairs.py` for the laws that a working pair obeys.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longspan.card import Card, all_cards
from longspan.cli import run
from longspan.engine import attention
from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.engine.plan import LayerPlan
from longspan.engine.run import Run
from longspan.evaluation import pairs as pairs_module
from longspan.evaluation.pairs import ROW, USUAL, Outcome, PairChecker, _Read, pairs, small_model
from longspan.evaluation.pairs_page import COMMAND, pairs_page
from longspan.ops.attend import Problem, attend
from longspan.ops.attend.naive import naive_attend
from longspan.spec import canonical, resolve
from tests.models import random_ids

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"
PAIRS = pairs()
POSITIONS = list(dict.fromkeys(first.name for first, _ in PAIRS))
each_pair = pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])


@pytest.fixture(scope="module")
def checker() -> PairChecker:
    return PairChecker()


@pytest.fixture(scope="module")
def page() -> dict[str, dict[str, tuple[str, str | None]]]:
    """Word and sentence of the page's table: row to column to both."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    told = dict(re.fullmatch(r"(\d+)\. (.*)", line).groups() for line in lines if re.match(r"\d+\. ", line))
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|")
    table: dict[str, dict[str, tuple[str, str | None]]] = {}
    for name, *cells in rows:
        parts = [re.fullmatch(r"(.*?)(?: \((\d+)\))?", cell).groups() for cell in cells]
        table[name.strip("`")] = {
            column.strip("`"): (word, None if number is None else told[number].replace(ROW, name.strip("`")))
            for column, (word, number) in zip(header[1:], parts, strict=True)
        }
    return table


@each_pair
def test_the_page_says_what_a_pair_does(
    first: Card, second: Card, checker: PairChecker, page: dict[str, dict[str, tuple[str, str | None]]]
) -> None:
    outcome = checker.outcome(first, second)
    assert not outcome.broken, outcome.spec
    written = page.get(first.name, {}).get(second.name)
    assert written == (outcome.cell, outcome.refused), f"docs/pairs.md is old; run `{COMMAND}`"


def test_the_page_has_no_other_rows(page: dict[str, dict[str, tuple[str, str | None]]]) -> None:
    assert {(row, column) for row, cells in page.items() for column in cells} == {
        (first.name, second.name) for first, second in PAIRS
    }


def test_a_refusal_is_one_sentence_that_helps(
    checker: PairChecker, page: dict[str, dict[str, tuple[str, str | None]]]
) -> None:
    """Whatever it advises is tried, of every pair that the page, which is checked above, says to be refused."""
    advised = {"layers": 0, "setting": 0, "neither": 0}
    for first, second in PAIRS:
        if page[first.name][second.name][1] is None:
            continue
        spec = f"{first.example} + {second.example}"
        said = checker.outcome(first, second).refused
        assert said is not None
        assert (
            first.name in said and second.name in said and "\n" not in said and "; keep one of them" in said
        )
        advised["neither"] += said.endswith("keep one of them")
        if "on(layers=..., method)" in said:
            apart = f"on(layers=0, {first.example}) + on(layers=1, {second.example})"
            assert bool(torch.isfinite(_asked(checker.model.with_methods(apart), checker)[1]).all())
            advised["layers"] += 1
        if found := re.search(r"or set (\w+)=(\w+) in (\w+)$", said):
            without = re.sub(rf"(\b{found[3]}\([^)]*?),? ?\b{found[1]}=[^,)]*", r"\1", spec)
            changed = re.sub(rf"\b{found[3]}\(", f"{found[3]}({found[1]}={found[2]}, ", without)
            assert f"{found[1]}={found[2]}" in checker.model.with_methods(changed).spec
            advised["setting"] += 1
    assert all(advised.values()), advised


@pytest.mark.parametrize("first", POSITIONS)
def test_two_positions_methods_at_once_are_refused(first: str, checker: PairChecker) -> None:
    cards = all_cards()
    for second in POSITIONS:
        with pytest.raises(ValueError, match=f"^{first} and {second} both .*; keep one of them") as caught:
            checker.model.with_methods(f"{cards[first].example} + {cards[second].example}")
        assert "\n" not in str(caught.value)


def _asked(model: SpanModel, checker: PairChecker) -> tuple[Tensor, Tensor]:
    """Ids of the text that the question follows, and logits `[V]` behind it."""
    context = model.read(checker.text, progress=False)
    branch = model.reader().open_question(context.run, checker.question)
    logits = model.reader().advance(branch, checker.question)
    assert logits is not None
    return branch.ids, logits[0]


def _only_frequencies(layer: LayerPlan) -> bool:
    """Is all that the positions method does there in `inv_freq` and `scaling`?"""
    at = torch.tensor([[0, 300]])
    rope, method = layer.info.rope, layer.positions
    return (
        layer.new_rope
        and not layer.growing
        and not layer.bands
        and rope is not None
        and rope.start_inv_freq is None
        and method is not None
        and method.logit_scale(at, layer.info) is None
    )


@pytest.mark.parametrize("first", POSITIONS)
def test_new_frequencies_beside_a_partner_equal_a_model_that_has_them(
    first: str, checker: PairChecker
) -> None:
    """The partner alone, on a model whose own rotary embedding was overwritten, is the pair."""
    alone = checker.model.with_methods(all_cards()[first].example)
    if not all(_only_frequencies(layer) for layer in alone.plan.layers):
        pytest.skip(f"{first} does more than set frequencies; its steps are held to the naive twin")
    rope = alone.plan.layers[0].info.rope
    assert rope is not None
    plain = small_model()
    plain.detach()
    rotary = plain.hf_model.model.rotary_emb
    rotary.inv_freq.copy_(rope.inv_freq)
    rotary.attention_scaling = rope.scaling
    scaled = load(plain.hf_model, chunk_tokens=USUAL)
    for card, second in PAIRS:
        if card.name != first:
            continue
        outcome = checker.outcome(card, second)
        pair = SpanModel(checker.model.loaded, outcome.spec, chunk_tokens=USUAL)
        partner = scaled.with_methods(resolve(outcome.spec)[1:])
        (got_ids, got), (wanted_ids, wanted) = _asked(pair, checker), _asked(partner, checker)
        assert torch.equal(got_ids, wanted_ids)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@each_pair
def test_every_attention_step_of_a_pair_equals_the_naive_twin(
    first: Card, second: Card, checker: PairChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps, scales, masks and gathered keys together, in float32 and pair by pair."""
    outcome = checker.outcome(first, second)
    if outcome.refused is not None and outcome.setting is None:
        pytest.skip(outcome.refused)
    steps = 0

    def both(problem: Problem) -> Tensor:
        nonlocal steps
        steps += 1
        out = attend(problem)
        torch.testing.assert_close(out, naive_attend(problem), atol=1e-4, rtol=1e-4)
        return out

    monkeypatch.setattr(attention, "attend", both)
    _asked(SpanModel(checker.model.loaded, outcome.spec, chunk_tokens=USUAL), checker)
    assert steps >= 2


@pytest.mark.parametrize("law", ["first", "second", "both act", "chunks", "asking"])
def test_the_checker_sees_a_broken_law(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reading is made wrong at a time."""
    checker, cards = PairChecker(), all_cards()
    right = checker._read
    first, second = cards["ntk"], cards["snapkv"]
    pair = canonical(f"{first.example} + {second.example}")
    wrong = {
        "first": (canonical(f"{first.identity} + {second.example}"), USUAL),
        "second": (canonical(f"{first.example} + {second.identity}"), USUAL),
        "both act": (pair, USUAL),
        "chunks": (pair, 64),
    }.get(law)

    def read(spec: str, *, chunk_tokens: int = USUAL, **settings: object) -> _Read:
        found = right(spec, chunk_tokens=chunk_tokens, **settings)
        if (spec, chunk_tokens) != wrong:
            return found
        if law == "both act":
            return right(canonical(second.example))
        return found._replace(logits=found.logits + 2e-3)

    if law == "asking":  # the other question writes into the context
        monkeypatch.setattr(Run, "fork", lambda run: run)
        monkeypatch.setattr(Run, "give_back", lambda run, parent: None)
    monkeypatch.setattr(checker, "_read", read)
    also = ("asking",) if law == "both act" else ()  # what is asked again is compared with that reading, too
    assert checker.outcome(first, second).broken == (law, *also)


def test_the_page_of_few_outcomes() -> None:
    outcomes = [
        Outcome(first="ntk", second="snapkv", spec="a"),
        Outcome(first="ntk", second="gemfilter", spec="b", refused="no, b of ntk."),
        Outcome(first="pi", second="snapkv", spec="c", refused="no, c.", setting="evict=false in pi"),
        Outcome(first="pi", second="gemfilter", spec="d", broken=("first", "asking")),
    ]
    text = pairs_page(outcomes)
    assert "| | `snapkv` | `gemfilter` |\n|---|---|---|\n| `ntk` | works | refused (1) |\n" in text
    assert "| `pi` | with `evict=false` (2) | **breaks** first, asking |\n" in text
    assert "\n1. no, b of ROW.\n2. no, c.\n" in text
    assert "4 pairs" in text and "1 work, 1 more" in text


def test_mean_queries_are_all_that_keys_before_rotation_change() -> None:
    """Why tokenselect's card has a tolerance: without means of queries there is nothing to tolerate."""
    checker = PairChecker()
    ids = random_ids(300, seed=4)
    partner = "tokenselect(top_tokens=32, sink_tokens=4, window_tokens=16, block_tokens=32, positions=stored, reuse_similarity=1)"
    alone = checker._read(partner, ids=ids)
    beside = checker._read(f"self_extend(group_size=1, window_tokens=64) + {partner}", ids=ids)
    assert beside.pre_rotary and not alone.pre_rotary
    torch.testing.assert_close(beside.logits, alone.logits, atol=1e-5, rtol=1e-5)
    means = partner.replace("block_tokens=32", "block_tokens=64")
    moved = checker._read(f"self_extend(group_size=1, window_tokens=64) + {means}", ids=ids)
    assert float((moved.logits - checker._read(means, ids=ids).logits).abs().max()) > 1e-3


def test_the_command_writes_the_page(
    tmp_path: Path, checker: PairChecker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs_module, "pairs", lambda: PAIRS[:2])
    file = tmp_path / "docs" / "pairs.md"
    assert run(["methods", "--pairs", str(file)]) == 0
    outcomes = [checker.outcome(first, second) for first, second in PAIRS[:2]]
    assert file.read_text(encoding="utf-8") == pairs_page(outcomes)
    assert capsys.readouterr().out == ""
    assert run(["methods", "--pairs", str(tmp_path)]) == 2
    assert "is a folder; give a file to write" in capsys.readouterr().err
