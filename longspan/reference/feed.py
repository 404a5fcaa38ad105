"""Steps of training data made by worker processes while the device computes.

Step number and seed alone decide a step's rows, so that a resumed run goes on as if it had never stopped.
"""

import multiprocessing
import os
import queue
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkProcess

import numpy as np

from longspan.reference.rows import RowMaker

QUEUED_STEPS = 4
STALLED_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class StepData:
    """One step. tokens: uint16 [N], weights: uint8 [N], rows of one length together, as in `RecipeConfig.buckets`.

    answers: (kind, row length, turn, start, end), places in the flat tokens.
    """

    step: int
    tokens: np.ndarray
    weights: np.ndarray
    answers: list[tuple[str, int, int, int, int]]


def make_step(maker: RowMaker, step: int) -> StepData:
    """The rows of one step."""
    rng = random.Random(f"{maker.config.seed}/{step}")
    tokens, weights, answers, position = [], [], [], 0
    for length, rows in maker.config.buckets:
        for _ in range(rows):
            row = maker.make(rng, length)
            tokens.append(row.tokens)
            weights.append(row.weights)
            for answer in row.answers:
                place = (position + answer.start, position + answer.end)
                answers.append((answer.kind, length, answer.turn, *place))
            position += length
    return StepData(
        step=step, tokens=np.concatenate(tokens), weights=np.concatenate(weights), answers=answers
    )


def _work(maker: RowMaker, first: int, stride: int, out: multiprocessing.Queue) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    step = first
    while True:
        out.put(make_step(maker, step))
        step += stride


class Feed:
    """Steps in order, from `first_step`. Start it before the first use of a GPU: the workers are forked."""

    def __init__(self, maker: RowMaker, *, first_step: int, workers: int) -> None:
        self.maker, self.step = maker, first_step
        self.queues: list[multiprocessing.Queue] = []
        self.processes: list[ForkProcess] = []
        context = multiprocessing.get_context("fork")
        for index in range(workers):
            steps = context.Queue(maxsize=QUEUED_STEPS)
            process = context.Process(
                target=_work, args=(maker, first_step + index, workers, steps), daemon=True
            )
            process.start()
            self.queues.append(steps)
            self.processes.append(process)
        self.first_step = first_step

    def __iter__(self) -> Iterator[StepData]:
        while True:
            if not self.queues:
                yield make_step(self.maker, self.step)
            else:
                yield self._take((self.step - self.first_step) % len(self.queues))
            self.step += 1

    def _take(self, index: int) -> StepData:
        for _ in range(STALLED_SECONDS):
            try:
                return self.queues[index].get(timeout=1)
            except queue.Empty:
                if not self.processes[index].is_alive():
                    break
        raise RuntimeError(f"data worker {index} gave no step {self.step}; its own error stands above")

    def close(self) -> None:
        """End the workers."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(timeout=5)
