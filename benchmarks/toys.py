"""The toys with a known optimum: how near this project comes, and in how many seconds.

zero_one: coin flips with P(0) = 1/3; the floor is the entropy, 0.6365 nats. sort: lists of digits, exact answers only.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Summary, finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig, SortData, ZeroOneData, derive
from bonsaigpt.data.prepare import open_source, prepare
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.train import train
from bonsaigpt.train.events import Callback, EvalEvent, StartEvent, StepEvent

_TOYS = ("zero_one", "sort")
_EXACT = (0.99, 0.999, 0.9999)
"""Shares of lists sorted exactly whose time is asked."""


class _Follow(Callback):
    """Keeps every evaluation, and moves the bar."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance
        self.evaluations: list[EvalEvent] = []
        self.parameters = 0

    def on_start(self, event: StartEvent) -> None:
        self.parameters = event.parameters

    def on_step(self, event: StepEvent) -> None:
        self.advance(event.step, "")

    def on_eval(self, event: EvalEvent) -> None:
        self.evaluations.append(event)
        seen = event.evaluation
        exact = "" if seen.exact is None else f", exact {seen.exact:.2%}"
        self.advance(event.step, f"loss {seen.loss:.5f}{exact} after {event.seconds:.1f} s")


def main() -> None:
    """Measure what was asked for and print."""
    arguments = _arguments()
    figures: dict[str, Any] = {"benchmark": "toys", "machine": machine(arguments.threads)}
    print(f"{figures['machine']}\n")
    with tempfile.TemporaryDirectory() as folder:
        for toy in _TOYS if arguments.toy == "both" else (arguments.toy,):
            measure = _zero_one if toy == "zero_one" else _sort
            figures[toy] = measure(arguments, Path(folder) / toy)
    finish(figures)


def _zero_one(arguments: Any, folder: Path) -> dict[str, Any]:
    config = recipes.load("zero-one").model_copy(update={"seed": arguments.seed})
    assert isinstance(config.data, ZeroOneData)
    symbols = config.data.sequences * config.data.length
    seconds: list[float] = []
    with progress("zero_one, fresh folders", arguments.folders) as advance:
        for number in range(arguments.folders):
            fresh = folder / f"fresh-{number}"
            began = time.perf_counter()
            prepare(config.data, fresh, seed=config.seed)
            seconds.append(time.perf_counter() - began)
            shutil.rmtree(fresh)
            advance(number + 1, f"{seconds[-1]:.2f} s")
    notes = prepare(config.data, folder, seed=config.seed).notes  # the run opens it again
    follow, wall = _run(config, folder, arguments, "zero_one, steps")
    last = follow.evaluations[-1]
    entropy, floor = float(notes["entropy_nats"]), float(notes["floor_nats"])
    loss = last.evaluation.loss
    made = Summary.of(seconds)
    rows = [
        (f"{symbols / 1e6:g} M symbols: made, tokenised, on disk, s", made.text()),
        ("validation loss, nats", f"{loss:.6f}"),
        ("  above the entropy", f"{loss - entropy:+.6f} ({entropy:.6f})"),
        ("  above the floor of these very symbols", f"{loss - floor:+.6f} ({floor:.6f})"),
        (f"training alone, {last.step} steps, s", f"{last.seconds:.1f}"),
        ("training, evaluations and checkpoints, s", f"{wall:.1f}"),
    ]
    show("zero_one", ("", "figure"), rows)
    print()
    return {
        "symbols": symbols,
        "prepare_seconds": [round(s, 3) for s in seconds],
        "prepare": made.as_dict(),
        "loss": loss,
        "entropy": entropy,
        "floor": floor,
        "above_entropy": loss - entropy,
        "above_floor": loss - floor,
        "steps": last.step,
        "train_seconds": round(last.seconds, 3),
        "wall_seconds": round(wall, 3),
    }


def _sort(arguments: Any, folder: Path) -> dict[str, Any]:
    config = recipes.load(arguments.recipe).model_copy(update={"seed": arguments.seed})
    if not isinstance(config.data, SortData):
        sorts = [name for name in recipes.names() if name.startswith("sort")]
        raise ConfigError(f"recipe '{arguments.recipe}' does not sort: use one of {sorts}")
    follow, wall = _run(config, folder, arguments, f"{arguments.recipe}, steps")
    last = follow.evaluations[-1]
    exact = last.evaluation.exact
    assert exact is not None
    lists = config.data.val_examples
    reached = {
        share: next((e.seconds for e in follow.evaluations if (e.evaluation.exact or 0) >= share), None)
        for share in _EXACT
    }
    rows = [
        ("engine, seed", f"{arguments.engine}, {arguments.seed}"),
        ("task", f"{config.data.length} digits out of {config.data.vocab}"),
        ("parameters", f"{follow.parameters:,}"),
        ("held-out lists sorted exactly", f"{exact:.4%} ({round(exact * lists):,} of {lists:,})"),
        (f"training alone, {last.step} steps, s", f"{last.seconds:.1f}"),
        ("training, evaluations and checkpoints, s", f"{wall:.1f}"),
        *(
            (f"  training s until {share:.2%} exact", f"{s:.1f}" if s else "not reached")
            for share, s in reached.items()
        ),
    ]
    show(arguments.recipe, ("", "figure"), rows)
    print()
    return {
        "engine": arguments.engine,
        "seed": arguments.seed,
        "recipe": arguments.recipe,
        "vocab": config.data.vocab,
        "length": config.data.length,
        "parameters": follow.parameters,
        "lists": lists,
        "exact": exact,
        "steps": last.step,
        "train_seconds": round(last.seconds, 3),
        "wall_seconds": round(wall, 3),
        "seconds_to_exact": {str(share): s for share, s in reached.items()},
        "curve": [(e.step, round(e.seconds, 3), e.evaluation.exact) for e in follow.evaluations],
    }


def _run(config: RunConfig, folder: Path, arguments: Any, what: str) -> tuple[_Follow, float]:
    """Train a recipe as `bonsai train` does, without its files for people; seconds of everything but the data."""
    threads = arguments.threads or config.train.threads
    engine = load_engine(arguments.engine, device="cpu", precision="fp32", threads=threads)
    source = open_source(config, folder)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    run = RunDirectory.create(folder / "run", config, source.tokenizer, engine.describe())
    with progress(what, config.train.steps) as advance:
        follow = _Follow(advance)
        began = time.perf_counter()
        train(config, engine=engine, source=source, run=run, environment={}, listeners=[follow])
        wall = time.perf_counter() - began
    return follow, wall


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/toys.py sort --recipe sort")
    flags.add_argument("toy", nargs="?", choices=("both", *_TOYS), default="both", help="which toy (default: both)")
    flags.add_argument("--recipe", default="sort", help="recipe of the toy sort (default: sort)")
    flags.add_argument("--folders", type=positive, default=5, help="times that zero_one is made anew (default: 5)")
    flags.add_argument("--engine", choices=("torch", "jax"), default="torch", help="what trains (default: torch)")
    flags.add_argument("--seed", type=int, default=1337, help="of weights and problems (default: 1337)")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as the recipe says (default: 0)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
