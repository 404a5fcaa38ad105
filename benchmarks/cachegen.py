"""CacheGen on a model's own caches: bytes a token, what they cost in answers and perplexity, speed, and the controller.

    python -m benchmarks.cachegen --text FOLDER --tokens 4096

Each scheme's keys and values are put back where the model had left them, in float32, and then

- passages of the text: the perplexity of the quarter that follows, every token of it predicted over the restored cache of the
  first three quarters; beside it the mean change of the negative log-likelihood with its standard error, token by token
  against the cache as it was;
- needles: one key's number among eight, and among four in prose, hidden in the text, asked over the restored cache.

"int8" and "int4" hold an integer an element and a float16 scale for each 64 elements or fewer (a token's vector of one head).
"cachegen N" is LEVELS[N] in chunks of 1,500 tokens, with its tables and headers; "paper deltas" and "no deltas" show what
anchors do; "fine last" has the fine bins in the last third of the layers instead of the first; needles are asked of the
others alone. MB/s count the tensors in bfloat16 and the process's own seconds. "unrotated" rows are the same keys before rotary
embedding, sizes alone.

The controller's rows take the first passage's sizes, and seconds measured here, over links of fixed and of falling bandwidth.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import longspan
from longspan._files import write_json_whole
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.evaluation.exams import asked
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.registry import find_task
from longspan.evaluation.runner import open_haystack
from longspan.ops.rotary import rotate
from longspan.storage.cachegen import (
    CHUNK_TOKENS,
    LEVELS,
    Deltas,
    Level,
    chunk_spans,
    decode_chunk,
    encode_chunk,
)
from longspan.storage.streaming import Chunk, Costs, simulate

RESULTS = Path(__file__).parent / "results" / "cachegen.json"
TASKS = ("keys8_numbers", "niah_multikey_1")
QUESTION_TOKENS = 96  # left of the window for the question and its answer
MEGABIT = 1e-3  # in gigabits
Tensors = list[tuple[Tensor, Tensor]]  # keys and values [B, K, S, D] of each slab, layer after layer


@dataclass
class Coded:
    """What a scheme made of a cache."""

    tensors: Tensors
    num_bytes: float
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass
class Tally:
    """What was measured of a scheme so far."""

    tokens: int = 0
    num_bytes: float = 0.0
    raw_bytes: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    nlls: list[Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, coded: Coded) -> None:
        self.tokens += coded.tensors[0][0].shape[2]
        self.num_bytes += coded.num_bytes
        self.raw_bytes += sum(2 * x.numel() for pair in coded.tensors for x in pair)
        self.encode_seconds += coded.encode_seconds
        self.decode_seconds += coded.decode_seconds


def keep(tensors: Tensors, *, dtype: torch.dtype) -> Coded:
    made = [(k.to(dtype).float(), v.to(dtype).float()) for k, v in tensors]
    return Coded(made, sum(x.to(dtype).nbytes for pair in tensors for x in pair))


def integers(tensors: Tensors, *, bits: int) -> Coded:
    """An integer of so many bits an element, and a scale for each group of at most 64 along D."""
    size = 0.0

    def code(x: Tensor) -> Tensor:
        nonlocal size
        group = math.gcd(x.shape[3], 64)
        parts = x.unflatten(3, (-1, group))
        most = 2 ** (bits - 1) - 1
        scale = (parts.abs().amax(dim=4, keepdim=True) / most).half().float().clamp(min=1e-7)
        size += x.numel() * (bits / 8 + 2 / group)
        return ((parts / scale).round().clamp(-most, most) * scale).flatten(3)

    return Coded([(code(k), code(v)) for k, v in tensors], size)


def cachegen(tensors: Tensors, *, level: Level, deltas: Deltas = "auto") -> Coded:
    spans = chunk_spans(tensors[0][0].shape[2])
    begin = time.process_time()
    chunks = [
        encode_chunk(
            [k[:, :, a:b] for k, _ in tensors], [v[:, :, a:b] for _, v in tensors], level=level, deltas=deltas
        )
        for a, b in spans
    ]
    middle = time.process_time()
    parts = [decode_chunk(chunk) for chunk in chunks]
    end = time.process_time()
    joined = [
        (torch.cat([part[0][i] for part in parts], dim=2), torch.cat([part[1][i] for part in parts], dim=2))
        for i in range(len(tensors))
    ]
    return Coded(joined, sum(len(chunk) for chunk in chunks), middle - begin, end - middle)


def _fine_last(level: Level) -> Level:
    return replace(level, key_bins=level.key_bins[::-1], value_bins=level.value_bins[::-1])


SCHEMES: dict[str, Callable[[Tensors], Coded]] = {
    "float32": partial(keep, dtype=torch.float32),
    "bfloat16": partial(keep, dtype=torch.bfloat16),
    "int8": partial(integers, bits=8),
    "int4": partial(integers, bits=4),
    **{f"cachegen {level.number}": partial(cachegen, level=level) for level in LEVELS},
    "cachegen 2, paper deltas": partial(cachegen, level=LEVELS[2], deltas="paper"),
    "cachegen 2, no deltas": partial(cachegen, level=LEVELS[2], deltas="none"),
    "cachegen 2, fine last": partial(cachegen, level=_fine_last(LEVELS[2])),
}


def tensors_of(context: Context) -> Tensors:
    return [(slab.keys, slab.values) for layer in context.run.layers for slab in layer.slabs]


def restored(context: Context, tally: dict[str, Tally], names: Iterable[str]) -> Iterator[Tally]:
    """The context under each scheme in turn: what it holds is overwritten, and put back at the end."""
    held = tensors_of(context)
    before = [(k.clone(), v.clone()) for k, v in held]
    for name in names:
        coded = SCHEMES[name](before)
        tally[name].add(coded)
        put(held, coded.tensors)
        yield tally[name]
    put(held, before)


def put(held: Tensors, tensors: Tensors) -> None:
    for places, parts in zip(held, tensors, strict=True):
        for place, part in zip(places, parts, strict=True):
            place.copy_(part)


def follow(context: Context, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each of the tokens but the first, `[T - 1]`, over what the context holds."""
    branch = context.run.fork()
    logits = context.model.reader().all_logits(branch, ids)
    branch.give_back(context.run)
    return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


