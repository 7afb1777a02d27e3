"""A training step in JAX against PyTorch's, at the baby shape, rounds interleaved in one process; and what
XLA counts of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import Summary, finish, guarded, machine, parser, positive, show

from bonsaigpt.config import derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.torch_engine.engine import TorchEngine


def main() -> None:
    """Print seconds a step of both, and the ratio round by round."""
    arguments = _arguments()
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
    sides: list[tuple[Any, Any, Any]] = [(ours, ours.init(config), config), (theirs, theirs.init(in_torch), in_torch)]
    seconds: list[list[float]] = [[], []]
    for step in range(1 + arguments.rounds):
        for times, (engine, state, setting) in zip(seconds, sides, strict=True):
            began = time.perf_counter()
            engine.step(state, batch, config=setting, share=1.0, step=step).host()
            times.append(time.perf_counter() - began)
    first = {"jax": seconds[0].pop(0), "torch": seconds[1].pop(0)}  # JAX compiles
    speed = Summary.of([b / a for a, b in zip(*seconds, strict=True)])
    in_jax, by_torch = (Summary.of(times) for times in seconds)
    report = ours.report(config)
    counted = {
        "gflop": report.flops / 1e9,
        "arguments_mib": report.arguments / 2**20,
        "temporaries_mib": report.temporaries / 2**20,
    }
    print(f"{machine()}\n")
    lines = [
        ("first step, s", f"{first['jax']:.1f}", f"{first['torch']:.1f}"),
        ("a step, s", in_jax.text(), by_torch.text()),
        (f"speed, {speed.n} rounds", f"{speed.median:.2f} ({speed.low:.2f} to {speed.high:.2f})", "1"),
        ("GFLOP, as XLA counts", f"{counted['gflop']:,.0f}", ""),
        ("MiB of arguments", f"{counted['arguments_mib']:,.0f}", ""),
        ("MiB besides", f"{counted['temporaries_mib']:,.0f}", ""),
    ]
    show("a training step", ("", "JAX", "PyTorch"), lines)
    step = {"jax": in_jax.as_dict(), "torch": by_torch.as_dict()}
    finish({"benchmark": "jax_speed", "first": first, "step": step, "speed": speed.as_dict(), "xla": counted})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/jax_speed.py --rounds 7")
    flags.add_argument("--rounds", type=positive, default=7, help="in turns (default: 7)")
    flags.add_argument("--rows", type=positive, default=12, help="of 256 tokens (default: 12)")
    flags.add_argument("--dropout", type=float, default=0.0, help="rate (default: 0)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
