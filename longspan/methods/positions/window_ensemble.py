"""Windows of a text are read apart, each is asked the question, and their predictions are added up at every step.

Equation: the text is cut into N windows, each behind the text's first tokens and at the positions 0 .. W - 1; the
question and the answer so far follow every one of them. With z_n the logits of the next token behind window n,

    z = sum over n of  w_n z_n                    `combine_by=logits`: a product of the windows' predictions
    z = log( sum over n of  w_n softmax(z_n) )    `combine_by=probabilities`: their mixture

where the weights w add up to 1, at each step anew: 1 / N, or by how sure a window is of its next token,

    w_n ~ exp(-s H_n)    `weights=entropy`, H_n its entropy            w_n ~ exp(s log max p_n)    `weights=peak`

with the sharpness s. The windows are the rows of one batch: a step costs one forward.

Paper: Revisiting Parallel Context Windows: A Frustratingly Simple Alternative and Chain-of-Thought Deterioration
(2023), which finds such an ensemble as good, in classification, as windows that share one attention
(`parallel_windows`).

Differs from the paper: the paper adds up the logits of a classification's labels; here every token of an answer is
chosen so, over the whole vocabulary. Windows are cut by tokens, not between examples; the last one begins early
enough to be full, so that some tokens are read twice. Weights by confidence are ours.

Fails when: the answer takes tokens of several windows together; windows without the answer are as sure of theirs as
the one that has it, or are many; question and answer are longer than L - W, L the trained window. On the reference
model long numbers are often lost, unlike with `parallel_windows`: behind their first digits, windows that do not hold the
number repeat a digit and are sure of it, whatever the weights. A short fact is told when weights are sharp, and
less often when all windows count alike, or as a mixture.

    model = longspan.load("reference", methods="window_ensemble(weights=entropy, sharpness=3)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from longspan.roles import ModelInfo, Reader, Reading

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Revisiting Parallel Context Windows: A Frustratingly Simple Alternative and Chain-of-Thought Deterioration",
    "year": 2023,
    "paper_id": 211,
    "family": "positions",
    "roles": ["Reading"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens",
    "frees": "no",
    "needs": [],
    "claim": {
        "text": "without training, at twice the trained window, what windows predict apart, added up by how sure "
        "they are, tells a hidden fact, where the model as it is fails",
        "spec": "window_ensemble(weights=entropy, sharpness=3)",
        "task": "facts/single",
        "length_tokens": 8192,
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "window_ensemble(window_tokens=64)",
    "identity": "window_ensemble(window_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class WindowEnsemble(Reading):
    """Settings of the ensemble of windows."""

    window_tokens: int | None = None  # W; by default 3/4 of the trained window (paper: all but the question)
    head_tokens: int = 1  # first tokens of the text that every window begins with, such as its bos token
    combine_by: Literal["logits", "probabilities"] = "logits"  # what is added up; the paper's
    weights: Literal["uniform", "entropy", "peak"] = "uniform"  # the paper's
    sharpness: float = 1.0  # s, for weights by confidence; ours

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(
                f"got window_tokens={self.window_tokens}; allowed is 1 or more, or none for 3/4 of the trained window"
            )
        if self.head_tokens < 0 or (
            self.window_tokens is not None and self.head_tokens >= self.window_tokens
        ):
            raise ValueError(
                f"got head_tokens={self.head_tokens}; allowed is 0 or more, and less than window_tokens"
            )
        if self.combine_by not in ("logits", "probabilities"):
            raise ValueError(f"got combine_by={self.combine_by!r}; allowed is logits or probabilities")
        if self.weights not in ("uniform", "entropy", "peak"):
            raise ValueError(f"got weights={self.weights!r}; allowed is uniform, entropy or peak")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"got sharpness={self.sharpness:g}; allowed is a number above 0, such as 1")
        if self.weights == "uniform" and self.sharpness != 1.0:
            raise ValueError(
                f"got sharpness={self.sharpness:g} with weights=uniform, where it has no effect; "
                "write weights=entropy or weights=peak, or leave it out"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse windows that the head fills."""
        window = self._window(model)
        if self.head_tokens >= window:
            raise ValueError(
                f"window_ensemble: got head_tokens={self.head_tokens}, but windows have {window} tokens; give less"
            )

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        """Read the windows side by side; `run.origin` says where in the text each token stood."""
        text = torch.cat(list(ids))
        places = self.windows(len(text), self._window(reader.info))
        run = reader.prefill_rows(reader.new_run(num_tokens=places.shape[1]), text[places])
        run.origin = places.flatten()
        return run

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        """Read on behind every window, as a question would be read."""
        branch = super().extend(reader, run, ids)
        first, added = int(run.origin[-1]) + 1, len(branch.ids) - len(run.origin)
        branch.origin = torch.cat([run.origin, torch.arange(first, first + added)])
        return branch

    def windows(self, num_tokens: int, window: int) -> Tensor:
        """Places in a text of the tokens of each window, int64 `[N, W]`; of a text within one, `[1, num_tokens]`."""
        if num_tokens <= window:
            return torch.arange(num_tokens)[None]
        head, own = self.head_tokens, window - self.head_tokens
        starts = torch.arange(head, num_tokens, own).clamp(max=num_tokens - own)
        inside = starts[:, None] + torch.arange(own)
        return torch.cat([torch.arange(head).expand(len(starts), -1), inside], dim=1)

    def combine(self, logits: Tensor) -> Tensor:
        """The windows' logits `[N, V]` as one, `[1, V]`."""
        if len(logits) == 1:
            return logits
        likely = logits.log_softmax(-1)
        log_weights = self._log_weights(likely)[:, None]
        if self.combine_by == "logits":
            return (log_weights.exp() * likely).sum(0, keepdim=True)
        return (log_weights + likely).logsumexp(0, keepdim=True)

    def _log_weights(self, likely: Tensor) -> Tensor:
        """Logs of the weights `[N]`, from log-probabilities `[N, V]`."""
        sure = torch.zeros_like(likely[:, 0])
        if self.weights == "entropy":
            sure = (likely.exp() * likely.clamp(min=torch.finfo(likely.dtype).min)).sum(-1)
        elif self.weights == "peak":
            sure = likely.amax(-1)
        return (self.sharpness * sure).log_softmax(0)

    def _window(self, model: ModelInfo) -> int:
        return self.window_tokens or max(1, 3 * model.window_tokens // 4)
