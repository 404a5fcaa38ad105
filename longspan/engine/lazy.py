"""Layers of a saved context that are loaded while the first question already runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from threading import Event, Thread

from longspan.engine.store import LayerStore, Slab


class LayerLoader:
    """Loads layers in their order in a thread of its own, and hands each to whoever waits for it.

    Args:
        load: the slabs of a layer; runs in the thread. What it raises, every call that needs this layer or a later one raises.
        num_layers: how many there are.
    """

    def __init__(self, load: Callable[[int], list[Slab]], num_layers: int) -> None:
        self._load = load
        self._slabs: list[list[Slab] | None] = [None] * num_layers
        self._done = [Event() for _ in range(num_layers)]
        self._error: Exception | None = None

    def start(self) -> list[LayerStore]:
        """The layers, of which none need be loaded yet."""
        # The thread holds the loader only while it loads a layer: of a context that nobody holds any more it loads no further.
        Thread(target=_load_all, args=(weakref.ref(self), len(self._done)), daemon=True).start()
        return [WaitingLayer(partial(self.slabs, index)) for index in range(len(self._done))]

    def slabs(self, index: int) -> list[Slab]:
        """The slabs of a layer, as soon as they are there."""
        self._done[index].wait()
        found = self._slabs[index]
        if found is None:
            assert self._error is not None
            raise self._error
        return found

    def load_next(self, index: int) -> bool:
        """Load a layer; False where it fails, and all that wait may go on to hear of it."""
        try:
            self._slabs[index] = self._load(index)
        except Exception as error:  # whatever it is, it belongs to the thread that waits
            self._error = error
            for event in self._done[index:]:
                event.set()
            return False
        self._done[index].set()
        return True


class WaitingLayer(LayerStore):
    """A layer whose slabs come when they are first looked at; so do those of its forks."""

    def __init__(self, find: Callable[[], list[Slab]]) -> None:
        self._find: Callable[[], list[Slab]] | None = find
        self._found: list[Slab] = []

    @property
    def slabs(self) -> list[Slab]:
        find = self._find
        if find is not None:
            self._found = find()
            self._find = None
        return self._found

    @slabs.setter
    def slabs(self, slabs: list[Slab]) -> None:
        self._found, self._find = slabs, None

    def fork(self) -> LayerStore:
        if self._find is None:
            return super().fork()
        return WaitingLayer(lambda: [slab.fork() for slab in self.slabs])


def _load_all(of: weakref.ref[LayerLoader], num_layers: int) -> None:
    for index in range(num_layers):
        loader = of()
        if loader is None or not loader.load_next(index):
            return
        del loader
