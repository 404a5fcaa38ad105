"""Keys and values that live in host memory, in pages, and come to the GPU by index while it computes.

A page holds the keys and then the values of `page_tokens` tokens of one kv head, one behind the other, so that a chosen page
is one long read over the bus. `HostPages.fetch` starts the copy on a stream of its own and returns at once; the result is
waited for where it is used.
"""

from longspan.ops.offload.host import Fetched, HostPages

__all__ = ["Fetched", "HostPages"]