def measure_passage(
    model: SpanModel, text: str, num_tokens: int, seed: int, tally: dict[str, Tally]
) -> tuple[Context, float]:
    """Returns the context of the passage's first three quarters, and the seconds of this process that reading took."""
    start = random.Random(seed).randrange(max(1, len(text) - 12 * num_tokens))
    ids = torch.tensor(model.tokenizer(text[start : start + 12 * num_tokens])["input_ids"][:num_tokens])
    begin = time.process_time()
    context = model.read(ids[: 3 * num_tokens // 4], progress=False)
    seconds = time.process_time() - begin
    for row in restored(context, tally, SCHEMES):
        row.nlls.append(follow(context, ids[3 * num_tokens // 4 :]))
    return context, seconds


def measure_needle(
    model: SpanModel, haystack: Haystack, num_tokens: int, number: int, tally: dict[str, Tally]
) -> None:
    exam = find_task(TASKS[number % len(TASKS)]).exam
    item = exam.build(
        length_tokens=num_tokens - QUESTION_TOKENS,
        depth=None,
        seed=1 + number // len(TASKS),
        haystack=haystack,
        tokenizer=model.tokenizer,
    )
    context = model.read(item.context, progress=False)
    for row in restored(context, tally, (name for name in SCHEMES if "," not in name)):
        answer = context.ask(
            asked(model.tokenizer, item.question),
            answer_prefix=item.answer_prefix,
            max_new_tokens=item.max_new_tokens,
            sources=False,
        )
        row.scores.append(exam.marked(answer.text, item)["score"])  # type: ignore[attr-defined]


def summarise(tally: dict[str, Tally]) -> list[dict[str, Any]]:
    exact, eight = tally["float32"], tally["int8"]
    rows = []
    for name, row in tally.items():
        facts: dict[str, Any] = {
            "scheme": name,
            "bytes_per_token": round(row.num_bytes / row.tokens, 1),
            "bits_per_element": round(16 * row.num_bytes / row.raw_bytes, 3),
            "smaller_than_int8": round(eight.num_bytes / eight.tokens * row.tokens / row.num_bytes, 2),
        }
        if row.encode_seconds:
            facts["encode_mb_per_second"] = round(row.raw_bytes / row.encode_seconds / 1e6, 1)
            facts["decode_mb_per_second"] = round(row.raw_bytes / row.decode_seconds / 1e6, 1)
        if row.nlls:
            nll = torch.cat(row.nlls)
            change = nll - torch.cat(exact.nlls)
            facts["perplexity"] = round(float(nll.mean().exp()), 3)
            facts["nll_change"] = round(float(change.mean()), 4)
            facts["nll_change_error"] = round(float(change.std() / math.sqrt(len(change))), 4)
        if row.scores:
            facts["needle_accuracy"] = round(sum(row.scores) / len(row.scores), 3)
        rows.append(facts)
    return rows


def before_rotation(context: Context) -> list[dict[str, Any]]:
    """Sizes at level 2 of keys as they are stored and before rotation, by what is done about deltas."""
    rows = []
    for rotated in (True, False):
        tensors = []
        for layer, info in zip(context.run.layers, context.model.info.layers, strict=True):
            for slab in layer.slabs:
                keys = slab.keys.clone()
                if not rotated and info.rope is not None:
                    angles = slab.positions[..., None].float() * info.rope.inv_freq.repeat(2)
                    dims = angles.shape[-1]
                    keys[..., :dims] = rotate(keys[..., :dims], angles.cos(), -angles.sin())
                tensors.append(keys)
        elements = sum(x.numel() for x in tensors)
        for deltas in ("auto", "paper", "none"):
            # the keys stand in for the values too, so that only keys are counted
            size = cachegen(
                [(x, x) for x in tensors],
                level=replace(LEVELS[2], value_bins=LEVELS[2].key_bins),
                deltas=deltas,
            ).num_bytes
            rows.append(
                {
                    "keys": "rotated" if rotated else "unrotated",
                    "deltas": deltas,
                    "bits_per_element": round(4 * size / elements, 3),
                }
            )
    return rows


def control(context: Context, read_seconds: float, tally: dict[str, Tally]) -> list[dict[str, Any]]:
    """The controller, and each fixed choice, with this model's sizes and seconds."""
    tensors = tensors_of(context)
    row = tally["cachegen 2"]
    costs = Costs(
        recompute_seconds_per_token=read_seconds / context.num_tokens,
        decode_seconds_per_token=row.decode_seconds / row.tokens,
    )
    chunks = []
    for a, b in chunk_spans(context.num_tokens, 512):
        part = [(k[:, :, a:b], v[:, :, a:b]) for k, v in tensors]
        sizes = tuple(
            len(encode_chunk([k for k, _ in part], [v for _, v in part], level=level)) for level in LEVELS
        )
        chunks.append(Chunk(num_tokens=b - a, level_bytes=sizes, text_bytes=4 * (b - a)))
    deadline = 0.5 * costs.recompute_seconds_per_token * context.num_tokens
    rows = []
    for label, trace in (
        ("100 Mbit/s", [(0.0, 100 * MEGABIT)]),
        ("20 Mbit/s", [(0.0, 20 * MEGABIT)]),
        ("5 Mbit/s", [(0.0, 5 * MEGABIT)]),
        ("0.2 Mbit/s", [(0.0, 0.2 * MEGABIT)]),
        ("20, from 0.4 s on 4 Mbit/s", [(0.0, 20 * MEGABIT), (0.4, 4 * MEGABIT)]),
        ("4, from 0.4 s on 20 Mbit/s", [(0.0, 4 * MEGABIT), (0.4, 20 * MEGABIT)]),
    ):
        for fixed in (None, 0, 2, 4, "text"):
            # What the link gave before is known to the controller.
            outcome = simulate(
                chunks,
                trace,
                deadline_seconds=deadline,
                costs=costs,
                first_bytes_per_second=125e6 * trace[0][1],
                fixed=fixed,
            )
            rows.append(
                {
                    "link": label,
                    "choice": "controller" if fixed is None else str(fixed),
                    "deadline_seconds": round(deadline, 2),
                    "finish_seconds": round(outcome.finish_seconds, 2),
                    "met": outcome.met,
                    "levels": [decision.choice for decision in outcome.decisions],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="a text file, or a folder of them")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--needles", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    path, begin = Path(settings.text), time.perf_counter()
    files = sorted(f for f in path.rglob("*") if f.suffix in (".md", ".txt")) if path.is_dir() else [path]
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    if not text.strip():
        raise SystemExit(
            f"got --text {settings.text} without any text; give a .md or .txt file, or a folder of them"
        )
    name, haystack = open_haystack(settings.text)
    model = longspan.load(settings.model)
    tally = {name: Tally() for name in SCHEMES}
    passages = [
        measure_passage(model, text, settings.tokens, seed, tally) for seed in range(1, settings.passages + 1)
    ]
    keys, links = before_rotation(passages[0][0]), control(*passages[0], tally)
    for number in range(settings.needles + 1):
        setup = {
            "model": model.name,
            "tokens": settings.tokens,
            "passages": settings.passages,
            "needles": {"count": number, "tasks": TASKS, "haystack": name},
            "chunk_tokens": CHUNK_TOKENS,
            "seconds": round(time.perf_counter() - begin),
            "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
            "commit": commit(),
            **versions(),
        }
        # after each needle, so that a run cut short leaves what it has
        write_json_whole(
            settings.out, {"setup": setup, "rows": summarise(tally), "keys": keys, "links": links}
        )
        if number < settings.needles:
            measure_needle(model, haystack, settings.tokens, number, tally)
    for row in (*summarise(tally), *keys, *links):
        print("  ".join(f"{name}={value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
