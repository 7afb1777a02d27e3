"""Which of how many processes this one is, as `torchrun` tells its workers in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Process"]


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
