"""What compressing all MLP weights costs at equal stored parameters, without any training afterwards.

Teachers are trained once (recipe ``shakespeare-char-best``, one for each seed) and kept. Every method then stores the
same share of each MLP matrix; the loss is over the whole validation split. "sequential": each matrix is calibrated on
the prefix that is compressed already, and fitted to what the teacher's residual stream is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Ledger, finish, guarded, machine, parser, positive, progress, show
from safetensors.numpy import load_file, save_file

from bonsaigpt import recipes
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.compress import Moments, fit, like_units, permute_hidden
from bonsaigpt.config import ModelConfig, RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.structure import Kronecker, LowRank, Structure
from bonsaigpt.torch_engine.calibrate import map_sums
from bonsaigpt.torch_engine.model import build
from bonsaigpt.train.schedule import schedule_share

Shape = Callable[[int, int, float], Structure]
Method = tuple[Shape, bool, bool, int]


def low_rank(out: int, into: int, share: float) -> Structure:
    """As high a rank as that share of the dense matrix' values pays for."""
    return LowRank(out, into, int(share * out * into / (out + into)))


def kronecker(outer: int, inner: int) -> Shape:
    """A of outer x inner, turned for a matrix that is wider than high, with as many terms as the share pays for."""

    def shape(out: int, into: int, share: float) -> Structure:
        m1, n1 = (outer, inner) if out >= into else (inner, outer)
        each = m1 * n1 + out * into // (m1 * n1)
        return Kronecker(out, into, (m1, n1), int(share * out * into / each), False)

    return shape


def mixed(out: int, into: int, share: float) -> Structure:
    """What fits each of the two matrices of an MLP better by itself."""
    return low_rank(out, into, share) if out >= into else kronecker(32, 8)(out, into, share)


# Structure, whether activations are known, whether in sequence, groups of like hidden units (0: as they were).
METHODS: dict[str, Method] = {
    "SVD": (low_rank, False, False, 0),
    "Van Loan 32x8 (x) 16x16": (kronecker(32, 8), False, False, 0),
    "whitened SVD": (low_rank, True, False, 0),
    "Kronecker 32x8 (x) 16x16": (kronecker(32, 8), True, False, 0),
    "Kronecker 16x16 (x) 32x8": (kronecker(16, 16), True, False, 0),
    "whitened SVD, sequential": (low_rank, True, True, 0),
    "Kronecker 32x8 (x) 16x16, sequential": (kronecker(32, 8), True, True, 0),
    "Kronecker 16x16 (x) 32x8, sequential": (kronecker(16, 16), True, True, 0),
    "Kronecker 32x8 (x) 16x16, permuted, sequential": (kronecker(32, 8), True, True, 32),
    "Kronecker for c_proj, whitened SVD for c_fc, sequential": (mixed, True, True, 0),
}


def main() -> None:
    """Train or load the teachers, compress each in every way, and print."""
    arguments = _arguments()
    chosen = {name: m for name, m in METHODS.items() if not arguments.only or any(o in name for o in arguments.only)}
    ledger = Ledger(arguments.done)
    jobs = [(s, share, n) for s in range(arguments.seeds) for share in arguments.share for n in ["dense", *chosen]]
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    with progress("compressions", len(jobs)) as advance:
        for done, (seed, share, name) in enumerate(jobs):
            run = _settings(arguments, name, share, seed)
            if ledger.find(run) is None:
                config, weights, source = teacher_of(arguments, engine, 1337 + seed)
                began = time.perf_counter()
                values = weights
                if name != "dense":
                    values = compressed(config.model, weights, chosen[name], share, _calibration(source, arguments))
                seconds = time.perf_counter() - began
                loss = evaluate(engine, engine.model(config.model, values), source).loss
                ledger.add(f"{name}, {share}, seed {seed}", run, {"loss": loss, "seconds": seconds})
            advance(done + 1, f"{name}, {share}, seed {seed}: {ledger.find(run)['loss']:.4f}")
    _print(ledger, arguments, list(chosen))


def _settings(arguments: Any, method: str, share: float, seed: int) -> dict[str, Any]:
    """All that a loss depends on, but the code."""
    return {
        "method": method,
        "share": share,
        "seed": seed,
        "steps": arguments.steps,
        "batches": arguments.batches,
    }


