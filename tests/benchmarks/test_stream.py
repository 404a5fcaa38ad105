"""The stream benchmark on a tiny model: likelihoods are a plain forward's, memory is bounded, rows cover the text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from benchmarks import stream
from longspan.engine.api import load
from tests.models import WINDOW, random_ids, random_model, word_tokenizer, words

SINKS, RECENT, CHUNK = 4, 64, 32
SPECS = (
    f"lm_infinite(global_tokens={SINKS}, window_tokens={RECENT})",
    f"self_extend(window_tokens=32, max_distance_tokens=200) + duo_attention(retrieval_fraction=0, "
    f"sink_tokens={SINKS}, recent_tokens={RECENT})",
)
EXACT = (
    "lm_infinite()",
    f"self_extend(window_tokens={WINDOW - 1}) + duo_attention(retrieval_fraction=0, sink_tokens=4, recent_tokens=256)",
)


def plain_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    return cross_entropy(logits[:-1], ids[1:], reduction="none")


def streamed(spec: str, ids: Tensor, chunk_tokens: int = CHUNK) -> Tensor:
    span = load(random_model(), spec)
    return torch.cat([loss for _, loss in stream.stream_losses(span, ids, chunk_tokens)])


@pytest.mark.parametrize("spec", ["dense", *EXACT])
@pytest.mark.parametrize("chunk_tokens", [32, 50, 300])
def test_within_the_window_likelihoods_are_those_of_a_plain_forward(spec: str, chunk_tokens: int) -> None:
    ids = random_ids(200)
    wanted = plain_losses(random_model(), ids)
    got = streamed(spec, ids, chunk_tokens)
    assert len(got) == 199
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_chunks_do_not_change_likelihoods_and_the_window_does(spec: str) -> None:
    ids = random_ids(900)
    got = streamed(spec, ids)
    torch.testing.assert_close(got, streamed(spec, ids, 128), atol=1e-3, rtol=1e-3)
    assert (got - streamed("dense", ids)).abs().max() > 0.01


@pytest.mark.parametrize("spec", SPECS)
def test_memory_is_bounded_by_the_window_and_a_chunk(spec: str) -> None:
    span = load(random_model(), spec)
    config = span.hf_model.config
    a_token = config.num_hidden_layers * (2 * config.num_key_value_heads * config.head_dim * 4 + 8)
    held = [run.kv_bytes for run, _ in stream.stream_losses(span, random_ids(2048), CHUNK)]
    full = (SINKS + RECENT) // CHUNK + 1
    assert held[full:] == [(SINKS + RECENT) * a_token] * (len(held) - full)
    # before the window is full, a store that grows has half as much room again, and a question's
    assert max(held) <= (1.5 * (SINKS + RECENT + CHUNK) + 256) * a_token


def test_dense_memory_grows() -> None:
    span = load(random_model(), "dense")
    held = [run.kv_bytes for run, _ in stream.stream_losses(span, random_ids(2048), CHUNK)]
    assert held[-1] > 3 * held[len(held) // 4]


def test_restarted_windows_by_hand() -> None:
    model, ids, half = random_model(), random_ids(3 * WINDOW + 40), WINDOW // 2
    wanted = [plain_losses(model, ids[:half])]
    for start in range(half, len(ids), half):
        stop = min(start + half, len(ids))
        window = torch.cat([ids[:1], ids[start - half + 1 : stop]])
        assert len(window) <= WINDOW
        wanted.append(plain_losses(model, window)[-(stop - start) :])
    got = stream.restarted_losses(load(model), ids)
    torch.testing.assert_close(got, torch.cat(wanted), atol=1e-4, rtol=1e-4)


def test_edges() -> None:
    assert stream.edges_of(1000, 320, 10) == [*range(0, 320, 20), 320, 640, 960, 1000]
    assert stream.edges_of(640, 320, 160) == [0, 160, 320, 640]
    assert stream.edges_of(100, 320, 10) == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize("spec", ["dense", SPECS[0]])
def test_rows_cover_the_text_and_their_means_are_the_texts(spec: str) -> None:
    ids, span = random_ids(700), load(random_model(), spec)
    losses, restarted = streamed(spec, ids).double(), stream.restarted_losses(span, ids)
    rows = list(stream.read_stream(span, ids, restarted, [0, 64, 128, 384, 640, 700], CHUNK))
    assert [(row["start"], row["tokens"]) for row in rows] == [
        (0, 64),
        (64, 64),
        (128, 256),
        (384, 256),
        (640, 60),
    ]
    assert rows[0]["nll"] == pytest.approx(losses[:63].mean().item(), abs=1e-4)
    assert rows[3]["nll"] == pytest.approx(losses[383:639].mean().item(), abs=1e-4)
    assert rows[4]["ratio"] == pytest.approx(
        math.exp((losses[639:].mean() - restarted[639:].double().mean()).item()), rel=1e-3
    )
    whole = stream.merged(rows)
    assert whole["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-3)
    assert whole["ratio"] == pytest.approx((losses.mean() - restarted.double().mean()).exp().item(), rel=1e-3)
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in rows)


def test_the_gate_refuses_a_model_that_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = load(random_model(), tokenizer=word_tokenizer()), random_ids(200)
    assert stream.check(model, ids) < 1e-3
    monkeypatch.setattr(stream, "restarted_losses", lambda *_: torch.zeros(199))
    with pytest.raises(SystemExit, match="the correctness gate failed: chunks differ from stock by"):
        stream.check(model, ids)


def test_the_command_writes_rows_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stream.longspan, "load", lambda *_, **__: load(random_model(), tokenizer=word_tokenizer())
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text(words(random_ids(500)), encoding="utf-8")
    (tmp_path / "texts" / "a.md").write_text(words(random_ids(300, seed=1)), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{stream.MARKS[0]}\nold\n{stream.MARKS[1]}\n\nafter\n", encoding="utf-8")
    out, image = tmp_path / "results" / "stream.json", tmp_path / "images" / "stream.svg"
    monkeypatch.setattr(
        "sys.argv",
        ["stream", "--text", str(tmp_path / "texts"), "--device", "cpu", "--specs", "dense", *SPECS, "--stretch", "256",
         "--chunk", "32", "--dense-tokens", "400", "--tokens", "2000",
         "--out", str(out), "--page", str(page), "--figure", str(image)],
    )  # fmt: skip
    stream.main()
    rows = json.loads(out.read_text(encoding="utf-8"))
    read = {spec: sum(row["tokens"] for row in mine) for spec, mine in stream.by_spec(rows).items()}
    assert list(read.values()) == [400, 801, 801]
    assert {row["text_tokens"] for row in rows} == {801} and {row["wanted_tokens"] for row in rows} == {2000}
    assert rows[0]["text"] == ["a.md", "b.txt"]
    shown = page.read_text(encoding="utf-8")
    assert shown.startswith("before\n") and shown.endswith("after\n") and "old" not in shown
    assert f"| `{rows[-1]['spec']}` | 801 | " in shown and "801 tokens of 2,000 asked for" in shown
    drawn = image.read_text(encoding="utf-8")
    assert drawn.startswith("<svg ") and drawn.count("<polyline ") == 7 and "restarted windows" in drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "nowhere"], "there is no nowhere; give text files"),
        (["--text", ".", "--stretch", "100", "--chunk", "64"], "a stretch must be whole chunks"),
        (["--text", "empty"], "holds no .md and no .txt file; give another"),
        (["--text", "short.txt", "--specs", "dense"], "tokens; give more than two chunks of 1,024"),
    ],
)  # fmt: skip
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(
        stream.longspan, "load", lambda *_, **__: load(random_model(), tokenizer=word_tokenizer())
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("w5 w6", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["stream", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as stop:
        stream.main()
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
