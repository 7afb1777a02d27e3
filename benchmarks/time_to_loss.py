"""Quality and time at nanoGPT's own CPU recipe: the same model trained by both, judged by one evaluator.

The evaluator is this project's: the mean loss over the whole validation split, so it has no sampling noise (nanoGPT's
own estimate draws 20 batches). Both trainings advance in turns, so that the ratio of their seconds holds on a machine
whose speed changes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import finish, guarded, interleave, machine, parser, positive, progress, show
from duel import SIDES, Remote, add_flags, duel, text_overrides
from sides import check_nanogpt

from bonsaigpt import recipes
from bonsaigpt.config import RunConfig
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate

_CHUNK = 50
"""Steps of one side before it is the other's turn."""
_EVAL = 250
"""Steps between two evaluations."""
_LEVELS = (2.5, 2.2, 2.1, 2.0, 1.95, 1.9, 1.85)
"""Losses, in nats a character, whose time is asked."""
_BAR = 0.005
"""Our median loss may lie this much above nanoGPT's."""

Curve = list[tuple[int, float, float]]
"""(steps, training seconds, validation loss) of each evaluation."""


def main() -> None:
    """Train, judge and print."""
    arguments = _arguments()
    nanogpt = check_nanogpt(arguments.nanogpt)
    curves: dict[str, list[Curve]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder, progress("steps", arguments.seeds * arguments.steps) as advance:
        for seed in range(arguments.seeds):
            overrides = {"seed": 1337 + seed, "train": {"steps": arguments.steps, "device": "cpu", "precision": "fp32"}}
            config = recipes.load("shakespeare-char", recipes.merge(overrides, text_overrides(arguments.text)))
            done = seed * arguments.steps

            def report(step: int, note: str, done: int = done, seed: int = seed) -> None:
                advance(done + step, f"seed {seed}: {note}" if note else "")

            with duel(config, Path(folder), nanogpt=nanogpt, threads=arguments.threads) as (config, sides):
                for name, curve in _train(config, sides, Path(folder), report).items():
                    curves[name].append(curve)
    _print(curves, arguments)


def _train(config: RunConfig, sides: dict[str, Remote], folder: Path, report: Any) -> dict[str, Curve]:
    """Advance both in turns, and evaluate both with the same code."""
    engine, source = load_engine("torch", device="cpu", precision="fp32"), open_source(config, folder)
    curves: dict[str, Curve] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    step = 0

    def judge() -> None:
        for name, side in sides.items():
            loss = evaluate(engine, engine.model(config.model, side.weights()), source).loss
            curves[name].append((step, round(seconds[name], 3), round(loss, 5)))

    judge()
    for _, order in interleave(SIDES, -(-config.train.steps // _CHUNK)):
        chunk = min(_CHUNK, config.train.steps - step)
        for name in order:
            seconds[name] += sides[name].advance(chunk)
        step += chunk
        note = ""
        if step % _EVAL == 0 or step == config.train.steps:
            judge()
            note = ", ".join(f"{name} {curve[-1][2]:.4f} after {curve[-1][1]:.1f} s" for name, curve in curves.items())
        report(step, note)
    return curves


def _print(curves: dict[str, list[Curve]], arguments: Any) -> None:
    final = {name: [curve[-1][2] for curve in runs] for name, runs in curves.items()}
    seconds = {name: [curve[-1][1] for curve in runs] for name, runs in curves.items()}
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["nanogpt"], strict=True)]
    middle = {name: median(losses) for name, losses in final.items()}
    gap = middle["ours"] - middle["nanogpt"]
    where = machine(arguments.threads)

    print(f"{where}\nnanoGPT's CPU recipe, {arguments.steps} steps; loss: nats a character, whole validation split\n")
    rows: list[tuple[object, ...]] = [
        (
            1337 + seed,
            *(f"{final[name][seed]:.4f}" for name in SIDES),
            *(f"{seconds[name][seed]:.1f}" for name in SIDES),
            f"{ratios[seed]:.3f}",
        )
        for seed in range(arguments.seeds)
    ]
    rows.append(
        (
            "median",
            *(f"{middle[name]:.4f}" for name in SIDES),
            *(f"{median(seconds[name]):.1f}" for name in SIDES),
            f"{median(ratios):.3f}",
        )
    )
    columns = ("seed", "ours: loss", "nanoGPT: loss", "ours: s", "nanoGPT: s", "nanoGPT s / our s")
    show("Final weights", columns, rows)
    verdict = "within" if gap <= _BAR else "MISSED"
    print(f"\nmedian of ours - median of nanoGPT: {gap:+.4f} nats (bar: at most +{_BAR}: {verdict})\n")

    reached = {
        name: {level: [_first(curve, level) for curve in runs] for level in _LEVELS} for name, runs in curves.items()
    }
    rows = [(f"{level:g}", *(_seconds(reached[name][level]) for name in SIDES)) for level in _LEVELS]
    show(
        f"Training seconds until the loss is at or below, at evaluations every {_EVAL} steps (median of seeds)",
        ("loss", "ours", "nanoGPT"),
        rows,
    )
    finish(
        {
            "benchmark": "time_to_loss",
            "machine": where,
            "steps": arguments.steps,
            "final_loss": final,
            "median_loss": middle,
            "difference_of_medians": round(gap, 5),
            "bar": _BAR,
            "training_seconds": seconds,
            "speed_ratio": [round(r, 4) for r in ratios],
            "median_speed_ratio": round(median(ratios), 4),
            "seconds_to_loss": {n: {f"{level:g}": times for level, times in r.items()} for n, r in reached.items()},
            "curves": curves,
        }
    )


def _first(curve: Curve, level: float) -> float | None:
    """Training seconds at the first evaluation at or below ``level``."""
    return next((seconds for _, seconds, loss in curve if loss <= level), None)


def _seconds(times: list[float | None]) -> str:
    reached = [t for t in times if t is not None]
    if not reached:
        return "not reached"
    return f"{median(reached):.1f}" + (f" ({len(reached)} of {len(times)} seeds)" if len(reached) < len(times) else "")


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT --text tinyshakespeare.txt")
    add_flags(flags)
    flags.add_argument("--seeds", type=positive, default=3, help="trainings of each side (default: 3)")
    flags.add_argument("--steps", type=positive, default=2000, help="optimizer steps of each training (default: 2000)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
