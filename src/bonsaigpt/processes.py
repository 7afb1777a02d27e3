"""Which of how many processes this one is, as `torchrun` tells its workers in the environment, and what the first of
them says to all."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Company", "Process"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of the processes that train together; the default is a process of its own."""

    rank: int = 0
    """Its number among all, from 0; number 0 alone prints and writes."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number on this machine, from 0: which GPU is its own."""
    restarts: int = 0
    """How often torchrun has started the processes anew."""

    @classmethod
    def here(cls) -> Process:
        """This process: what torchrun said, or one of its own where nobody said anything."""
        # Some job systems set RANK or WORLD_SIZE for ends of their own; LOCAL_RANK with an address comes from torchrun.
        if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0


class Company(ABC):
    """All processes of a run, this one among them; how words travel is an engine's. Alone, every method answers at
    once."""

    def __init__(self, process: Process) -> None:
        self.process, self.size, self.is_main = process, process.size, process.is_main

    def on_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the main process, for all of them; it must be JSON.

        If it fails there, the main process raises the error and the others leave quietly.
        """
        if self.size == 1:
            return make()
        if not self.is_main:
            heard = self._broadcast(None)
            if heard is None:
                raise SystemExit(2)
            return heard["value"]
        try:
            value = make()
        except BaseException:
            self._broadcast(None)
            raise
        self._broadcast({"value": value})
        return value

    def main_first(self, make: Callable[[], T]) -> T:
        """``make`` in every process, in the main one before all others: they find on the disk what it prepared."""
        made: list[T] = []
        self.on_main(lambda: made.append(make()))
        return made[0] if made else make()

    @abstractmethod
    def _broadcast(self, value: Any) -> Any:
        """The main process's value in every process; JSON."""
