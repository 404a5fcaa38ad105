"""Pages in pinned host memory, and the copies of chosen ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.backend import choose, missing_triton
from longspan.ops.offload.naive import naive_fetch


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Chosen pages on their way: `keys` and `values` `[B, K, N * page_tokens, D]` may be used after `wait()`."""

    keys: Tensor
    values: Tensor
    ready: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, Tensor]:
        """Make the current stream wait for the copy; the host does not wait."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.keys.device)
            stream.wait_event(self.ready)
            self.keys.record_stream(stream)
            self.values.record_stream(stream)
        return self.keys, self.values


class HostPages:
    """Keys and values of a layer in host memory.

    Args:
        num_heads: kv heads K.
        head_dim: D.
        capacity_tokens: room for so many tokens a head, rounded up to whole pages.
        page_tokens: tokens of a page.
        batch: B.
        dtype: of keys and values.
        device: where `fetch` delivers; with a CUDA device the pages are pinned.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        capacity_tokens: int,
        device: torch.device | str,
        page_tokens: int = 64,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        sizes = {
            "num_heads": num_heads,
            "head_dim": head_dim,
            "capacity_tokens": capacity_tokens,
            "page_tokens": page_tokens,
            "batch": batch,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"got {name}={value}; allowed is 1 or more")
        self.page_tokens, self.device = page_tokens, torch.device(device)
        self.num_tokens = 0
        num_pages = -(-capacity_tokens // page_tokens)
        pinned = self.device.type == "cuda"
        shape = (batch, num_heads, num_pages, 2, page_tokens, head_dim)
        self.pages = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
        self._stream = torch.cuda.Stream(self.device) if pinned else None

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory, spare room included."""
        return self.pages.nbytes

    def append(self, keys_BKTD: Tensor, values_BKTD: Tensor) -> None:
        """Copy T tokens behind those held. Returns when the copy is done, so that the source may be freed.

        Raises:
            ValueError: shapes do not fit, or there is no room.
        """
        B, K, num_pages, _, page, D = self.pages.shape
        T = keys_BKTD.shape[2]
        for name, x in (("keys", keys_BKTD), ("values", values_BKTD)):
            if x.shape != (B, K, T, D) or x.dtype != self.pages.dtype:
                raise ValueError(
                    f"got {name} {list(x.shape)} of {x.dtype}; these pages hold [{B}, {K}, any, {D}] of {self.pages.dtype}"
                )
        start, stop = self.num_tokens, self.num_tokens + T
        if stop > num_pages * page:
            raise ValueError(
                f"got {T} tokens behind {start}; there is room for {num_pages * page}: make the pages with more capacity_tokens"
            )
        at = start
        while at < stop:  # the rest of a page, whole pages, the begin of a page
            inside = at % page
            if inside or stop - at < page:
                end = min(stop, at + page - inside)
                target = self.pages[:, :, at // page, :, inside : inside + end - at]
            else:
                end = stop - (stop - at) % page
                target = self.pages[:, :, at // page : end // page]
            cut = slice(at - start, end - start)
            for kind, x in enumerate((keys_BKTD, values_BKTD)):
                piece = x[:, :, cut]
                if target.dim() == 6:
                    target[:, :, :, kind].copy_(piece.unflatten(2, (-1, page)))
                else:
                    target[:, :, kind].copy_(piece)
            at = end
        self.num_tokens = stop

    def fetch(self, index_BKN: Tensor, *, backend: str | None = None) -> Fetched:
        """Start copying chosen pages.

        Args:
            index_BKN: int32 `[B, K, N]` pages of each kv head; entries outside the pages held deliver zeros.
            backend: "triton" (a kernel reads pinned memory over the bus, on a stream of its own) or "naive".

        Raises:
            ValueError: the index has another shape, type or device, or the named backend cannot run.
        """
        B, K = self.pages.shape[:2]
        if index_BKN.dim() != 3 or index_BKN.shape[:2] != (B, K) or index_BKN.dtype != torch.int32:
            raise ValueError(
                f"got an index {list(index_BKN.shape)} of {index_BKN.dtype}; allowed is int32 [{B}, {K}, any]"
            )
        if index_BKN.device.type != self.device.type:
            raise ValueError(f"got an index on {index_BKN.device}; these pages deliver to {self.device}")
        held = -(-self.num_tokens // self.page_tokens)
        chosen = choose("host_fetch", {"triton": self._no_triton(backend), "naive": None}, backend)
        if chosen == "naive":
            keys, values = naive_fetch(self.pages, index_BKN, held)
            return Fetched(keys=keys, values=values, ready=None)
        from longspan.ops.offload.triton import triton_fetch

        if self._stream is None:
            keys, values = triton_fetch(self.pages, index_BKN, held)
            return Fetched(keys=keys, values=values, ready=None)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            keys, values = triton_fetch(self.pages, index_BKN, held)
            index_BKN.record_stream(self._stream)
            ready = self._stream.record_event()
        return Fetched(keys=keys, values=values, ready=ready)

    def _no_triton(self, forced: str | None) -> str | None:
        if missing_triton() is not None:
            return missing_triton()
        if self.device.type != "cuda" and forced != "triton":
            return f"the pages deliver to {self.device.type}, not to a CUDA device"
        return None
