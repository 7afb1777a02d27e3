"""The processes of a run, and the few things they say to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from bonsaigpt.errors import DeviceError
from bonsaigpt.processes import Process

__all__ = ["World"]

T = TypeVar("T")


class World:
    """A process of its own: every method answers at once."""

    size = 1
    is_main = True

    def __init__(self, process: Process) -> None:
        if process.size > 1:
            raise DeviceError("the JAX engine runs in one process so far: start it without torchrun")
        self.process = process

    def on_main(self, make: Callable[[], T]) -> T:
        return make()

    def main_first(self, make: Callable[[], T]) -> T:
        return make()

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def agree(self, number: int) -> int:
        return number

    @contextmanager
    def together(self) -> Iterator[None]:
        yield
