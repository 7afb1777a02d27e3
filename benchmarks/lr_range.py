"""Does a learning-rate range test find the rate that a real schedule likes best? Hold it against `bonsai study lr`.

The test (Smith 2017, arXiv:1506.01186) is one short run whose rate rises all the way, here exponentially from 0.001 to
100 times the recipe's, so that every decade gets as many steps. Three rates are read off its smoothed loss, as is the
custom: where it is lowest, a tenth of that, and where it falls most steeply.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine

LOWEST, HIGHEST = 1e-3, 1e2
"""Multiples of the recipe's rates at the first and the last step."""
MEMORY = 0.9
"""Of the smoothed loss. It lags by 1 / (1 - memory) = 10 steps; with the usual 0.98, by 50, which in a test of 100
steps over five decades would be a factor of 300 in the rate."""


def main() -> None:
    """Test every recipe with every number of steps and every seed, and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    kinds: list[tuple[str, int]] = [(recipe, steps) for recipe in arguments.recipes for steps in arguments.steps]
    cells = list(product(kinds, range(arguments.seeds)))
    with progress("range tests", len(cells)) as advance:
        for done, ((recipe, steps), seed) in enumerate(cells, start=1):
            read = _read(*_test(arguments, recipe, steps, 1337 + seed))
            found.setdefault((recipe, steps), []).append(read)
            advance(done, f"{recipe}, {steps} steps, seed {seed}: lowest at x{read['lowest']:.2g}")
    names = ("lowest", "tenth", "steepest")
    rows = [
        (recipe, steps, *(", ".join(f"x{read[name]:.2g}" for read in reads) for name in names))
        for (recipe, steps), reads in found.items()
    ]
    columns = ["recipe", "steps", "lowest loss", "a tenth of that", "steepest"]
    show("Multiples of the recipe's learning rates that a range test suggests, seed by seed", columns, rows)
    figures = [{"recipe": recipe, "steps": steps, "seeds": reads} for (recipe, steps), reads in found.items()]
    finish({"benchmark": "lr_range", "tests": figures})


def _test(arguments: Any, recipe: str, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The multiples of one test, and the training loss at each, before the step with it was taken."""
    data = {"kind": "files", "path": str(arguments.text), "split": "tail"}
    config = recipes.load(recipe, {"seed": seed, "data": data})
    # What stands out is to be seen, not to be skipped.
    config = derive(config, train={"steps": steps, "compile": "off", "guard": {"spike": 0.0}})
    source = open_source(config, arguments.corpora)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    config, _ = engine.resolve(config, source.batch_at(0))
    state = engine.init(config)
    multiples = np.geomspace(LOWEST, HIGHEST, steps)
    losses: list[float] = []
    for step, multiple in enumerate(multiples.tolist()):
        metrics = engine.step(state, source.batch_at(step), config=config, share=multiple, step=step)
        loss = metrics.host()["loss"]
        if not math.isfinite(loss):
            break
        losses.append(loss)
    return multiples[: len(losses)], np.array(losses)


def _read(multiples: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """The rates that one would take."""
    smoothed = np.empty_like(losses)
    for i in range(len(losses)):  # without the bias towards zero that such an average begins with
        weights = MEMORY ** np.arange(i, -1, -1.0)
        smoothed[i] = weights @ losses[: i + 1] / weights.sum()
    lowest = int(np.argmin(smoothed))
    steepest = int(np.argmin(np.diff(smoothed[: lowest + 1]))) + 1 if lowest else 0
    return {
        "lowest": round(float(multiples[lowest]), 4),
        "tenth": round(float(multiples[lowest]) / 10, 5),
        "steepest": round(float(multiples[steepest]), 4),
        "lowest_loss": round(float(smoothed[lowest]), 4),
        "last_loss": round(float(smoothed[-1]), 4),
    }


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/lr_range.py --recipes shakespeare-char --steps 300 --seeds 1")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--recipes", nargs="+", default=["shakespeare-char", "shakespeare-char-fast"], metavar="NAME")
    options.add_argument("--steps", type=positive, nargs="+", default=[100, 300], metavar="N", help="steps of a test")
    options.add_argument("--seeds", type=positive, default=3, help="tests of each kind (default: 3)")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    options.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
