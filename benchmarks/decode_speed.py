"""Tokens a second of decoding against nanoGPT, LitGPT, Hugging Face and NumPy, in alternating rounds; batch 1.

Everybody continues a prompt of one token to the end of the block, so that nobody has to drop any context. nanoGPT reads
the whole context for each token and would take minutes: it makes a few tokens at contexts spread evenly over the block,
and again at the full block, where its ``generate`` stays once it is there ("nanoGPT, full block").
"""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show
from decode_sides import SIDES, DecodeSetup
from sides import check_nanogpt

from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.errors import DataError
from bonsaigpt.spec import parameter_count

_SHAPES: dict[str, dict[str, Any]] = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64},
    "baby": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257},
}
_CPU_ALONE = ("NumPy", "ours int8")
_NEEDS = {"LitGPT": "litgpt", "Hugging Face": "transformers"}
_FULL = "nanoGPT, full block"
_BARS = {
    "baby": {("ours", "LitGPT"): 4, ("ours", _FULL): 35, ("ours int8", "LitGPT"): 7},
    "small": {("ours", "LitGPT"): 8},
    "gpt2": {("ours", "LitGPT"): 1, ("ours", "Hugging Face"): 1},
}
_BATCH = 16


class Process:
    """A side in a process of its own."""

    def __init__(self, name: str, setup: DecodeSetup) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(name, setup))
        self.about: str = self.ask("about")

    def ask(self, method: str, *arguments: object) -> Any:
        """What the side's method returns."""
        return self._pool.submit(_answer, method, arguments).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


_side: Any = None


def _start(name: str, setup: DecodeSetup) -> None:
    global _side
    _side = SIDES[name](setup)


def _answer(method: str, arguments: tuple[object, ...]) -> Any:
    found = getattr(_side, method)
    return found(*arguments) if callable(found) else found


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.threads:
        os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)  # of the child with NumPy alone
    config = validate({"model": {"vocab_size": 65} | _SHAPES[arguments.shape]}, origin="shape").model
    nanogpt = check_nanogpt(arguments.nanogpt) if arguments.nanogpt else None
    setup = DecodeSetup(
        config=config,
        nanogpt=nanogpt,
        threads=arguments.threads,
        device=arguments.device,
        precision=arguments.precision,
    )
    names, skipped = _available(arguments)
    sides: dict[str, Process] = {}
    try:
        for name in names:
            sides[name] = Process(name, setup)
        _check_same(sides, config.block_size, 1e-3 if arguments.precision == "fp32" else 0.1)
        rates, batches, firsts = _measure(arguments, sides, config)
    finally:
        for side in sides.values():
            side.close()
    _report(arguments, sides, skipped, parameter_count(config), rates, batches, firsts)


def _available(arguments: Any) -> tuple[list[str], dict[str, str]]:
    skipped = {n: f"{m} is not installed" for n, m in _NEEDS.items() if importlib.util.find_spec(m) is None}
    if arguments.device != "cpu" or arguments.precision != "fp32":
        skipped |= dict.fromkeys(_CPU_ALONE, "it is for a CPU in fp32")
    if arguments.nanogpt is None:
        skipped["nanoGPT"] = "no --nanogpt PATH"
    return [name for name in SIDES if name not in skipped], skipped


def _check_same(sides: dict[str, Process], block: int, tolerance: float) -> None:
    """``tolerance``: of the largest logit."""
    tokens = np.random.default_rng(1).integers(0, 65, block // 2)
    ours = sides["ours"].ask("logits", tokens)
    for name, side in sides.items():
        theirs = side.ask("logits", tokens)
        if theirs.size and not np.allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(ours).max()):
            raise DataError(f"{name} computes other logits than ours: nothing to compare")


_Rates = dict[str, list[float]]


