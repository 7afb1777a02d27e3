"""A training step in JAX against PyTorch's, at the baby shape, rounds interleaved in one process; and what
XLA counts of it.

python benchmarks/jax_speed.py --rounds 7
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from bonsaigpt.config import derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.torch_engine.engine import TorchEngine


def main() -> None:
    """Print seconds a step of both, and the ratio round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.0)
    arguments = parser.parse_args()
    rows = arguments.rows
    settings = {
        "model": {"preset": "baby", "vocab_size": 65, "dropout": arguments.dropout},
        "train": {"batch_size": rows, "micro_batch": rows, "precision": "fp32", "compile": "off", "workers": 2},
    }
    config = validate(settings, origin="benchmark")
    in_torch = derive(config, train={"micro_batch": 3, "attention_kernel": "sdpa"})
    tokens = np.random.default_rng(0).integers(0, 65, (rows, 257))
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=rows * 256)
    ours, theirs = JaxEngine(device="cpu"), TorchEngine(device="cpu", workers=2)
    states = ours.init(config), theirs.init(in_torch)
    seconds: list[tuple[float, float]] = []
    for step in range(1 + arguments.rounds):  # the first compiles
        times: list[float] = []
        for engine, state, setting in ((ours, states[0], config), (theirs, states[1], in_torch)):
            began = time.perf_counter()
            engine.step(state, batch, config=setting, share=1.0, step=step).host()  # pyright: ignore[reportArgumentType]
            times.append(time.perf_counter() - began)
        if step:
            seconds.append((times[0], times[1]))
        else:
            print(f"first step: JAX {times[0]:.1f} s, PyTorch {times[1]:.1f} s")
    ratios = sorted(b / a for a, b in seconds)
    jax_seconds, torch_seconds = (median(side) for side in zip(*seconds, strict=True))
    print(
        f"a step: JAX {jax_seconds:.2f} s, PyTorch {torch_seconds:.2f} s: {median(ratios):.2f} times its speed, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds"
    )
    report = ours.report(config)
    print(
        f"XLA: {report.flops / 1e9:,.0f} GFLOP, "
        f"{report.arguments / 2**20:,.0f} MiB of arguments, {report.temporaries / 2**20:,.0f} MiB besides"
    )


if __name__ == "__main__":
    main()
