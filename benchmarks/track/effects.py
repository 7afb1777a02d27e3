"""What each technique does on the track: one switch at a time away from recipe `shakespeare-char-fast`.

Every variant sees the same batches as the base (a batch is a function of seed and step), so differences are paired by
seed and shown with Student's 95 % interval. Losses depend on neither the machine's speed nor its load, so the runs go
through a pool of one-thread processes; nothing is timed here. How many steps a technique saves or costs is read from
the base's own loss at other lengths.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from alone import train_all
from common import finish, guarded, machine, parser, positive, show
from duel import text_overrides

from bonsaigpt import recipes
from bonsaigpt.config import RunConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure.statistics import estimate, paired_difference

RECIPE = "shakespeare-char-fast"
BASE = "base"
LENGTHS = (0.8, 0.9, 1.1, 1.25)
"""The base at other lengths, as shares of its steps: the exchange rate between nats and steps."""


def _schedule(**settings: Any) -> dict[str, Any]:
    return {"optim": {"schedule": settings}}


def variants(steps: int, rows: int) -> dict[str, dict[str, Any]]:
    """Settings on top of the recipe; ramps of the batch take more steps, so that all see the same tokens."""
    ramp = steps * 4 // 9  # at half the batch, which leaves 2/9 of the steps to add
    return {
        "AdamW for all, lr 5e-3": {"optim": {"matrices": {"kind": "adamw"}, "lr": 5e-3}},
        "AdamW for all, lr 3e-3": {"optim": {"matrices": {"kind": "adamw"}, "lr": 3e-3}},
        "Muon with 3 iterations": {"optim": {"matrices": {"iterations": 3}}},
        "Muon's iterations in bf16": {"optim": {"matrices": {"precision": "bf16"}}},
        "Muon with momentum 0.95": {"optim": {"matrices": {"momentum": 0.95}}},
        "without qk-norm": {"model": {"attention": {"qk_norm": False}}},
        "without soft cap": {"model": {"logit_softcap": 0.0}},
        "soft cap 30": {"model": {"logit_softcap": 30.0}},
        "scaled instead of zero init": {"model": {"residual_init": "scaled"}},
        "tied head": {"model": {"tie_embeddings": True}},
        "GELU": {"model": {"mlp": {"kind": "gelu"}}},
        "SwiGLU": {"model": {"mlp": {"kind": "swiglu"}}},
        "LayerNorm": {"model": {"norm": {"kind": "layernorm", "scale": False}}},
        "norms with scale": {"model": {"norm": {"scale": True}}},
        "learned positions": {"model": {"position": {"kind": "learned"}}},
        "rope over halves": {"model": {"position": {"pairs": "halves"}}},
        "rope with theta 10,000": {"model": {"position": {"theta": 10_000.0}}},
        "four heads": {"model": {"n_head": 4}},
        "cosine to 10 %": _schedule(kind="cosine", warmup=0, final=0.1),
        "cosine to 0": _schedule(kind="cosine", warmup=0, final=0.0),
        "wsd, cooldown 40 %": _schedule(kind="wsd", cooldown=0.4),
        "wsd, cooldown 40 %, 1 - sqrt": _schedule(kind="wsd", cooldown=0.4, shape="sqrt"),
        "wsd, cooldown 80 %": _schedule(kind="wsd", cooldown=0.8),
        "constant": _schedule(kind="constant"),
        "warmup of 20 steps": {"optim": {"schedule": {"warmup": 20}}},
        "EMA 0.9": {"optim": {"ema": 0.9}},
        "EMA 0.9, constant rate": {"optim": {"ema": 0.9, "schedule": {"kind": "constant"}}},
        "z-loss 1e-4": {"optim": {"z_loss": 1e-4}},
        "weight decay 0.1": {"optim": {"weight_decay": 0.1}},
        "head at a third of the rate": {"optim": {"lr_scale": {"lm_head.*": 0.33}}},
        "embedding at three times the rate": {"optim": {"lr_scale": {"*.wte.*": 3.0}}},
        "batch ramp, half then full": {
            "train": {
                "steps": steps + ramp // 2,
                "batch_ramp": {"kind": "staged", "sizes": [rows // 2], "until": [ramp]},
            }
        },
        "batch ramp, linear": {
            "train": {"steps": steps + ramp // 2, "batch_ramp": {"kind": "linear", "start": 1, "steps": ramp}}
        },
        "context ramp 16, 32, 64": {
            "train": {"context_ramp": {"kind": "staged", "sizes": [16, 32], "until": [steps // 5, steps * 2 // 5]}}
        },
        "order random (with replacement)": {"data": {"order": "random"}},
        "order streams": {"data": {"order": "streams"}},
    }


def main() -> None:
    """Train every variant with every seed and print."""
    arguments = _arguments()
    base = recipes.load(RECIPE, text_overrides(arguments.text))
    steps, rows = base.train.steps, base.train.batch_size
    chosen = {BASE: {}} | {n: v for n, v in variants(steps, rows).items() if not arguments.only or n in arguments.only}
    if unknown := set(arguments.only) - chosen.keys():
        raise ConfigError(f"there is no variant {sorted(unknown)}: use some of {sorted(chosen)}")
    lengths = {f"base, {share:.0%} of the steps": share for share in LENGTHS}
    chosen |= {name: {"train": {"steps": round(share * steps)}} for name, share in lengths.items()}
    jobs = {f"{name}, seed {seed}": (name, seed) for seed in _seeds(arguments) for name in chosen}
    runs = {run: _config(chosen[name], seed, arguments.text) for run, (name, seed) in jobs.items()}
    found = train_all(runs, arguments.done, corpora=arguments.corpora, processes=arguments.jobs)
    losses = {job: found[run].loss for run, job in jobs.items()}
    _print(chosen, lengths, losses, steps, arguments)


def _seeds(arguments: Any) -> list[int]:
    return [1337 + seed for seed in range(arguments.seeds)]


def _config(changes: dict[str, Any], seed: int, text: Path | None) -> RunConfig:
    return recipes.load(RECIPE, recipes.merge(recipes.merge(text_overrides(text), changes), {"seed": seed}))


def _print(
    chosen: dict[str, Any],
    lengths: dict[str, float],
    losses: dict[tuple[str, int], float],
    steps: int,
    arguments: Any,
) -> None:
    seeds = _seeds(arguments)
    runs = {name: [losses[name, seed] for seed in seeds] for name in chosen}
    base = estimate(runs[BASE])
    curve = sorted([(share, estimate(runs[name]).mean) for name, share in lengths.items()] + [(1.0, base.mean)])
    shares, means = (np.array(column) for column in zip(*curve, strict=True))

    rows, figures = [], {}
    for name, values in runs.items():
        found, difference = estimate(values), paired_difference(values, runs[BASE])
        # The length at which the base ends at this loss; outside what was run, only a bound is known.
        at = float(np.interp(found.mean, means[::-1], shares[::-1]))
        beyond = "<" if found.mean > means[0] else ">" if found.mean < means[-1] else ""
        figures[name] = {
            "losses": [round(v, 4) for v in values],
            "mean": round(found.mean, 4),
            "difference": round(difference.mean, 4),
            "margin": None if difference.margin is None else round(difference.margin, 4),
            "p": difference.p,
            "worth_steps": round(at, 3),
            "beyond": beyond,
        }
        own = name == BASE or name in lengths
        worth = "" if own else f"{beyond}{at:.2f}"
        p = "" if name == BASE or difference.p is None else f"{difference.p:.3f}"
        rows.append((name, f"{found.mean:.4f}", "" if name == BASE else difference.text("+.4f"), p, worth))
    columns = ("variant", "loss, nats", "against the base, 95 %", "p", "worth so many of the base's steps")
    show(f"{machine(1)}\n{RECIPE}, {steps} steps, {len(seeds)} seeds", columns, rows)
    finish({"benchmark": "effects", "steps": steps, "seeds": seeds, "variants": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/track/effects.py --text tinyshakespeare.txt --seeds 5 --jobs 2")
    flags.add_argument("--text", type=Path, metavar="FILE", help="Tiny Shakespeare (default: the one on this disk)")
    flags.add_argument("--seeds", type=positive, default=5, help="runs of each variant (default: 5)")
    flags.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="runs at a time (default: all cores)")
    flags.add_argument("--only", nargs="*", default=[], metavar="VARIANT", help="these variants alone, and the base")
    flags.add_argument(
        "--done",
        type=Path,
        default=Path("effects.jsonl"),
        metavar="FILE",
        help="finished runs (default: effects.jsonl)",
    )
    flags.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
