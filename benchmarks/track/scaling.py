"""The fit behind the loss that `bonsai train --dry-run` predicts: recipe `shakespeare-char-best`, smaller and larger,
shorter and longer, and through all final losses the curve of Hoffmann et al. 2022 (see ``measure/scaling.py``).

Losses depend on neither the machine's speed nor its load, so the runs go through a pool of one-thread processes.
Finished runs are kept in a file, so a second call goes on where the first was stopped. ``--write`` puts the fit into
the package.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alone import train_all
from common import finish, guarded, parser, positive, show
from duel import text_overrides

from bonsaigpt import recipes
from bonsaigpt.config import RunConfig
from bonsaigpt.data.prepare import open_source
from bonsaigpt.files import write_text
from bonsaigpt.measure import scaling as scaling_module
from bonsaigpt.measure.scaling import Scaling, leave_one_out

RECIPE = "shakespeare-char-best"
TEXT = "Tiny Shakespeare in characters, its last tenth held out"
HEAD_WIDTH = 64
GRID = {
    (2, 64): (500, 1000, 2000),
    (3, 128): (250, 500, 1000, 2000),
    (4, 128): (250, 500, 1000, 2000),
    (4, 192): (250, 500),
}
"""Steps for each (layers, width). The largest models at the longest runs would take half of the whole time."""


def main() -> None:
    """Train what is missing, fit, print."""
    arguments = _arguments()
    config = _config((4, 128), 1, arguments.seed, arguments)
    sizes = [(size, steps) for size, lengths in GRID.items() for steps in lengths]
    # A seed of its own for each: what chance does is in the spread then, and not the same in all.
    runs_of = {_name(*job): job for job in ((*size, arguments.seed + i) for i, size in enumerate(sizes))}
    # The shortest first: little is lost by a stop.
    shortest = sorted(runs_of.items(), key=lambda item: item[1][0][0] * item[1][0][1] ** 2 * item[1][1])
    configs = {name: _config(*job, arguments) for name, job in shortest}
    found = train_all(configs, arguments.done, corpora=arguments.corpora, processes=arguments.jobs)
    names = list(runs_of)
    corpus = open_source(config, arguments.corpora).fingerprint.partition("-")[0]
    runs: list[tuple[int, int, float]] = [found[name] for name in names]
    scaling = Scaling.of(runs, config, corpus=corpus, text=TEXT)
    _print(scaling, names)
    if arguments.write:
        path = Path(scaling_module.__file__).with_name("scaling.json")
        write_text(path, scaling.to_json())
        print(f"written: {path}", file=sys.stderr)


def _name(size: tuple[int, int], steps: int, seed: int) -> str:
    return f"{size[0]} layers of {size[1]}, {steps} steps, seed {seed}"


def _config(size: tuple[int, int], steps: int, seed: int, arguments: Any) -> RunConfig:
    layers, width = size
    own = {
        "seed": seed,
        "model": {"n_layer": layers, "n_embd": width, "n_head": width // HEAD_WIDTH},
        "train": {"steps": steps},
    }
    return recipes.load(RECIPE, recipes.merge(text_overrides(arguments.text), own))


def _print(scaling: Scaling, names: list[str]) -> None:
    errors = leave_one_out(scaling.runs)
    rows = [
        (name, f"{n:,}", f"{d:,}", f"{loss:.4f}", f"{scaling.loss(n, d) - loss:+.4f}", f"{error:+.4f}")
        for name, (n, d, loss), error in zip(names, scaling.runs, errors, strict=True)
    ]
    form = f"L = {scaling.E:.4f} + {scaling.A:.4g} / N^{scaling.a:.4f} + {scaling.B:.4g} / D^{scaling.b:.4f}"
    columns = ("run", "N", "D", "loss, nats", "fit - loss", "fit of the others - loss")
    show(f"{RECIPE}, {TEXT}\n{form}", columns, rows)
    worst = max(map(abs, errors))
    print(f"fits that had not seen a run miss it by {scaling.spread:.4f} nats (root mean square), {worst:.4f} at worst")
    finish({"benchmark": "scaling", "fit": json.loads(scaling.to_json()), "left_out": errors})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/track/scaling.py --text tinyshakespeare.txt --write")
    flags.add_argument("--text", type=Path, metavar="FILE", help="Tiny Shakespeare (default: the one on this disk)")
    flags.add_argument("--seed", type=int, default=1337, help="of the first run, the next has the next (default: 1337)")
    flags.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="runs at a time (default: all cores)")
    flags.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    flags.add_argument(
        "--done", type=Path, metavar="FILE", default=Path("scaling-runs.jsonl"), help="keeps finished runs"
    )
    flags.add_argument("--write", action="store_true", help="put the fit into the package")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
