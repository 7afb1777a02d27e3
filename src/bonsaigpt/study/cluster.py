"""Runs as jobs of a cluster, by submitit (extra `submitit`), which writes the batch scripts and asks the queue."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from bonsaigpt.errors import ConfigError, DeviceError
from bonsaigpt.study.pool import STOPPED, Started, Work

__all__ = ["SubmititExecutor"]


class SubmititExecutor:
    """Jobs of SLURM, or of submitit's imitation of it on this machine.

    Args:
        folder: for submitit's scripts and logs.
        options: handed to submitit's ``update_parameters``: ``timeout_min``, ``slurm_partition``, ``gpus_per_node``.

    Raises:
        DeviceError: submitit is not installed, or there is no such cluster here.
        ConfigError: submitit does not know an option.
    """

    def __init__(self, cluster: Literal["slurm", "local"], folder: Path, options: Mapping[str, Any]) -> None:
        self._cluster, self._folder, self._options = cluster, folder, options
        self._executor: Any = None
        with TemporaryDirectory() as elsewhere:  # it makes its folder at once, and nothing is to be written yet
            self._open(Path(elsewhere))

    def start(self, work: Work) -> Started:
        """Put it into the queue."""
        if self._executor is None:
            self._executor = self._open(self._folder)
        return _Job(self._executor.submit(work), work)

    def _open(self, folder: Path) -> Any:
        try:
            submitit: Any = import_module("submitit")
        except ImportError:
            raise DeviceError(
                f"--executor {_FLAG[self._cluster]} needs the package submitit: pip install 'bonsaigpt[submitit]'"
            ) from None
        try:
            executor = submitit.AutoExecutor(folder=str(folder.resolve()), cluster=self._cluster)
        except RuntimeError:
            raise DeviceError(
                "there is no SLURM on this machine (no srun): use a login node of the cluster, or --executor pool"
            ) from None
        try:
            executor.update_parameters(name="bonsai", **self._options)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"submitit refuses its options: {str(error).strip().splitlines()[0]}") from None
        return executor


_FLAG = {"slurm": "slurm", "local": "local-submitit"}


class _Job:
    def __init__(self, job: Any, work: Work) -> None:
        self._job, self._work = job, work

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        trouble = self._job.exception()
        words = [self._job.stdout(), self._job.stderr(), str(trouble) if trouble is not None else None]
        self._work.log.write_text("\n".join(filter(None, words)), encoding="utf-8")
        if trouble is None:
            return self._job.result()
        # Without a result it was cancelled or out of time: it goes on from its last checkpoint when asked again.
        return STOPPED[1] if type(trouble).__name__ == "UncompletedJobError" else 1

    def stop(self) -> None:
        self._job.cancel(check=False)

    def kill(self) -> None:
        self._job.cancel(check=False)
