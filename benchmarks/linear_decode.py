"""What does a token cost after a long text: linear attention, whose past is a state, beside the softmax's cache?

Both are the model's own code, one row, with fresh weights. The lengths take turns; a line through the medians says what
a token more of past costs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import Summary, finish, guarded, machine, parser, positive, progress, show

from bonsaigpt.config import validate
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.model import build

LENGTHS = (64, 256, 1024, 4096, 8192, 16000)
KINDS = {"linear": {"kind": "linear"}, "softmax": {"kind": "softmax"}}
_TOKENS = 16
"""Steps in a turn."""


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    placement = choose_placement("cpu", "fp32", arguments.threads)
    figures: dict[str, Any] = {"benchmark": "linear_decode", "tokens": _TOKENS * arguments.rounds}
    rows = []
    for kind, attention in KINDS.items():
        sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 65, "block_size": 16384}
        model = {**sizes, "position": {"kind": "rope", "pairs": "neighbours"}, "attention": attention}
        net = build(validate({"model": model}, origin="benchmark").model, seed=0)
        decoder = EagerDecoder(net, rows=len(LENGTHS), placement=placement)
        text = np.random.default_rng(0).integers(0, 65, LENGTHS[-1])
        with progress(f"{kind}, reading", len(LENGTHS)) as advance:
            for row, length in enumerate(LENGTHS):
                decoder.prefill(row, text[:length])
                advance(row + 1, "")
        seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
        with progress(f"{kind}, a token", arguments.rounds) as advance:
            for turn in range(arguments.rounds):
                order = range(len(LENGTHS)) if turn % 2 else reversed(range(len(LENGTHS)))
                for row in order:
                    began = time.perf_counter()
                    for token in text[:_TOKENS]:
                        decoder.step(np.array([row]), token[None])
                    seconds[LENGTHS[row]].append((time.perf_counter() - began) / _TOKENS * 1000)
                advance(turn + 1, "")
        found = {length: Summary.of(values) for length, values in seconds.items()}
        slope, start = np.polyfit(LENGTHS, [s.median for s in found.values()], 1)
        figures[kind] = {"ms": {n: s.as_dict() for n, s in found.items()}, "ms_per_1000_tokens": slope * 1000}
        figures[kind]["share_per_1000_tokens"] = round(slope * 1000 / start, 4)
        cells = (f"{s.median:.3f} ({s.quartile_1:.3f} to {s.quartile_3:.3f})" for s in found.values())
        rows.append((kind, *cells, f"{slope * 1000 / start:+.2%}"))
    show(
        "Milliseconds a token after a text of so many tokens, median (quartiles); what 1,000 tokens more add",
        ["attention", *(f"{n:,}" for n in LENGTHS), "per 1,000"],
        rows,
    )
    finish(figures)


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/linear_decode.py --rounds 20 --threads 1")
    options.add_argument("--rounds", type=positive, default=20, help="turns of 16 tokens at each length (default: 20)")
    options.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
