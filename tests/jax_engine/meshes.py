"""Trains a tiny model on the meshes that are named, and prints what came of it; for test_sharding.py.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.jax_engine.meshes one data fsdp
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from bonsaigpt.config import validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.jax_engine.model import flat
from bonsaigpt.processes import Process

MESHES: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("cpu:0", {}),
    "data": ("cpu", {}),
    "fsdp": ("cpu", {"parallel": "fsdp"}),
    "tensor": ("cpu", {"tensor_parallel": 2}),
    "fsdp and tensor": ("cpu", {"parallel": "fsdp", "tensor_parallel": 4}),
}


def main() -> None:
    """One line of JSON for each mesh."""
    process = Process.here()
    for name in sys.argv[1:]:
        device, settings = MESHES[name]
        model = {"n_layer": 1, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 24, "bias": True}
        train = {"batch_size": 12, "micro_batch": 6, "precision": "fp32", "engine": "jax", **settings}
        config = validate({"model": model, "train": train, "optim": {"lr": 1e-2, "eps": 1e-5}}, origin="mesh")
        engine = JaxEngine(device=device, process=process)
        engine.check_fits(config)
        state = engine.init(config)
        losses = []
        for step in range(4):
            starts = np.random.default_rng(step).integers(0, 24, (12, 1))
            rows = (starts + 5 * np.arange(17)) % 24
            batch = Batch(tokens_BT=rows[:, :-1], targets_BT=rows[:, 1:], count=192)
            losses.append(engine.step(state, batch, config=config, share=1.0, step=step).host()["loss"])
        [score] = engine.world.sum([engine.evaluate(engine.model_of(state), batch.first(5))[0]])
        saved = engine.arrays(state)
        again = engine.restore(config, *saved)
        assert all(
            np.array_equal(a, b) for a, b in zip(saved[0].values(), engine.arrays(again)[0].values(), strict=True)
        )
        weights = flat(state.learned.params)
        name_of = "transformer.h.0.mlp.c_fc.weight"
        shard = weights[name_of].addressable_shards[0].data.shape
        kept = state.learned.moments.adam.mu[name_of].addressable_shards[0].data.shape
        parts = engine.step_memory(config).parts if name != "data" else {}
        norm = float(np.sqrt(sum(np.sum(w.astype(np.float64) ** 2) for w in saved[0].values())))
        if process.is_main:
            told = {"losses": losses, "score": score, "shard": shard, "kept": kept, "norm": norm, "parts": parts}
            print(json.dumps(told), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
