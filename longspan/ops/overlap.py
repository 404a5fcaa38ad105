# mypy: disable-error-code="no-untyped-def"
"""Programmatic dependent launch (Hopper): the next kernel of a stream takes its place while the one before still runs.

Steps of small kernels lose a microsecond or more between each two of them otherwise. A kernel so launched calls
`follow` before it touches memory: it lets its own successor come, and waits until everything before it has finished and
is visible.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.backend import capability_of

HOPPER = (9, 0)


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """To be called first in a kernel with `**overlap(...)` among its arguments."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def overlap(x: Tensor) -> dict[str, Any]:
    """Arguments of a launch on the device of `x`: the constant OVERLAP, and what makes the driver do it."""
    if x.is_cuda and capability_of(x.device.index or 0) >= HOPPER:
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}
