"""How many steps does a longer context take? A model is trained at a short context and goes on at a long one as `bonsai
stretch` makes it: rotary positions as they are, or scaled in one of three ways; learned ones interpolated.

Each number of steps is a training of its own, with a schedule that ends there. What they are held against was trained
at the long context from the start, for as many steps as the short one was and with as many tokens in each. Losses are
over pieces of the validation split, in windows of the long context. Runs are kept under ``--cache`` and resumed; what
was measured is in a ledger.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Ledger, finish, guarded, machine, parser, positive, progress, show

import bonsaigpt as bonsai
from bonsaigpt.api import Run
from bonsaigpt.config import RunConfig
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.measure.kv import contiguous, cut
from bonsaigpt.measure.statistics import paired_difference
from bonsaigpt.study.context import Reach, Trained, Way, ways

_POSITIONS: dict[str, dict[str, Any]] = {
    "rope": {"kind": "rope", "theta": 100.0, "pairs": "neighbours"},
    "learned": {"kind": "learned"},
}
_SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 96}
_ALIKE = {"device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "attention_kernel": "sdpa"}
_ALIKE |= {"tensorboard": False, "eval_interval": 10_000, "sample_tokens": 0, "health": {"interval": 0}}
_NEAR = 0.01
"""Nats: what counts as there."""

Losses = dict[str, dict[str, list[float]]]
"""By arm and number of steps, those of the seeds."""


def main() -> None:
    """Train, stretch and print."""
    arguments = _arguments()
    ledger = Ledger(arguments.done)
    engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
    found: Losses = {}
    with progress("positions and seeds", arguments.seeds * len(arguments.positions)) as advance:
        for number in range(arguments.seeds):
            for done, position in enumerate(arguments.positions):
                for arm, losses in _measured(arguments, engine, ledger, position, 1337 + number).items():
                    for steps, loss in losses.items():
                        found.setdefault(arm, {}).setdefault(steps, []).append(loss)
                advance(number * len(arguments.positions) + done + 1, f"{position}, seed {1337 + number}")
    behind = _show(arguments, found)
    about = {"steps": arguments.steps, "looks": arguments.looks, "seeds": arguments.seeds}
    finish({"benchmark": "stretch", **about, "losses": found, "behind": behind})


def _measured(arguments: Any, engine: Engine, ledger: Ledger, position: str, seed: int) -> dict[str, dict[str, float]]:
    """Losses of one seed by arm and steps; of the models that were trained at the long context by 0 steps."""
    long, goal = arguments.long, arguments.steps
    short = _run(arguments, position, seed, arguments.short, arguments.steps)
    settings = {"config": short.directory.config.model_dump(mode="json"), "long": long, "pieces": arguments.pieces}

    def once(name: str, more: dict[str, Any], measure: Any) -> float:
        if (kept := ledger.find(settings | more)) is None:
            ledger.add(f"{name}, {position}, seed {seed}", settings | more, kept := measure())
        return kept

    reach = _reach(arguments, engine, short)
    name = f"{position} at {long} from the start"
    found = {name: {"0": once(name, {"goal": goal}, lambda: _from_the_start(arguments, engine, position, seed, goal))}}
    saved = short.directory.load("last")
    trained = Trained(config=short.directory.config, optimizer=saved.optimizer, open=lambda c: _source(arguments, c))
    for way in filter(lambda way: way.is_whole, ways(short.config)):

        def after(steps: int, way: Way = way) -> float:
            if not steps:
                return float(reach.read(way, long).mean())
            return reach.trained_point(trained, way, long, steps, advance=lambda *_: None).loss

        found[f"{position}, {way.name}"] = {
            str(steps): once(way.name, {"way": way.name, "steps": steps}, lambda steps=steps: after(steps))
            for steps in (0, *arguments.looks)
        }
    return found


def _from_the_start(arguments: Any, engine: Engine, position: str, seed: int, steps: int) -> float:
    run = _run(arguments, position, seed, arguments.long, steps)
    reach = _reach(arguments, engine, run)
    return float(reach.read(reach.plain, arguments.long).mean())


def _reach(arguments: Any, engine: Engine, run: Run) -> Reach:
    """A run on the validation split, in pieces of the long context."""
    ids, long = contiguous(_source(arguments, run.directory.config)), arguments.long
    streams = cut(ids, min(arguments.pieces, (len(ids) - 1) // long), long)
    reach = Reach(engine, run.config, run.opened.weights, streams, [run.config.block_size])
    reach.read_all([reach.plain], advance=lambda *_: None)
    return reach


def _source(arguments: Any, config: RunConfig) -> Any:
    return open_source(config, arguments.cache / "corpora")


def _run(arguments: Any, position: str, seed: int, block: int, steps: int) -> Run:
    """A trained run, resumed where it stopped; a step has the same tokens at every context."""
    rows = max(1, arguments.rows * arguments.short // block)
    settings = {
        "seed": seed,
        "data": {"path": str(arguments.text)},
        "model": _SHAPE | {"block_size": block, "position": _POSITIONS[position]},
        "optim": {"matrices": {"precision": "fp32"}},
        "train": _ALIKE | {"steps": steps, "batch_size": rows, "micro_batch": rows, "threads": arguments.threads},
    }
    return bonsai.train(
        "shakespeare-char-fast",
        name=f"{position}-{block}-{steps}-{seed}",
        auto_resume=True,
        runs=arguments.cache / "runs",
        corpora=arguments.cache / "corpora",
        settings=settings,
        quiet=True,
    )


def _show(arguments: Any, found: Losses) -> dict[str, Any]:
    """Each arm less the model that was trained at the long context, and from how many steps on their mean is near."""
    rows, looks, figures = [], ["0", *map(str, arguments.looks)], {}
    for position in arguments.positions:
        goal, *arms = (name for name in found if name.startswith(position))
        aim = found[goal]["0"]
        rows.append([goal, f"{np.mean(aim):.4f}", *[""] * (len(looks) + 1)])
        for name in arms:
            behind = {steps: paired_difference(losses, aim) for steps, losses in found[name].items()}
            there = next((steps for steps, found in behind.items() if found.mean <= _NEAR), "more")
            figures[name] = {steps: {"mean": one.mean, "margin": one.margin} for steps, one in behind.items()}
            cells = [one.text("+.4f") for one in behind.values()]
            rows.append([name, f"{np.mean(found[name]['0']):.4f}", *cells, there])
    title = (
        f"{machine(arguments.threads)}\n{arguments.steps} steps at {arguments.short}, so many at {arguments.long}; "
        f"seeds: {arguments.seeds}. Loss before, and above that of a model trained at {arguments.long}"
    )
    show(title, ["positions", "before", *looks, f"within {_NEAR}"], rows)
    return figures


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/stretch.py --text tinyshakespeare.txt --seeds 3")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--short", type=positive, default=64, help="context of the first training (default: 64)")
    options.add_argument("--long", type=positive, default=256, help="the longer context, tokens (default: 256)")
    options.add_argument("--rows", type=positive, default=12, help="of a step at the short context (default: 12)")
    options.add_argument("--steps", type=positive, default=500, help="steps at the short context (default: 500)")
    options.add_argument("--looks", type=positive, nargs="+", default=[10, 30, 100, 200], help="steps at the long one")
    options.add_argument("--seeds", type=positive, default=3, help="runs of each (default: 3)")
    options.add_argument(
        "--positions", nargs="+", choices=list(_POSITIONS), default=list(_POSITIONS), help="these alone"
    )
    options.add_argument("--pieces", type=positive, default=200, help="of the validation split (default: 200)")
    options.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    options.add_argument("--cache", type=Path, default=Path("."), help="where runs and token shards are kept")
    options.add_argument("--done", type=Path, default=Path("stretch.jsonl"), help="ledger of what was measured")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
