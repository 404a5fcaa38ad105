"""Finds the retrieval heads of a model: gates between full and streaming attention, trained on passkeys in long text.

The model's own forward runs with an attention function of ours, entered in transformers' registry for the time of the
training and taken out again; its weights are never touched.

Axis legend: B batch (1 here), T tokens, H query heads, K kv heads, D head dim, L layers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "longspan_duo_gates"
QUERY_BLOCK_TOKENS = 1024
KEY_WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike "
    "november oscar papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
).split()
NEEDLE = " One of the special magic numbers for {key} is: {value}."
QUESTION = "\n\nWhat is the special magic number for {key} mentioned in the provided text?\nAnswer:"
ANSWER = " The special magic number for {key} mentioned in the provided text is {value}."


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A text with passkeys and the questions behind it. ids: int64 `[T]`; scored: the places that predict a value."""

    ids: Tensor
    scored: Tensor


def identify_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    steps: int = 40,  # ours: enough for a small model; the paper trains 2,000
    min_tokens: int = 600,
    max_tokens: int = 1200,  # ours, for minutes on a CPU; the paper goes from 1,000 to the model's window
    num_passkeys: int = 5,  # ours, as the texts are shorter; the paper hides 10
    sink_tokens: int = 16,  # ours, as the texts are shorter; the paper's training takes 128
    recent_tokens: int = 64,  # ours, likewise; the paper's training takes 256
    l1_weight: float = 0.05,  # the paper's lambda
    learning_rate: float = 0.05,  # ours, as steps are fewer; the paper takes 0.02
    seed: int = 0,
    on_step: Callable[[int, float, Tensor], None] | None = None,
) -> Tensor:
    """Train the gates of a model.

    Args:
        model: a causal language model of transformers; left exactly as it was.
        tokenizer: its tokenizer.
        text: prose to hide passkeys in, at least `max_tokens` tokens of it.
        steps: optimiser steps, one text each.
        min_tokens, max_tokens: the lengths of the texts, drawn evenly.
        num_passkeys: passkeys in each text, all of which are asked.
        sink_tokens, recent_tokens: what a streaming head sees in training.
        l1_weight: pressure towards 0 on the mean gate.
        learning_rate: of Adam, with a linear rise over the first fifth and a linear fall over the last.
        on_step: called with the step, the loss and the gates `[L, K]` after each step.

    Returns:
        gates float32 `[L, K]`, 0 to 1; NaN in layers with a sliding window of their own.

    Raises:
        ValueError: settings out of range, too little text, or a model whose attention cannot be mixed.
    """
    _check(steps, min_tokens, max_tokens, num_passkeys, sink_tokens, recent_tokens)
    device = model.get_input_embeddings().weight.device
    text_ids = _encode(tokenizer, text)
    if len(text_ids) < max_tokens:
        raise ValueError(
            f"got a text of {len(text_ids)} tokens; give one of {max_tokens} or more, or a smaller max_tokens"
        )
    rng = random.Random(seed)
    mixer = Mixer(sink_tokens=sink_tokens, recent_tokens=recent_tokens)
    with torch.enable_grad(), mixing(model, mixer):
        _read_shapes(model, mixer, text_ids[:8].to(device))
        optimizer = torch.optim.Adam(list(mixer.gates.values()), lr=learning_rate)
        for step in range(steps):
            lesson = make_lesson(tokenizer, text_ids, rng, rng.randint(min_tokens, max_tokens), num_passkeys)
            ids, scored = lesson.ids[None].to(device), lesson.scored.to(device)
            with torch.no_grad():
                wanted = _hidden(model, mixer, ids, mix=False)[0, scored].float()
            got = _hidden(model, mixer, ids, mix=True)[0, scored].float()
            error = (got - wanted).pow(2).mean() / wanted.pow(2).mean()
            loss = error + l1_weight * torch.cat(list(mixer.gates.values())).mean()
            optimizer.param_groups[0]["lr"] = learning_rate * _rate(step, steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for gate in mixer.gates.values():
                    gate.clamp_(0.0, 1.0)
            if on_step is not None:
                on_step(step, float(loss.detach()), mixer.table())
    return mixer.table()


def make_lesson(
    tokenizer: PreTrainedTokenizerBase,
    text_ids: Tensor,
    rng: random.Random,
    num_tokens: int,
    num_passkeys: int,
) -> Lesson:
    """A piece of the text with passkeys at random places, then a question and answer for each in random order."""
    pairs = rng.sample([f"{a} {b}" for a in KEY_WORDS for b in KEY_WORDS if a != b], num_passkeys)
    values = {key: str(rng.randint(1_000_000, 9_999_999)) for key in pairs}
    needles = [_encode(tokenizer, NEEDLE.format(key=key, value=value)) for key, value in values.items()]
    turns: list[Tensor] = []
    scored: list[Tensor] = []
    for key in rng.sample(pairs, len(pairs)):
        before, value = ANSWER.format(key=key, value="\0").split("\0")[0].rstrip(), f" {values[key]}"
        asked = _encode(tokenizer, QUESTION.format(key=key) + before)
        answer, end = _encode(tokenizer, value), _encode(tokenizer, ".")
        turns += [asked, answer, end]
        scored += [_flags(len(asked) - 1, 0), _flags(len(answer), 1), _flags(1 + len(end), 0)]
    head = [] if tokenizer.bos_token_id is None else [torch.tensor([tokenizer.bos_token_id])]
    room = num_tokens - sum(map(len, [*head, *needles, *turns]))
    if room < 2 * num_passkeys:
        raise ValueError(
            f"{num_passkeys} passkeys and their questions leave no room for text in {num_tokens} tokens; "
            "ask for fewer num_passkeys or a larger min_tokens"
        )
    start = rng.randrange(len(text_ids) - room + 1)
    places = sorted(rng.randint(0, room) for _ in needles)
    pieces, previous = list(head), 0
    for place, needle in zip(places, needles, strict=True):
        pieces += [text_ids[start + previous : start + place], needle]
        previous = place
    pieces.append(text_ids[start + previous : start + room])
    context = torch.cat(pieces)
    marks = torch.cat([_flags(len(context), 0), *scored])
    return Lesson(ids=torch.cat([context, *turns]), scored=marks.nonzero()[:, 0])


class Mixer:
    """The attention function of the training, and the gates it mixes by: `{layer: [K]}`."""

    def __init__(self, *, sink_tokens: int, recent_tokens: int) -> None:
        self.sink_tokens, self.recent_tokens = sink_tokens, recent_tokens
        self.gates: dict[int, Tensor] = {}
        self.kv_heads: dict[int, int] = {}
        self.closed: set[int] = set()
        self.mix = False

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """`[B, H, T, D]`, `[B, K, T, D]` to `[B, T, H, D]`; one text a batch, so the mask is causality alone."""
        if softcap is not None or s_aux is not None:
            raise ValueError(
                f"{type(module).__name__} caps its logits or has sinks of its own, so its heads cannot be gated; "
                "name the heads yourself with retrieval_heads=[...]"
            )
        index = int(module.layer_idx)  # type: ignore[arg-type]
        if index not in self.kv_heads:
            self.kv_heads[index] = key.shape[1]
            if sliding_window is not None:
                self.closed.add(index)
        window = sliding_window or query.shape[2]
        if not self.mix or index in self.closed:
            return streaming_attention(query, key, value, 0, window, scaling).transpose(1, 2), None
        full = streaming_attention(query, key, value, 0, window, scaling)
        near = streaming_attention(query, key, value, self.sink_tokens, self.recent_tokens, scaling)
        alpha = (
            self.gates[index]
            .repeat_interleave(query.shape[1] // key.shape[1])[None, :, None, None]
            .to(full.dtype)
        )
        return (alpha * full + (1 - alpha) * near).transpose(1, 2), None

    def table(self) -> Tensor:
        """The gates `[L, K]`, NaN where a layer has none."""
        rows = [
            torch.full((heads,), float("nan"))
            if index in self.closed
            else self.gates[index].detach().float().cpu()
            for index, heads in sorted(self.kv_heads.items())
        ]
        return torch.stack(rows)


def streaming_attention(
    queries: Tensor, keys: Tensor, values: Tensor, sink_tokens: int, recent_tokens: int, scale: float | None
) -> Tensor:
    """Attention `[B, H, T, D]` to the first `sink_tokens` keys and the latest `recent_tokens`, its own included."""
    num_tokens = queries.shape[2]
    given = {"scale": scale, "enable_gqa": queries.shape[1] != keys.shape[1]}
    if recent_tokens >= num_tokens:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, **given)  # type: ignore[arg-type]
    at = torch.arange(num_tokens, device=keys.device)
    blocks = []
    for start in range(0, num_tokens, QUERY_BLOCK_TOKENS):
        stop = min(start + QUERY_BLOCK_TOKENS, num_tokens)
        low = max(0, start - recent_tokens + 1)
        sink = min(sink_tokens, low)
        places, query = torch.cat([at[:sink], at[low:stop]]), at[start:stop, None]
        mask = (places <= query) & ((places < sink_tokens) | (query - places < recent_tokens))
        k, v = (torch.cat([x[:, :, :sink], x[:, :, low:stop]], dim=2) for x in (keys, values))
        blocks.append(scaled_dot_product_attention(queries[:, :, start:stop], k, v, mask, **given))  # type: ignore[arg-type]
    return torch.cat(blocks, dim=2)


@contextmanager
def mixing(model: PreTrainedModel, mixer: Mixer) -> Iterator[None]:
    """Run `model` through `mixer`, frozen and in eval mode; on leaving, model and registry are as they were."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    previous, training = model.config._attn_implementation, model.training
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ALL_ATTENTION_FUNCTIONS[NAME] = mixer.attend
    try:
        model.set_attn_implementation(NAME)
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.train(training)
        model.set_attn_implementation(previous)
        del ALL_ATTENTION_FUNCTIONS[NAME]


def _read_shapes(model: PreTrainedModel, mixer: Mixer, ids: Tensor) -> None:
    """Run a few tokens to learn the layers and kv heads; each open layer gets its gates, all 1 as in the paper."""
    with torch.no_grad():
        _hidden(model, mixer, ids[None], mix=False)
    open_layers = sorted(set(mixer.kv_heads) - mixer.closed)
    if not open_layers:
        raise ValueError(
            "every layer of this model has a sliding window of its own; there is no head to identify"
        )
    for index in open_layers:
        mixer.gates[index] = torch.ones(mixer.kv_heads[index], device=ids.device, requires_grad=True)


def _hidden(model: PreTrainedModel, mixer: Mixer, ids: Tensor, *, mix: bool) -> Tensor:
    """Final hidden states `[1, T, hidden]`."""
    mixer.mix = mix
    at = torch.arange(ids.shape[1], device=ids.device)[None]
    return model.get_decoder()(input_ids=ids, position_ids=at, use_cache=False).last_hidden_state


def _rate(step: int, steps: int) -> float:
    ramp = max(1, steps // 5)
    return min(1.0, (step + 1) / ramp, (steps - step) / ramp)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)


def _flags(count: int, value: int) -> Tensor:
    return torch.full((count,), value)


def _check(
    steps: int, min_tokens: int, max_tokens: int, num_passkeys: int, sink_tokens: int, recent_tokens: int
) -> None:
    if steps < 1 or num_passkeys < 1:
        raise ValueError(f"got steps={steps}, num_passkeys={num_passkeys}; both must be 1 or more")
    if not 1 <= min_tokens <= max_tokens:
        raise ValueError(
            f"got min_tokens={min_tokens}, max_tokens={max_tokens}; allowed is 1 <= min_tokens <= max_tokens"
        )
    if sink_tokens < 0 or not 1 <= recent_tokens < min_tokens:
        raise ValueError(
            f"got sink_tokens={sink_tokens}, recent_tokens={recent_tokens}; sink_tokens must be 0 or more and "
            f"recent_tokens from 1 to below min_tokens={min_tokens}, or streaming heads see whole texts"
        )
