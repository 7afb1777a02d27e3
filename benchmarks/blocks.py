"""What each block variant does to the loss: nanoGPT's CPU recipe, one switch at a time, several seeds.

Every variant sees the same batches in the same order (batches are a function of the seed and the step), so differences
are taken seed by seed against GPT-2's blocks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure import evaluate
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.schedule import schedule_share

_ROPE = {"kind": "rope"}
_MODERN = {
    "mlp": {"kind": "relu2"},
    "norm": {"kind": "rmsnorm"},
    "position": _ROPE,
    "attention": {"kind": "softmax", "qk_norm": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "GPT-2 blocks": {},
    "post-norm": {"norm_position": "post"},
    "with biases": {"bias": True},
    "untied head": {"tie_embeddings": False},
    "rope": {"position": _ROPE},
    "no position": {"position": {"kind": "none"}},
    "rmsnorm": {"norm": _MODERN["norm"]},
    "swiglu": {"mlp": {"kind": "swiglu"}},
    "relu2": {"mlp": _MODERN["mlp"]},
    "qk-norm": {"attention": _MODERN["attention"]},
    "grouped queries (2 of 4)": {"attention": {"kind": "softmax", "n_kv_head": 2}},
    "multi-query": {"attention": {"kind": "softmax", "n_kv_head": 1}},
    "modern: rope, rmsnorm, relu2, qk-norm": _MODERN,
    "rope, windows of 16": {"position": _ROPE, "attention": {"kind": "softmax", "window": 16}},
    "rope, windows of 16, SSSL": {"position": _ROPE, "attention": {"kind": "softmax", "window": 16, "pattern": "SSSL"}},
    "rope, windows of 8, SSSL": {"position": _ROPE, "attention": {"kind": "softmax", "window": 8, "pattern": "SSSL"}},
    "rope, sinks": {"position": _ROPE, "attention": {"kind": "softmax", "sinks": True}},
    "rope, keys and values shared by 2 layers": {"position": _ROPE, "attention": {"kind": "softmax", "share_kv": 2}},
    "rope, shared by 2, multi-query": {
        "position": _ROPE,
        "attention": {"kind": "softmax", "share_kv": 2, "n_kv_head": 1},
    },
    "rope, latent of 64": {"position": _ROPE, "attention": {"kind": "latent"}},
    "rope, latent of 32": {"position": _ROPE, "attention": {"kind": "latent", "latent": 32}},
    "linear, elu": {"attention": {"kind": "linear"}},
    "rope, linear, elu": {"position": _ROPE, "attention": {"kind": "linear"}},
    "rope, linear, layer-norm": {"position": _ROPE, "attention": {"kind": "linear", "form": "layernorm"}},
}


def main() -> None:
    """Train every variant with every seed and print."""
    arguments = _arguments()
    chosen = {n: v for n, v in VARIANTS.items() if not arguments.only or n in ("GPT-2 blocks", *arguments.only)}
    if unknown := set(arguments.only) - VARIANTS.keys():
        raise ConfigError(f"there is no variant {sorted(unknown)}: use some of {sorted(VARIANTS)}")
    print(f"{machine(arguments.threads)}\n")
    losses: dict[str, list[float]] = {name: [] for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with progress("runs", len(chosen) * arguments.seeds) as advance:
        for seed in range(arguments.seeds):
            for name, changes in chosen.items():
                loss, seconds = _run(arguments, 1337 + seed, changes)
                losses[name].append(loss)
                times[name].append(seconds / arguments.steps * 1000)
                advance(sum(map(len, losses.values())), f"{name}, seed {seed}: {loss:.4f}")
    base = np.array(losses["GPT-2 blocks"])
    rows, figures = [], {}
    for name in chosen:
        difference = np.array(losses[name]) - base
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
        parameters = parameter_count(_config(arguments, 1337, chosen[name], vocab=65).model)
        figures[name] = {
            "parameters": parameters,
            "loss": round(float(np.mean(losses[name])), 4),
            "difference": round(float(difference.mean()), 4),
            "standard_error": round(float(error), 4),
            "ms_per_step": round(float(np.median(times[name])), 1),
        }
        f = figures[name]
        shown = "" if name == "GPT-2 blocks" else f"{f['difference']:+.4f} ± {f['standard_error']:.4f}"
        rows.append((name, f"{parameters:,}", f"{f['loss']:.4f}", shown, f"{f['ms_per_step']:.1f}"))
    show(
        f"Validation loss after {arguments.steps} steps, {arguments.seeds} seeds",
        ["variant", "parameters", "loss, nats", "against GPT-2 blocks", "ms a step"],
        rows,
    )
    finish({"benchmark": "blocks", "steps": arguments.steps, "seeds": arguments.seeds, "variants": figures})


def _config(arguments: Any, seed: int, changes: dict[str, Any], vocab: int | None = None) -> Any:
    overrides = {
        "seed": seed,
        "model": changes,
        "data": {"path": arguments.text},
        "train": {"steps": arguments.steps, "threads": arguments.threads},
    }
    config = recipes.load("shakespeare-char", overrides)
    return config if vocab is None else derive(config, model={"vocab_size": vocab})


def _run(arguments: Any, seed: int, changes: dict[str, Any]) -> tuple[float, float]:
    """Final loss over the whole validation split, and seconds of training."""
    config = _config(arguments, seed, changes)
    source = open_source(config, arguments.corpora)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    state = engine.init(config)
    began = time.perf_counter()
    for step in range(arguments.steps):
        share = schedule_share(config, step)
        engine.step(state, source.batch_at(step), config=config, share=share, step=step)
    seconds = time.perf_counter() - began
    return evaluate(engine, engine.model_of(state), source).loss, seconds


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/blocks.py --steps 400 --seeds 3")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--steps", type=positive, default=400, help="optimizer steps of each run (default: 400)")
    options.add_argument("--seeds", type=positive, default=3, help="runs of each variant (default: 3)")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    options.add_argument("--only", nargs="*", default=[], metavar="VARIANT", help="these variants alone, and the base")
    options.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
