"""The rows of an encoder's batch: their positions, the learned table that they look up in, and windows encoded apart.

Axis legend: B rows, T tokens, N windows of all rows, W tokens of a window, R rows of a table, D hidden dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers.utils import ModelOutput

from longspan.errors import UnsupportedLayerError, UserInputError

MAX_TOKENS = 2**20  # a table's reach is looked for up to here


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where an encoder keeps its learned positions.

    Args:
        owner: the module that looks up.
        stock: its table, the child `position_embeddings`, `[offset + R, D]`.
        offset: rows before that of the first position; RoBERTa's padding row is the last of them.
        padding_id: the token id that stands at the padding row, where position ids are counted past it.
    """

    owner: nn.Module
    stock: nn.Embedding
    offset: int
    padding_id: int | None

    @property
    def window_tokens(self) -> int:
        return int(self.stock.num_embeddings) - self.offset

    def positions(self, ids: Tensor | None, given: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Positions `[1 or B, T]` from 0 that the encoder itself would take, -1 where it takes its padding row."""
        if given is not None:
            return given - self.offset
        if ids is None or self.padding_id is None:
            return torch.arange(shape[1], device=self.stock.weight.device)[None]
        real = ids != self.padding_id
        return torch.where(real, real.cumsum(1) - 1, -1)


class PlacedTable(nn.Module):
    """A learned table that is looked up at places between its rows; shares the weight of the one it stands for."""

    def __init__(self, stock: nn.Embedding) -> None:
        super().__init__()
        self.weight = stock.weight
        self.num_embeddings, self.embedding_dim = stock.num_embeddings, stock.embedding_dim

    def forward(self, places: Tensor) -> Tensor:
        """Rows `[..., D]` at places `[...]` (float, counted from the table's first row), linear between neighbours."""
        if not places.is_floating_point():
            raise UnsupportedLayerError(
                "this encoder changes its position ids before it looks them up, which longspan does not serve yet"
            )
        low = places.floor().long()
        high = (low + 1).clamp(max=self.num_embeddings - 1)
        rows = embedding(low, self.weight)
        return rows + (places - low)[..., None].to(rows.dtype) * (embedding(high, self.weight) - rows)


def find_table(model: nn.Module) -> Table | None:
    """The learned table of positions of an encoder, or None."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            padding = table.padding_idx
            offset = 0 if padding is None else int(padding) + 1
            return Table(
                owner=module, stock=table, offset=offset, padding_id=None if padding is None else int(padding)
            )
    return None


def reach_tokens(places: Callable[[Tensor], Tensor], window_tokens: int) -> int | None:
    """Tokens of the longest text whose places stay in a table of `window_tokens` rows; None: any text's do."""
    beyond = (places(torch.arange(MAX_TOKENS)) >= window_tokens).nonzero()
    return int(beyond[0]) if len(beyond) else None


def row_lengths(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """int64 `[B]`: tokens of each row up to its last one that is not padding."""
    if mask is None:
        return torch.full((shape[0],), shape[1], device=device)
    return (mask.bool() * torch.arange(1, shape[1] + 1, device=mask.device)).amax(1)


def placed(
    positions: Tensor,
    lengths: Tensor,
    places: Callable[[Tensor], Tensor],
    table: Table,
) -> Tensor:
    """Places in the whole table `[B, T]`, float32. Rows within the window keep their positions, as LongEmbed has it."""
    at = positions.expand(len(lengths), -1)
    moved = places(at.clamp(min=0)).to(torch.float32)
    kept = (lengths <= table.window_tokens)[:, None]
    found = torch.where(kept, at.to(torch.float32), moved.clamp(max=table.window_tokens - 1))
    # Padding behind a row's end stands anywhere in the table.
    return torch.where(at < 0, -1.0, found.clamp(max=table.window_tokens - 1)) + table.offset


def cut_windows(mask: Tensor, window_tokens: int) -> tuple[Tensor, Tensor]:
    """Windows of the rows of a batch, each with the row's first and last token around it; a short row is one window.

    Args:
        mask: bool `[B, T]`, False for padding.
        window_tokens: W, 3 or more.

    Returns:
        the row of each window, int64 `[N]`, and its places in that row, int64 `[N, W]`, -1 behind its end.
    """
    rows, windows = [], list[Tensor]()
    inner = window_tokens - 2
    for number, real in enumerate(mask):
        at = real.nonzero()[:, 0]
        starts = [0]
        if len(at) > window_tokens:
            last = len(at) - 2 - inner  # begins early enough to be full
            starts = [*range(0, last, inner), last]
            cut = [torch.cat([at[:1], at[1 + s : 1 + s + inner], at[-1:]]) for s in starts]
        else:
            cut = [at]
        rows += [number] * len(cut)
        windows += cut
    places = nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=-1)
    return torch.tensor(rows, device=mask.device), places


def join_windows(output: ModelOutput, rows: Tensor, places: Tensor, shape: tuple[int, int]) -> ModelOutput:
    """The windows' output as the rows' own: a token's state is the mean over the windows that hold it, a row's pooled
    vector the mean over its windows."""

    def joined(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(joined(part) for part in value)
        if not isinstance(value, Tensor) or value.shape[:1] != rows.shape:
            raise UserInputError(
                "windows that are encoded apart have states, logits and pooled vectors, and no attentions or loss of a "
                "whole text; call the encoder without labels and output_attentions"
            )
        if value.shape[:2] == places.shape and value.dim() > 2:
            flat, index = value[places >= 0], (rows[:, None] * shape[1] + places)[places >= 0]
            return _means(flat, index, shape[0] * shape[1]).unflatten(0, shape)
        return _means(value, rows, shape[0])

    return type(output)(**{key: joined(value) for key, value in output.items()})


def _means(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Mean of the values `[n, ...]` that share an index, `[count, ...]`; 0 where none has it."""
    total = values.new_zeros(count, *values.shape[1:]).index_add(0, index, values)
    times = values.new_zeros(count).index_add(0, index, values.new_ones(len(index)))
    return total / times.clamp(min=1).reshape(-1, *[1] * (values.dim() - 1))


def gather_windows(value: Tensor, rows: Tensor, places: Tensor, padding: int) -> Tensor:
    """What `value` `[B, T]` holds at each window's places, `padding` behind its end: `[N, W]`."""
    return torch.where(places >= 0, value[rows[:, None], places.clamp(min=0)], padding)


def named_arguments(names: Sequence[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward, all by name; those that are None left out."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return {name: value for name, value in given.items() if value is not None}
