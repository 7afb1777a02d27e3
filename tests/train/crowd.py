"""Starts `bonsai` as several processes that train together, as torchrun would, on 127.0.0.1 alone.

They are forked from the warm parent of ``launcher``, so that a crowd starts in a fraction of a second; what torchrun
itself does is tested with torchrun.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from launcher import Call, start

from bonsaigpt.train.callbacks.jsonl import read_metrics

__all__ = ["BAR", "DDP", "FSDP", "LOOPBACK", "Crowd", "errors", "gap", "run_crowd"]

BAR = 1e-5
"""How far losses of about 2.5 may part in 50 steps: the same float32 numbers are added in another order."""
DDP = ("--train.parallel", "ddp")
FSDP = ("--train.parallel", "fsdp")
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


class Crowd:
    """`bonsai ARGV` in ``size`` processes.

    Args:
        kill: before which call a process is killed, by its rank.
        patch: code that each process runs before it begins.
        folders: where each process runs, if not all in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        argv: list[str],
        size: int,
        *,
        kill: dict[int, Call] | None = None,
        patch: str = "",
        restarts: int = 0,
        folders: list[Path] | None = None,
    ) -> None:
        self.argv = argv
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | LOOPBACK
        shared["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
        self._members: list[tuple[Any, Any]] = [
            start(
                folders[rank] if folders else folder,
                argv,
                (kill or {}).get(rank),
                environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                patch=patch,
            )
            for rank in range(size)
        ]

    def wait_until_training(self) -> None:
        """Until every process has begun to train."""
        for _, began in self._members:
            assert began.wait(60), self.argv

    def send(self, rank: int, number: signal.Signals) -> None:
        """A signal to one of the processes."""
        os.kill(self._members[rank][0].pid, number)

    def codes(self) -> list[int]:
        """The exit codes of all, when all have ended."""
        until = time.monotonic() + 90
        for process, _ in self._members:
            process.join(timeout=max(0.0, until - time.monotonic()))
        found = [process.exitcode for process, _ in self._members]
        if None in found:
            for process, _ in self._members:
                process.kill()
            raise TimeoutError(f"bonsai {self.argv} hangs; exit codes {found}")
        return found


def run_crowd(folder: Path, argv: list[str], size: int, **more: Any) -> list[int]:
    """A crowd from its beginning to its end: the exit codes."""
    return Crowd(folder, argv, size, **more).codes()


def errors(folder: Path) -> str:
    """What the processes in a folder have said on standard error."""
    file = folder / "errors.txt"
    return file.read_text() if file.exists() else ""


def figures(run_folder: Path) -> dict[tuple[int, str], float]:
    """Losses, learning rates and tokens by step and name."""
    names = ("loss", "val_loss", "val_bits_per_byte", "lr", "tokens")
    return {
        (line["step"], n): line[n] for line in read_metrics(run_folder / "metrics.jsonl") for n in names if n in line
    }


def gap(run_folder: Path, yardstick: Path) -> float:
    """The largest difference between two runs in anything that was written down; they must have written the same."""
    found, expected = figures(run_folder), figures(yardstick)
    assert found.keys() == expected.keys()
    return max(abs(found[key] - expected[key]) for key in expected)
