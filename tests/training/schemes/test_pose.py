"""PoSE: one skip in a row of the window; skips and cuts are even, and reach the target."""

from __future__ import annotations

import numpy as np

from longspan.training.registry import resolve_scheme

WINDOW, TARGET, DRAWS = 64, 256, 4000


def drawn() -> np.ndarray:
    scheme = resolve_scheme("pose")
    return np.stack(
        [scheme.positions(WINDOW, TARGET, np.random.default_rng((1, row))) for row in range(DRAWS)]
    )


def test_rows_are_of_the_window_and_rise_with_at_most_one_skip() -> None:
    assert resolve_scheme("pose").row_tokens(WINDOW, TARGET) == WINDOW
    positions = drawn()
    assert positions.dtype == np.int64
    assert (positions[:, 0] == 0).all()
    steps = np.diff(positions, axis=1)
    assert (steps >= 1).all()
    assert ((steps > 1).sum(axis=1) <= 1).all()
    assert positions.max() < TARGET


def test_skips_are_even_up_to_the_target() -> None:
    skips = drawn()[:, -1] - (WINDOW - 1)
    assert (skips.min(), skips.max()) == (0, TARGET - WINDOW)
    counts, _ = np.histogram(skips, bins=8, range=(0, TARGET - WINDOW + 1))
    expected = DRAWS / 8
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_cuts_are_even_over_the_first_half() -> None:
    positions = drawn()
    moved = positions[positions[:, -1] > WINDOW - 1]
    cuts = (np.diff(moved, axis=1) > 1).argmax(axis=1) + 1
    assert (cuts.min(), cuts.max()) == (1, WINDOW // 2)
    assert abs(cuts.mean() - (1 + WINDOW // 2) / 2) < 0.5


def test_every_distance_up_to_the_target_is_seen() -> None:
    positions = drawn()[:500]
    distances = positions[:, :, None] - positions[:, None, :]
    seen = np.bincount(distances[distances > 0], minlength=TARGET)
    assert (seen[1 : TARGET - 8] > 0).all()


def test_a_row_of_the_target_has_no_skip() -> None:
    positions = resolve_scheme("pose").positions(WINDOW, WINDOW, np.random.default_rng(0))
    assert positions.tolist() == list(range(WINDOW))


def test_one_generator_gives_one_row() -> None:
    scheme = resolve_scheme("pose")
    first, second = (scheme.positions(WINDOW, TARGET, np.random.default_rng(5)) for _ in range(2))
    assert (first == second).all()
