"""Training throughput and memory of this project against an unmodified nanoGPT checkout, in alternating rounds.

On a CPU in fp32, nanoGPT eager; with --device cuda in bf16, both compiled, as nanoGPT's own defaults are there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show
from duel import SIDES, add_flags, duel, text_overrides
from sides import check_nanogpt

from bonsaigpt import recipes
from bonsaigpt.measure import flops_per_token

_SHAPES: dict[str, dict[str, Any]] = {
    "small": {"model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, "train": {"batch_size": 12}},
    "baby": {"model": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, "train": {"batch_size": 16}},
    "gpt2": {"model": {"preset": "gpt2", "vocab_size": 50304}, "train": {"batch_size": 16}},
}
_STEPS = {"small": 10, "baby": 1, "gpt2": 5}
"""Steps in a round: as short as can be timed well, because the load of a shared machine changes within seconds."""


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    nanogpt = check_nanogpt(arguments.nanogpt)
    steps = arguments.steps or _STEPS[arguments.shape]
    gpu = arguments.device != "cpu"
    placed = {"train": {"device": arguments.device, "precision": "bf16" if gpu else "fp32"}}
    placed["train"] |= {"compile": "on"} if gpu else {"compile": arguments.compile}
    shape = recipes.merge(_SHAPES[arguments.shape], placed)
    config = recipes.load("shakespeare-char", recipes.merge(shape, text_overrides(arguments.text)))
    tokens = steps * config.train.batch_size * config.model.block_size
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    with (
        tempfile.TemporaryDirectory() as folder,
        duel(config, Path(folder), nanogpt=nanogpt, threads=arguments.threads, compile=gpu) as (config, sides),
        progress(f"{arguments.shape}, rounds", arguments.rounds) as advance,
    ):
        parameters = sides["ours"].parameters()
        for side in sides.values():  # the first steps allocate memory and start threads
            side.advance(max(2, steps // 2))
        for number, order in interleave(SIDES, arguments.rounds):
            for name in order:
                rates[name].append(tokens / sides[name].advance(steps))
            advance(number + 1, f"{rates['ours'][-1] / rates['nanogpt'][-1]:.3f}x")

        memory = {name: side.memory() for name, side in sides.items()}

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
    share = memory["ours"] / memory["nanogpt"]
    print(f"peak memory: ours {memory['ours']:,.0f} MB, nanoGPT {memory['nanogpt']:,.0f} MB, ratio {share:.3f}")
    tflops = Summary.of(rates["ours"]).median * flops_per_token(config.model) / 1e12
    print(f"ours: {tflops:.3g} TFLOP/s; MFU is that over the peak of the device (H200: 989 in dense bf16)")
    finish(
        {
            "benchmark": "train_speed",
            "memory_mb": memory,
            "tflops": tflops,
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
    flags.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    flags.add_argument("--compile", default="off", choices=["auto", "on", "off"], help="ours on a CPU (default: off)")
    flags.add_argument("--rounds", type=positive, default=40, help="rounds, each side once in each (default: 40)")
    flags.add_argument("--steps", type=positive, help="optimizer steps in a round (default: 10 small, 1 baby)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
