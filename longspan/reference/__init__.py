"""The bundled reference model: 22M parameters, a 4,096-token window, made by the recipe in this package.

`load_reference()` gives the shipped model; `longspan train reference` makes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).parent / "assets"


def load_reference(
    dtype: torch.dtype | None = None, device: str = "cpu"
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The reference model, dequantised to a stock Llama in evaluation mode, and its fast tokenizer.

    Args:
        dtype: of the weights, by default torch.float32. device: where they go.
    """
    import torch

    from longspan.reference.export import load_exported
    from longspan.reference.tokenizer import load_tokenizer

    return load_exported(ASSETS, dtype=dtype or torch.float32, device=device), load_tokenizer(ASSETS)
