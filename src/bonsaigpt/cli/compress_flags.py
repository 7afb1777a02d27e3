"""The flags of `bonsai compress`, and what their values mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from bonsaigpt.cli.common import count_from
from bonsaigpt.compress.plan import INITS
from bonsaigpt.compress.pricing import AUTO, KINDS
from bonsaigpt.errors import did_you_mean

__all__ = ["add_flags"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all but the folders and the settings of training."""
    parser.add_argument("model", help="the run (RUN, RUN@last, RUN@500)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-params",
        type=_target,
        metavar="N",
        help="values to keep: below 1 a share of those in the weights of --layers, from 1 on a count for the whole "
        "model (default: 0.5)",
    )
    target.add_argument(
        "--target-bytes",
        type=_size,
        metavar="N",
        help="bytes of the whole model in float32, e.g. 1500000 or 1.5M (default: by --target-params)",
    )
    target.add_argument(
        "--max-loss",
        type=_nats,
        metavar="NATS",
        help="as small as it gets for so much more validation loss, before healing (default: by --target-params)",
    )
    parser.add_argument(
        "--structure",
        type=_kinds,
        metavar="KINDS",
        default=",".join(AUTO),
        help=f"what weights may become, with commas between: {', '.join(KINDS)}, or auto (default: {','.join(AUTO)})",
    )
    parser.add_argument(
        "--allocate",
        choices=["even", "measured"],
        default="even",
        help="even: every weight keeps the same share; measured: shares by what each weight was measured to cost "
        "alone, as --max-loss always has it (default: even)",
    )
    parser.add_argument(
        "--layers",
        default="*.mlp.*",
        metavar="GLOBS",
        help="the weights, by name, globs with commas between (default: *.mlp.*)",
    )
    parser.add_argument(
        "--init",
        choices=INITS,
        help="where factors come from: activations, fitted to the outputs on real inputs; distilled, from there on by "
        "gradient; weight, fitted to the weight alone; pruned, rows kept and repeated; random (default: activations)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="carry out this plan instead of making one; where there is no such file, write it there (default: none)",
    )
    parser.add_argument("--dry-run", action="store_true", help="make the plan and show it, and compress nothing")
    parser.add_argument(
        "--shapes",
        metavar="WEIGHT",
        help="with the plan, list every legal shape of this weight at its target (default: of none)",
    )
    parser.add_argument(
        "--max-block-loss",
        type=_nats,
        metavar="NATS",
        help="a block that adds more validation loss takes a larger shape, or stays dense (default: no limit)",
    )
    parser.add_argument(
        "--experts",
        type=count_from(2),
        metavar="N",
        help="make of every compressed MLP so many experts that begin as it, each with an A of its own where MLPs are "
        "Kronecker sums, and one B for all (default: one MLP)",
    )
    parser.add_argument(
        "--active", type=count_from(1), default=2, metavar="N", help="experts that a token goes through (default: 2)"
    )
    parser.add_argument(
        "--heal", type=count_from(0), default=0, metavar="STEPS", help="train so many steps afterwards (default: 0)"
    )
    parser.add_argument(
        "--distill", action="store_true", help="heal with the logits of the uncompressed model as well as with the text"
    )
    parser.add_argument(
        "--calibrate",
        type=count_from(1),
        default=65_536,
        metavar="TOKENS",
        help="of training text, for activations (default: 65536)",
    )
    parser.add_argument("--name", help="name of the new run (default: the run's own and -compressed)")


def _number(text: str) -> float:
    """Not below 0 and finite; -1 of anything else."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if 0 <= value < float("inf") else -1.0


def _target(text: str) -> float:
    """For argparse: a share or a count."""
    value = _number(text)
    if value <= 0 or (value >= 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"'{text}' is no target: use a share such as 0.5, or a count such as 400000")
    return value


def _size(text: str) -> int:
    """For argparse: bytes."""
    factor = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 1)
    value = _number(text if factor == 1 else text[:-1]) * factor
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: use bytes, e.g. 1500000 or 1.5M")
    return int(value)


def _nats(text: str) -> float:
    """For argparse: an amount of loss."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no loss: use nats a token from 0 on, e.g. 0.02")
    return value


def _kinds(text: str) -> tuple[str, ...]:
    """For argparse: kinds of structure."""
    kinds = AUTO if text == "auto" else tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(
                f"'{kind}' is no structure: use {', '.join(KINDS)} or auto.{did_you_mean(kind, KINDS)}"
            )
    if "narrow" in kinds and len(kinds) > 1:
        raise argparse.ArgumentTypeError("'narrow' takes whole MLPs, and goes with no other structure: give it alone")
    return kinds
