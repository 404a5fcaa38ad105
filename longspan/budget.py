"""A budget: how many of a context's tokens are kept, as a fraction or as a number of tokens."""

from __future__ import annotations


def check_keep(keep: float | int, *, name: str = "keep") -> None:
    """Raise ValueError unless `keep` is a fraction in (0, 1] or a whole number of tokens >= 2."""
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise ValueError(
            f"got {name}={keep!r}; give a fraction such as {name}=0.25 or a number of tokens such as {name}=1024"
        )
    fraction = 0 < keep <= 1
    tokens = keep >= 2 and float(keep).is_integer()
    if not (fraction or tokens):
        raise ValueError(
            f"got {name}={keep:g}; allowed is a fraction above 0 and up to 1 (such as {name}=0.25) "
            f"or a whole number of tokens of 2 or more (such as {name}=1024)"
        )


def resolve_keep(keep: float | int, num_tokens: int) -> int:
    """Whole tokens that `keep` means for a context of `num_tokens`; at least 1, at most `num_tokens`."""
    wanted = round(keep * num_tokens) if keep <= 1 else int(keep)
    return max(1, min(num_tokens, wanted))
