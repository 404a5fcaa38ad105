"""Train a causal model into a denoiser: rows, masks, steps until the schedule or the time ends, and the folder that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from transformers import PreTrainedModel

from longspan.errors import UserInputError
from longspan.evaluation.provenance import versions
from longspan.reference.config import ModelShape, RecipeConfig
from longspan.reference.feed import Feed, StepData
from longspan.reference.rows import RowMaker
from longspan.reference.train import fastest_attention, pick_device
from longspan.training.base import Base
from longspan.training.diffusion.config import DiffusionConfig
from longspan.training.diffusion.denoiser import Denoiser, load_causal, make_denoiser
from longspan.training.diffusion.objective import Corrupted, corrupt, draw_rates, masked_losses, to_device
from longspan.training.diffusion.optimizer import MatrixOptimizer
from longspan.training.diffusion.rows import DiffusionRows, hold_out
from longspan.training.export import MODEL
from longspan.training.text import check_folders, make_rows

LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """The objective of a step's text rows and of its task rows, nats a token, on the device (0 where there are none)."""

    text: Tensor
    answers: Tensor


@dataclass(frozen=True, kw_only=True)
class MaskedRows:
    """Rows of one length. of_text: float32 `[M]`, 1 for masked tokens of text rows, 0 for answers. texts: how many of the `count`
    rows are text."""

    rows: Corrupted
    of_text: Tensor
    texts: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run left behind. held_out: ids `[N]` of the text's end, which it was not trained on. seconds: of the steps."""

    denoiser: Denoiser
    folder: Path
    held_out: np.ndarray
    steps: int
    tokens: int
    seconds: float
    history: list[dict[str, Any]]


