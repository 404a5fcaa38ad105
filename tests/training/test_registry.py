"""Schemes are found by their files; their specs are read, checked, and written out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.errors import CardError, SpecError
from longspan.training import registry
from longspan.training.registry import canonical_scheme, read_scheme_cards, resolve_scheme, scheme_files
from tests.training.tiny import Learned


def test_every_file_is_a_scheme_with_a_card() -> None:
    assert {"full", "pose", "e2_llm"} <= set(scheme_files())
    cards = read_scheme_cards()
    assert set(cards) == set(scheme_files())
    for card in cards.values():
        assert card.title and card.trains and card.idea
    assert cards["e2_llm"].paper_id == 64
    assert cards["pose"].idea.startswith("PoSE, positional skip-wise training")


@pytest.mark.parametrize(
    "spec",
    ["full", 'full(positions="yarn(factor=4)")', 'pose(positions="pi(factor=8)")', "e2_llm(max_scale=20)"],
)
def test_a_scheme_and_its_text(spec: str) -> None:
    scheme = resolve_scheme(spec)
    assert canonical_scheme(scheme) == spec
    assert resolve_scheme(canonical_scheme(scheme)) == scheme


def test_defaults_are_left_out_and_other_schemes_have_a_name() -> None:
    assert canonical_scheme(resolve_scheme("e2_llm(fixed_tokens=4)")) == "e2_llm"
    assert canonical_scheme(Learned()) == "learned"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "got '' as the scheme; give one"),
        ("full() + pose()", "as the scheme; give one"),
        ("on(layers=0, full)", "as the scheme; give one"),
        ("ful()", "there is no scheme 'ful'; did you mean 'full'"),
        ("full(position=1)", "full has no key 'position'; did you mean 'positions'"),
        ("full(positions_=1)", "full has no key 'positions_'"),
        ("full(positions=3)", "full: positions takes a word, got 3"),
        ("e2_llm(max_scale=2.5)", "e2_llm: max_scale takes a whole number or none, got 2.5"),
        ("full(", "at character 6 (its end)"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_scheme(spec)
    assert message in str(caught.value)


def test_a_card_with_other_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lone.py").write_text('"""Idea."""\nCARD = {"title": "A"}\n')
    monkeypatch.setattr(registry, "SCHEMES_ROOT", tmp_path)
    with pytest.raises(CardError, match="CARD must be a dict with the keys title, year, paper_id, trains"):
        read_scheme_cards()
