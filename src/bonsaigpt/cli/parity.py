"""`bonsai parity`: a checkpoint through two engines, level by level."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bonsaigpt.cli.common import Parser, count_from, open_model, print_table, progress_bar, runs_folder
from bonsaigpt.config import RunConfig
from bonsaigpt.engines import load_engine
from bonsaigpt.measure.parity import FACTOR, Difference, comparable, parity, probe
from bonsaigpt.units import named

__all__ = ["engines_apart", "run"]

_EXAMPLE = """  bonsai parity runs/shakespeare-char
  bonsai parity runs/shakespeare-char@500 --tokens 256
  bonsai parity gpt2-folder --engine torch --device cuda"""

_LEVELS = {
    "weights": "weights and optimizer's state, as loaded",
    "activations": "activations",
    "logits": "logits",
    "loss": "loss",
    "gradients": "gradients",
    "step": "weights and state after a step",
}


def run(argv: list[str]) -> int:
    """The verb."""
    return 1 if any(difference.parts for difference in engines_apart(argv)) else 0


def engines_apart(argv: list[str]) -> list[Difference]:
    """What the verb does; how far each tensor is from PyTorch's, and whether that is too far."""
    parser = Parser(
        "parity",
        "Take one training step of a checkpoint in another engine and in PyTorch, both in fp32, and hold all that they "
        f"compute against PyTorch in float64: errors may be {FACTOR} times PyTorch's own. Names the first activation "
        "where the engines part, and then ends with code 1. Nothing is written.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument(
        "--engine", default="jax", help="the engine that is held against PyTorch on the CPU (default: jax)"
    )
    parser.add_argument("--device", default="auto", help="that engine's: auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument(
        "--tokens", type=count_from(1), default=64, metavar="N", help="of each of two random rows (default: 64)"
    )
    runs_folder(parser)
    arguments = parser.parse(argv)
    engine = load_engine(arguments.engine, device=arguments.device, precision="fp32")
    reference = load_engine("torch", device="cpu", precision="fp32", workers=1)
    opened = open_model(arguments.model, runs=arguments.runs)
    config, optimizer = RunConfig(model=opened.config), {}
    if opened.run is not None and opened.step is not None:
        config = opened.run.config
        optimizer = opened.run.load(str(opened.step)).optimizer
    config = comparable(config)
    engine.check_fits(config)
    optimizer = {name: value for name, value in optimizer.items() if not name.startswith(("guard", "memory."))}
    batch = probe(config.model, length=min(arguments.tokens, config.model.block_size))
    with progress_bar(Console(stderr=True)) as advance:
        found = parity(engine, reference, config, opened.weights, optimizer, batch, advance=advance)
    print_table(
        ("", "tensors", "PyTorch's error", f"{engine.name}'s", "allowed", ""),
        [*map(_row, _by_level(found))],
        words=True,
    )
    parted = [difference for difference in found if difference.parts]
    if not parted:
        print(f"{opened.label}: the engines agree, as well as fp32 can")
    else:
        first = parted[0]
        print(f"{opened.label}: the engines part in {named(len(parted), 'tensor')}, first in {first.level}, {first}")
    return found


def _by_level(found: Sequence[Difference]) -> list[list[Difference]]:
    return [each for level in _LEVELS if (each := [d for d in found if d.level == level])]


def _row(of_level: Sequence[Difference]) -> tuple[str, ...]:
    """The tensor that is nearest to what is allowed, or furthest beyond it, relative to its largest element."""
    worst = max(of_level, key=lambda difference: difference.closeness)
    size = worst.size or 1.0
    figures = (f"{value / size:.1e}" for value in (worst.reference, worst.error, worst.allowed))
    verdict = f"parts in {sum(d.parts for d in of_level)}" if worst.parts else "agrees"
    return (_LEVELS[worst.level], f"{len(of_level):,}", *figures, f"{verdict}; worst: {worst.name}")
