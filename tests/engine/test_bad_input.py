"""Model folders and saved contexts that are broken: one sentence each, and nothing half-written."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import longspan
from longspan.engine import span_file
from longspan.errors import SpecError, UserInputError
from longspan.methods.attention.found_in_the_middle import FoundInTheMiddle
from longspan.methods.cache.snapkv import SnapKV
from longspan.methods.cache.truncate import Truncate
from longspan.spec import resolve
from tests.models import random_model, word_tokenizer

WEIGHTS = "model.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _with_query(weight: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        del tensors[QUERY]
        save_file(
            tensors if weight is None else {**tensors, QUERY: weight}, folder / WEIGHTS, {"format": "pt"}
        )

    return change


def _text(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cannot load the weights of"),
        (_text(WEIGHTS, ""), "cannot load the weights of"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot load the weights of"),
        (_with_query(torch.zeros(8, 8)), "cannot load the weights of"),
        (_with_query(None), f"lack {QUERY} \\(1 missing in all\\)"),
        (_text("config.json", "{"), "cannot read the config.json of"),
        (_text("config.json", '{"model_type": "foo"}'), "cannot read the config.json of"),
        (_text("tokenizer.json", "{"), "cannot load the tokenizer of"),
        (_text("tokenizer.json", "{}"), "cannot load the tokenizer of"),
    ],
)
def test_broken_model_folders(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserInputError, match=message) as caught:
        longspan.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "foo"}, "got device='foo', which is not here"),
        ({"device": "meta"}, "got device='meta', which is not here"),
        ({"model": None}, "got a NoneType as the model"),
        ({"model": ""}, "'' is not a model folder"),
    ],
)
def test_load_refuses(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        longspan.load(**{"model": folder, **settings})


@pytest.mark.parametrize(
    "method",
    [
        SnapKV(window_tokens=1.5),  # type: ignore[arg-type]
        SnapKV(pool_tokens=True),
        Truncate(keep_tokens=math.nan),  # type: ignore[arg-type]
        Truncate(side="top"),  # type: ignore[arg-type]
    ],
)
def test_method_objects_are_held_to_their_types(method: Any) -> None:
    with pytest.raises(SpecError, match=r" takes .*, got .*; the default is "):
        resolve(method)


def test_numbers_that_no_tensor_holds() -> None:
    for spec in ("snapkv(keep=99999999999)", "lm_infinite(window_tokens=99999999999)"):
        with pytest.raises(SpecError, match="takes whole numbers up to 2147483647, got 99999999999"):
            resolve(spec)
    with pytest.raises(
        SpecError, match=r"got factor=1e\+300; allowed is 1 \(no change\) or more, up to 1,000,000"
    ):
        resolve("ntk(factor=1e300)")


def test_errors_of_a_model_name_the_method(tmp_path: Path) -> None:
    model = longspan.load(random_model(), tokenizer=word_tokenizer())
    for spec in (
        "gemfilter(layer=9)",
        "duo_attention(retrieval_heads=[99])",
        "found_in_the_middle(last_layers=9)",
    ):
        with pytest.raises(ValueError, match=f"^{spec.partition('(')[0]}: got "):
            model.with_methods(spec)
    (tmp_path / "bytes").write_bytes(b"\xff" * 5000)
    with pytest.raises(SpecError, match="cannot read patterns=.*invalid start byte") as caught:
        resolve(f'minference(patterns="{tmp_path / "bytes"}")')
    assert len(str(caught.value)) < 400


def test_a_temperature_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="got temperature=nan"):
        FoundInTheMiddle(temperature=math.nan)


def test_a_context_that_cannot_be_saved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = longspan.load(random_model(), tokenizer=word_tokenizer()).read("w5 w6 w7")
    with pytest.raises(UserInputError, match="is a folder; give a file"):
        context.save(tmp_path)

    def full(stream: BinaryIO, header: object, tensors: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(span_file, "_write", full)
    with pytest.raises(
        UserInputError, match=r"cannot save the context in .*No space left.*; free some space"
    ):
        context.save(tmp_path / "book.span")
    assert list(tmp_path.iterdir()) == []

    def read_only(self: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(UserInputError, match="cannot save the context"):
        context.save(tmp_path / "book.span")


@pytest.mark.parametrize(
    "damage", [{"slabs": None}, {"slabs": 5}, {"read_seconds": 5}, {"chunk_tokens": None}, {"seen": 4}]
)
def test_a_damaged_header_of_a_context(tmp_path: Path, damage: dict[str, Any]) -> None:
    model = longspan.load(random_model(), tokenizer=word_tokenizer())
    model.read("w5 w6 w7").save(tmp_path / "book.span")
    with safe_open(tmp_path / "book.span", "pt") as file:
        known = file.metadata()
    header = json.loads(known["longspan"]) | damage
    changed = json.dumps({key: value for key, value in header.items() if value is not None})
    tensors = load_file(tmp_path / "book.span")
    save_file(tensors, tmp_path / "bad.span", known | {"longspan": changed})
    with pytest.raises(UserInputError, match="is a damaged context .its header was altered"):
        longspan.open_context(tmp_path / "bad.span", model)
    if damage != {"seen": 4}:  # what another program wrote wrong, its checksum right
        right = {"longspan": changed, "longspan_crc32": f"{zlib.crc32(changed.encode()):08x}"}
        save_file(tensors, tmp_path / "bad.span", right)
        with pytest.raises(UserInputError, match="is a damaged context .*does not fit"):
            longspan.open_context(tmp_path / "bad.span", model)
    save_file(tensors, tmp_path / "bad.span", {"longspan": "{"})
    with pytest.raises(UserInputError, match="is not a saved context"):
        longspan.open_context(tmp_path / "bad.span", model)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, -1], "token ids from -1 to 3"),
        ([3, 500], "has ids 0 to 499"),
        ([], "text"),
        ("\udc80 w3", "valid Unicode"),
    ],
)
def test_a_text_that_the_model_cannot_take_is_refused(ids: Any, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        longspan.load(random_model(), tokenizer=word_tokenizer()).read(ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"seed": "x"}, "seed='x'"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"question": 5}, "got a int as the question"),
    ],
)
def test_settings_of_a_question_are_checked(settings: dict[str, Any], message: str) -> None:
    context = longspan.load(random_model(), tokenizer=word_tokenizer()).read("w3 w4 w5 w6")
    with pytest.raises(UserInputError, match=message):
        context.ask(**{"question": "w3", **settings})
    with pytest.raises(UserInputError, match="text is empty"):
        context.read(" ")


def test_chunks_are_whole_tokens() -> None:
    for chunk_tokens in (0, 1.5, "x"):
        with pytest.raises(UserInputError, match="chunk_tokens="):
            longspan.load(random_model(), chunk_tokens=chunk_tokens)  # type: ignore[arg-type]
