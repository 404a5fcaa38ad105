"""A progress bar over tokens that appears only when work is long."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """Use as a context manager; `update(n)` says that n tokens are done in all."""

    def __init__(self, num_tokens: int | None, *, label: str, show: bool | None) -> None:
        hidden = not sys.stderr.isatty() if show is None else not show
        delay = 2.0 if show is None else 0.0
        self._bar = tqdm(
            total=num_tokens,
            desc=label,
            unit="tok",
            unit_scale=True,
            disable=hidden,
            delay=delay,
            leave=False,
        )

    def __enter__(self) -> Progress:
        return self

    def update(self, num_tokens: int) -> None:
        self._bar.update(num_tokens - self._bar.n)

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
