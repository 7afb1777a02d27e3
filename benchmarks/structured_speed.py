"""How long does an MLP of structured weights take, forward and backward and to decode a token, against the dense one?

    python benchmarks/structured_speed.py

Each round times every kind once, in an order that is reversed every other round; ratios are within a round. It is the
processor's time of one thread that counts, so that a busy machine gives the same ratios as a quiet one.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.config import validate
from bonsaigpt.structure import Dense, Kronecker, LowRank, Structure, structures
from bonsaigpt.torch_engine.experts import Experts
from bonsaigpt.torch_engine.linear import Linear

DENSE, SMALLER = "dense", "4x smaller, {0}x{0} (x) 4x1"
_DECODED = 50
"""Single tokens that are timed at once: one alone is too short."""


def kinds(width: int) -> dict[str, tuple[Structure, Structure]]:
    """c_fc and c_proj of an MLP of four times the width."""

    def sums(m1: int, n1: int, terms: int) -> tuple[Structure, Structure]:
        one = Kronecker(4 * width, width, (m1, n1), terms, False)
        return one, Kronecker(width, 4 * width, (n1, m1), terms, False)

    rank = width // 5
    return {
        DENSE: (Dense(4 * width, width), Dense(width, 4 * width)),
        SMALLER.format(width): sums(width, width, 1),
        f"vector factor, {4 * width}x{width // 12} (x) 1x12": sums(4 * width, width // 12, 1),
        f"low rank {rank}": (LowRank(4 * width, width, rank), LowRank(width, 4 * width, rank)),
    }


class MLP(torch.nn.Module):
    """Two maps and what is between them."""

    def __init__(self, into: Structure, out: Structure) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Linear(into, bias=False), Linear(out, bias=False)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


def experts(width: int) -> Experts:
    """Four of the dense MLPs, of which each token meets two."""
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": width, "vocab_size": 1, "mlp": {"kind": "moe"}}
    config = validate({"model": sizes}, origin="structured_speed").model
    made = Experts(config, 0, structures(config))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return made


def _train(mlp: torch.nn.Module, x: Tensor) -> float:
    began = time.process_time()
    mlp(x).sum().backward()
    return time.process_time() - began


@torch.inference_mode()
def _decode(mlp: torch.nn.Module, x: Tensor) -> float:
    began = time.process_time()
    for _ in range(_DECODED):
        mlp(x[:1])
    return (time.process_time() - began) / _DECODED


def _main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlps: dict[str, torch.nn.Module] = {name: MLP(*pair) for name, pair in kinds(arguments.width).items()}
    mlps["4 dense experts, 2 active"] = experts(arguments.width)
    x = torch.randn(arguments.tokens, arguments.width, requires_grad=True)
    works = {f"{arguments.tokens:,} tokens, forward and backward": _train, "one token": _decode}
    times: dict[tuple[str, str], list[float]] = {(work, name): [] for work in works for name in mlps}
    with progress("rounds", arguments.rounds) as advance:
        for number, order in interleave(list(mlps), arguments.rounds + 1):
            for work, measure in works.items():
                for name in order:
                    seconds = measure(mlps[name], x)
                    if number > 0:  # the first round is for the caches
                        times[work, name].append(seconds)
            advance(number, "")
    rows, figures = [], dict[str, Any]()
    for (work, name), seconds in times.items():
        ratio = Summary.of([a / b for a, b in zip(seconds, times[work, DENSE], strict=True)])
        stored = sum(p.numel() for p in mlps[name].parameters())
        rows.append((work, name, f"{stored:,}", f"{1e3 * Summary.of(seconds).median:.3f}", ratio.text()))
        figures[f"{work}, {name}"] = ratio.as_dict()
    show(
        f"an MLP of width {arguments.width}; {machine(1)}",
        ("work", "weights", "values", "ms, median", "of the dense MLP's time"),
        rows,
    )
    finish({"benchmark": "structured_speed", "width": arguments.width, "rounds": arguments.rounds, "ratios": figures})


def main() -> None:
    arguments = parser(__doc__ or "", "python benchmarks/structured_speed.py --rounds 20")
    arguments.add_argument("--width", type=positive, default=384, help="of the model, a multiple of 12 (default 384)")
    arguments.add_argument("--tokens", type=positive, default=4096, help="of a batch (default 4096)")
    arguments.add_argument("--rounds", type=positive, default=20, help="that are timed (default 20)")
    _main(arguments.parse_args())


if __name__ == "__main__":
    sys.exit(guarded(main))
