"""A small random Llama with far from uniform attention, and its logits computed pair by pair, as papers write them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.engine.model import SpanModel
from longspan.roles import LayerInfo, ModelInfo, Rope

WINDOW = 256
HEAD_DIM = 16


def small_llama(*, layers: int = 2, kv_heads: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """4 query heads; query and key weights are scaled so that attention is peaked."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        intermediate_size=96,
        vocab_size=500,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 8
    return model


def some_ids(num_tokens: int, *, seed: int = 1) -> Tensor:
    return torch.randint(1, 500, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def left_padded(short: Tensor, long: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions `[2, T]` of two texts as a batch, the first padded at the left."""
    ids, mask = torch.zeros(2, len(long), dtype=torch.long), torch.zeros(2, len(long), dtype=torch.long)
    pad = len(long) - len(short)
    ids[0, pad:], ids[1] = short, long
    mask[0, pad:], mask[1] = 1, 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def default_frequencies() -> Tensor:
    return 10_000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


def pair_distances(num_tokens: int) -> Tensor:
    """i - j of every query i and key j, `[T, T]`."""
    at = torch.arange(num_tokens)
    return at[:, None] - at[None, :]


@torch.no_grad()
def pairwise_logits(
    model: LlamaForCausalLM,
    ids: Tensor,
    *,
    distances: Tensor,
    visible: Tensor | None = None,
    frequencies: Tensor | None = None,
    cos_scaling: float = 1.0,
    query_scales: list[Tensor] | None = None,
) -> Tensor:
    """Logits `[T, V]` from T x T matrices of distances and of visible pairs, attention in float64.

    Every pair is rotated by its own distance: with q and k as complex numbers, logit = Re(sum q conj(k) e^(i d f)).
    query_scales: per layer, a factor on the logits of each query `[T]`.
    """
    T = len(ids)
    causal = pair_distances(T) >= 0
    visible = causal if visible is None else visible & causal
    freqs = default_frequencies() if frequencies is None else frequencies.double()
    turn = torch.polar(
        torch.ones(T, T, len(freqs), dtype=torch.float64), distances.double()[..., None] * freqs
    )
    hidden = model.model.embed_tokens(ids)
    for index, layer in enumerate(model.model.layers):
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        q, k, v = (
            project(normed).view(T, -1, HEAD_DIM).transpose(0, 1).double()
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
        half = HEAD_DIM // 2
        q, k = torch.complex(q[..., :half], q[..., half:]), torch.complex(k[..., :half], k[..., half:])
        logits = torch.einsum("htd,hsd,tsd->hts", q, k.conj(), turn).real * cos_scaling**2 / HEAD_DIM**0.5
        if query_scales is not None:
            logits = logits * query_scales[index].double()[None, :, None]
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(T, -1).float()
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


def read_logits(span: SpanModel, ids: Tensor, *, chunk_tokens: int) -> Tensor:
    """Logits `[T, V]` while the text is read in chunks."""
    return torch.cat([logits for _, logits in span.logits(ids, chunk_tokens=chunk_tokens)])


def worst(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest wanted value."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def decoded_logits(span: SpanModel, ids: Tensor, *, num_read: int) -> Tensor:
    """Logits `[T - num_read, V]` of the tokens behind the first `num_read`, which come one by one after reading."""
    reader = span.reader()
    run = span.read(ids[:num_read]).run
    rows = [reader.advance(run, ids[at : at + 1]) for at in range(num_read, len(ids))]
    return torch.cat([row for row in rows if row is not None])


def stock_rope(rope_parameters: dict[str, object], *, kv_heads: int = 2) -> LlamaForCausalLM:
    """The same weights as `small_llama`, with transformers doing the scaling."""
    plain = small_llama(kv_heads=kv_heads)
    config = LlamaConfig(
        **{**plain.config.to_dict(), "rope_parameters": {"rope_theta": 10_000.0, **rope_parameters}}
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(plain.state_dict())
    return model


def one_rope(*, rotary_dims: int = HEAD_DIM, theta: float = 10_000.0, window_tokens: int = WINDOW) -> Rope:
    frequencies = theta ** (-torch.arange(0, rotary_dims, 2, dtype=torch.float32) / rotary_dims)
    return Rope(
        inv_freq=frequencies, scaling=1.0, theta=theta, window_tokens=window_tokens, rotary_dims=rotary_dims
    )


def one_layer(*, index: int = 0, rope: Rope | None = None) -> LayerInfo:
    return LayerInfo(
        index=index,
        num_heads=4,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
        scale=0.25,
        rope=rope,
        sliding_window_tokens=None,
    )


def one_model(*layers: LayerInfo) -> ModelInfo:
    return ModelInfo(
        name="toy",
        layers=layers,
        window_tokens=WINDOW,
        device=torch.device("cpu"),
        dtype=torch.float32,
        fingerprint="0",
    )
