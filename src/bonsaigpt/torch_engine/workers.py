"""Threads that each take a part of a batch: the way to use the cores of a CPU.

Sharing every small operator between all cores wakes and joins the threads some thousand times a step; one worker with
half the batch does so once, and a neighbour that wants a core for a moment does not stop both. Each worker has modules
of its own over the same weights, so gradients do not meet before the end, where they are added in a fixed order: the
result depends on the number of workers, never on who was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

__all__ = ["WorkerPool", "share_weights"]

T = TypeVar("T")
R = TypeVar("R")


class WorkerPool:
    """``count`` workers, the calling thread one of them; each computes on ``threads`` threads of torch's own."""

    def __init__(self, count: int = 1, *, threads: int | None = None) -> None:
        self.count = count
        self.threads = torch.get_num_threads() if threads is None else threads
        self._pool = ThreadPoolExecutor(count - 1, "bonsai-worker") if count > 1 else None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of every item, in order; worker w takes items w, w + count, ..."""
        if self._pool is None or len(items) < 2:
            return [function(item) for item in items]
        with self.sharing():
            others = [self._pool.submit(self._share, function, items[w :: self.count]) for w in range(1, self.count)]
            shares = [[function(item) for item in items[:: self.count]], *(future.result() for future in others)]
        return [shares[i % self.count][i // self.count] for i in range(len(items))]

    def _share(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        torch.set_num_threads(self.threads)
        return [function(item) for item in items]

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """While entered, the calling thread takes no more threads of torch's than any other worker."""
        before = torch.get_num_threads()
        if self._pool is None or before == self.threads:
            yield
            return
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def share_weights(module: nn.Module, twin: nn.Module) -> None:
    """Make ``twin``, of the same structure, use the memory of ``module``'s parameters, with gradients of its own."""
    own = dict(module.named_parameters())
    for name, parameter in twin.named_parameters():
        parameter.data = own[name].data
