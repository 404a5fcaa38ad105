"""The trained network as a stock Llama in int8: one fp16 scale for each output row, norms in fp32, embeddings tied."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longspan.reference.config import ModelShape
from longspan.reference.network import Network

WEIGHTS = "model.safetensors"
SCALE = ".scale"
LAYER_PARTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip


def llama_config(shape: ModelShape, *, bos: int, eos: int, pad: int) -> LlamaConfig:
    """The configuration of the model as transformers knows it."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.window_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def llama_weights(network: Network) -> dict[str, torch.Tensor]:
    """The network's weights under transformers' names, fp32 on the CPU, without the tied output matrix."""
    shape = network.shape
    heads, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = {"model.embed_tokens.weight": network.embed, "model.norm.weight": network.norms[-1]}
    for layer in range(shape.layers):
        q, k, v = network.qkv[layer].split([heads, kv, kv])
        gate, up = network.gate_up[layer].split([shape.mlp, shape.mlp])
        parts = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": network.out[layer],
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": network.down[layer],
            "input_layernorm": network.norms[2 * layer], "post_attention_layernorm": network.norms[2 * layer + 1],
        }  # fmt: skip
        weights |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    return {name: weight.detach().float().cpu().clone() for name, weight in weights.items()}


@torch.no_grad()
def load_into(network: Network, folder: Path) -> None:
    """Start `network` from the exported model in `folder`: the inverse of `llama_weights`.

    Raises:
        ValueError: the folder holds no model, or one of another shape.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"no model in {str(folder)!r}; give a folder that `longspan train reference` wrote")
    weights = dequantise(load_file(folder / WEIGHTS))
    if weights["model.embed_tokens.weight"].shape != network.embed.shape:
        raise ValueError(f"the model in {str(folder)!r} has another shape than this recipe; start without it")
    network.embed.copy_(weights["model.embed_tokens.weight"])
    network.norms[-1].copy_(weights["model.norm.weight"])
    for layer in range(network.shape.layers):
        part = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in LAYER_PARTS}
        network.qkv[layer].copy_(torch.cat([part[f"self_attn.{name}_proj"] for name in "qkv"]))
        network.out[layer].copy_(part["self_attn.o_proj"])
        network.gate_up[layer].copy_(torch.cat([part["mlp.gate_proj"], part["mlp.up_proj"]]))
        network.down[layer].copy_(part["mlp.down_proj"])
        network.norms[2 * layer].copy_(part["input_layernorm"])
        network.norms[2 * layer + 1].copy_(part["post_attention_layernorm"])


def quantise(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """int8 matrices, each row's largest value at 127, `<name>.scale` [rows, 1] in fp16; vectors as they are."""
    packed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() < 2:
            packed[name] = weight
            continue
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-7).half()
        packed[name] = (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def dequantise(
    packed: dict[str, torch.Tensor], *, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """The inverse of `quantise`, up to its rounding."""
    weights = {}
    for name, weight in packed.items():
        if name.endswith(SCALE):
            continue
        scale = packed.get(name + SCALE)
        weights[name] = (weight if scale is None else weight.float() * scale.float()).to(dtype)
    return weights


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def export(
    network: Network, tokenizer: PreTrainedTokenizerFast, folder: Path, *, card: dict[str, Any]
) -> Path:
    """Write the model, its tokenizer and `card.json` to `folder`; returns the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(
        network.shape, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )
    settings = config.to_diff_dict() | {
        "architectures": ["LlamaForCausalLM"],
        "quantisation": "int8 rows, fp16 scales",
    }
    _write_text(folder / "config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
    temporary = folder / (WEIGHTS + ".part")
    save_file(quantise(llama_weights(network)), temporary)
    os.replace(temporary, folder / WEIGHTS)
    tokenizer.save_pretrained(folder)
    _write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")
    return folder / WEIGHTS


def load_exported(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> LlamaForCausalLM:
    """A stock Llama with the dequantised weights of `folder`, in evaluation mode.

    Raises:
        ValueError: the folder holds no exported model.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"no model in {str(folder)!r}; train one with `longspan train reference --text DIR --out DIR`"
        )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("quantisation", None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model = model.to_empty(device="cpu")
    weights = dequantise(load_file(folder / WEIGHTS))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model.to(device=device, dtype=dtype).eval()
