"""The kernel that fetches pages from host memory."""

from longspan.ops.offload.triton import _fetch_kernel
from tests.ops.compiling import CompileCase

CASES = [
    CompileCase(
        name="pages of 64 x 128",
        kernel=_fetch_kernel,
        arguments={
            **dict.fromkeys(("pages", "keys", "values"), "*bf16"),
            "index": "*i32",
            **dict.fromkeys(("num_chosen", "num_pages", "num_held", "num_items"), "i32!"),
        },
        constants={"PAGE_ELEMENTS": 64 * 128, "BLOCK": 4096},
        num_warps=8,
    )
]
