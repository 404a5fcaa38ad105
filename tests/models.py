"""Small random models of the families that longspan serves, and a tokenizer of words, for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 500
WINDOW = 256
_COMMON = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXTRA: dict[str, dict[str, Any]] = {
    "Llama": {"head_dim": 16},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"head_dim": 16, "sliding_window": None},
    "MistralSliding": {"head_dim": 16, "sliding_window": 48},
    "Gemma3": {"head_dim": 16, "sliding_window": 48},
    "Phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
FAMILIES = tuple(_EXTRA)


def random_model(
    family: str = "Llama", *, num_layers: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random model whose attention is far from uniform (query and key weights times 8)."""
    torch.manual_seed(seed)
    settings = {**_COMMON, **_EXTRA[family], "num_hidden_layers": num_layers}
    name = family.removesuffix("Sliding")
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    if name == "Gemma3":
        settings["layer_types"] = ["sliding_attention", "full_attention"] * (num_layers // 2)
    config = getattr(transformers, config_name)(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "q_proj.weight" in key or "k_proj.weight" in key:
                weight *= 8
            elif "qkv_proj.weight" in key:
                weight[:96] *= 8
    model.generation_config.pad_token_id = 0
    return model.to(dtype)


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: w3 .. w499, with bos, eos and pad; no chat template."""
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    raw = Tokenizer(WordLevel(vocab, unk_token="<pad>"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def random_ids(num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Word ids `[n]`, no special ones."""
    return torch.randint(3, VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def words(ids: torch.Tensor) -> str:
    return " ".join(f"w{int(i)}" for i in ids)


def full_logits(model: Any, ids: torch.Tensor, *, chunk_tokens: int | None = None) -> torch.Tensor:
    """Logits `[T, V]` of a text read under a spec."""
    return torch.cat([part for _, part in model.logits(ids, chunk_tokens=chunk_tokens)])


ModelMaker = Callable[[], PreTrainedModel]
