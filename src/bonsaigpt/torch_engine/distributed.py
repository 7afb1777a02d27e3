"""The processes of a run, and the few things they say to each other.

Launch and rendezvous are torchrun's. Words travel over gloo on the hosts, gradients over NCCL where there are GPUs.
What is said is JSON or numbers, never a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bonsaigpt.errors import BonsaiError, DeviceError
from bonsaigpt.processes import Company, Process

__all__ = ["World", "own_device"]


class World(Company):
    """All processes of a run, this one among them. Alone, every method answers at once."""

    def __init__(self, process: Process, device: torch.device) -> None:
        """Meet the others.

        Raises:
            DeviceError: a restart under these settings of torchrun would hang.
        """
        super().__init__(process)
        self._question: tuple[dist.Work, Tensor] | None = None
        if self.size == 1:
            self.backend = "none"
            return
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_store(process),
            rank=process.rank,
            world_size=self.size,
        )

    # ------------------------------------------------------------------ one speaks, all hear

    def _broadcast(self, value: Any) -> Any:
        text = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(text)])
        with self.together():
            dist.broadcast(length, src=0)
            words = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
            dist.broadcast(words, src=0)
        return json.loads(bytes(words.tolist()))

    # ------------------------------------------------------------------ all speak, all hear

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; on a GPU nobody waits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, number: int) -> int:
        """The largest ``number`` that any process gave at the *previous* call, the same answer for all.

        Being one call late, the question travels while a step is computed, and nobody waits for the answer.
        """
        if self.size == 1:
            return number
        answer = 0
        if self._question is not None:
            work, numbers = self._question
            work.wait()
            answer = int(numbers)
        numbers = torch.tensor(number)
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._question = work, numbers
        return answer

    @contextmanager
    def together(self) -> Iterator[None]:
        """While entered, the loss of another process is one sentence instead of a stack of gloo's or NCCL's.

        Raises:
            BonsaiError: another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise BonsaiError(
                    "another process of this run is gone, so this one stops as well: with --max-restarts 3 torchrun "
                    "starts all again, and they go on from the last checkpoint"
                ) from None
            raise

    def close(self) -> None:
        """Part from the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def own_device(device: str, process: Process) -> str:
    """The device that this process takes: one of several on a machine has a GPU of its own.

    Raises:
        DeviceError: there are fewer GPUs than processes, or the device cannot be shared out.
    """
    if process.size == 1 or device == "cpu":
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(
            f"train.device = '{device}' cannot be shared by {process.size} processes: use auto, cuda (each takes a GPU "
            "of its own) or cpu"
        )
    if not torch.cuda.is_available():
        return "cpu" if device == "auto" else device
    if process.local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"process {process.local_rank + 1} of this machine finds no GPU of its own: start at most "
            f"{torch.cuda.device_count()} with torchrun --nproc-per-node"
        )
    return f"cuda:{process.local_rank}"


def _store(process: Process) -> Any:
    """The address book of this start.

    PyTorch lets workers use the store of torchrun's agent, which outlives them: restarted workers would find the
    addresses of dead ones there and wait for them (pytorch issue 135712; seen with 2.13: half an hour). So each start
    writes on a page of its own, named by the number of restarts. Over several machines the agents do not agree on that
    number, and torchrun must be told to make a new store each time.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and os.environ.get("GROUP_WORLD_SIZE", "1") != "1" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        raise DeviceError(
            "restarts over several machines would wait for processes that are gone (pytorch issue 135712): set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment and use --rdzv-backend c10d, or give "
            "--max-restarts 0"
        )
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=process.is_main and not shared,
        multi_tenant=True,
    )
    if not shared:
        return store
    return dist.PrefixStore(f"start {process.restarts}", store)  # pyright: ignore[reportPrivateImportUsage]
