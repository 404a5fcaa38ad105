"""The spec language: syntax, values, scopes, errors, and the round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import SpecError
from longspan.spec import MethodCall, Scope, ScopedMethod, canonical, method_names, parse, resolve
from tests.fake_methods import SQUEEZE, install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [
        ("a", {}),
        ("a()", {}),
        (" a ( ) ", {}),
        ("a(x=1)", {"x": 1}),
        ("a(x=-3, y=+4)", {"x": -3, "y": 4}),
        ("a(x=0.25,y=.5,z=2.)", {"x": 0.25, "y": 0.5, "z": 2.0}),
        ("a(x=1e-3, y=1E+4, z=2e3)", {"x": 1e-3, "y": 1e4, "z": 2e3}),
        ("a(x=inf, y=-inf)", {"x": float("inf"), "y": float("-inf")}),
        ("a(x=true, y=False, z=NONE)", {"x": True, "y": False, "z": None}),
        ("a(x=mean, y=hub/some-model_1.5:v2)", {"x": "mean", "y": "hub/some-model_1.5:v2"}),
        ("a(x='true', y=\"b, (c) = +\", z='')", {"x": "true", "y": "b, (c) = +", "z": ""}),
        (r"""a(x='it\'s', y="back\\slash", z="a\nb")""", {"x": "it's", "y": "back\\slash", "z": "a\\nb"}),
        (
            "a(x=[], y=[1], z=[1, 2.5, b, [true, none]])",
            {"x": (), "y": (1,), "z": (1, 2.5, "b", (True, None))},
        ),
        ("a(\n  x = 1 ,\n  y = [ 1 , 2 ]\n)", {"x": 1, "y": (1, 2)}),
        ("a(x=0-15)", {"x": "0-15"}),
    ],
)
def test_values(text: str, kwargs: dict[str, object]) -> None:
    (call,) = parse(text)
    assert call == MethodCall("a", kwargs)
    assert [type(value) for value in call.kwargs.values()] == [type(value) for value in kwargs.values()]
    assert parse(canonical([call])) == (call,)


def test_methods_are_joined_with_plus() -> None:
    calls = parse("yarn(factor=4)+minference + snapkv(keep=0.25)")
    assert [call.name for call in calls] == ["yarn", "minference", "snapkv"]
    assert canonical(calls) == "yarn(factor=4) + minference + snapkv(keep=0.25)"


@pytest.mark.parametrize(
    ("text", "scope", "written"),
    [
        ("on(layers=0-3, a)", Scope(layers=(0, 1, 2, 3)), "on(layers=0-3, a)"),
        ("on(a, layers=3)", Scope(layers=(3,)), "on(layers=3, a)"),
        ("on(layers=[8-9,0,2,9],a)", Scope(layers=(0, 2, 8, 9)), "on(layers=[0, 2, 8-9], a)"),
        ("on(heads=0,phase=decode,a)", Scope(heads=(0,), phase="decode"), "on(heads=0, phase=decode, a)"),
        ("on(phase=prefill, layers=none, a)", Scope(phase="prefill"), "on(phase=prefill, a)"),
    ],
)
def test_scopes(text: str, scope: Scope, written: str) -> None:
    calls = parse(text)
    assert calls == (MethodCall("a", {}, scope),)
    assert canonical(calls) == written
    assert parse(written) == calls


def test_scope_limits_one_method_of_several() -> None:
    calls = parse("on(layers=0-1, a(x=1)) + b")
    assert calls == (MethodCall("a", {"x": 1}, Scope(layers=(0, 1))), MethodCall("b"))


@pytest.mark.parametrize("text", ["", "  ", "dense", "dense()"])
def test_nothing_is_dense(text: str) -> None:
    assert parse(text) == (MethodCall("dense"),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a(", ["character 3 (its end)", "a(key=value)"]),
        ("a(x", ["a value without its key", "character 3"]),
        ("a(0.25)", ["no name where a key of a belongs", "character 3 ('0.25)')"]),
        ("a(fast)", ["a value without its key", "character 3 ('fast)')", "a(key=value)"]),
        ("a(x=)", ["no value for 'x' at character 5"]),
        ("a(x=1", ["no ',' or ')' after x", "its end"]),
        ("a(x=1 y=2)", ["no ',' or ')' after x at character 7 ('y=2)')"]),
        ("a(x=1, x=2)", ["the key 'x' a second time at character 8"]),
        ("a(x=1,)", ["no name where a key of a belongs at character 7"]),
        ("a(x=[1, 2)", ["no ',' or ']' in a list at character 10"]),
        ("a(x='b)", ["a quote that does not end at character 5"]),
        ("a + ", ["no name where a method name belongs at character 5 (its end)"]),
        ("+ a", ["character 1 ('+ a')"]),
        ("a b", ["cannot be read at character 3 ('b')", "'+'"]),
        ("a)(", ["character 2"]),
        ("on", ["'on' without limits"]),
        ("on(layers=1)", ["without a method"]),
        ("on(a)", ["without a limit"]),
        ("on(layers=1, a, b)", ["a second method"]),
        ("on(layers=1, a + b)", ["no ',' or ')'"]),
        ("on(layers=1, on(heads=1, a))", ["on(...) within on(...)"]),
        ("on(layer=1, a)", ["'layer' as a limit", "did you mean 'layers'?"]),
        ("on(heads=1, heads=2, a)", ["'heads' a second time"]),
        ("on(layers=5-3, a)", ["layers takes indices from 0 on", '"5-3"']),
        ("on(layers=-1, a)", ["got -1"]),
        ("on(layers=1.5, a)", ["got 1.5"]),
        ("on(layers=true, a)", ["got true"]),
        ("on(layers=[], a)", ["at least one index"]),
        ("on(layers=0-99999999999, a)", ["layers takes indices"]),
        ("a b", ["something that cannot be read at character 3"]),
        ("on(phase=both, a)", ["phase takes prefill or decode, got 'both'"]),
        ("a(x=" + "[" * 5000, ["nest lists at most 8 deep"]),
        ("__import__('os')", ["a key of __import__ belongs"]),
    ],
)
def test_syntax_errors_name_the_place_and_the_fix(text: str, parts: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert len(message) < 300


_values = st.recursive(
    st.one_of(
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False),
        st.booleans(),
        st.none(),
        st.text(max_size=12),
    ),
    lambda children: st.lists(children, max_size=3).map(tuple),
    max_leaves=5,
)
_names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "on")
_indices = st.none() | st.sets(st.integers(0, 80), min_size=1, max_size=12).map(
    lambda found: tuple(sorted(found))
)
_scopes = st.builds(Scope, _indices, _indices, st.sampled_from([None, "prefill", "decode"]))
_calls = st.builds(MethodCall, _names, st.dictionaries(_names, _values, max_size=3), _scopes)


@given(st.lists(_calls, min_size=1, max_size=3).map(tuple))
def test_round_trip_of_any_calls(calls: tuple[MethodCall, ...]) -> None:
    assert parse(canonical(calls)) == calls


@given(st.text(alphabet="ab(on)=,+[]'\"\\ 0-1.e", max_size=40))
def test_any_text_parses_or_says_why(text: str) -> None:
    try:
        calls = parse(text)
    except SpecError:
        return
    assert parse(canonical(calls)) == calls


def test_method_names_walks_the_families(methods: Path) -> None:
    (methods / "cache" / "_shared.py").write_text("")
    (methods / "_notes").mkdir()
    (methods / "_notes" / "thing.py").write_text("")
    (methods / "cache" / "deep").mkdir()
    (methods / "cache" / "deep" / "__init__.py").write_text("")
    package = methods.name
    assert method_names() == {
        "deep": f"{package}.cache.deep",
        "dense": f"{package}.attention.dense",
        "squeeze": f"{package}.cache.squeeze",
        "stretch": f"{package}.positions.stretch",
    }


@pytest.mark.parametrize(("family", "name"), [("positions", "squeeze"), ("cache", "on")])
def test_a_name_is_taken_once(methods: Path, family: str, name: str) -> None:
    (methods / family / f"{name}.py").write_text(SQUEEZE)
    with pytest.raises(SpecError, match="rename one"):
        method_names()


def test_resolve_makes_frozen_methods(methods: Path) -> None:
    stretch, squeeze = resolve(
        "stretch(factor=4) + on(layers=0-1, squeeze(keep=1, layers=[0, 2-4], pool=mean))"
    )
    assert (stretch.name, stretch.scope, stretch.method.factor) == ("stretch", Scope(), 4.0)
    assert type(stretch.method.factor) is float
    assert (squeeze.name, squeeze.scope) == ("squeeze", Scope(layers=(0, 1)))
    assert (squeeze.method.keep, squeeze.method.layers, squeeze.method.pool) == (1.0, (0, 2, 3, 4), "mean")
    assert squeeze.method.window_tokens == 32


@pytest.mark.parametrize("spec", [None, "", "dense", []])
def test_resolve_nothing_is_dense(methods: Path, spec: object) -> None:
    (only,) = resolve(spec)
    assert (only.name, only.scope) == ("dense", Scope())
    assert canonical(spec) == "dense"


def test_resolve_takes_objects_and_mixtures(methods: Path) -> None:
    squeeze = resolve("squeeze(keep=0.5)")[0]
    assert resolve([squeeze.method]) == resolve(squeeze.method) == resolve([squeeze]) == (squeeze,)
    assert resolve(["dense", squeeze.method]) == resolve("dense + squeeze(keep=0.5)")
    with pytest.raises(SpecError, match="got 3"):
        resolve([3])


def test_a_class_from_elsewhere_has_its_own_name(methods: Path) -> None:
    from longspan.roles import Storage

    class Mine(Storage):
        pass

    assert resolve([Mine()]) == (ScopedMethod(Mine(), Scope(), "mine"),)


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("squeeze(keep=0.25, window_tokens=32)", "squeeze"),
        ("squeeze(window_tokens=8, keep=1)", "squeeze(keep=1.0, window_tokens=8)"),
        ("squeeze(label='a b', strict=TRUE, layers=2)", 'squeeze(layers=[2], label="a b", strict=true)'),
        ("squeeze(sizes=[3, 4])", "squeeze(sizes=[3, 4.0])"),
        ("squeeze(budget=1024)", "squeeze(budget=1024)"),
        (
            "on(phase=decode, layers=[1,0], squeeze)+stretch( factor=2 )",
            "on(layers=0-1, phase=decode, squeeze) + stretch(factor=2.0)",
        ),
    ],
)
def test_canonical_shows_what_differs_from_the_defaults(methods: Path, spec: str, written: str) -> None:
    assert canonical(spec) == written
    assert canonical(resolve(spec)) == written
    assert resolve(written) == resolve(spec)
    assert canonical(parse(written)) == written


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("squeez", ["there is no method 'squeez'", "did you mean 'squeeze'?"]),
        ("zzz", ["allowed are 'dense', 'squeeze', 'stretch'"]),
        ("squeeze(keeps=1)", ["squeeze has no key 'keeps'", "did you mean 'keep'?"]),
        ("squeeze(mode=y)", ["squeeze has no key 'mode'"]),
        ("dense(x=1)", ["dense has no key 'x'; none is allowed here"]),
        ("squeeze(keep=half)", ["squeeze: keep takes a number, got half (str)", "the default is keep=0.25"]),
        ("squeeze(keep=true)", ["keep takes a number, got true"]),
        ("squeeze(window_tokens=1.5)", ["window_tokens takes a whole number, got 1.5"]),
        ("squeeze(window_tokens=true)", ["window_tokens takes a whole number, got true"]),
        ("squeeze(pool=min)", ["pool takes max or mean, got min"]),
        ("squeeze(layers=a)", ["layers takes a list, each a whole number or none, got a"]),
        ("squeeze(sizes=[1])", ["sizes takes [a whole number, a number], got [1]"]),
        ("squeeze(label=3)", ["label takes a word, got 3"]),
        ("squeeze(strict=1)", ["strict takes true or false, got 1"]),
        ("stretch", ["stretch needs factor (a number); write stretch(factor=...)"]),
        ("stretch(factor=none)", ["stretch: factor takes a number, got none (NoneType)"]),
        ("squeeze(window_tokens=0)", ["squeeze: window_tokens is 0, allowed is 1 or more"]),
    ],
)
def test_resolve_errors_say_what_is_allowed(methods: Path, spec: str, parts: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(spec)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_file_defines_one_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        monkeypatch,
        cache__empty='"""None."""\n',
        cache__two=SQUEEZE + "\nclass Other(Squeeze): ...\n",
    )
    with pytest.raises(SpecError, match="defines none"):
        resolve("empty")
    with pytest.raises(SpecError, match="defines Squeeze, Other"):
        resolve("two")


def test_resolve_imports_only_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, cache__broken="raise RuntimeError('imported')\n")
    assert resolve("squeeze")[0].name == "squeeze"
    with pytest.raises(RuntimeError, match="imported"):
        resolve("broken")


def test_every_real_method_resolves_from_its_own_canonical_text() -> None:
    from longspan.card import all_cards

    for name, card in all_cards().items():
        if name == "cartridges":  # one of its three settings must be given, whichever
            with pytest.raises(SpecError, match="got 0 of file, files and tokens; give one"):
                resolve(name)
        elif all(parameter.default is not None for parameter in card.parameters):
            assert canonical(name) == name
        assert canonical(canonical(card.example)) == canonical(card.example)
        for spec in [card.claim[key] for key in ("spec", "against") if key in card.claim]:
            assert resolve(canonical(spec)) == resolve(spec)
