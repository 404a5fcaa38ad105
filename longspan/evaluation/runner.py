"""Specs x tasks x lengths x depths x seeds on one model, sample by sample, resumable.

Every sample is built once and put to every spec. Short lengths run first, so that what a longer one costs is known
before it is tried. What cannot run, or costs more than the limit, becomes a "skipped" row that says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.errors import UserInputError
from longspan.evaluation.exams import FIRST_SEED
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.limits import Limits, refusal
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.registry import TaskEntry, find_task
from longspan.evaluation.results import ResultLog, row_key

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

__all__ = ["FIRST_SEED", "Case", "Job", "Outcome", "Runner", "Setup", "grid", "open_haystack"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sample: task name, length in tokens, depth of the answer (0..1; None: the task chooses) and seed."""

    task: str
    length_tokens: int
    depth: float | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case and the canonical specs it is put to."""

    case: Case
    specs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row, and whether it was already in the results file."""

    row: dict[str, Any]
    resumed: bool


def grid(
    *,
    specs: Sequence[str],
    tasks: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float | None],
    seeds: Sequence[int],
    tokenizer: Any,
    samples: int | None = None,
) -> list[Job]:
    """All cases of a benchmark, short lengths first; within a length seed by seed, for an even picture early on.

    A task whose evidence is spread over the text takes no depth and runs once a seed; one with published questions runs
    each of them at most once.

    Args:
        specs: canonical specs.
        tasks: task names, see `longspan.evaluation.registry`.
        lengths: in tokens.
        depths: 0..1; None leaves the place to the task.
        seeds: in order; with `samples` they are continued by counting up from the last.
        tokenizer: of the model; some tasks size their puzzles by it.
        samples: cases a (task, length); None: every depth with every seed.

    Returns:
        Jobs in the order they should run.
    """
    jobs = []
    for length in sorted(set(lengths)):
        columns = []
        for task in tasks:
            usable = list(dict.fromkeys(depths)) if _takes_depth(task, length, tokenizer) else [None]
            cases = _cases(
                find_task(task).name, length, usable, list(dict.fromkeys(seeds)), endless=samples is not None
            )
            columns.append(list(islice(cases, _fewer(samples, _num_items(task)))))
        for place in range(max(map(len, columns), default=0)):
            jobs += [Job(case=column[place], specs=tuple(specs)) for column in columns if place < len(column)]
    return jobs


def _takes_depth(task: str, length: int, tokenizer: Any) -> bool:
    try:
        return find_task(task).exam.takes_depth(length, tokenizer)
    except ValueError:
        # Too short for this task: building the item says so, and that becomes the row's reason.
        return False


def _num_items(task: str) -> int | None:
    try:
        return find_task(task).exam.num_items()
    except ValueError:
        # No data: one case a length is enough to say so.
        return 1


