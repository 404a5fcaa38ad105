"""The schedule that a config comes to, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longspan.errors import UserInputError
from longspan.training.config import ExtendConfig, Schedule, make_schedule, resume_key, smoke_config
from longspan.training.registry import resolve_scheme
from tests.training.tiny import TARGET, WINDOW, tiny_config


def test_a_step_holds_whole_rows_of_the_schemes_length() -> None:
    full = make_schedule(tiny_config("full", batch_tokens=1000), WINDOW)
    assert (full.row_tokens, full.rows, full.step_tokens, full.steps) == (TARGET, 3, 768, 6)
    pose = make_schedule(tiny_config("pose", batch_tokens=1000, steps=None, tokens=10_000), WINDOW)
    assert (pose.row_tokens, pose.rows, pose.step_tokens, pose.steps) == (WINDOW, 15, 960, 10)


def test_equal_tokens_are_equal_steps_of_equal_size_for_all_schemes() -> None:
    schedules = [
        make_schedule(tiny_config(name, steps=None, tokens=TARGET * 40, batch_tokens=TARGET * 4), WINDOW)
        for name in ("full", "pose", "e2_llm")
    ]
    assert {(schedule.step_tokens, schedule.steps) for schedule in schedules} == {(TARGET * 4, 10)}


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    schedule = Schedule(row_tokens=1, rows=1, steps=110, warmup_steps=10)
    assert [schedule.share(step) for step in (0, 9, 10, 60, 109, 110)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5, 0.01, 0.0]
    )
    assert make_schedule(tiny_config("full", steps=5), WINDOW).warmup_steps == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 200}, "got --batch-tokens 200, but one row has 256 tokens; give 256 or more"),
        ({"steps": None, "tokens": 300}, "got --tokens 300, but one step has 512"),
    ],
)
def test_schedules_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError) as caught:
        make_schedule(tiny_config("full", **changes), WINDOW)
    assert message in str(caught.value)


@pytest.mark.parametrize("length", [1, 64])
def test_the_target_is_above_the_window(length: int) -> None:
    config = ExtendConfig(scheme=resolve_scheme("full"), length_tokens=length, steps=1)
    with pytest.raises(
        UserInputError, match=f"got --length {length}, but the model's window already has 64 tokens"
    ):
        make_schedule(config, WINDOW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "is given once"),
        ({"steps": None}, "is given once"),
        ({"lr": 0.0}, "got a learning rate of 0; allowed is above 0"),
        ({"lr": float("nan")}, "got a learning rate of nan"),
        ({"task_share": 1.5}, "got task_share=1.5; allowed is 0 to 1"),
        ({"lora_also": ("norms",)}, "give --lora RANK with it"),
        ({"lora_rank": 4, "lora_also": ("norm",)}, "--lora-also has 'norm'; did you mean 'norms'?"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"scheme": resolve_scheme("full"), "length_tokens": 9, "steps": 1, **changes}
    with pytest.raises(UserInputError) as caught:
        ExtendConfig(**given)
    assert message in str(caught.value)


def test_a_resumed_run_may_change_its_length_and_its_memory_and_nothing_else() -> None:
    config = tiny_config("full")
    key = resume_key(config, "base")
    assert key == resume_key(
        tiny_config("full", steps=None, tokens=9, forward_tokens=1, checkpointing=True), "base"
    )
    assert json.loads(key)["scheme"] == "full"
    for other in (
        tiny_config("pose"),
        tiny_config("full", lr=1.0),
        tiny_config("full", seed=2),
        tiny_config("full", lora_rank=4),
    ):
        assert resume_key(other, "base") != key
    assert resume_key(config, "other base") != key


def test_smoke_keeps_the_ratio_of_length_and_window() -> None:
    config = ExtendConfig(scheme=resolve_scheme("full"), length_tokens=16_384, steps=8)
    small = smoke_config(config)
    assert (small.length_tokens, small.steps, small.batch_tokens) == (1024, 8, 2048)
