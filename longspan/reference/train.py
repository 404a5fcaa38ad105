"""The training loop: wall-clock limited pieces of one schedule, with a checkpoint between them."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longspan.reference.config import RecipeConfig
from longspan.reference.feed import Feed, StepData
from longspan.reference.network import Network, rotary_table
from longspan.reference.optimizer import Optimizer

CHECKPOINT = "checkpoint.pt"
LOG_EVERY = 50
MEASURE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a piece ended. seconds: compute time of all pieces together."""

    step: int
    tokens: int
    seconds: float
    finished: bool
    history: list[dict[str, Any]]


def pick_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_checkpoint(
    folder: Path, network: Network, optimizer: Optimizer, progress: Progress, config: RecipeConfig
) -> None:
    """Write weights, optimiser state, step and schedule to one file; the old one stays until the new one is whole."""
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "config": _fingerprint(config),
    }
    temporary = folder / (CHECKPOINT + ".part")
    torch.save(state, temporary)
    os.replace(temporary, folder / CHECKPOINT)


def load_checkpoint(folder: Path, network: Network, optimizer: Optimizer, config: RecipeConfig) -> Progress:
    """Restore a run.

    Raises:
        ValueError: there is no checkpoint, or it belongs to another recipe.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"nothing to resume: {str(path)!r} does not exist; start without --resume")
    state = torch.load(path, map_location=network.embed.device, weights_only=True)
    if state["config"] != _fingerprint(config):
        raise ValueError(
            f"{str(path)!r} belongs to a run with other settings; resume with the same ones or start anew"
        )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def _fingerprint(config: RecipeConfig) -> str:
    """Every setting but the schedule's length, which may be planned anew when a run goes on."""
    return json.dumps(asdict(config) | {"total_tokens": None}, sort_keys=True)


def peek_step(folder: Path) -> int:
    """The step at which the checkpoint in `folder` stands; 0 without one."""
    path = folder / CHECKPOINT
    return (
        torch.load(path, map_location="cpu", weights_only=True)["progress"]["step"] if path.is_file() else 0
    )


def answer_accuracy(batch: StepData, predicted: np.ndarray) -> dict[str, tuple[int, int]]:
    """Answers all of whose tokens are predicted right, and answers, by kind and row length.

    `predicted[i]` is the prediction made at place i, for place i + 1. Later turns count under "turn2+".
    """
    table: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, length, turn, start, end in batch.answers:
        right = bool((predicted[start - 1 : end - 1] == batch.tokens[start:end]).all())
        for name in (f"{kind}/{length}", *([f"turn2+/{length}"] if turn else [])):
            table[name][0] += right
            table[name][1] += 1
    return {name: (right, count) for name, (right, count) in table.items()}