def _fewer(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _cases(
    task: str, length: int, depths: Sequence[float | None], seeds: Sequence[int], endless: bool
) -> Iterator[Case]:
    for seed in _counting(seeds) if endless else seeds:
        for depth in depths:
            yield Case(task=task, length_tokens=length, depth=depth, seed=seed)


def _counting(seeds: Sequence[int]) -> Iterator[int]:
    yield from seeds
    seed = max(seeds)
    while True:
        seed += 1
        yield seed


def open_haystack(name: str) -> tuple[str, Haystack]:
    """A haystack and its name in result rows, which carries a digest of the text.

    Args:
        name: "pydoc", "noise", "keyvalue" (RULER's needle lines), or a text file or folder of text files.

    Raises:
        UserInputError: no such text.
    """
    from longspan.evaluation.haystacks.keyvalue import keyvalue_haystack
    from longspan.evaluation.haystacks.noise import noise_haystack
    from longspan.evaluation.haystacks.pydoc import pydoc_haystack
    from longspan.evaluation.haystacks.text import text_haystack

    made = {"pydoc": pydoc_haystack, "noise": noise_haystack, "keyvalue": keyvalue_haystack}
    if name in made:
        haystack, shown = made[name](), name
    elif Path(name).exists():
        haystack, shown = text_haystack(Path(name)), Path(name).resolve().name
    else:
        raise UserInputError(
            f"there is no haystack {name!r}; allowed are 'pydoc', 'noise', 'keyvalue', or a text file or folder that exists"
        )
    joined = "".join(haystack.sentences)
    if "\x00" in joined:
        raise UserInputError(f"the haystack {name!r} looks like a binary file; give plain text")
    digest = hashlib.sha256(joined.encode()).hexdigest()[:8]
    return f"{shown}:{digest}", haystack


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same in every row of a run.

    Attributes:
        model, fingerprint, device, dtype: which weights, where, in which type.
        haystack: name with a digest of the text.
        versions: of python, longspan, torch and transformers.
        commit: of the source tree; None outside git.
    """

    model: str
    fingerprint: str
    device: str
    dtype: str
    haystack: str
    versions: dict[str, str]
    commit: str | None

    @classmethod
    def of(cls, model: SpanModel, haystack: str) -> Setup:
        """Read off the loaded model."""
        info = model.info
        return cls(
            model=model.name,
            fingerprint=info.fingerprint,
            device=device_name(info.device),
            dtype=str(info.dtype).removeprefix("torch."),
            haystack=haystack,
            versions=versions(),
            commit=commit(),
        )


def device_name(device: Any) -> str:
    """The GPU's product name, else the device type."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


@dataclass(kw_only=True)
class Runner:
    """Runs jobs and appends their rows to the results file.

    Args:
        model: loaded weights; `model.with_methods(spec)` gives each spec's model.
        haystack: what to hide things in.
        setup: see `Setup`.
        log: results file.
        limits: when a sample costs too much to try.
    """

    model: SpanModel
    haystack: Haystack
    setup: Setup
    log: ResultLog
    limits: Limits
    _models: dict[str, Any] = field(default_factory=dict, init=False)

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Rows in order, each as soon as it is measured, or found in the results file.

        Raises:
            OSError: the results file cannot be written; all rows before are on disk.
        """
        for job in jobs:
            entry = find_task(job.case.task)
            keys = {spec: self.key(job.case, spec) for spec in job.specs}
            known = {spec: row for spec, key in keys.items() if (row := self.log.done(key)) is not None}
            item, problem = None, None
            if len(known) < len(job.specs):
                item, problem = self._build(entry, job.case)
            for spec in job.specs:
                if spec in known:
                    row = known[spec]
                else:
                    row = self._row(entry, job.case, spec, item, problem)
                    self.log.append(row)
                self.limits.learn(row)
                yield Outcome(row=row, resumed=spec in known)

    def key(self, case: Case, spec: str) -> str:
        """Key of the row that this case and spec make."""
        return row_key(self._identity(find_task(case.task), case, spec))

    def _identity(self, entry: TaskEntry, case: Case, spec: str) -> dict[str, Any]:
        return {
            "suite": entry.suite,
            "task": entry.name,
            "kind": entry.exam.kind,
            "spec": spec,
            "length_tokens": case.length_tokens,
            "depth": case.depth,
            "seed": case.seed,
            "model": self.setup.model,
            "fingerprint": self.setup.fingerprint,
            "device": self.setup.device,
            "dtype": self.setup.dtype,
            "haystack": self.setup.haystack,
            "generator": entry.generator,
            "longspan": self.setup.versions["longspan"],
        }

    def _build(self, entry: TaskEntry, case: Case) -> tuple[Any, str | None]:
        try:
            item = entry.exam.build(
                length_tokens=case.length_tokens,
                depth=case.depth,
                seed=case.seed,
                haystack=self.haystack,
                tokenizer=self.model.tokenizer,
            )
        except (ValueError, MemoryError) as error:
            return None, refusal(error)
        return item, None

    def _row(self, entry: TaskEntry, case: Case, spec: str, item: Any, problem: str | None) -> dict[str, Any]:
        identity = self._identity(entry, case, spec)
        row = {
            "key": row_key(identity),
            "status": "done",
            "reason": None,
            **identity,
            "versions": self.setup.versions,
            "commit": self.setup.commit,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        problem = problem or self.limits.too_costly(spec, case.length_tokens, entry.exam.kind)
        if problem is None:
            try:
                return row | entry.exam.measure(self._with(spec), item)
            except (ValueError, RuntimeError, MemoryError) as error:
                problem = refusal(error)
                if problem is None:
                    raise
        return row | {"status": "skipped", "reason": problem}

    def _with(self, spec: str) -> Any:
        if spec not in self._models:
            self._models[spec] = self.model.with_methods(spec)
        return self._models[spec]