class DiffusionTrainer:
    """Steps a denoiser that is where it is to be trained."""

    def __init__(self, denoiser: Denoiser, config: DiffusionConfig, recipe: RecipeConfig) -> None:
        self.denoiser, self.config, self.recipe = denoiser, config, recipe
        torch.backends.cuda.matmul.allow_tf32 = True
        denoiser.model.requires_grad_(True)
        self.optimizer = MatrixOptimizer(denoiser.model, denoiser.decoder, recipe)

    def masked_rows(self, data: StepData) -> list[MaskedRows]:
        """The rows of each length with their masks, as seed and step decide, on the CPU."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + data.step)
        flat = torch.from_numpy(data.tokens.astype(np.int64))
        allowed = torch.from_numpy(data.weights > 0)
        answers = torch.zeros(len(flat), dtype=torch.bool)
        answers[[start for *_, start, _ in data.answers]] = True
        found, place = [], 0
        for length, rows in self.recipe.buckets:
            part, shape = slice(place, place + length * rows), (rows, length)
            place = part.stop
            made = corrupt(
                flat[part].view(shape),
                allowed[part].view(shape),
                draw_rates(rows, generator, least=self.config.least_masked),
                mask_id=self.denoiser.mask_id,
                generator=generator,
            )
            text = ~answers[part].view(shape).any(1)
            of_text = text[made.places // length].float()
            found.append(MaskedRows(rows=made, of_text=of_text, texts=int(text.sum()), count=rows))
        return found

    def step(self, data: StepData, share: float) -> StepLosses:
        """One step at `share` of the learning rates."""
        denoiser, device = self.denoiser, self.denoiser.device
        denoiser.model.train()
        parts = self.masked_rows(data)
        count, texts = sum(part.count for part in parts), sum(part.texts for part in parts)
        total, text = torch.zeros((), device=device), torch.zeros((), device=device)
        for part in parts:
            rows, of_text = part.rows.to(device), to_device(part.of_text, device)
            with denoiser.computing():
                hidden = denoiser.hidden_at(rows.given, rows.places)
                losses = masked_losses(hidden, denoiser.head, rows.targets) * rows.weights
            (losses.sum() / count).backward()
            total += losses.detach().sum()
            text += (losses.detach() * of_text).sum()
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, self.config.clip)
        self.optimizer.step(share)
        return StepLosses(text=text / max(1, texts), answers=(total - text) / max(1, count - texts))


def train(
    model: str | PreTrainedModel,
    config: DiffusionConfig,
    *,
    text: list[Path],
    out: Path,
    tokenizer: Any = None,
    workers: int = 0,
    smoke: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Trained:
    """Train a denoiser and write it to `out`/model, whole or not at all.

    Args:
        model: the causal model whose weights it begins with, as `longspan.load` takes it; tokenizer: for a loaded model.
        text: folders of .md, .txt or .py files, or of the reference recipe's shards. workers: processes that make rows.
        smoke: a tiny random model instead. report: gets every fiftieth record, the first and the last.

    Raises:
        ValueError: bad input, in one sentence, or a loss that is not finite.
    """
    if not (text or smoke):
        raise UserInputError("no text to train on; give --text FOLDER with .md, .txt or .py files")
    if (out / MODEL).exists():
        raise UserInputError(f"{out} holds a model already; choose another --out")
    check_folders(text)
    base = load_causal(model, tokenizer=tokenizer, smoke=smoke)
    recipe = config.recipe(base.window_tokens)
    out.mkdir(parents=True, exist_ok=True)
    made = make_rows(base.tokenizer, text, out, recipe, resume=False, smoke=smoke)
    kept, held_out = hold_out(made, config.held_out_tokens)
    rows = DiffusionRows(kept, tokenizer=base.tokenizer, block_tokens=config.block_tokens)
    # The workers are forked, so they start before the first use of a GPU. DiffusionRows makes rows as RowMaker does.
    feed = Feed(cast(RowMaker, rows), first_step=0, workers=workers)
    try:
        torch.manual_seed(config.seed)
        denoiser = make_denoiser(base, shift=config.shift, window_tokens=max(recipe.buckets)[0])
        device = pick_device()
        denoiser.to(device, preferred_attention(base.model, base.rope.rotary_dims, recipe, device))
        trainer = DiffusionTrainer(denoiser, config, recipe)
        history, steps, seconds = _run(trainer, feed, report)
    finally:
        feed.close()
    denoiser.model.eval()
    tokens = steps * recipe.step_tokens
    card = _card(base, config, recipe) | {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "held_out_tokens": len(held_out),
        "history": history,
    }
    denoiser.save(out / MODEL, card)
    return Trained(
        denoiser=denoiser,
        folder=out / MODEL,
        held_out=held_out,
        steps=steps,
        tokens=tokens,
        seconds=seconds,
        history=history,
    )


def preferred_attention(
    model: PreTrainedModel, head_dim: int, recipe: RecipeConfig, device: torch.device
) -> SDPBackend | None:
    """The quicker of two attention kernels for these rows on a GPU, measured; None on a CPU."""
    if device.type != "cuda":
        return None
    config = model.config.get_text_config(decoder=True)
    shape = ModelShape(
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
    )
    return fastest_attention(RecipeConfig(shape=shape, buckets=recipe.buckets), device)


def _run(
    trainer: DiffusionTrainer, feed: Feed, report: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], int, float]:
    """Steps until the schedule ends; the log, the steps, and their seconds."""
    config, recipe = trainer.config, trainer.recipe
    history: list[dict[str, Any]] = []
    began = time.monotonic()
    last = (0, began)
    for step, data in enumerate(feed):
        seconds = time.monotonic() - began
        done = config.steps is not None and step >= config.steps
        if done or (config.seconds is not None and seconds >= config.seconds):
            break
        losses = trainer.step(data, config.share(step, seconds))
        if step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            record = {"step": step + 1, "text": losses.text.item(), "answers": losses.answers.item()}
            if not np.isfinite(record["text"] + record["answers"]):
                raise UserInputError(
                    f"the loss is not finite at step {step + 1}; lower --peak and start anew"
                )
            now = time.monotonic()
            rate = (step + 1 - last[0]) * recipe.step_tokens / max(now - last[1], 1e-9)
            last = (step + 1, now)
            record |= {"tokens_per_second": round(rate), "seconds": round(now - began, 2)}
            history.append({name: round(value, 4) for name, value in record.items()})
            report(history[-1])
    else:
        raise AssertionError("a feed has no end")
    if trainer.denoiser.device.type == "cuda":
        torch.cuda.synchronize()
    return history, step, time.monotonic() - began


def _card(base: Base, config: DiffusionConfig, recipe: RecipeConfig) -> dict[str, Any]:
    return {
        "base": {"name": base.name, "fingerprint": base.fingerprint, "window_tokens": base.window_tokens},
        "settings": config.settings(),
        "rows": [list(bucket) for bucket in recipe.buckets],
        "step_tokens": recipe.step_tokens,
        "versions": versions(),
    }
