"""Matrices as torchao rounds them, against ours: the loss that it costs a run, and what a product takes.

    python benchmarks/torchao_weights.py runs/mine --text tinyshakespeare.txt

pip install torchao. Losses are of the last 60,000 characters. A product is one token by a 1152 x 384 matrix, in
processor time of one thread, and as a ratio to torch's fp32 in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_  # pyright: ignore
from torchao.quantization.granularity import PerGroup  # pyright: ignore

from bonsaigpt.cli.common import open_model
from bonsaigpt.cli.eval import window_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure.evaluate import evaluate
from bonsaigpt.torch_engine.rounding import rounded, with_matrices

Kind = Literal["int8", "int4"]
CONFIGS: dict[Kind, Callable[[], Any]] = {
    "int8": lambda: Int8WeightOnlyConfig(),
    "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),  # pyright: ignore
}


def by_torchao(weight: Tensor, kind: Kind) -> nn.Linear:
    """The matrix as a layer of torchao's."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    quantize_(linear, CONFIGS[kind]())
    return linear


def losses(address: str, text: str) -> None:
    opened = open_model(address)
    engine = load_engine("torch", device="cpu", precision="fp32")
    model = engine.model(opened.config, opened.weights)
    source = window_source(opened, text, origin="the text")

    def loss(changed: object) -> float:
        return evaluate(engine, changed, source).loss

    whole = loss(model)
    print(f"{address}: {whole:.4f} nats")
    for kind in CONFIGS:
        theirs = with_matrices(model, lambda weight, kind=kind: by_torchao(weight, kind).weight.dequantize())
        print(f"  {kind}: ours {loss(rounded(model, kind)) - whole:+.4f}, torchao {loss(theirs) - whole:+.4f}")


def products(rounds: int = 30, count: int = 50) -> None:
    torch.set_num_threads(1)
    plain = nn.Linear(384, 1152, bias=False)
    layers: dict[str, nn.Module] = {
        "fp32": plain,
        **{kind: by_torchao(plain.weight.detach(), kind) for kind in CONFIGS},
    }
    token = torch.randn(1, 384)
    taken: dict[str, list[float]] = {name: [] for name in layers}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, layer in layers.items():
                begin = time.process_time()
                for _ in range(count):
                    layer(token)
                taken[name].append((time.process_time() - begin) / count)
    for name, times in taken.items():
        ratios = [time / base for time, base in zip(times, taken["fp32"], strict=True)]
        print(f"{name}: {1e6 * statistics.median(times):.0f} us, {statistics.median(ratios):.1f} times torch's fp32")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--text", type=Path, required=True)
    arguments = parser.parse_args()
    for address in arguments.runs:
        losses(address, arguments.text.read_text(encoding="utf-8")[-60_000:])
    products()
