"""kvpress on samples that `python -m benchmarks.peers export` wrote, in an environment of its own (it pins transformers < 5.3).

    python benchmarks/peers/kvpress_run.py FOLDER --presses snapkv,knorm --ratios 0.5,0.75

Imports torch, transformers and kvpress only. A text is read once under a press, as its pipeline does; the question and greedy
decoding follow on the compressed cache. Every answer becomes a line of FOLDER/kvpress.K.jsonl, K the part; what is there is not done
again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import kvpress
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES = {
    "knorm": lambda ratio: kvpress.KnormPress(compression_ratio=ratio),
    "keydiff": lambda ratio: kvpress.KeyDiffPress(compression_ratio=ratio),
    "snapkv": lambda ratio: kvpress.SnapKVPress(compression_ratio=ratio, window_size=32, kernel_size=7),
    "tova": lambda ratio: kvpress.TOVAPress(compression_ratio=ratio),
    "streaming": lambda ratio: kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=4),
    "pyramidkv": lambda ratio: kvpress.PyramidKVPress(compression_ratio=ratio, window_size=32, kernel_size=7),
    "expected_attention": lambda ratio: kvpress.ExpectedAttentionPress(compression_ratio=ratio),
    "compactor": lambda ratio: kvpress.CompactorPress(compression_ratio=ratio),
    "adakv": lambda ratio: kvpress.AdaKVPress(
        kvpress.SnapKVPress(compression_ratio=ratio, window_size=32, kernel_size=7)
    ),
    "kvzip": lambda ratio: kvpress.KVzipPress(compression_ratio=ratio),
}


@torch.no_grad()
def answer(model: Any, press: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Read, compress, ask; the answer's token ids and the bytes of the cache after reading."""
    context = torch.tensor([sample["context_ids"]], device=model.device)
    question = torch.tensor([sample["question_ids"]], device=model.device)
    cache = DynamicCache()
    start = time.perf_counter()
    with press(model):
        model.model(input_ids=context, past_key_values=cache)
    read_seconds = time.perf_counter() - start
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    kept = sum(layer.keys.shape[2] for layer in cache.layers) / len(cache.layers)
    at = torch.arange(context.shape[1], context.shape[1] + question.shape[1], device=model.device)[None]
    out = model(input_ids=question, past_key_values=cache, position_ids=at, logits_to_keep=1)
    found: list[int] = []
    while True:
        token = int(out.logits[0, -1].argmax())
        if token in sample["stop_ids"]:
            break
        found.append(token)
        if len(found) >= sample["max_new_tokens"]:
            break
        at = at[:, -1:] + 1
        out = model(
            input_ids=torch.tensor([[token]], device=model.device), past_key_values=cache, position_ids=at
        )
    return {"token_ids": found, "kv_bytes": held, "kept_tokens": kept, "read_seconds": read_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--presses", default=",".join(PRESSES))
    parser.add_argument("--ratios", default="0.25,0.5,0.75,0.875,0.94", help="shares that are dropped")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the samples")
    given = parser.parse_args()
    number, parts = (int(x) for x in given.part.split("/"))
    model = AutoModelForCausalLM.from_pretrained(given.folder / "model", attn_implementation="sdpa")
    model = model.to(given.device).eval()
    lines = (given.folder / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines][number - 1 :: parts]
    file = given.folder / f"kvpress.{number}.jsonl"
    done = set()
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        done = {(row["press"], row["ratio"], row["sample"]) for row in rows}
    versions = {"kvpress": kvpress.__version__ if hasattr(kvpress, "__version__") else "0.5.5"}
    versions |= {"transformers": transformers.__version__, "torch": torch.__version__}
    with file.open("a") as out:
        for sample in samples:
            for name in given.presses.split(","):
                for ratio in map(float, given.ratios.split(",")):
                    if (name, ratio, sample["id"]) in done:
                        continue
                    row = {"press": name, "ratio": ratio, "sample": sample["id"], **versions}
                    try:
                        row |= answer(model, PRESSES[name](ratio), sample)
                    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
                        row["error"] = f"{type(error).__name__}: {error}"
                    out.write(json.dumps(row) + "\n")
                    out.flush()
        print(f"{len(samples)} samples in {file}")


if __name__ == "__main__":
    main()
