"""Where parameters and batches lie on a mesh of devices: one table, which the model's code knows nothing of.

The mesh has two axes. Along ``data`` each device takes rows of the batch; under ``train.parallel = fsdp`` weights and
the optimizer's state are cut along it as well (ZeRO, Rajbhandari et al. 2020, stage 3), and XLA gathers a layer's when
it is needed. Along ``model`` the maps of a block are cut by outputs on the way in and by inputs on the way out (Shoeybi
et al. 2019, Megatron-LM, section 3), so hidden units are shared out; of queries, keys and values, which are outputs of
one map in that order, a device has a part that is not whole heads, and XLA moves what is missing. It puts in all that
devices say to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.errors import DeviceError
from bonsaigpt.jax_engine.model import nested
from bonsaigpt.jax_engine.optim import Moments
from bonsaigpt.jax_engine.step import Learned
from bonsaigpt.spec import parameters

__all__ = ["RULES", "fetch", "make_mesh", "of_batch", "of_learned", "of_parameters", "place", "whole"]

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("*.c_attn.*", ("model", "data")),
    ("*.c_fc.*", ("model", "data")),
    ("*.c_gate.*", ("model", "data")),
    ("*.c_proj.*", ("data", "model")),
    ("*wte.*", ("model", "data")),
    ("lm_head.*", ("model", "data")),
    ("*", ("data",)),
)
"""By the names of parameters (globs; the first match wins) the mesh axis that cuts each of their axes. One that does
not divide what it would cut leaves it whole, and ``data`` cuts under fsdp alone."""


def make_mesh(devices: Sequence[Any], *, model: int = 1) -> Mesh:
    """All devices in rows of ``model``, which share the maps of a block.

    Raises:
        DeviceError: as many as there are do not make such rows.
    """
    if len(devices) % model:
        divisors = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise DeviceError(
            f"matrices cannot be shared by {model} devices (train.tensor_parallel) where there "
            f"{'is one' if len(devices) == 1 else f'are {len(devices)}'}: use --train.tensor_parallel "
            f"{' or '.join(divisors)}"
        )
    shape = len(devices) // model, model
    return Mesh(np.array(devices).reshape(shape), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def of_parameters(config: ModelConfig, mesh: Mesh, *, fsdp: bool) -> dict[str, NamedSharding]:
    """Where each parameter lies, and all that is kept of it, by its name."""
    found: dict[str, NamedSharding] = {}
    for p in parameters(config):
        if p.tied_to is not None:
            continue
        axes = next(axes for glob, axes in RULES if fnmatchcase(p.name, glob))
        cuts = [
            axis if axis is not None and (axis == "model" or fsdp) and size % mesh.shape[axis] == 0 else None
            for size, axis in zip(p.shape, axes, strict=False)
        ]
        found[p.name] = NamedSharding(mesh, PartitionSpec(*cuts))
    return found


def of_learned(config: RunConfig, mesh: Mesh, learned: Learned) -> Any:
    """Where all of a state lies: what is kept of a parameter lies as the parameter does."""
    everywhere: Any = whole(mesh)
    each: dict[str, Any] = dict(of_parameters(config.model, mesh, fsdp=config.train.parallel == "fsdp"))

    def of(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: each[name] for name in tree}

    moments = learned.moments
    adam = moments.adam._replace(count=everywhere, mu=of(moments.adam.mu), nu=of(moments.adam.nu))
    return Learned(nested(config.model, each), Moments(adam, of(moments.momentum), of(moments.average)), everywhere)


def of_batch(mesh: Mesh, *, rows: int) -> NamedSharding:
    """Where an array lies whose axis number ``rows`` has the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * rows, "data"))


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(values: Any, shardings: Any) -> Any:
    """A tree of arrays, the same in every process, on the devices; ``shardings`` is a tree alike, or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, values)

    def put(value: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(value, sharding)
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, values, shardings)


def fetch(values: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Arrays whole on the host, in memory of their own; all processes must ask together."""
    from jax.experimental.multihost_utils import process_allgather

    def get(value: jax.Array) -> np.ndarray:
        if value.is_fully_addressable:
            return np.array(value)
        if value.is_fully_replicated:
            return np.array(value.addressable_data(0))
        return np.array(process_allgather(value, tiled=True))

    return {name: get(value) for name, value in values.items()}
