"""What a trained reference model can do, on text and seeds it was not trained on: the table of its model card."""

import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.sample import assemble, make_sample, score
from longspan.evaluation.suites import facts, keyvalue, ruler
from longspan.evaluation.task import Sample
from longspan.reference.export import load_exported
from longspan.reference.shards import read_shards
from longspan.reference.tokenizer import load_tokenizer

FIRST_SEED = 1_000_000
SUITES = {"ruler": ruler.TASKS, "keyvalue": keyvalue.TASKS, "facts": facts.TASKS}
LENGTHS = (512, 1024, 2048, 4096)
STRETCH_TASKS = (
    "ruler/niah_single_2",
    "keyvalue/keys8_numbers",
    "keyvalue/keys8_facts",
    "keyvalue/kv64",
    "facts/single",
)
BATCH_TOKENS = 900_000
MAX_NEW_TOKENS = 100
MAX_HAYSTACK_TOKENS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids of a prompt that ends where the answer starts, and the sample that scores it."""

    ids: list[int]
    sample: Sample


class PromptMaker:
    """Samples as prompts, made in worker processes that share the haystacks."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        self.tokenizer, self.text, self.noise = tokenizer, Haystack(text), noise_haystack()

    def encode(self, *parts: str) -> list[int]:
        """Ids of parts that are tokenised each by itself."""
        encode = self.tokenizer.backend_tokenizer.encode
        return [index for part in parts if part for index in encode(part, add_special_tokens=False).ids]

    def prompt(self, name: str, length: int, seed: int) -> Prompt | None:
        """The prompt of one task, or None where the task does not fit that length."""
        if name == "facts/second_question":
            return self._second_question(length, seed)
        suite, task_name = name.split("/")
        task = SUITES[suite][task_name]
        haystack = self.noise if task.haystack == "noise" else self.text
        try:
            sample = make_sample(
                task, name=name, haystack=haystack, length_tokens=length, tokenizer=self.tokenizer, seed=seed
            )
        except ValueError:  # the task says that this length is too small for it
            return None
        tail = f" {sample.answer_prefix}" if sample.answer_prefix else ""
        ids = self.encode(sample.context, f"\n\n{sample.question}\nAnswer:", tail)
        return Prompt(ids=[self.tokenizer.bos_token_id, *ids], sample=sample)

    def _second_question(self, length: int, seed: int) -> Prompt:
        """Eight facts, two asked one after the other; the second answer counts."""
        rng = random.Random(f"second/{length}/{seed}")
        known = facts.draw_facts(8, rng, same_template=bool(seed % 2))
        puzzle = facts.fact_puzzle(known, rng)
        first = next(fact for fact in known if fact.question != puzzle.question)
        sample = assemble(
            puzzle, self.text, length - 40, self.tokenizer, rng, seed=seed, task="second_question"
        )
        ids = [self.tokenizer.bos_token_id, *self.encode(sample.context, f"\n\n{first.question}\nAnswer:")]
        ids += [*self.encode(f" {first.answer}."), self.tokenizer.eos_token_id]
        return Prompt(ids=[*ids, *self.encode(f"\n\n{sample.question}\nAnswer:")], sample=sample)


_MAKER: PromptMaker | None = None


