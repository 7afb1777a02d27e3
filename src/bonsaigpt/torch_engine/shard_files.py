"""Checkpoints of weights that lie in shards: torch.distributed.checkpoint, as safetensors, written in the background.

Every process writes its own rows, and the main one seals the folder when all have: so it stands whole or not at all, as
any other checkpoint does, and every verb opens it (``checkpoint/files.py`` puts the rows together). Any number of
processes can read what any other number wrote.
"""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.errors import CheckpointError
from bonsaigpt.files import writing
from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.fsdp import Sharded

__all__ = ["ShardFiles"]

_KINDS = ("model", "optimizer")


class ShardFiles:
    """Writes and reads the checkpoints of a run; all processes call every method together."""

    def __init__(self, world: World) -> None:
        self.world = world
        # A group of its own: what the background says must not mix with what the training says.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._pool = ThreadPoolExecutor(1, "bonsai-checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], layout: Sharded, run: RunDirectory, about: Any
    ) -> None:
        """Copy the tensors to the host, and write them while the training goes on."""
        self.wait()
        kinds = dict.fromkeys(model, 1) | dict.fromkeys(optimizer, 2)
        tensors = {name: _spread(name, tensor, layout) for name, tensor in (model | optimizer).items()}
        with ExitStack() as stack:
            aside = Path(self.world.on_main(lambda: str(stack.enter_context(run.saving(about)))))
            writer = HuggingFaceStorageWriter(str(aside), fqn_to_index_mapping=kinds, save_distributed=True)
            written = async_save(tensors, storage_writer=writer, process_group=self._group)
            self._writing = self._pool.submit(self._finish, written, aside, stack.pop_all())

    def _finish(self, written: Any, aside: Path, sealing: ExitStack) -> None:
        with sealing, writing(aside):
            try:
                written.result()
            except CheckpointException as error:  # of every process that failed
                raise next(iter(error.failures.values()))[0] from None
            if self.world.is_main:
                for path in aside.iterdir():
                    path.rename(aside / _our_name(path.name))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            OutputError: it could not be written; nothing of it is left, and the one before it still stands.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, folder: Path, layout: Sharded) -> dict[str, Tensor]:
        """This process' rows of everything in a checkpoint, whichever and however many processes wrote it."""
        reader = HuggingFaceStorageReader(str(folder))
        try:
            tensors = {
                name: _spread(name, torch.empty(found.size), layout, empty=True)
                for name, found in reader.read_metadata().state_dict_metadata.items()
                if isinstance(found, TensorStorageMetadata)
            }
            load(tensors, storage_reader=reader, process_group=self._group)
        except (CheckpointException, OSError, ValueError) as error:
            raise CheckpointError(f"{folder} cannot be read ({error}): use another checkpoint of this run") from None
        return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def _spread(name: str, tensor: Tensor, layout: Sharded, *, empty: bool = False) -> Tensor:
    """A tensor as torch.distributed.checkpoint must see it: as rows of a whole, if it belongs to a parameter."""
    parameter = name if name in layout.parameters else name.partition(".")[2]  # e.g. exp_avg.transformer.wte.weight
    if parameter not in layout.parameters:
        return tensor
    return layout.spread(parameter, torch.empty_like(layout.parameters[parameter]) if empty else tensor)


def _our_name(name: str) -> str:
    """``model-1.safetensors`` for ``shard-00001-model-00001-of-00002.safetensors``."""
    found = re.fullmatch(r"shard-0*(\d+)-model-0*(\d+)-of-\d+\.safetensors", name)
    assert found is not None, name
    return f"{_KINDS[int(found[2]) - 1]}-{found[1]}.safetensors"