def compressed(
    config: ModelConfig,
    teacher: Arrays,
    method: tuple[Shape, bool, bool, int],
    share: float,
    tokens: Sequence[np.ndarray],
) -> Arrays:
    """The teacher's values with every MLP weight replaced by the matrix that its factors stand for."""
    shape, aware, sequential, groups = method
    names = [name for name in config.weight_shapes if ".mlp." in name]
    if groups:
        firsts = [name for name in names if name.endswith("c_fc.weight")]
        for name, sums in map_sums(build(config, values=teacher), tokens, firsts).items():
            order = like_units(teacher[name], sums.means()[0], groups)
            teacher = permute_hidden(teacher, name.removesuffix(".c_fc.weight"), order)
    original, values = build(config, values=teacher), dict(teacher)
    at_once = map_sums(original, tokens, names) if aware and not sequential else {}
    for name in names:
        W = teacher[name].astype(np.float64)
        structure = shape(W.shape[0], W.shape[1], share)
        C = None
        if sequential:
            sums = map_sums(build(config, values=values), tokens, [name], teacher=original)
            moments = Moments(*sums[name].means())
            W, C = moments.best(W), moments.C
        elif aware:
            C = at_once[name].means()[0]
        values[name] = structure.expand(fit(structure, W, C)).astype(np.float32)
    return values


def teacher_of(arguments: Any, engine: Engine, seed: int) -> tuple[RunConfig, Arrays, Any]:
    """Configuration, weights and data of the teacher of a seed; trained if it is not in the cache."""
    train = {"steps": arguments.steps, "device": "cpu", "precision": "fp32", "compile": "off", "workers": 1}
    matrices = {"kind": "muon", "precision": "fp32"}
    overrides = {
        "seed": seed,
        "data": {"path": arguments.text},
        "train": train | {"attention_kernel": "sdpa"},
        "optim": {"matrices": matrices},
    }
    config = recipes.load("shakespeare-char-best", overrides)
    source = open_source(config, arguments.cache / "corpora")
    file = arguments.cache / "teachers" / f"teacher-{arguments.steps}-{seed}.safetensors"
    return trained(config, source, engine, file)


def trained(config: RunConfig, source: Any, engine: Engine, file: Path) -> tuple[RunConfig, Arrays, Any]:
    """The configuration with its vocabulary, the weights of ``file`` or, if there is none, of a training, and the
    data."""
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    if not file.exists():
        state = engine.init(config)
        for step in range(config.train.steps):
            engine.step(state, source.batch_at(step), config=config, share=schedule_share(config, step), step=step)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(engine.arrays(state)[0], file)
    return config, load_file(file), source


def _calibration(source: Any, arguments: Any) -> list[np.ndarray]:
    """The first batches of another order of the training split: text that the teacher has learned from."""
    return [batch.tokens_BT for batch in _first(source.reordered(1), arguments.batches)]


def _first(source: Any, count: int) -> Iterator[Any]:
    return (source.batch_at(i) for i in range(count))


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
            figures[f"{name}, {share}"] = {"losses": loss.round(4).tolist(), "cost": round(float(cost.mean()), 4)}
            spread = "" if name == "dense" else f"{cost.mean():+.3f} ({cost.min():+.3f} to {cost.max():+.3f})"
            rows.append((f"{share:.0%} {name}", f"{loss.mean():.4f}", spread, f"{seconds:.0f}"))
    title = f"{machine(arguments.threads)}\nAll MLP matrices, {arguments.seeds} teachers of {arguments.steps} steps"
    show(title, ["share, method", "loss, nats", "against dense, mean (range)", "seconds"], rows)
    finish({"benchmark": "compress_oneshot", "seeds": arguments.seeds, "steps": arguments.steps, "methods": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/compress_oneshot.py --text tinyshakespeare.txt --seeds 5")
    flags.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    flags.add_argument("--steps", type=positive, default=1000, help="of each teacher (default: 1000)")
    flags.add_argument("--seeds", type=positive, default=5, help="teachers (default: 5)")
    flags.add_argument("--share", type=float, nargs="+", default=[0.5, 0.25], help="of the parameters of each matrix")
    flags.add_argument("--batches", type=positive, default=85, help="of 12 x 64 tokens, to calibrate on (default: 85)")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--only", nargs="*", default=[], metavar="WORDS", help="methods whose name has one of these")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where teachers and token shards are kept")
    flags.add_argument("--done", type=Path, default=Path("compress_oneshot.jsonl"), help="finished runs are kept here")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
