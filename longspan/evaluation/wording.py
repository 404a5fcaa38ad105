"""Numbers as people read them: percentages, seconds, bytes, token counts."""

from __future__ import annotations

__all__ = ["bytes_text", "percent", "seconds_text", "tokens_text"]


def percent(value: float | None) -> str:
    """0.9875 as 98.8%; whole numbers without a decimal."""
    if value is None:
        return "–"
    return f"{value * 100:.1f}".removesuffix(".0") + "%"


def seconds_text(value: float | None) -> str:
    """Seconds in three digits or so: milliseconds under 0.1 s, minutes from 100 s on."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def bytes_text(value: float | None) -> str:
    """Bytes in decimal units: 12.3 MB is 12,300,000 bytes."""
    if value is None:
        return "–"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size * 0.9995:
            shown = value / size
            return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    return f"{value:.0f} B"


def tokens_text(value: int) -> str:
    """4096 as 4K, 131072 as 128K, 1048576 as 1M, 1000 as 1,000."""
    if value and value % 2**20 == 0:
        return f"{value // 2**20}M"
    if value and value % 1024 == 0:
        return f"{value // 1024}K"
    return f"{value:,}"
