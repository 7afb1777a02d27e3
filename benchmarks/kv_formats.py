"""What number formats of the cache cost: validation text in pieces of one block, token by token through the cache.

A model is trained once (recipe ``shakespeare-char-best``) and kept. Every format then codes all that the cache holds;
losses are paired with the exact cache, token by token, intervals are from the spread between pieces. Of the formats of
8 bits the one nearest to the exact cache is named, by the KL divergence, and how much farther the others are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import finish, guarded, machine, parser, positive, progress, show
from compressing import teacher_of

from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import contiguous, cut, reading

FORMATS = [
    "int8",
    "e4m3",
    "e5m2",
    "int4",
    "int4(hadamard)",
    "int4(group=32)",
    "int3",
    "int3(hadamard)",
    "k=int3(hadamard), v=int3",
    "int3(group=16)",
    "int2",
    "int2(hadamard)",
    "int2(group=16)",
    "int2(group=8)",
    "k=int2(axis=channel, group=8, residual=8), v=int2(group=16, residual=8)",
    "ternary(group=16)",
    "sign(group=16)",
    "x=int8",
]
_EIGHT = ("int8", "e4m3", "e5m2")


def main() -> None:
    """Train or load the model, read through every format, and print."""
    arguments = _arguments()
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    config, values, source = teacher_of(arguments, engine, 1337)
    model, block = engine.model(config.model, values), config.model.block_size
    ids = contiguous(source)
    streams = cut(ids[: len(ids) // arguments.part], len(ids) // arguments.part // block, block)
    formats = arguments.formats or FORMATS
    rows, figures, kl_R = [], {}, {}
    with progress("formats", len(formats)) as advance:
        exact = reading(engine, model, config.model, read_policy("full"), streams, keep_logits=True)
        for done, words in enumerate(formats):
            kv = read_policy(f"full, {words}")
            found = reading(engine, model, config.model, kv, streams, reference_RTV=exact.logits_RTV)
            assert found.kl_RT is not None
            assert found.agree_RT is not None
            added, margin = _interval((found.losses_RT - exact.losses_RT).mean(1))
            kl_R[words] = found.kl_RT.mean(1)
            kl, agree = float(kl_R[words].mean()), float(found.agree_RT.mean())
            figures[words] = {"added": round(added, 6), "margin": round(margin, 6), "kl": kl, "agree": round(agree, 4)}
            rows.append((words, f"{added:+.5f} ± {margin:.5f}", f"{kl:.5f}", f"{agree:.2%}"))
            advance(done + 1, f"{words}: {added:+.5f}")
    title = f"{machine(arguments.threads)}\nExact: {exact.losses_RT.mean():.4f} nats, {exact.losses_RT.size:,} targets"
    show(title, ["format", "added, nats", "KL", "first choice kept"], rows)
    if len(eight := [words for words in _EIGHT if words in kl_R]) > 1:
        best = min(eight, key=lambda words: kl_R[words].mean())
        behind = {words: _interval(kl_R[words] - kl_R[best]) for words in eight if words != best}
        for words, (more, margin) in behind.items():
            figures[words] |= {"kl_over_best": round(more, 7), "kl_margin": round(margin, 7)}
        told = ", ".join(f"{words} {added:+.6f} ± {margin:.6f}" for words, (added, margin) in behind.items())
        print(f"Of the 8-bit formats {best} is nearest; KL above its own: {told}")
    about = {
        "steps": arguments.steps,
        "targets": exact.losses_RT.size,
        "exact": round(float(exact.losses_RT.mean()), 4),
    }
    finish({"benchmark": "kv_formats", **about, "formats": figures})


def _interval(values_R: np.ndarray) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    return float(values_R.mean()), float(1.96 * values_R.std(ddof=1) / np.sqrt(len(values_R)))


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/kv_formats.py --text tinyshakespeare.txt")
    flags.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    flags.add_argument("--steps", type=positive, default=1000, help="of the model's training (default: 1000)")
    flags.add_argument("--part", type=positive, default=4, help="read the first 1/N of the split (default: 4)")
    flags.add_argument("--formats", nargs="*", default=[], metavar="FORMAT", help="these instead of all")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where the model and token shards are kept")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
