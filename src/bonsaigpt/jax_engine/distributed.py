"""The processes of a run, and the few things they say to each other.

Launch is torchrun's, as for PyTorch; its processes meet through ``jax.distributed``, at the port after torchrun's own.
Each brings its devices to one mesh, and all run the same programs. What is said is JSON or numbers, never a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bonsaigpt.errors import BonsaiError
from bonsaigpt.processes import Company, Process

__all__ = ["World"]


class World(Company):
    """All processes of a run, this one among them. Alone, every method answers at once."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        if self.size > 1:
            address = f"{os.environ['MASTER_ADDR']}:{int(os.environ['MASTER_PORT']) + 1}"
            # Of several processes on one machine each has the GPU of its number; one alone has all that are there.
            own = [process.local_rank] if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 else None
            jax.distributed.initialize(address, num_processes=self.size, process_id=process.rank, local_device_ids=own)

    def _broadcast(self, value: Any) -> Any:
        words = np.frombuffer(json.dumps(value).encode() if self.is_main else b"", dtype=np.uint8)
        with self.together():
            length = int(multihost_utils.broadcast_one_to_all(np.int32(len(words))))
            heard = multihost_utils.broadcast_one_to_all(
                np.resize(words, length) if len(words) else np.zeros(length, np.uint8)
            )
        return json.loads(bytes(np.asarray(heard).tolist()))

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        return np.asarray(multihost_utils.process_allgather(np.array(values))).sum(axis=0).tolist()

    def agree(self, number: int) -> int:
        """The largest ``number`` that any process gives, the same answer for all."""
        if self.size == 1:
            return number
        return int(np.asarray(multihost_utils.process_allgather(np.int32(number))).max())

    @contextmanager
    def together(self) -> Iterator[None]:
        """While entered, the loss of another process is one sentence.

        Raises:
            BonsaiError: another process is gone.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.size > 1 and any(word in str(error).lower() for word in ("gloo", "coordination", "nccl")):
                raise BonsaiError("another process of this run is gone, so this one stops as well") from None
            raise

    def close(self) -> None:
        """Part from the others."""
        if self.size > 1:
            jax.distributed.shutdown()
