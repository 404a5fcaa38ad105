"""Cards are read from source, and a wrong one names its file and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from longspan.card import Card, Parameter, all_cards, read_card
from longspan.errors import CardError
from tests.fake_methods import DENSE, SQUEEZE, install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def _write(methods: Path, source: str) -> Path:
    file = methods / "cache" / "other.py"
    file.write_text(source, encoding="utf-8")
    return file


def test_a_card_says_what_the_file_says(methods: Path) -> None:
    card = all_cards()["squeeze"]
    assert (card.name, card.family, card.title, card.year, card.paper_id) == (
        "squeeze",
        "cache",
        "Squeeze: a paper",
        2024,
        17,
    )
    assert (card.roles, card.phase, card.training, card.exact, card.frees) == (
        ("Storage",),
        "prefill",
        "none",
        False,
        "frees",
    )
    assert card.needs == ("a question",)
    assert card.claim["at_least"] == 0.9
    assert dict(card.tolerances) == {"chunks": "differs by 0.01: windows move"}
    assert card.idea == "Keeps the keys that late queries look at most"
    assert "score(k) = sum over queries" in card.docstring


def test_parameters_come_with_types_defaults_and_sources(methods: Path) -> None:
    parameters = all_cards()["squeeze"].parameters
    assert [parameter.name for parameter in parameters] == [
        "keep",
        "window_tokens",
        "pool",
        "layers",
        "sizes",
        "label",
        "strict",
        "budget",
    ]
    assert parameters[0] == Parameter(
        name="keep",
        type="float",
        default="0.25",
        comment="fraction of tokens kept (paper: 1024 tokens, \u00a74)",
    )
    assert parameters[1].comment == ""
    assert parameters[2].type == "Literal['max', 'mean']"
    assert parameters[4].default == "(1, 2.0)"
    assert all_cards()["stretch"].parameters == (
        Parameter(name="factor", type="float", default=None, comment="how much longer"),
    )
    assert all_cards()["dense"].parameters == ()


def test_parameters_of_a_base_in_the_same_file_come_first(methods: Path) -> None:
    base = SQUEEZE.replace("class Squeeze(Storage)", "class _Base(Storage)")
    source = base + (
        "\n\n@dataclass(frozen=True, kw_only=True)\nclass Other(_Base):\n"
        "    keep: float = 0.5  # changed\n    extra: int = 1\n"
    )
    parameters = read_card(_write(methods, source)).parameters
    assert [parameter.name for parameter in parameters][:2] == ["keep", "window_tokens"]
    assert (parameters[0].default, parameters[0].comment) == ("0.5", "changed")
    assert parameters[-1].name == "extra"


def test_reading_a_card_runs_nothing(methods: Path) -> None:
    card = read_card(_write(methods, SQUEEZE + "\nraise RuntimeError('imported')\n"))
    assert card.name == "other"


def test_to_dict_is_plain(methods: Path) -> None:
    import json

    plain = json.loads(json.dumps(all_cards()["squeeze"].to_dict()))
    assert plain["claim"]["spec"] == "squeeze(keep=0.25)"
    assert plain["parameters"][0]["default"] == "0.25"
    assert "path" not in plain


def test_a_method_with_a_folder(methods: Path) -> None:
    (methods / "cache" / "deep").mkdir()
    (methods / "cache" / "deep" / "__init__.py").write_text(SQUEEZE, encoding="utf-8")
    assert isinstance(all_cards()["deep"], Card)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("CARD = {", "CARDS = {", "has no CARD; add CARD = {...}"),
        ("CARD = {", "CARD = [] or {", "CARD is not a literal"),
        ('    "year": 2024,\n', "", "CARD has no key 'year'"),
        ('"year": 2024', '"year": "2024"', "CARD['year'] is '2024', allowed is the paper's year"),
        ('"paper_id": 17', '"paper": 17', "CARD has an unknown key 'paper'; did you mean 'paper_id'"),
        ('"phase": "prefill"', '"phase": "prefil"', "allowed is one of prefill, decode, both, read"),
        ('["Storage"]', '["Store"]', "CARD['roles'] is ['Store'], allowed is a list of Positions"),
        ('"frees": "frees"', '"frees": True', "allowed is one of frees, simulates, no"),
        ('"family": "cache"', '"family": "kv"', "allowed is the folder's name, 'cache'"),
        ('        "task": "niah_single_1",\n', "", "CARD['claim'] has no key 'task'"),
        ('"at_least": 0.9', '"at_least": 90', "'at_least' = 90, allowed is an accuracy from 0 to 1"),
        ('        "at_least": 0.9,\n', "", "needs one of 'at_least'"),
        ('"at_least": 0.9', '"at_least": 0.9, "margin": 0.1', "needs one of 'at_least'"),
        ('"against": "dense"', '"against": "dense("', "has a spec that cannot be read"),
        ('"length_tokens": 4096', '"length_tokens": 4096, "length": 1', "unknown key 'length'"),
        (
            "CARD = {",
            'CARD = {"shares": {1.5: "dense"},',
            "CARD['shares'] is {1.5: 'dense'}, allowed is a dict of a share",
        ),
        ("CARD = {", 'CARD = {"shares": {0.5: "dense("},', "CARD['shares'] has a spec that cannot be read"),
        ("class Squeeze(Storage)", "class Squeeze(object)", "defines none"),
        ("class _Helper", "class Helper", "defines Squeeze, Helper"),
        ("class Record:", "class Record", "is not Python"),
    ],
)
def test_a_wrong_card_names_file_and_key(methods: Path, old: str, new: str, part: str) -> None:
    assert old in SQUEEZE
    file = _write(methods, SQUEEZE.replace(old, new, 1))
    with pytest.raises(CardError) as caught:
        read_card(file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_without_docstring_is_refused(methods: Path) -> None:
    file = _write(methods, DENSE.split('"""\n', 1)[1].replace('"attention"', '"cache"'))
    with pytest.raises(CardError, match="has no docstring"):
        read_card(file)


def test_every_real_card_reads() -> None:
    cards = all_cards()
    assert all(card.idea for card in cards.values())
    assert all(parameter.comment for card in cards.values() for parameter in card.parameters)
