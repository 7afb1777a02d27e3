"""Writes the oracle: a step of two tiny models as PyTorch computes it in float64, for both engines to be held against.

python -m tests.goldens.write

So a change of both engines at once (a default of the configuration, a formula copied wrong twice) is seen as well.
Write it anew only where such a change is meant, and say so in the change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.batches import Batch
from bonsaigpt.measure.parity import comparable, differences, probe
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.trace import Observed
from tests.torch_engine.variants import variant

__all__ = ["NAMES", "Golden", "run_of"]

NAMES = ("gpt2", "modern")
_FOLDER = Path(__file__).parent


class Golden:
    """What is stored of one model.

    Raises:
        FileNotFoundError: it was never written.
    """

    def __init__(self, name: str) -> None:
        stored = load_file(_FOLDER / f"{name}.safetensors")
        self.observed: Observed = {}
        for key, value in stored.items():
            level, _, tensor = key.partition("/")
            self.observed.setdefault(level, {})[tensor] = value
        inputs = self.observed.pop("inputs")
        self.model = self.observed["weights"]
        self.batch = Batch(tokens_BT=inputs["tokens"], targets_BT=inputs["targets"], count=int(inputs["count"]))
        self.allowed: dict[str, float] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))["allowed"]


def run_of(name: str) -> RunConfig:
    """The model and its step: AdamW with decay, clipped."""
    heads = {"attention": {"n_kv_head": 1, "qk_norm": True}} if name == "modern" else {}
    model = variant(name, n_layer=1, n_head=2, n_embd=16, block_size=12, **heads)
    optim = {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 0.5, "eps": 1e-5}
    return comparable(derive(RunConfig(), model=model.model_dump(), optim=optim))


def main() -> None:
    """One file of arrays and one of what errors are allowed, for each model."""
    engine = TorchEngine(device="cpu", workers=1)
    for name in NAMES:
        config, noise = run_of(name), np.random.default_rng(0)
        table = [p for p in parameters(config.model) if p.tied_to is None]
        model = {p.name: (initial_value(p, 2) + 0.1 * noise.standard_normal(p.shape)).astype(np.float32) for p in table}
        batch = probe(config.model, length=12)
        truth, single = (engine.observe(config, model, {}, batch, double=double) for double in (True, False))
        allowed = {f"{d.level}/{d.name}": d.allowed for d in differences(truth, single, single)}
        arrays = {f"{level}/{key}": value for level, tensors in truth.items() for key, value in tensors.items()}
        kept = {key: np.asarray(value, np.float32) for key, value in arrays.items() if "/exp_avg" not in key}
        kept |= {
            "inputs/tokens": np.ascontiguousarray(batch.tokens_BT),
            "inputs/targets": np.ascontiguousarray(batch.targets_BT),
            "inputs/count": np.array(batch.count),
        }
        save_file(kept, _FOLDER / f"{name}.safetensors")
        about: dict[str, Any] = {"torch": torch.__version__, "numpy": np.__version__}
        about["allowed"] = {key: value for key, value in allowed.items() if key in kept}
        (_FOLDER / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
