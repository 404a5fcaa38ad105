"""A Llama-shaped causal model that attends both ways and predicts masked tokens; kept as a folder of stock weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from longspan._files import whole_folder
from longspan.engine.seam import find_attention_modules
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.training.base import Base, load_base
from longspan.training.export import CARD
from longspan.training.registry import resolve_scheme
from longspan.training.rotation import Rotation
from longspan.training.schemes._frequencies import check_frequencies, scaled_rope

KIND = "masked diffusion"
MASK = "<mask>"
PROBE_TOKENS = 8


class Denoiser:
    """A model with masks in its rows. Outputs predict the token at their own place, or with `shift` the one behind it.

    Axis legend: B rows, T tokens, V vocabulary, M places.
    """

    def __init__(self, base: Base, *, mask_id: int, shift: bool) -> None:
        """Turn the base's model both ways, in place.

        Raises:
            ValueError: a layer has a window of its own, keeps to what came before, or logits are more than a matrix of the
                last hidden state.
        """
        self.model: PreTrainedModel = base.model
        self.tokenizer, self.name = base.tokenizer, base.name
        self.mask_id, self.shift, self.window_tokens = mask_id, shift, base.window_tokens
        self.rope = base.rope
        self._modules = base.modules
        self._rotation: Rotation | None = None
        self._attention: SDPBackend | None = None
        modules = find_attention_modules(self.model)
        if len(modules) != len(base.modules):
            raise UnsupportedLayerError(
                f"{base.name} has layers with a sliding window of their own, which masked diffusion does not serve; "
                "use a model that attends to the whole text in every layer, such as Llama or Qwen3"
            )
        self.model.config.get_text_config(decoder=True).is_causal = False
        for module in modules:
            module.is_causal = False  # type: ignore[assignment]
        self.model.set_attn_implementation("sdpa")
        self.decoder: nn.Module = self.model.get_decoder()
        self.head: nn.Module = self.model.get_output_embeddings()
        self._probe()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device, attention: SDPBackend | None = None) -> Denoiser:
        """Move the model; `attention`: the kernel preferred on a GPU."""
        self.model.to(device)
        self.rope = replace(self.rope, inv_freq=self.rope.inv_freq.to(device))
        self._attention = attention
        return self

    def computing(self) -> AbstractContextManager[Any]:
        """What a forward runs under: bfloat16 and kernels that make no mask on a GPU, nothing on a CPU."""
        return on_gpu(self._attention) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def under(self, spec: str) -> Iterator[None]:
        """Inside the block the model is rotated as a method spec says: "dense", or one method that sets frequencies.

        Raises:
            ValueError: the spec does more than that.
        """
        before, own = self._rotation, self.rope
        if spec != "dense":
            check_frequencies(spec)
            self.rope = scaled_rope(spec, own)
            self._rotation = Rotation(self._modules)
        try:
            with self._rotation or nullcontext():
                yield
        finally:
            self._rotation, self.rope = before, own

    def hidden(self, ids: Tensor) -> Tensor:
        """The last hidden states `[B, T, hidden]`. ids: int64 `[B, T]`, masks among them."""
        if self._rotation is not None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            self._rotation.set(positions, [self.rope] * len(ids))
        found: Tensor = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return found

    def hidden_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """The hidden states `[M, hidden]` that predict the tokens at `places`, int64 `[M]`, of the flat rows."""
        return self.hidden(ids).flatten(0, 1)[places - int(self.shift)]

    @torch.no_grad()
    def logits_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits float32 `[M, V]` of the tokens at `places`; that of the mask is -inf."""
        with self.computing():
            logits: Tensor = self.head(self.hidden_at(ids, places)).float()
        logits[:, self.mask_id] = float("-inf")
        return logits

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Write weights, config, tokenizer and `longspan.json` to `folder`, whole or not at all."""
        own = {
            "kind": KIND,
            "mask_token_id": self.mask_id,
            "shift": self.shift,
            "window_tokens": self.window_tokens,
        }
        with whole_folder(folder) as made:
            self.model.save_pretrained(made)
            self.tokenizer.save_pretrained(made)
            (made / CARD).write_text(json.dumps(own | dict(card), indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def _probe(self) -> None:
        """Run a few tokens: the last must reach the first, and the head must give the model's logits."""
        self.model.eval()
        ids = torch.arange(PROBE_TOKENS, device=self.device)[None] + 3
        other = ids.clone()
        other[0, -1] = 2
        found, changed = self.hidden(ids), self.hidden(other)
        if torch.equal(found[0, 0], changed[0, 0]):
            raise UnsupportedLayerError(
                f"{self.name} ({type(self.model).__name__}) does not let a token see later ones, so it cannot predict masked "
                "tokens; use a model such as Llama or Qwen3"
            )
        if not torch.allclose(self.head(found).float(), self.model(ids).logits.float(), atol=1e-4, rtol=1e-3):
            raise UnsupportedLayerError(
                f"{self.name} ({type(self.model).__name__}) changes its logits behind the output matrix, which masked diffusion "
                "does not serve; use a model such as Llama or Qwen3"
            )


