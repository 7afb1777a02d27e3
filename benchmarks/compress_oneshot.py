"""What compressing weights costs at equal stored parameters, without any training afterwards.

Teachers are trained once (recipe ``shakespeare-char-best``, one for each seed) and kept. Every method then stores the
same share of each weight of ``--layers``; the loss is over the whole validation split. "in sequence": each matrix is
calibrated on the prefix that is compressed already, and fitted to what the teacher's residual stream is there. The
rows of an embedding count as often as they are looked up, where inputs are known; one that is tied is a head.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import numpy as np
from common import Ledger, finish, guarded, machine, progress, show
from compressing import Shape, compression_parser, low_rank, near_square, teacher_of

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.compress import Moments, fit, fit_rows, like_units, permute_hidden
from bonsaigpt.compress.plan import is_map
from bonsaigpt.config import ModelConfig
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.calibrate import map_sums
from bonsaigpt.torch_engine.model import build


@dataclass(frozen=True)
class Method:
    """A shape, and what is known when it is fitted."""

    shape: Shape
    aware: bool = False
    """Of real inputs."""
    in_sequence: bool = False
    groups: int = 0
    """Of like hidden units that are brought together; 0: they stay as they were."""


def mixed(out: int, into: int, share: float) -> Structure:
    """What fits each of the two matrices of an MLP better by itself."""
    return (low_rank if out >= into else near_square)(out, into, share)


METHODS = {
    "SVD": Method(low_rank),
    "Van Loan": Method(near_square),
    "whitened SVD": Method(low_rank, aware=True),
    "Kronecker": Method(near_square, aware=True),
    "whitened SVD, in sequence": Method(low_rank, aware=True, in_sequence=True),
    "Kronecker, in sequence": Method(near_square, aware=True, in_sequence=True),
    "Kronecker, permuted, in sequence": Method(near_square, aware=True, in_sequence=True, groups=32),
    "Kronecker for c_proj, whitened SVD for c_fc, in sequence": Method(mixed, aware=True, in_sequence=True),
}


def main() -> None:
    """Train or load the teachers, compress each in every way, and print."""
    arguments = _arguments()
    chosen = {name: m for name, m in METHODS.items() if not arguments.only or any(o in name for o in arguments.only)}
    ledger = Ledger(arguments.done)
    jobs = [(s, share, n) for s in range(arguments.seeds) for share in arguments.share for n in ["dense", *chosen]]
    engine = load_engine("torch", device=arguments.device, threads=arguments.threads)
    with progress("compressions", len(jobs)) as advance:
        for done, (seed, share, name) in enumerate(jobs):
            run = _settings(arguments, name, share, seed)
            if ledger.find(run) is None:
                config, weights, source = teacher_of(arguments, engine, 1337 + seed)
                began, values, stored = time.perf_counter(), weights, 0
                names = [n for n in config.model.weight_shapes if any(fnmatchcase(n, g) for g in arguments.layers)]
                if name != "dense":
                    tokens = _calibration(source, arguments.calibrate)
                    values, stored = compressed(config.model, weights, chosen[name], share, tokens, names)
                seconds = time.perf_counter() - began
                loss = evaluate(engine, engine.model(config.model, values), source).loss
                ledger.add(f"{name}, {share}, seed {seed}", run, {"loss": loss, "seconds": seconds, "stored": stored})
            advance(done + 1, f"{name}, {share}, seed {seed}: {ledger.find(run)['loss']:.4f}")
    _print(ledger, arguments, list(chosen))


def _settings(arguments: Any, method: str, share: float, seed: int) -> dict[str, Any]:
    """All that a loss depends on, but the code."""
    kept = ("recipe", "steps", "calibrate", "tokenizer", "layers")
    settings = {"method": method, "share": share, "seed": seed, "text": arguments.text.stem}
    return settings | {name: getattr(arguments, name) for name in kept}


def compressed(
    config: ModelConfig,
    teacher: Arrays,
    method: Method,
    share: float,
    tokens: Sequence[np.ndarray],
    names: Sequence[str],
) -> tuple[Arrays, int]:
    """The teacher's values with every named weight replaced by the matrix that its factors stand for, and how many
    values these are."""
    if method.groups:
        firsts = [name for name in names if name.endswith("c_fc.weight")]
        for name, sums in map_sums(build(config, values=teacher), tokens, firsts).items():
            order = like_units(teacher[name], sums.means()[0], method.groups)
            teacher = permute_hidden(teacher, name.removesuffix(".c_fc.weight"), order)
    original, values, stored = build(config, values=teacher), dict(teacher), 0
    maps = [name for name in names if is_map(config, name)]
    at_once = map_sums(original, tokens, maps) if method.aware and not method.in_sequence else {}
    for name in names:
        W, C = teacher[name].astype(np.float64), None
        structure = method.shape(W.shape[0], W.shape[1], share)
        if name in maps and method.in_sequence:
            sums = map_sums(build(config, values=values), tokens, [name], teacher=original)
            moments = Moments(*sums[name].means())
            W, C = moments.best(W), moments.C
        elif name in at_once:
            C = at_once[name].means()[0]
        looked_up = method.aware and name not in maps and "wte" in name
        factors = fit_rows(structure, W, _shares(tokens, len(W))) if looked_up else fit(structure, W, C)
        values[name] = structure.expand(factors).astype(np.float32)
        stored += structure.parameters
    return values, stored


def _shares(tokens: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """How often each row of the embedding is looked up, and once more."""
    counts = np.bincount(np.concatenate([batch.ravel() for batch in tokens]), minlength=rows) + 1.0
    return counts / counts.sum()


def _calibration(source: Any, tokens: int) -> list[np.ndarray]:
    """The first batches of another order of the training split: text that the teacher has learned from."""
    batches = map(source.reordered(1).batch_at, range(tokens))
    first = next(batches).tokens_BT
    return [first, *(batch.tokens_BT for batch in islice(batches, -(-tokens // first.size) - 1))]


def _print(ledger: Ledger, arguments: Any, names: list[str]) -> None:
    rows, figures = [], {}
    for share in arguments.share:
        found = {
            n: [ledger.find(_settings(arguments, n, share, s)) for s in range(arguments.seeds)]
            for n in ["dense", *names]
        }
        dense = np.array([one["loss"] for one in found["dense"]])
        for name, runs in found.items():
            loss = np.array([one["loss"] for one in runs])
            cost, seconds = loss - dense, float(np.median([one["seconds"] for one in runs]))
            figures[f"{name}, {share}"] = {
                "losses": loss.round(4).tolist(),
                "costs": cost.round(4).tolist(),
                "cost": round(float(cost.mean()), 4),
                "low": round(float(cost.min()), 4),
                "high": round(float(cost.max()), 4),
            }
            spread = "" if name == "dense" else f"{cost.mean():+.3f} ({cost.min():+.3f} to {cost.max():+.3f})"
            rows.append(
                (f"{share:.0%} {name}", f"{runs[0]['stored']:,}", f"{loss.mean():.4f}", spread, f"{seconds:.0f}")
            )
    what = f"{' '.join(arguments.layers)} of {arguments.text.name}, {arguments.tokenizer}"
    title = f"{machine(arguments.threads)}\n{what}, {arguments.seeds} teachers of {arguments.steps} steps"
    show(title, ["share, method", "values", "loss, nats", "against dense, mean (range)", "seconds"], rows)
    finish({"benchmark": "compress_oneshot", "what": what, "seeds": arguments.seeds, "methods": figures})


def _arguments() -> Any:
    example = "compress_oneshot.py --text tinyshakespeare.txt --seeds 5"
    flags = compression_parser(__doc__ or "", example, what="methods", seeds=5)
    flags.add_argument("--layers", nargs="+", default=["*.mlp.*"], metavar="GLOB", help="weights (default: '*.mlp.*')")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
