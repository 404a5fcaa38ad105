"""Attention of a chunk of queries over a slab of stored keys, as a `Visit` and `Band`s say.

`naive_attend` is the readable float32 twin that builds the whole mask; `attend` is the fast path (CPU flash attention
over slices and gathered rows, partial results merged by log-sum-exp; on CUDA the same plan over memory-efficient
attention). Both take one `Problem`.
"""

from longspan.ops.attend.fast import attend
from longspan.ops.attend.last import last_attention
from longspan.ops.attend.naive import naive_attend, naive_mask
from longspan.ops.attend.problem import Problem, Rotary
from longspan.ops.attend.quantised import quantised_past
from longspan.ops.rotary_attention.naive import naive_logits

__all__ = [
    "Problem",
    "Rotary",
    "attend",
    "last_attention",
    "naive_attend",
    "naive_logits",
    "naive_mask",
    "quantised_past",
]