def _measure(
    arguments: Any, sides: dict[str, Process], config: ModelConfig
) -> tuple[_Rates, list[tuple[float, float]], list[float]]:
    """Tokens a second of each side and round; tokens a second of 16 prompts one by one and together; ms to a first
    token."""
    block, vocab_size = config.block_size, config.vocabulary
    generator = np.random.default_rng(0)
    rates: _Rates = {name: [] for name in [*sides, *([_FULL] if "nanoGPT" in sides else [])]}
    batches: list[tuple[float, float]] = []
    firsts: list[float] = []
    start = np.array([1])
    for name, side in sides.items():  # threads start, memory is touched, caches are made
        side.ask("generate", start, block - 1 if name != "nanoGPT" else 4)
    with progress(f"{arguments.shape}, rounds", arguments.rounds) as advance:
        for number, order in interleave(list(sides), arguments.rounds):
            for name in order:
                if name != "nanoGPT":
                    repeats = max(1, 500 // block) if name.startswith("ours") else 1
                    seconds = [sides[name].ask("generate", start, block - 1) for _ in range(repeats)]
                    rates[name].append((block - 1) * repeats / sum(seconds))
                    continue
                lengths = [(2 * i + 1) * block // 8 for i in range(4)]
                texts = [generator.integers(0, vocab_size, length) for length in lengths]
                rates[name].append(4 * 2 / sum(sides[name].ask("generate", text, 2) for text in texts))
                rates[_FULL].append(3 / sides[name].ask("generate", generator.integers(0, vocab_size, block), 3))
            new = block // 2
            prompts = [generator.integers(0, vocab_size, int(n)) for n in generator.integers(1, block - new, _BATCH)]
            alone, together = sides["ours"].ask("batch", prompts, new)
            batches.append((_BATCH * new / alone, _BATCH * new / together))
            text = generator.integers(0, vocab_size, min(200, block))
            firsts += [1e3 * sides["ours"].ask("first", text) for _ in range(5)]
            advance(number + 1, ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items()))
    return rates, batches, firsts


def _report(
    arguments: Any,
    sides: dict[str, Process],
    skipped: dict[str, str],
    size: int,
    rates: _Rates,
    batches: list[tuple[float, float]],
    firsts: list[float],
) -> None:
    where = machine(arguments.threads)
    print(f"{where}\n{arguments.shape}: {size:,} parameters, batch 1, from one token to the end of the block\n")
    rows: list[tuple[object, ...]] = []
    ratios: dict[str, Summary] = {}
    for name, values in rates.items():
        ratios[name] = Summary.of([a / b for a, b in zip(rates["ours"], values, strict=True)])
        about = sides[name].about if name in sides else ""
        best = max(rates["ours"]) / max(values)
        row = f"{Summary.of(values).median:,.0f}", f"{max(values):,.0f}", f"{ratios[name].median:.2f}", f"{best:.2f}"
        rows.append((name, *row, about[:40]))
    show("Decoding, tokens/s", ("side", "median", "best round", "ours / side", "of the best", "how"), rows)
    for name, why in skipped.items():
        print(f"{name}: left out, {why}")
    held: dict[str, dict[str, float]] = {}
    for (ours, theirs), bar in _BARS[arguments.shape].items():
        if theirs in rates:
            ratio = Summary.of([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)])
            best = max(rates[ours]) / max(rates[theirs])
            held[f"{ours} / {theirs}"] = {"median": ratio.median, "of_best": best, "bar": bar}
            print(f"{ours} / {theirs}: {ratio.text()}, best rounds {best:.2f}, bar {bar}")
    gain = Summary.of([together / alone for alone, together in batches])
    best = max(b for _, b in batches) / max(a for a, _ in batches)
    print(f"{_BATCH} unequal prompts together / one by one: {gain.text()}, best rounds {best:.2f}, bar 6")
    first = Summary.of(firsts)
    print(f"ms to the first token of a prompt of {min(200, _SHAPES[arguments.shape]['block_size'])}: {first.text()}")
    finish(
        {
            "benchmark": "decode_speed",
            "machine": where,
            "shape": arguments.shape,
            "tokens_per_second": {name: [round(v, 1) for v in values] for name, values in rates.items()},
            "ours_over": {name: ratio.as_dict() for name, ratio in ratios.items()},
            "bars": held,
            "batch_gain": gain.as_dict() | {"of_best": best},
            "batch_tokens_per_second": [round(b, 1) for _, b in batches],
            "first_token_ms": first.as_dict(),
            "skipped": skipped,
        }
    )


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/decode_speed.py --nanogpt ~/nanoGPT --shape baby --rounds 9")
    flags.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    flags.add_argument("--shape", choices=_SHAPES, default="baby", help="size of the model (default: baby)")
    flags.add_argument("--rounds", type=positive, default=9, help="rounds, each side once in each (default: 9)")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as each chooses (default: 0)")
    flags.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="number format (default: fp32)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
