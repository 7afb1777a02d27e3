"""How few bits can the cache have, if the model is trained for it? Variants of one recipe with equal steps, each for
several seeds: shared keys and values or fewer heads of them (and wider MLPs, so that parameters are equal), windows,
latent and linear attention, and rows that are read through a cache policy in training. The plain model teaches some.

Every variant is read through its policies, next to the training-free policies of the plain model of the same seed, and
paired, token by token, with the best uncompressed reading of that seed. Runs are kept under ``--cache`` and resumed;
what was measured is in a ledger.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import Ledger, finish, guarded, machine, parser, positive, progress, show

import bonsaigpt as bonsai
from bonsaigpt.api import Run
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import contiguous, cut
from bonsaigpt.measure.statistics import estimate
from bonsaigpt.spec import parameter_count
from bonsaigpt.study.kv import Bench, Subject

_ALIKE = {"device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "attention_kernel": "sdpa"}
_ALIKE |= {"tensorboard": False, "eval_interval": 500, "health": {"interval": 0}}
_SHARED = {"attention": {"share_kv": 2}, "mlp": {"hidden": 576}}


@dataclass(frozen=True)
class Arm:
    """A model, the policy that it is trained with, and whether the plain model of its seed is its teacher."""

    model: dict[str, Any] = field(default_factory=dict)
    kv: str = ""
    taught: bool = False


ARMS: dict[str, Arm] = {
    "plain": Arm(),
    "plain, taught": Arm(taught=True),
    "shared, x=int4": Arm(_SHARED, "window(21), x=int4(hadamard)"),
    "shared, x=int4, taught": Arm(_SHARED, "window(21), x=int4(hadamard)", taught=True),
    "shared, x=int3": Arm(_SHARED, "window(26), x=int3(hadamard)"),
    "shared, x=int3, taught": Arm(_SHARED, "window(26), x=int3(hadamard)", taught=True),
    "plain, x=int3, taught": Arm({}, "window(11), x=int3(hadamard)", taught=True),
    "windows SSSL": Arm({"attention": {"window": 16, "pattern": "SSSL"}}),
    "latent": Arm({"attention": {"kind": "latent", "latent": 32}}),
    "linear": Arm({"attention": {"kind": "linear"}}),
}
"""What is taught costs a pass of its teacher besides; "plain, taught" says what teaching alone brings."""
# Of the plain model, without training: references of 1x, and the best of the study at 16x.
FREE = [
    "window(64), bf16",
    "window(27), x=int4(hadamard)",
    "window(33), x=int3(hadamard)",
    "window(14), x=int4(hadamard)",
    "window(16), int4(hadamard)",
]


def main() -> None:
    """Train, or find what was trained; read; print."""
    arguments = _arguments()
    chosen = {name: arm for name, arm in ARMS.items() if name == "plain" or name in (arguments.only or ARMS)}
    ledger = Ledger(arguments.done)
    engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
    found: dict[str, list[dict[str, float]]] = {}
    with progress("runs", arguments.seeds * len(chosen)) as advance:
        for number in range(arguments.seeds):
            seed, runs = 1337 + number, {}
            for done, (name, arm) in enumerate(chosen.items()):
                runs[name] = _run(arguments, name, arm, seed)
                advance(number * len(chosen) + done + 1, f"{name}, seed {seed}")
            for name, points in _measured(arguments, engine, ledger, chosen, runs, seed).items():
                found.setdefault(name, []).extend(points)
    rows, figures = [], {}
    for name, points in sorted(found.items(), key=lambda item: item[1][0]["bits"]):
        added = estimate([p["added"] for p in points])
        spread = ", ".join(f"{p['added']:+.4f} ({p['low']:+.4f} to {p['high']:+.4f})" for p in points)
        first = points[0]
        each = {what: [round(p[what], 5) for p in points] for what in ("added", "low", "high")}
        figures[name] = {"bits": first["bits"], "factor": first["factor"], "mean": round(added.mean, 5), **each}
        figures[name] |= {} if added.margin is None else {"margin": round(added.margin, 5)}
        rows.append((name, f"{first['bits']:,.0f}", f"{first['factor']:.1f}", added.text("+.4f"), spread))
    title = f"{machine(arguments.threads)}\n{arguments.steps} steps, {arguments.seeds} seeds"
    show(title, ["model: policy", "bits", "times fewer", "added, mean of seeds", "each (95 % of its text)"], rows)
    finish({"benchmark": "kv_variants", "steps": arguments.steps, "seeds": arguments.seeds, "points": figures})


def _run(arguments: Any, name: str, arm: Arm, seed: int) -> Run:
    """A trained run, resumed where it stopped."""
    teacher = {"distill": {"kind": "logits", "teacher": str(arguments.cache / "runs" / f"plain-{seed}")}}
    settings = {
        "seed": seed,
        "data": {"path": str(arguments.text)},
        "model": arm.model,
        "optim": {"matrices": {"precision": "fp32"}} | (teacher if arm.taught else {}),
        "train": _ALIKE | {"steps": arguments.steps, "threads": arguments.threads, "kv": arm.kv},
    }
    label = "".join(c if c.isalnum() else "-" for c in name)
    return bonsai.train(
        "shakespeare-char-best",
        name=f"{label}-{seed}",
        auto_resume=True,
        runs=arguments.cache / "runs",
        corpora=arguments.cache / "corpora",
        settings=settings,
        quiet=True,
    )


def _measured(
    arguments: Any, engine: Engine, ledger: Ledger, chosen: dict[str, Any], runs: dict[str, Run], seed: int
) -> dict[str, list[dict[str, float]]]:
    """Of one seed, by model and policy."""
    arms = {name: asdict(arm) for name, arm in chosen.items()}
    settings = {"arms": arms, "seed": seed, "steps": arguments.steps, "rows": arguments.rows, "free": FREE}
    if (kept := ledger.find(settings)) is not None:
        return kept
    subjects = {name: _subject(engine, name, run) for name, run in runs.items()}
    base = subjects.pop("plain")
    streams = cut(
        contiguous(open_source(runs["plain"].directory.config, arguments.cache / "corpora")), arguments.rows, 192
    )
    bench = Bench(engine, base, streams, chunk=1, variants=list(subjects.values()))
    bench.refer(windows=True, advance=lambda *_: None)
    points = [bench.measure(read_policy(words)) for words in FREE]
    for one in subjects.values():
        points.append(bench.measure(one.trained if one.config.attention.kind == "softmax" else None, one))
        if one.trained is None and one.config.attention.kind == "softmax":
            points[-1] = bench.measure(read_policy("window(64), bf16"), one)
            points.append(bench.measure(read_policy("window(64), int4(hadamard)"), one))
    found = {
        f"{p.model}: {p.policy}": [{"bits": p.bits, "factor": p.factor, "added": p.added, "low": p.low, "high": p.high}]
        for p in points
    }
    ledger.add(f"seed {seed}", settings, found)
    return found


def _subject(engine: Engine, name: str, run: Run) -> Subject:
    kv, opened = run.directory.config.train.kv, run.opened
    return Subject(
        label=f"{name} ({parameter_count(opened.config):,})",
        model=engine.model(opened.config, opened.weights),
        config=opened.config,
        trained=read_policy(kv) if kv else None,
    )


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/kv_variants.py --text tinyshakespeare.txt --seeds 3")
    flags.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    flags.add_argument("--steps", type=positive, default=2000, help="of each training (default: 2000)")
    flags.add_argument("--seeds", type=positive, default=3, help="models of each kind (default: 3)")
    flags.add_argument("--rows", type=positive, default=200, help="pieces of 192 tokens of the split (default: 200)")
    flags.add_argument("--only", nargs="*", default=[], metavar="VARIANT", help="these instead of all")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where runs and token shards are kept")
    flags.add_argument("--done", type=Path, default=Path("kv_variants.jsonl"), help="ledger of what was measured")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
