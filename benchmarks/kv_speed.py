"""Milliseconds a token through cache policies, against everything exact, at a long context; batch 1, one thread.

All sides compute the same weights (drawn, not trained: time does not depend on them) in one process, and decode in
turns of a few tokens, in an order that is reversed every other round. Policies have their products, and their codes of
whole numbers, in C++ and their attention in the model's own code; they are held against ``full`` as it decodes by
default, which is all C++ where there is a compiler, and beside it stands ``full`` by the model's own code.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt.config import validate
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import DataError
from bonsaigpt.kv import read_policy
from bonsaigpt.spec import parameter_count
from bonsaigpt.torch_engine.decode import make_decoder
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.model import build

_SHAPES: dict[str, dict[str, Any]] = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "baby": {"n_layer": 6, "n_head": 6, "n_embd": 384},
}
_FULL = "full"
_OWN = "full, the model's own code"
_POLICIES = [
    "window(64), bf16",
    "window(64), int4",
    "window(64), int4(hadamard)",
    "window(256), int4",
    "window(1024), int4",
    "full, int4",
]


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    length = arguments.context
    model_settings = {"vocab_size": 65, "block_size": length, "position": {"kind": "rope"}}
    config = validate({"model": model_settings | _SHAPES[arguments.shape]}, origin="shape").model
    engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
    model = build(config, seed=1)
    placement = choose_placement("cpu", "fp32", arguments.threads)
    decoders: dict[str, Any] = {_FULL: make_decoder(model, rows=1, placement=placement)}
    decoders[_OWN] = EagerDecoder(model, rows=1, placement=placement)
    for words in arguments.policies:
        decoders[words] = engine.decoder(model, rows=1, kv=read_policy(words))
    tokens = np.random.default_rng(1).integers(0, 65, length)
    start = length - arguments.rounds * arguments.steps
    if start < 1:
        raise DataError(f"{arguments.rounds} rounds of {arguments.steps} tokens do not fit {length}: use fewer")
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    with progress("rounds", arguments.rounds) as advance, torch.inference_mode():
        for decoder in decoders.values():
            decoder.prefill(0, tokens[:start])
        for number, order in interleave(list(decoders), arguments.rounds):
            part = tokens[start + number * arguments.steps :][: arguments.steps]
            for name in order:
                began = time.perf_counter()
                for token in part:
                    decoders[name].step(np.array([0]), np.array([token]))
                seconds[name].append((time.perf_counter() - began) / arguments.steps)
            advance(number + 1, f"{1e3 * seconds[_FULL][-1]:.2f} ms a token")
    rows, figures = [], {}
    for name, found in seconds.items():
        mean = Summary.of([1e3 * one for one in found])
        ratio = Summary.of([full / one for full, one in zip(seconds[_FULL], found, strict=True)])
        kilobytes = decoders[name].bits() / 8e3
        figures[name] = {"ms": mean.as_dict(), "speed": ratio.as_dict(), "kilobytes": round(kilobytes, 1)}
        rows.append((name, f"{mean.median:.2f}", ratio.text(), f"{kilobytes:,.0f}"))
    title = f"{machine(arguments.threads)}\n{arguments.shape}, {parameter_count(config):,} parameters, tokens "
    show(f"{title}{start:,} to {length:,}", ["cache", "ms a token", "full / it, paired", "kB held"], rows)
    finish({"benchmark": "kv_speed", "shape": arguments.shape, "context": length, "sides": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/kv_speed.py --shape baby")
    flags.add_argument("--shape", choices=sorted(_SHAPES), default="baby", help="of the model (default: baby)")
    flags.add_argument("--context", type=positive, default=2048, help="tokens at the end (default: 2048)")
    flags.add_argument("--rounds", type=positive, default=20, help="turns of each side (default: 20)")
    flags.add_argument("--steps", type=positive, default=8, help="tokens a turn (default: 8)")
    flags.add_argument("--policies", nargs="*", default=_POLICIES, metavar="POLICY", help="instead of the usual ones")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