@contextmanager
def on_gpu(attention: SDPBackend | None) -> Iterator[None]:
    """bfloat16 by autocast, and attention by this kernel or flash attention, never by one that holds all logits."""
    kernels = [SDPBackend.FLASH_ATTENTION] if attention is None else [attention, SDPBackend.FLASH_ATTENTION]
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(kernels, set_priority=True):
        yield


def load_causal(
    model: str | PreTrainedModel, *, tokenizer: Any = None, name: str | None = None, smoke: bool = False
) -> Base:
    """A causal model on the CPU, float32, nothing attached; `smoke`: a tiny random one in its place.

    Raises:
        ValueError: it cannot be loaded, or has no plain rotary positions.
    """
    base = load_base(model, resolve_scheme("full"), 1, smoke=smoke, tokenizer=tokenizer)
    return base if name is None else replace(base, name=name)


def make_denoiser(base: Base, *, shift: bool, window_tokens: int | None = None) -> Denoiser:
    """A denoiser with the base's weights, to be trained; its mask is a token that no text has.

    The mask is the tokenizer's own, or else its padding where that is a token apart, or else a new one. It begins as the mean of
    all embeddings.
    """
    mask_id = _mask_id(base)
    with torch.no_grad():
        embeddings = base.model.get_input_embeddings().weight
        embeddings[mask_id] = embeddings.mean(0)
    window = base.window_tokens if window_tokens is None else window_tokens
    return Denoiser(
        replace(base, window_tokens=window, rope=replace(base.rope, window_tokens=window)),
        mask_id=mask_id,
        shift=shift,
    )


def load_denoiser(folder: Path) -> Denoiser:
    """The denoiser that was saved in `folder`, on the CPU.

    Raises:
        ValueError: the folder holds none.
    """
    card = _read_card(folder)
    config = AutoConfig.from_pretrained(folder)
    config.get_text_config(decoder=True).is_causal = True  # it is looked at as what it was made of
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    base = load_causal(model, tokenizer=AutoTokenizer.from_pretrained(folder), name=str(folder))
    window = int(card["window_tokens"])
    return Denoiser(
        replace(base, window_tokens=window, rope=replace(base.rope, window_tokens=window)),
        mask_id=int(card["mask_token_id"]),
        shift=bool(card["shift"]),
    )


def _read_card(folder: Path) -> dict[str, Any]:
    file = folder / CARD
    card = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if card.get("kind") != KIND:
        raise UserInputError(
            f"{folder} holds no masked-diffusion model; give a folder that `longspan train diffusion` wrote"
        )
    found: dict[str, Any] = card
    return found


def _mask_id(base: Base) -> int:
    tokenizer = base.tokenizer
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    for known in (tokenizer.mask_token_id, tokenizer.pad_token_id):
        if known is not None and known not in taken:
            return int(known)
    tokenizer.add_special_tokens({"mask_token": MASK})
    rows = base.model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        base.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return int(tokenizer.mask_token_id)
