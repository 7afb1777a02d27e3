"""What does looking at a run's health cost? Blocks of training steps with and without it, in turns, in one run.

    python benchmarks/health_cost.py

A look at the default interval adds some milliseconds to one step of a hundred: too little to see beside the noise of
the other ninety-nine. So single steps are timed, with a look and without, in an order that is reversed every other
round, and the extra time is spread over the interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure.health import Health, look_for

_SHAPES: dict[str, dict[str, Any]] = {
    "small": {"model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, "train": {"batch_size": 12}},
    "baby": {"model": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, "train": {"batch_size": 16}},
}


def _main(arguments: argparse.Namespace) -> None:
    overrides = {"data": {"kind": "files", "path": str(arguments.text)}, "train": {"compile": "off"}}
    config = derive(recipes.load("shakespeare-char", overrides), **_SHAPES[arguments.shape])
    source = open_source(config, Path("corpora"))
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device=arguments.device, precision="fp32", threads=arguments.threads)
    batch = source.batch_at(0)
    config, _ = engine.resolve(config, batch)
    state, step = engine.init(config), 0
    look = look_for(config.model, config.train.health)

    def seconds(side: str) -> float:
        nonlocal step
        began = time.perf_counter()
        metrics = engine.step(
            state, source.batch_at(step), config=config, share=1.0, step=step, look=look if side == "look" else None
        )
        metrics.host()
        if (figures := metrics.health()) is not None:  # as the loop does, which judges it as well
            Health.of(figures, config.model, step=step)
        step += 1
        return time.perf_counter() - began

    sides = ["plain", "look"]
    for side in sides * 2:
        seconds(side)
    times: dict[str, list[float]] = {side: [] for side in sides}
    with progress("rounds", arguments.rounds) as advance:
        for number, order in interleave(sides, arguments.rounds):
            for side in order:
                times[side].append(seconds(side))
            advance(number + 1, "")
    interval = config.train.health.interval
    extra = [look / plain - 1.0 for look, plain in zip(times["look"], times["plain"], strict=True)]
    overhead = Summary.of([100.0 * e / interval for e in extra])
    rows = [(side, Summary.of([1e3 * t for t in times[side]]).text(1)) for side in sides]
    show(f"{arguments.shape}, milliseconds a step; {machine(arguments.threads)}", ("step", "ms"), rows)
    best = 100.0 * (min(times["look"]) / min(times["plain"]) - 1.0) / interval
    print(f"overhead at an interval of {interval} steps: {overhead.text()} % of the time of a step")
    print(f"by the fastest step of each kind: {best:.2f} %")
    figures = {"overhead_percent": overhead.as_dict(), "overhead_of_the_fastest_percent": round(best, 3)}
    finish({"shape": arguments.shape, "interval": interval} | figures)


def main() -> None:
    arguments = parser(__doc__ or "", "python benchmarks/health_cost.py --shape baby --rounds 10")
    arguments.add_argument(
        "--shape", choices=sorted(_SHAPES), default="small", help="size of the model (default small)"
    )
    arguments.add_argument("--rounds", type=positive, default=40, help="pairs of steps (default 40)")
    arguments.add_argument("--threads", type=positive, default=2, help="CPU threads (default 2)")
    arguments.add_argument("--device", default="cpu", help="cpu, cuda (default cpu)")
    arguments.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="text to train on")
    _main(arguments.parse_args())


if __name__ == "__main__":
    sys.exit(guarded(main))
