"""A budget: how many of a context's tokens are kept, as a fraction, as a number of tokens, or as bytes of the whole cache."""

from __future__ import annotations

import re

Keep = float | int | str
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|KiB|MiB|GiB)")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def check_keep(keep: Keep, *, name: str = "keep", in_bytes: bool = False) -> None:
    """Raise ValueError unless `keep` is a fraction in (0, 1], a whole number of tokens >= 2, or, with `in_bytes`, such as "64MB"."""
    if in_bytes and isinstance(keep, str) and _BYTES.fullmatch(keep):
        if bytes_of(keep) >= 1:
            return
        raise ValueError(f"got {name}={keep}; allowed is more than 0 bytes, such as {name}=64MB")
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        more = f", or bytes of the whole cache such as {name}=64MB" if in_bytes else ""
        raise ValueError(
            f"got {name}={keep!r}; give a fraction such as {name}=0.25 or a number of tokens such as {name}=1024{more}"
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


def bytes_of(keep: str) -> int:
    """Bytes that a text such as "64MB" means."""
    match = _BYTES.fullmatch(keep)
    assert match is not None, keep
    return int(float(match[1]) * _UNITS[match[2]])
