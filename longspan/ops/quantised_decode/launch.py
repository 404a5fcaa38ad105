"""How the kernel is launched: from the compiler's counts of registers and shared memory for a Hopper GPU."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.ops.quantised_decode.store import QuantisedKV, word_shape


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the kernel is launched.

    Args:
        rows: queries (of one kv head) a program, a power of two from 8.
        unit: tokens of one step of the softmax.
        warps_per_sm: programs that fit on a processor at once; one wave of them is launched.
        registers: most registers a thread, None for as many as the compiler likes.
        stages: 2 copies the next group into the shared memory that the last one left, 3 has room for two.
    """

    rows: int
    unit: int
    warps_per_sm: int
    registers: int | None
    stages: int = 2


def choose_launch(store: QuantisedKV, rows: int) -> Launch:
    """For `rows` queries of a kv head. Registers limit the programs of a processor, for 8 bits shared memory does."""
    tokens = (word_shape(bits, store.head_dim)[0] for bits in (store.key_bits, store.value_bits))
    most = store.group_tokens // max(2, *tokens)
    unit = min(32, most)
    if rows > 8:
        return Launch(rows=16, unit=unit, warps_per_sm=8, registers=None)
    if max(store.key_bits, store.value_bits) == 8 or store.head_dim > 128:
        return Launch(rows=8, unit=unit, warps_per_sm=6, registers=None)
    return Launch(rows=8, unit=min(64, most), warps_per_sm=8, registers=None)
