"""Training throughput of this project against an unmodified nanoGPT checkout, on the CPU, in alternating rounds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show
from duel import SIDES, add_flags, duel, text_overrides
from sides import check_nanogpt

from bonsaigpt import recipes

_SHAPES: dict[str, dict[str, Any]] = {
    "small": {"model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, "train": {"batch_size": 12}},
    "baby": {"model": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, "train": {"batch_size": 16}},
}
_STEPS = {"small": 10, "baby": 1}
"""Steps in a round: as short as can be timed well, because the load of a shared machine changes within seconds."""


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    nanogpt = check_nanogpt(arguments.nanogpt)
    steps = arguments.steps or _STEPS[arguments.shape]
    config = recipes.load("shakespeare-char", recipes.merge(_SHAPES[arguments.shape], text_overrides(arguments.text)))
    tokens = steps * config.train.batch_size * config.model.block_size
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    with (
        tempfile.TemporaryDirectory() as folder,
        duel(config, Path(folder), nanogpt=nanogpt, threads=arguments.threads) as (_, sides),
        progress(f"{arguments.shape}, rounds", arguments.rounds) as advance,
    ):
        parameters = sides["ours"].parameters()
        for side in sides.values():  # the first steps allocate memory and start threads
            side.advance(max(2, steps // 2))
        for number, order in interleave(SIDES, arguments.rounds):
            for name in order:
                rates[name].append(tokens / sides[name].advance(steps))
            advance(number + 1, f"{rates['ours'][-1] / rates['nanogpt'][-1]:.3f}x")

    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    ratio = Summary.of(ratios)
    where = machine(arguments.threads)
    print(f"{where}\n{arguments.shape}: {parameters:,} parameters, {steps} steps a round, tokens/s\n")
    rows: list[tuple[object, ...]] = [
        (number + 1, f"{rates['ours'][number]:,.0f}", f"{rates['nanogpt'][number]:,.0f}", f"{ratios[number]:.3f}")
        for number in range(arguments.rounds)
    ]
    rows.append(("median", *(f"{Summary.of(rates[n]).median:,.0f}" for n in SIDES), f"{ratio.median:.3f}"))
    show("Training throughput", ("round", "ours", "nanoGPT eager", "ours / nanoGPT"), rows)
    best = max(rates["ours"]) / max(rates["nanogpt"])
    print(f"\nours / nanoGPT: {ratio.text(3)}\nbest round of ours / best round of nanoGPT: {best:.3f}")
    finish(
        {
            "benchmark": "train_speed",
            "machine": where,
            "shape": arguments.shape,
            "parameters": parameters,
            "steps_per_round": steps,
            "tokens_per_second": {name: [round(r, 1) for r in values] for name, values in rates.items()},
            "ratio_per_round": [round(r, 4) for r in ratios],
            "ratio": ratio.as_dict(),
            "ratio_of_best": round(best, 4),
        }
    )


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/train_speed.py --nanogpt ~/nanoGPT --text tinyshakespeare.txt")
    add_flags(flags)
    flags.add_argument("--shape", choices=_SHAPES, default="small", help="size of model and batch (default: small)")
    flags.add_argument("--rounds", type=positive, default=40, help="rounds, each side once in each (default: 40)")
    flags.add_argument("--steps", type=positive, help="optimizer steps in a round (default: 10 small, 1 baby)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
