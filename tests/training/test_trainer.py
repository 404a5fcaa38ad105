"""Steps lower the loss, are the same every time and however they are cut, and train all that a scheme brings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longspan.errors import UserInputError
from longspan.training.scheme import Scheme
from longspan.training.trainer import Trainer, token_losses
from tests.training.tiny import TARGET, WINDOW, Learned, step_data, tiny_model, tiny_trainer, train_steps

SCHEMES = ("full", 'full(positions="yarn(factor=4)")', 'pose(positions="pi(factor=4)")', "e2_llm")


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_lowers_the_loss_and_repeats_exactly(scheme: str) -> None:
    first, second = (tiny_trainer(scheme, steps=12) for _ in range(2))
    losses = train_steps(first, 12)
    assert losses[-1] < losses[0] - 1
    assert train_steps(second, 12) == losses
    assert all(torch.equal(value, state(second)[name]) for name, value in state(first).items())


@pytest.mark.parametrize(
    "changes", [{"forward_tokens": 2 * TARGET}, {"forward_tokens": 1}, {"checkpointing": True}]
)
@pytest.mark.parametrize("scheme", ["full", "pose", "e2_llm", "learned"])
def test_how_a_step_is_computed_does_not_change_it(scheme: str, changes: dict[str, Any]) -> None:
    def trained(**changes: Any) -> Trainer:
        trainer = tiny_trainer(Learned() if scheme == "learned" else scheme, **changes)
        train_steps(trainer, 3)
        return trainer

    plain, other = state(trained()), state(trained(**changes))
    for name, value in plain.items():
        assert torch.allclose(other[name], value, atol=3e-4), name


def test_the_loss_is_the_weighted_mean_over_the_whole_step() -> None:
    trainer = tiny_trainer("full", forward_tokens=TARGET)
    data = step_data(trainer, 0)
    weights = np.random.default_rng(0).choice([0, 1, 40], len(data.tokens)).astype(np.uint8)
    ids = torch.from_numpy(data.tokens).view(2, TARGET)
    with torch.no_grad():
        logits = trainer.model(ids).logits
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = torch.from_numpy(weights.astype(np.float32)).view(2, TARGET)[:, 1:].flatten()
    with trainer:
        losses = trainer.step(replace(data, weights=weights))
    assert losses.loss == pytest.approx(float((found * w).sum() / w.sum()), rel=1e-5)
    assert losses.text == pytest.approx(float(found[w == 1].mean()), rel=1e-5)
    assert losses.answers == pytest.approx(float(found[w == 40].mean()), rel=1e-5)


def test_token_losses_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longspan.training.trainer.LOSS_TOKENS", 7)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 5, generator=generator, requires_grad=True)
    ids = torch.randint(0, 5, (2, 9), generator=generator)
    wanted = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    got = token_losses(logits, ids)
    assert got.shape == (2, 8)
    assert torch.allclose(got, wanted)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), logits)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert torch.allclose(gradient, wanted_gradient)


def test_parameters_frequencies_and_attention_of_a_scheme_are_trained() -> None:
    calls: Counter[str] = Counter()
    scheme = Learned(calls=lambda: calls.update(["attention"]))
    trainer = tiny_trainer(scheme, steps=12)
    assert trainer.module is scheme.module(trainer.rope)
    (log_factor,) = trainer.module.parameters()
    before = log_factor.item()
    own = trainer.model.config._attn_implementation
    with trainer:
        assert trainer.model.config._attn_implementation == "counted_for_tests"
        trainer.step(step_data(trainer, 0))
    assert calls["attention"] == 2 * 2  # layers times forwards of a step
    assert log_factor.item() != before
    assert trainer.model.config._attn_implementation == own
    assert train_steps(trainer, 12)[-1] < 4


def test_gradients_of_the_frequencies_are_those_of_the_loss() -> None:
    """Against a finite difference, with layers computed again in backward."""
    model = tiny_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 20 if "q_proj" in name or "k_proj" in name else 1
    trainer = tiny_trainer(Learned(), model=model, checkpointing=True)
    trainer.model.double()
    assert trainer.module is not None
    (log_factor,) = trainer.module.parameters()
    data = step_data(trainer, 0)
    ids = torch.from_numpy(data.tokens).view(2, TARGET)

    def loss() -> torch.Tensor:
        positions, ropes = trainer.rotations(0, range(2))
        return (trainer.logits(ids, positions, ropes) ** 3).mean()

    with trainer:
        loss().backward()
        assert log_factor.grad is not None
        sides = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                log_factor.add_(step)
                sides.append(float(loss()))
                log_factor.sub_(step)
    slope = (sides[0] - sides[1]) / 2e-3
    assert slope != 0
    assert float(log_factor.grad) == pytest.approx(slope, rel=0.02)


def test_rows_are_drawn_by_seed_step_and_row_alone() -> None:
    trainer = tiny_trainer("pose")
    all_rows, _ = trainer.rotations(3, range(8))
    some_rows, _ = trainer.rotations(3, range(5, 7))
    assert torch.equal(all_rows[5:7], some_rows)
    assert not torch.equal(all_rows, trainer.rotations(4, range(8))[0])
    assert not torch.equal(all_rows, tiny_trainer("pose", seed=2).rotations(3, range(8))[0])
    assert len({tuple(row.tolist()) for row in all_rows}) > 1


def test_positions_and_frequencies_of_a_row_share_their_first_draw() -> None:
    class Paired(Scheme):
        def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
            return np.arange(num_tokens) + rng.integers(0, 1000)

        def rope(self, rope: Any, target_tokens: int, rng: np.random.Generator) -> Any:
            return replace(rope, scaling=float(rng.integers(0, 1000)))

    trainer = tiny_trainer(Paired())
    positions, ropes = trainer.rotations(0, range(2))
    assert positions[:, 0].tolist() == [rope.scaling for rope in ropes]


def test_a_loss_that_is_not_finite_stops_before_it_harms_the_weights() -> None:
    trainer = tiny_trainer("full")
    before = state(trainer)
    trainer.model.get_output_embeddings().weight.data[3] = float("nan")
    with trainer, pytest.raises(UserInputError, match="the loss is not finite at step 5; lower --lr"):
        trainer.step(step_data(trainer, 4))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(state(trainer)[name], before[name])
    assert all(parameter.grad is None for parameter in trainer.parameters)


def test_the_learning_rate_follows_the_schedule() -> None:
    trainer = tiny_trainer("full", steps=6, lr=0.5)
    rates = []
    with trainer:
        for step in range(3):
            trainer.step(step_data(trainer, step))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert trainer.schedule.warmup_steps == 1
    assert rates == pytest.approx([0.5, 0.5, 0.4])


def test_rows_of_the_window_for_schemes_that_train_there() -> None:
    assert tiny_trainer("pose").schedule.row_tokens == WINDOW
    assert tiny_trainer("full").schedule.row_tokens == TARGET
