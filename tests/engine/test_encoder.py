"""Encoders under a spec: against transformers' own scaling, tables made by hand, and attention pair by pair."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import longspan
from longspan.engine.encoder import AppliedEncoder
from longspan.engine.encoder_attention import banded_attention
from longspan.engine.encoder_plan import is_encoder
from longspan.engine.encoder_rows import cut_windows
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.methods.positions.self_extend import SelfExtend
from tests.encoders import ROTARY, TABLES, WINDOW, random_encoder, random_texts, states
from tests.methods.positions.small import one_layer, one_rope
from tests.models import random_model

LONG = 3 * WINDOW
ROTARY_SPECS = (
    "pi(factor=4)", "ntk(factor=4)", "yarn(factor=4)", "dynamic_ntk(factor=4)", "abf(theta=500000)", "entropy_abf()",
    "rope_contraction(factor=2)", "power_basis()", "truncated_basis()", "temp_scale()",
    "self_extend(group_size=4, window_tokens=16)", "rerope(window_tokens=16)", "dual_chunk()",
    "string(shift_tokens=21, local_tokens=5)", "grouped_positions(group_size=4)", "recurrent_positions()",
    "parallel_windows()",
)  # fmt: skip
TABLE_SPECS = (
    "pi(factor=4)",
    "grouped_positions(group_size=4)",
    "recurrent_positions()",
    "parallel_windows()",
)
EVERY = [(f, s) for f in ROTARY for s in ROTARY_SPECS] + [(f, s) for f in TABLES for s in TABLE_SPECS]


def padding_of(family: str) -> int:
    return 1 if family in ("Roberta", "MPNet") else 0


def applied_states(model: Any, spec: str, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    with longspan.applied(model, spec):
        return states(model, ids, mask)


def rebuilt(family: str, parameters: dict[str, Any], layer_type: str | None = None) -> Any:
    """The same weights with transformers doing the scaling."""
    plain = random_encoder(family)
    config = copy.deepcopy(plain.config)
    if layer_type is None:
        config.rope_parameters = config.rope_parameters | parameters
    else:
        config.rope_parameters[layer_type] = config.rope_parameters[layer_type] | parameters
    model = type(plain)(config).eval()
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ("pi(factor=4)", {"rope_type": "linear", "factor": 4.0}),
        ("yarn(factor=4)", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW}),
        ("ntk(factor=4)", {"rope_theta": None}),
    ],
)
@pytest.mark.parametrize("family", ROTARY)
def test_frequencies_equal_an_encoder_built_with_them(
    family: str, spec: str, parameters: dict[str, Any]
) -> None:
    layer_type = "full_attention" if family == "ModernBert" else None
    model = random_encoder(family)
    given = model.config.rope_parameters
    theta = (given if layer_type is None else given[layer_type])["rope_theta"]
    if "rope_theta" in parameters:
        parameters = {"rope_theta": theta * 4 ** (16 / 14)}
    stock = rebuilt(family, parameters, layer_type)
    ids, mask = random_texts(LONG, 90)
    wanted, real = states(stock, ids, mask), mask.bool()
    torch.testing.assert_close(
        applied_states(model, spec, ids, mask)[real], wanted[real], atol=1e-5, rtol=1e-5
    )
    assert (states(model, ids, mask)[real] - wanted[real]).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "spec"), EVERY)
def test_padding_changes_nothing_and_the_method_acts(family: str, spec: str) -> None:
    model = random_encoder(family)
    ids, mask = random_texts(LONG, 100, 20, padding=padding_of(family))
    together = applied_states(model, spec, ids, mask)
    for row, length in ((0, LONG), (1, 100), (2, 20)):
        alone = applied_states(model, spec, ids[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone, atol=2e-5, rtol=1e-4)
    if family in ROTARY:
        assert (together[0] - states(model, ids[:1])[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "spec"), EVERY)
def test_leaving_restores_the_encoder_bit_for_bit(family: str, spec: str) -> None:
    model = random_encoder(family)
    ids, mask = random_texts(40, 20, padding=padding_of(family))
    before, names, weights = states(model, ids, mask), str(model), list(model.state_dict())
    implementation = model.config._attn_implementation
    with longspan.applied(model, spec):
        states(model, ids, mask)
        assert list(model.state_dict()) == weights
    assert torch.equal(states(model, ids, mask), before)
    assert (str(model), model.config._attn_implementation) == (names, implementation)
    assert "forward" not in vars(model) and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *((f, s) for f in ROTARY for s in ("dense", "pi(factor=1)", "ntk(factor=1)", "grouped_positions(group_size=1)")),
        *((f, "self_extend(group_size=1, window_tokens=16)") for f in ROTARY),
    ],
)  # fmt: skip
def test_factor_one_is_the_encoder_itself(family: str, spec: str) -> None:
    model = random_encoder(family)
    ids, mask = random_texts(LONG, 100)
    real = mask.bool()
    torch.testing.assert_close(
        applied_states(model, spec, ids, mask)[real], states(model, ids, mask)[real], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *((f, s) for f in TABLES for s in ("dense", *TABLE_SPECS)),
        *((f, s) for f in ROTARY for s in ("parallel_windows()", "recurrent_positions()", "temp_scale()")),
        *((f, s) for f in ROTARY for s in ("dynamic_ntk()", "self_extend(group_size=4, window_tokens=63)")),
    ],
)
def test_texts_within_the_window_stay_as_they_were(family: str, spec: str) -> None:
    model = random_encoder(family)
    ids, mask = random_texts(63, 20, padding=padding_of(family))
    real = mask.bool()
    torch.testing.assert_close(
        applied_states(model, spec, ids, mask)[real], states(model, ids, mask)[real], atol=1e-5, rtol=1e-5
    )


def stretched(family: str, offset: int, factor: int) -> Any:
    """The same encoder with its table interpolated by hand, `factor` rows for each."""
    plain = random_encoder(family)
    table = plain.embeddings.position_embeddings.weight.detach()
    rows = [table[row] for row in range(offset)]
    for p in range(factor * WINDOW):
        low, part = divmod(p, factor)
        high = min(low + 1, WINDOW - 1)
        share = part / factor
        rows.append((1 - share) * table[offset + low] + share * table[offset + high])
    made = random_encoder(family, max_position_embeddings=len(rows))
    made.load_state_dict(plain.state_dict() | {"embeddings.position_embeddings.weight": torch.stack(rows)})
    return made


@pytest.mark.parametrize(("family", "offset"), [("Bert", 0), ("Roberta", 2), ("MPNet", 2), ("DistilBert", 0)])
def test_pi_equals_a_table_interpolated_by_hand(family: str, offset: int) -> None:
    model, by_hand = random_encoder(family), stretched(family, offset, 4)
    ids, mask = random_texts(4 * WINDOW, 101, padding=padding_of(family))
    real = mask.bool()
    got, wanted = applied_states(model, "pi(factor=4)", ids, mask), states(by_hand, ids, mask)
    torch.testing.assert_close(got[real], wanted[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "offset"), [("Bert", 0), ("Roberta", 2)])
@pytest.mark.parametrize("spec", ["grouped_positions(group_size=3)", "recurrent_positions(window_tokens=50)"])
def test_groups_and_rounds_equal_position_ids_given_to_the_encoder(
    family: str, offset: int, spec: str
) -> None:
    model, at = random_encoder(family), torch.arange(LONG)[None]
    ids, _ = random_texts(LONG, padding=padding_of(family))
    at = at // 3 if "grouped" in spec else at % 50
    types = {} if family == "DistilBert" else {"token_type_ids": torch.zeros_like(ids)}
    wanted = states(model, ids, position_ids=at + offset, **types)
    torch.testing.assert_close(applied_states(model, spec, ids), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "EuroBert"])
def test_parallel_windows_are_encoded_apart_and_averaged(family: str) -> None:
    model = random_encoder(family)
    ids, _ = random_texts(100, padding=padding_of(family))
    got = applied_states(model, "parallel_windows(window_tokens=42)", ids)[0]
    row, total, times = ids[0], torch.zeros(100, 64), torch.zeros(100, 1)
    for inner in (range(1, 41), range(41, 81), range(59, 99)):
        places = torch.tensor([0, *inner, 99])
        total[places] += states(model, row[places][None])[0]
        times[places] += 1
    torch.testing.assert_close(got, total / times, atol=1e-5, rtol=1e-5)


def test_windows_of_a_batch() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0]]).bool()
    rows, places = cut_windows(mask, 5)
    assert rows.tolist() == [0, 0, 1]
    assert places.tolist() == [[0, 1, 2, 3, 7], [0, 4, 5, 6, 7], [1, 2, 3, -1, -1]]


def test_windows_keep_pooled_vectors_and_every_layer() -> None:
    model = random_encoder("Bert")
    ids, _ = random_texts(100)
    with torch.no_grad(), longspan.applied(model, "parallel_windows()"):
        out = model(ids, output_hidden_states=True)
    windows = [torch.tensor([0, *range(1, 63), 99]), torch.tensor([0, *range(37, 99), 99])]
    with torch.no_grad():
        pooled = [model(ids[:, places]).pooler_output[0] for places in windows]
    torch.testing.assert_close(out.pooler_output[0], sum(pooled) / 2, atol=1e-5, rtol=1e-5)
    assert [tuple(layer.shape) for layer in out.hidden_states] == [(1, 100, 64)] * 3


@pytest.mark.parametrize(("group", "window"), [(4, 16), (3, 7), (8, 1)])
def test_bands_look_both_ways(group: int, window: int) -> None:
    """Every pair rotated by its own distance: with q and k as complex numbers, logit = Re(sum q conj(k) e^(i d f))."""
    T, rope = 60, one_rope()
    q, k, v = torch.randn(3, 2, 2, T, 16, generator=torch.Generator().manual_seed(0)).double()
    real = torch.ones(2, T, dtype=torch.bool)
    real[1, 45:] = False
    distance = torch.zeros(T, T)
    for i in range(T):
        for j in range(T):
            far, near = max(i, j), min(i, j)
            d = far - near
            if d >= window:
                d = far // group + window - window // group - near // group
            distance[i, j] = d if i >= j else -d
    turn = torch.polar(torch.ones(T, T, 8).double(), distance[..., None].double() * rope.inv_freq.double())
    cq, ck = torch.complex(q[..., :8], q[..., 8:]), torch.complex(k[..., :8], k[..., 8:])
    logits = torch.einsum("bhtd,bhsd,tsd->bhts", cq, ck.conj(), turn).real
    wanted = logits.masked_fill(~real[:, None, None], -torch.inf).softmax(-1) @ v
    bands = SelfExtend(group_size=group, window_tokens=window).bands(one_layer(rope=rope))
    got = banded_attention(q.float(), k.float(), v.float(), real, torch.arange(T)[None], rope, bands)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


def test_bands_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask) = random_encoder("EuroBert"), random_texts(LONG, 70)
    whole = applied_states(model, "self_extend(window_tokens=16)", ids, mask)
    monkeypatch.setattr("longspan.engine.encoder_attention.PIECE_LOGITS", 7 * 8 * LONG)
    torch.testing.assert_close(applied_states(model, "self_extend(window_tokens=16)", ids, mask), whole)


@pytest.mark.parametrize("piece", [1, 2**11, 2**24])
def test_sliding_layers_keep_their_window(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("longspan.engine.encoder_attention.PIECE_LOGITS", piece)
    model, (ids, mask) = random_encoder("ModernBert", num_hidden_layers=3), random_texts(LONG, 50)
    assert [layer.sliding_window_tokens for layer in AppliedEncoder(model, "m", None).info.layers] == [
        None,
        9,
        None,
    ]
    got = applied_states(model, "temp_scale(window_tokens=4096)", ids, mask)
    real = mask.bool()
    torch.testing.assert_close(got[real], states(model, ids, mask)[real], atol=1e-5, rtol=1e-5)


def test_one_temperature_is_a_scale_on_all_logits() -> None:
    model, (ids, _) = random_encoder("EuroBert"), random_texts(LONG)
    got = applied_states(model, "temp_scale(form=constant, temperature=0.8)", ids)
    for layer in model.layers:
        layer.self_attn.scaling /= 0.8
    torch.testing.assert_close(got, states(model, ids), atol=1e-5, rtol=1e-5)


def test_the_temperature_follows_the_length_of_each_row() -> None:
    """ln(n) / ln(L) for every query of a text of n tokens, which sees all of them."""
    model, (ids, mask) = random_encoder("EuroBert"), random_texts(LONG, 100)
    got = applied_states(model, "temp_scale()", ids, mask)
    for layer in model.layers:
        layer.self_attn.scaling *= torch.tensor(100.0).log() / torch.tensor(float(WINDOW)).log()
    torch.testing.assert_close(got[1, :100], states(model, ids[1:, :100])[0], atol=1e-5, rtol=1e-5)


def test_only_the_layers_that_a_spec_names() -> None:
    model, (ids, _) = random_encoder("EuroBert"), random_texts(LONG)
    whole = applied_states(model, "pi(factor=4)", ids)
    parts = applied_states(model, "on(layers=0, pi(factor=4)) + on(layers=1, pi(factor=4))", ids)
    torch.testing.assert_close(parts, whole)
    assert (applied_states(model, "on(layers=1, pi(factor=4))", ids) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_a_head_on_top_and_gradients(family: str) -> None:
    model = random_encoder(family, "ForMaskedLM")
    ids, mask = random_texts(LONG, 100)
    with longspan.applied(model, "pi(factor=4)"):
        logits = model(ids, attention_mask=mask).logits
        logits[mask.bool()].square().mean().backward()
    assert logits.shape == (2, LONG, 500)
    assert all(p.grad is not None for n, p in model.named_parameters() if "position" in n or "attn" in n)


def test_half_precision() -> None:
    for family in ("Bert", "EuroBert"):
        model, (ids, mask) = random_encoder(family), random_texts(LONG, 100)
        spec = "pi(factor=4)"
        wanted = applied_states(model, spec, ids, mask)[mask.bool()]
        got = applied_states(model.to(torch.bfloat16), spec, ids, mask)[mask.bool()]
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() / wanted.norm() < 0.15


def test_what_is_an_encoder() -> None:
    assert all(is_encoder(random_encoder(family)) for family in (*ROTARY, *TABLES))
    assert not is_encoder(random_model("Llama")) and not is_encoder(random_model("Gemma3"))


@pytest.mark.parametrize(
    ("family", "spec", "sentence"),
    [
        ("Bert", "pi(factor=0.5)", "got factor=0.5; allowed is 1"),
        ("EuroBert", "ntk(factor=0.5)", "got factor=0.5; allowed is 1"),
        ("Bert", "ntk(factor=4)", "ntk changes rotary positions, but BertModel takes positions from a learned table; use"),
        ("Bert", "self_extend(window_tokens=16)", "self_extend changes rotary positions, .* use .* pi, grouped_positions"),
        ("EuroBert", "self_extend(window_tokens=64)", "was trained on 64; .* so give less, such as window_tokens=16"),
        ("Bert", "pi(factor=4) + recurrent_positions()", "pi and recurrent_positions both express distance, .* keep one"),
        ("EuroBert", "pi(factor=4) + ntk(factor=4)", "pi and ntk both express distance on layer 0, which only one"),
        ("EuroBert", "pi(factor=4) + parallel_windows()", "pi and parallel_windows both express distance, .* keep one"),
        ("EuroBert", "snapkv(keep=0.5)", "snapkv is a method to decide what is kept, which an encoder has no use for"),
        ("Bert", "minference()", "minference is a method to choose the keys that a query visits, which an encoder has"),
        ("EuroBert", "lm_infinite()", "lm_infinite is a method to .*, which an encoder has no use for"),
        ("EuroBert", "truncate()", "truncate is a method to decide how a text is read, which an encoder has no use for"),
        ("EuroBert", "found_in_the_middle()", "found_in_the_middle is a method to adjust attention before a question"),
        ("Bert", "on(layers=0, pi(factor=4))", "pi changes what all layers of BertModel see; write it without on"),
        ("Bert", "recurrent_positions(window_tokens=65)", "got window_tokens=65, but BertModel has a table of 64"),
        ("Bert", "parallel_windows(window_tokens=65)", "got windows of 65 tokens; BertModel takes windows of 3 to 64"),
        ("Bert", "parallel_windows(window_tokens=2)", "got windows of 2 tokens; BertModel takes windows of 3 to 64"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(family: str, spec: str, sentence: str) -> None:
    model, (ids, _) = random_encoder(family), random_texts(30)
    before = states(model, ids)
    with pytest.raises(ValueError, match=sentence) as raised, longspan.applied(model, spec):
        pass
    assert "\n" not in str(raised.value)
    assert torch.equal(states(model, ids), before) and "forward" not in vars(model)


def test_a_config_that_already_scales_is_refused_by_new_frequencies_alone() -> None:
    model, (ids, _) = rebuilt("EuroBert", {"rope_type": "linear", "factor": 2.0}), random_texts(LONG)
    with pytest.raises(
        ValueError, match=r"this model already scales its own \(linear\); use the model as it is, or"
    ):
        applied_states(model, "ntk(factor=4)", ids)
    applied_states(model, "self_extend(window_tokens=16)", ids)


@pytest.mark.parametrize(
    ("spec", "reach"), [("dense", 64), ("pi(factor=2)", 128), ("grouped_positions(group_size=2)", 128)]
)
def test_a_text_beyond_the_reach_is_one_sentence(spec: str, reach: int) -> None:
    model = random_encoder("Bert")
    with AppliedEncoder(model, "toy", spec) as applied:
        assert applied.reach_tokens == reach
        states(model, *random_texts(reach, 20))
        with pytest.raises(
            UserInputError, match=f"reaches {reach} tokens in toy, but a text has {reach + 1}; raise"
        ):
            states(model, *random_texts(reach + 1))
    with AppliedEncoder(model, "toy", "recurrent_positions()") as applied:
        assert applied.reach_tokens is None


def test_the_ways_in_that_do_not_fit_are_one_sentence() -> None:
    model, (ids, mask) = random_encoder("EuroBert"), random_texts(LONG, 100)
    with longspan.applied(model, "pi(factor=4)"):
        with pytest.raises(UserInputError, match="is under a spec already; leave that block first"):
            applied_states(model, "ntk(factor=4)", ids)
        with pytest.raises(UserInputError, match="pass a 2-D attention_mask"):
            states(model, ids, mask[:, None, None])
        states(model, ids)
    with longspan.applied(model, "parallel_windows()"):
        with pytest.raises(UserInputError, match="cuts token ids into windows; leave position_ids out"):
            states(model, ids, position_ids=torch.arange(LONG)[None])
        with pytest.raises(UserInputError, match="call the encoder with return_dict=True"):
            model(ids, return_dict=False)
    headed = random_encoder("EuroBert", "ForMaskedLM")
    with (
        longspan.applied(headed, "pi(factor=4)"),
        pytest.raises(UserInputError, match="call the model that was given to it"),
    ):
        states(headed.model, ids)
    with pytest.raises(
        UnsupportedLayerError, match=r"attends in both directions; use it inside longspan.applied"
    ):
        longspan.load(random_encoder("Bert"))


def test_an_encoder_that_rounds_positions_is_refused() -> None:
    model = random_encoder("DebertaV2")
    with (
        longspan.applied(model, "pi(factor=4)"),
        pytest.raises(UnsupportedLayerError, match="changes its position ids"),
    ):
        states(model, *random_texts(LONG))


def test_attention_that_differs_is_refused_by_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_encoder("NomicBert")
    monkeypatch.setattr(
        "longspan.engine.encoder_attention.scaled_dot_product_attention", lambda q, k, v, **_: v * 2
    )
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 0 \(NomicBertAttention\) of .* does not reproduce its own"
    ):
        applied_states(model, "ntk(factor=4)", *random_texts(LONG))