def _make_prompts(job: tuple[str, int, list[int]]) -> list[Prompt]:
    assert _MAKER is not None
    name, length, seeds = job
    found = [_MAKER.prompt(name, length, seed) for seed in seeds]
    return [prompt for prompt in found if prompt is not None]


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]) -> list[str]:
    """Greedy answers with stock `generate`, in left-padded batches."""
    longest = max(len(prompt.ids) for prompt in prompts)
    rows = max(1, BATCH_TOKENS // longest)
    answers: list[str] = []
    for first in range(0, len(prompts), rows):
        batch = prompts[first : first + rows]
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        limit = min(MAX_NEW_TOKENS, max(prompt.sample.max_new_tokens for prompt in batch))
        made = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
    return answers


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, tokens: np.ndarray, *, window: int, windows: int, bos: int) -> float:
    """exp of the mean loss over `windows` evenly spaced windows of held-out text, bos before each."""
    starts = np.linspace(0, len(tokens) - window, windows).astype(int)
    total, count = 0.0, 0
    for first in range(0, windows, 16):
        rows = [
            np.concatenate([[bos], tokens[start : start + window - 1]])
            for start in starts[first : first + 16]
        ]
        ids = torch.from_numpy(np.stack(rows).astype(np.int64)).to(model.device)
        logits = model(ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + losses.item(), count + ids[:, 1:].numel()
    return math.exp(total / count)


def set_rope_base(model: LlamaForCausalLM, factor: float, *, base: float = 10_000.0) -> None:
    """Multiply the base of the rotary frequencies, for a look past the window (NTK scaling)."""
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": base * factor}
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(model.device)


def jobs(num_samples: int) -> list[tuple[str, str, int, float, int]]:
    """(table, task, length, rope base factor, samples) of everything measured."""
    names = [f"{suite}/{task}" for suite, tasks in SUITES.items() for task in tasks] + [
        "facts/second_question"
    ]
    plan = [("tasks", name, length, 1.0, num_samples) for length in LENGTHS for name in names]
    few = max(2, num_samples // 2)
    for factor in (1.0, 2 ** (64 / 62), 3.0):
        plan += [(f"8192, rope base x{factor:.2f}", name, 8192, factor, few) for name in STRETCH_TASKS]
    for factor in (4 ** (64 / 62), 8.0):
        plan += [(f"16384, rope base x{factor:.2f}", name, 16384, factor, few // 2) for name in STRETCH_TASKS]
    return plan


def measure(
    folder: Path,
    shards: Iterable[Path],
    *,
    num_samples: int,
    device: str,
    workers: int,
    seconds: float = float("inf"),
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores of every task and length, answers past the window with a larger rope base, held-out perplexity.

    Stops after `seconds` with what there is; "complete" in the result says whether all was measured.
    """
    global _MAKER
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    began = time.monotonic()
    tokenizer = load_tokenizer(folder)
    tokens = read_shards(shards, "heldout", bos=tokenizer.bos_token_id, processes=1).tokens
    tokens = tokens[tokens != tokenizer.bos_token_id]
    _MAKER = PromptMaker(tokenizer, tokenizer.decode(tokens[:MAX_HAYSTACK_TOKENS].tolist()))
    _MAKER.prompt("facts/single", 512, 0)
    plan = jobs(num_samples)
    table: dict[str, Any] = {"num_samples": num_samples, "complete": True, "perplexity": {}}
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        made = pool.map(_make_prompts, [
            (name, length, list(range(FIRST_SEED, FIRST_SEED + count))) for _, name, length, _, count in plan
        ])  # fmt: skip
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = load_exported(folder, dtype=dtype, device=device)
        for window, windows in ((512, 256), (1024, 128), (4096, 64)):
            value = perplexity(model, tokens, window=window, windows=windows, bos=tokenizer.bos_token_id)
            table["perplexity"][str(window)] = round(value, 2)
        report(f"perplexity {table['perplexity']}")
        factor_now = 1.0
        for (kind, name, length, factor, _), prompts in zip(plan, made, strict=True):
            if time.monotonic() - began > seconds:
                table["complete"] = False
                pool.shutdown(wait=False, cancel_futures=True)
                break
            if not prompts:
                continue
            if factor != factor_now:
                set_rope_base(model, factor)
                factor_now = factor
            replies = answer(model, tokenizer, prompts)
            mean = sum(
                score(reply, prompt.sample) for reply, prompt in zip(replies, prompts, strict=True)
            ) / len(prompts)
            table.setdefault(kind, {}).setdefault(name, {})[str(length)] = round(100 * mean, 1)
            wrong = next((r for r, p in zip(replies, prompts, strict=True) if score(r, p.sample) < 1), "")
            report(
                f"{kind} {name} {length}: {100 * mean:.1f} ({time.monotonic() - began:.0f} s) {wrong[:60]!r}"
            )
    table["seconds"] = round(time.monotonic() - began)
    return table
