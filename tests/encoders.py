"""Small random encoders, and a tokenizer of letters with [CLS] and [SEP], for tests."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 500
WINDOW = 64
ROTARY = ("EuroBert", "ModernBert", "NomicBert")
TABLES = ("Bert", "Roberta", "MPNet", "DistilBert")
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
}
_EXTRA: dict[str, dict[str, Any]] = {
    "EuroBert": {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4},
    "ModernBert": {
        "local_attention": 16, "global_attn_every_n_layers": 2, "bos_token_id": 2, "eos_token_id": 3,
        "cls_token_id": 2, "sep_token_id": 3,
    },
    "Roberta": {"pad_token_id": 1, "max_position_embeddings": WINDOW + 2},
    "MPNet": {"pad_token_id": 1, "max_position_embeddings": WINDOW + 2},
    "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
}  # fmt: skip
_LOUD = ("q_proj", "k_proj", "query.weight", "key.weight", "Wqkv", "attn.q.", "attn.k.", "q_lin", "k_lin")


def random_encoder(family: str, head: str = "Model", **settings: Any) -> PreTrainedModel:
    """A random encoder whose attention is far from uniform, and whose positions matter."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **_EXTRA.get(family, {}), **settings})
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in _LOUD):
                weight *= 8
            if "position_embeddings" in name:
                weight *= 10
    return model


def random_texts(*lengths: int, padding: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]` of random texts, padded behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), padding)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(5, VOCAB, (length,), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    return ids, mask


@torch.no_grad()
def states(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
    """Last hidden states `[B, T, D]`."""
    return model(input_ids=ids, attention_mask=mask, **more).last_hidden_state


@cache
def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, digit or mark, lower case, with [CLS] and [SEP] around a text; "so" is one token."""
    marks = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *marks, *(f"##{mark}" for mark in marks), "so"]
    raw = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