def fastest_attention(config: RecipeConfig, device: torch.device) -> SDPBackend:
    """The quicker of cuDNN's and flash attention for the longest rows, forward and backward, measured on this GPU."""
    shape, (length, rows) = config.shape, max(config.buckets)
    heads = (shape.query_heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (
        torch.randn(rows, length, num, shape.head_dim, device=device, dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for num in heads
    )
    times: dict[SDPBackend, float] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        try:
            with sdpa_kernel(backend):
                for _ in range(6):
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
                    torch.cuda.synchronize()
                    times[backend] = time.perf_counter() - began
        except RuntimeError:  # a backend that does not take these shapes on this GPU
            times.pop(backend, None)
    if not times:
        raise RuntimeError(
            "neither cuDNN nor flash attention takes grouped heads on this GPU; use torch 2.11 or newer"
        )
    print(
        json.dumps(
            {"attention_seconds": {backend.name: round(spent, 5) for backend, spent in times.items()}}
        ),
        flush=True,
    )
    return min(times, key=lambda backend: times[backend])


class Trainer:
    """Runs steps of one recipe on one device."""

    def __init__(self, config: RecipeConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        on_gpu = device.type == "cuda"
        torch.backends.cuda.matmul.allow_tf32 = True
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self.network = Network(config.shape, compute_dtype=dtype, compile_blocks=on_gpu).to(device)
        self.optimizer = Optimizer(self.network, config)
        self.lengths = list(config.buckets)
        self.cos, self.sin = rotary_table(config.shape, self.lengths, device)
        self.attention = fastest_attention(config, device) if on_gpu else SDPBackend.FLASH_ATTENTION
        lasts = (
            np.cumsum(np.repeat([length for length, _ in self.lengths], [rows for _, rows in self.lengths]))
            - 1
        )
        self.lasts = torch.from_numpy(lasts).to(device)

    def _to_device(self, batch: StepData) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(batch.tokens.astype(np.int32))
        weights = torch.from_numpy(batch.weights)
        if self.device.type == "cuda":
            tokens, weights = tokens.pin_memory(), weights.pin_memory()
        tokens = tokens.to(self.device, non_blocking=True).long()
        weights = weights.to(self.device, non_blocking=True).float().roll(-1)
        weights[self.lasts] = 0.0
        return tokens, tokens.roll(-1), weights

    def step(self, batch: StepData, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One step at `share` of the learning rates. Returns mean loss of plain text and of answers, on the device."""
        tokens, targets, weights = self._to_device(batch)
        with sdpa_kernel(self.attention):
            loss, losses = self.network.loss(tokens, targets, weights, self.lengths, self.cos, self.sin)
            loss.backward()
        self.optimizer.step(share)
        text, answers = (weights == 1).float(), (weights > 1).float()
        return (losses * text).sum() / text.sum(), (losses * answers).sum() / answers.sum().clamp_min(1)

    @torch.no_grad()
    def measure(self, batch: StepData) -> dict[str, tuple[int, int]]:
        """Exact answers on a step's rows, before it is trained on."""
        tokens, _, _ = self._to_device(batch)
        with sdpa_kernel(self.attention):
            predicted = self.network.predictions(tokens, self.lengths, self.cos, self.sin)
        return answer_accuracy(batch, predicted.cpu().numpy())


def run(
    trainer: Trainer,
    feed: Feed,
    start: Progress,
    *,
    deadline: float,
    fit: bool,
    report: Callable[[dict[str, Any]], None],
) -> Progress:
    """Train until the schedule ends or `time.monotonic()` passes `deadline`.

    With `fit`, the learning rate falls to zero at the deadline instead of at the last planned step.
    """
    config = trainer.config
    history, began = list(start.history), time.monotonic()
    first_step_done = began
    last_log, step = (began, start.step), start.step
    exact: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for batch in feed:
        if step >= config.total_steps or time.monotonic() > deadline:
            break
        assert batch.step == step
        if step % MEASURE_EVERY >= MEASURE_EVERY - 4:
            for name, (right, count) in trainer.measure(batch).items():
                exact[name][0] += right
                exact[name][1] += count
        left = (deadline - time.monotonic()) / (deadline - first_step_done) if fit else 1.0
        share = config.peak * min((step + 1) / config.warmup_steps, left) if fit else config.rate(step)
        text, answers = trainer.step(batch, max(0.0, share))
        step += 1
        if step == start.step + 1:  # the first step compiles: its time is no measure of the others'
            text.item()
            first_step_done = time.monotonic()
        if step % LOG_EVERY == 0 or step == config.total_steps:
            now = time.monotonic()
            record: dict[str, Any] = {
                "step": step,
                "text_loss": round(text.item(), 4),
                "answer_loss": round(answers.item(), 4),
                "tokens_per_second": round((step - last_log[1]) * config.step_tokens / (now - last_log[0])),
            }
            last_log = (now, step)
            if exact and step % MEASURE_EVERY == 0:
                record["exact"] = {name: f"{right}/{count}" for name, (right, count) in sorted(exact.items())}
                exact.clear()
            history.append({name: value for name, value in record.items() if name != "exact"})
            report(record)
            if not np.isfinite(record["text_loss"]):
                raise RuntimeError(f"the loss is not finite at step {step}; lower the learning rates")
    return Progress(
        step=step,
        tokens=step * config.step_tokens,
        seconds=start.seconds + time.monotonic() - began,
        finished=step >= config.total_steps,
        history=history,
    )
