"""The cartridge benchmark on a tiny model: documents are trained at once, in processes of their own, and asked alone and composed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cartridges
from longspan.methods.cache.cartridges.cartridge import load_cartridge
from tests.models import random_ids, random_model, word_tokenizer, words


@pytest.mark.slow
def test_documents_are_trained_in_processes_and_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "run", tmp_path / "rows.json"
    random_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    texts = [tmp_path / f"{name}.txt" for name in ("first", "second", "other")]
    for seed, text in enumerate(texts):
        sentences = [words(random_ids(9, seed=10 * seed + n)) + "." for n in range(90)]
        text.write_text(" ".join(sentences), encoding="utf-8")
    arguments = ["--text", *map(str, texts[:2]), "--beside", str(texts[2]), "--folder", str(folder)]
    arguments += ["--model", str(tmp_path / "model"), "--device", "cpu", "--workers", "2", "--length", "700"]
    arguments += [
        "--facts",
        "1",
        "--tokens-kept",
        "8",
        "--steps",
        "3",
        "--conversations",
        "6",
        "--out",
        str(out),
    ]
    cartridges.main([*arguments, "--beside-share", "0"])
    rows = json.loads(out.read_text(encoding="utf-8"))
    asked = ["whole context", "cartridge", "untrained cartridge", "snapkv"]
    assert [row["what"] for row in rows] == [*asked, *asked, "composed", "composed"]
    assert all(row["asked"] == 1 and row["device"] == "cpu" for row in rows)
    found = [load_cartridge(folder / f"document-{n}.cartridge.safetensors") for n in (1, 2)]
    assert all(x.num_tokens == 8 and x.settings["steps_made"] == 3 for x in found)
    assert found[0].document_hash != found[1].document_hash
    shown = capsys.readouterr().out
    cartridges.main([*arguments, "--beside-share", "0", "--workers", "1"])
    assert capsys.readouterr().out == shown  # made already: nothing is trained again
    with pytest.raises(SystemExit):
        cartridges.main([*arguments, "--beside-share", "2"])
    assert "got beside_share=2.0" in capsys.readouterr().err
