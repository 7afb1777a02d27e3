"""What the benchmarks of compression share: their teachers, shapes at a share of a matrix' values, and flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import parser, positive
from safetensors.numpy import load_file, save_file

from bonsaigpt import recipes
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.compress.candidates import shapes
from bonsaigpt.config import MuonMatrices, RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine
from bonsaigpt.measure import evaluate
from bonsaigpt.structure import Kronecker, LowRank, Structure
from bonsaigpt.train.schedule import schedule_share

__all__ = ["Shape", "alike", "best_of", "compression_parser", "low_rank", "near_square", "teacher_of", "trained"]

_SOURCES = {"chars": "shakespeare", "bytes": "files"}
"""Tiny Shakespeare is split as nanoGPT does, and its characters are the recipe's; any other text is bytes."""

Shape = Callable[[int, int, float], Structure]
"""From outputs, inputs and a share of their product to a structure of at most so many values."""


def low_rank(out: int, into: int, share: float) -> Structure:
    """As high a rank as that share of the dense matrix' values pays for."""
    return LowRank(out, into, int(share * out * into / (out + into)))


def near_square(out: int, into: int, share: float) -> Kronecker:
    """A sum of Kronecker products whose two factors are as near to square, and to each other's size, as divisors have
    it; of 512 x 128 that is 32x8 (x) 16x16, mirrored for 128 x 512."""
    if out < into:
        turned = near_square(into, out, share)
        return Kronecker(out, into, (turned.a_shape[1], turned.a_shape[0]), turned.count, False)

    def spread(a_shape: tuple[int, int]) -> tuple[float, ...]:
        (m1, n1), (m2, n2) = a_shape, (out // a_shape[0], into // a_shape[1])
        sides = sorted((m1, n1, m2, n2))
        return sides[-1] / sides[0], abs(m1 * n1 - m2 * n2), -m1, n1

    m1, n1 = min(shapes(out, into), key=spread)
    each = m1 * n1 + out * into // (m1 * n1)
    return Kronecker(out, into, (m1, n1), int(share * out * into / each), False)


def teacher_of(arguments: Any, engine: Engine, seed: int) -> tuple[RunConfig, Arrays, Any]:
    """Configuration, weights and data of the teacher of a seed; trained if it is not in the cache."""
    device, tokenizer = getattr(arguments, "device", "cpu"), getattr(arguments, "tokenizer", "chars")
    recipe, every = getattr(arguments, "recipe", "shakespeare-char-best"), getattr(arguments, "every", 0)
    overrides = {
        "seed": seed,
        "data": {"kind": _SOURCES[tokenizer], "path": str(arguments.text), "tokenizer": {"kind": tokenizer}},
        "train": {"steps": arguments.steps, "device": device, "precision": "fp32" if device == "cpu" else "auto"},
    }
    config = alike(recipes.load(recipe, overrides))
    source = open_source(config, arguments.cache / "corpora")
    name = f"teacher-{recipe}-{Path(arguments.text).stem}-{tokenizer}-{arguments.steps}-{every}-{seed}"
    return trained(config, source, engine, arguments.cache / "teachers" / f"{name}.safetensors", every=every)


def alike(config: RunConfig) -> RunConfig:
    """Nothing left to the engine that could come out otherwise in another run."""
    train = {"workers": 1, "micro_batch": config.train.batch_size, "compile": "off", "attention_kernel": "sdpa"}
    if isinstance(matrices := config.optim.matrices, MuonMatrices) and matrices.precision == "auto":
        config = derive(config, optim={"matrices": matrices.model_dump() | {"precision": "fp32"}})
    return derive(config, train=train)


def trained(
    config: RunConfig, source: Any, engine: Engine, file: Path, *, every: int = 0
) -> tuple[RunConfig, Arrays, Any]:
    """The configuration with its vocabulary, the weights of ``file`` or, if there is none, of a training, and the
    data."""
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    if not file.exists():
        values, _ = best_of(config, source, engine, every=every)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(values, file)
    return config, load_file(file), source


def best_of(
    config: RunConfig, source: Any, engine: Engine, values: Arrays | None = None, *, every: int = 0
) -> tuple[Arrays, float]:
    """Train, from ``values`` if there are some; the weights, and their loss over the whole validation split.

    Args:
        every: look at that loss so often, in steps, and take the weights of the best look; 0: those of the last step.
    """
    state, best = engine.init(config, values), (Arrays(), math.inf)
    for step in range(1, config.train.steps + 1):
        share = schedule_share(config, step - 1)
        engine.step(state, source.batch_at(step - 1), config=config, share=share, step=step - 1)
        if step == config.train.steps or (every and step % every == 0):
            loss = evaluate(engine, engine.model_of(state), source).loss
            if loss < best[1] or not every:
                best = engine.arrays(state)[0], loss
    return best


def compression_parser(description: str, example: str, *, what: str, seeds: int) -> argparse.ArgumentParser:
    """Flags of a benchmark that compares ``what`` (methods, arms) on several teachers, and resumes."""
    flags = parser(description, f"python benchmarks/{example}")
    name = example.split()[0].removesuffix(".py")
    flags.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare; any, as bytes")
    flags.add_argument("--tokenizer", choices=["chars", "bytes"], default="chars", help="of the text (default: chars)")
    flags.add_argument("--recipe", default="shakespeare-char-best", help="of the teachers (shakespeare-char-best)")
    flags.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cpu computes in fp32 (default: cpu)")
    flags.add_argument("--steps", type=positive, default=1000, help="of each teacher (default: 1000)")
    flags.add_argument("--seeds", type=positive, default=seeds, help=f"teachers (default: {seeds})")
    flags.add_argument("--share", type=float, nargs="+", default=[0.5, 0.25], help="of each weight's values (0.5 0.25)")
    flags.add_argument("--calibrate", type=positive, default=65_536, help="tokens to calibrate on (default: 65536)")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--only", nargs="*", default=[], metavar="WORDS", help=f"{what} whose name has one of these")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where teachers and token shards are kept")
    flags.add_argument("--done", type=Path, default=Path(f"{name}.jsonl"), help="finished runs are kept here")
    return flags
