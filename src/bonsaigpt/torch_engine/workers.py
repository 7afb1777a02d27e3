"""Threads that each take a part of a batch: the way to use the cores of a CPU.

Sharing every small operator between all cores wakes and joins the threads some thousand times a step; one worker with
half the batch does so once, and a neighbour that wants a core for a moment does not stop both. Each worker has modules
of its own over the same weights, so gradients do not meet before the end, where they are added in a fixed order: the
result depends on the number of workers, never on who was faster.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import nn

__all__ = ["WorkerPool", "keep_memory", "share_weights"]

_SWITCH_SECONDS = 1e-4
"""How long a worker waits before it asks another for the interpreter. Python's 5 ms are a fifth of a small step."""

# mallopt(3), malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

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
        with self.sharing(), _switching():
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


@contextmanager
def _switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def keep_memory() -> None:
    """Have glibc keep what a step frees for the next step, which asks for the same again.

    By default it gives large blocks back to the kernel, which then clears every page anew: some hundred page faults a
    step. Other C libraries are left alone.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)


def share_weights(module: nn.Module, twin: nn.Module) -> None:
    """Make ``twin``, of the same structure, use the memory of ``module``'s parameters, with gradients of its own."""
    own = dict(module.named_parameters())
    for name, parameter in twin.named_parameters():
        parameter.data = own[name].data
