"""What does a memory of what stood before a row bring (Transformer-XL), at equal compute? nanoGPT's CPU recipe with
rotary positions over streams; a run with a memory takes as many steps fewer as its steps have more operations.

Losses are over the whole validation split, read in streams with the memory of training and with others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import KeyValueMemory, ModelConfig, NoMemory, RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate, flops_per_token
from bonsaigpt.train.schedule import schedule_share

ARMS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "keys and values, 1 block": {"kind": "kv", "length": 1},
    "keys and values, 2 blocks": {"kind": "kv", "length": 2},
    "keys and values, 4 blocks": {"kind": "kv", "length": 4},
    "inputs, 1 block": {"kind": "hidden", "length": 1},
    "inputs, 2 blocks": {"kind": "hidden", "length": 2},
}
_SCORED = (0, 1, 2, 4)
"""Blocks of memory at evaluations."""


def main() -> None:
    """Train every arm and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    chosen = {name: arm for name, arm in ARMS.items() if not arguments.only or name in ("none", *arguments.only)}
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    figures: dict[str, Any] = {"benchmark": "carry", "steps": arguments.steps, "seeds": {}}
    with progress("runs", len(chosen) * arguments.seeds) as advance:
        for seed in range(1337, 1337 + arguments.seeds):
            rows: dict[str, Any] = {}
            for name, arm in chosen.items():
                config = _config(arguments, seed, arm)
                source = open_source(config, arguments.corpora)
                state = engine.init(config)
                for step in range(config.train.steps):
                    share = schedule_share(config, step)
                    engine.step(state, source.batch_at(step), config=config, share=share, step=step)
                losses = {}
                for blocks in _SCORED:
                    memory = _memory(config, blocks)
                    losses[blocks] = evaluate(engine, state.model, source, memory=(config.model, memory)).loss
                rows[name] = {"steps": config.train.steps, "losses": losses}
                advance(len(rows), f"{name}: {min(losses.values()):.4f}")
            figures["seeds"][seed] = rows
            show(
                f"Seed {seed}: validation loss, by the blocks of memory at the evaluation",
                ["memory in training", "steps", *(f"{n} blocks" for n in _SCORED)],
                [(n, str(r["steps"]), *(f"{loss:.4f}" for loss in r["losses"].values())) for n, r in rows.items()],
            )
    finish(figures)


def _memory(config: RunConfig, blocks: int) -> Any:
    if not blocks:
        return NoMemory()
    trained = config.train.memory
    kind = KeyValueMemory if trained.kind == "none" else type(trained)
    return kind(length=blocks * config.model.block_size)


def _config(arguments: Any, seed: int, arm: dict[str, Any]) -> RunConfig:
    overrides = {
        "seed": seed,
        "model": {"position": {"kind": "rope", "pairs": "neighbours"}, "vocab_size": 65},
        "data": {"path": arguments.text, "order": "streams"},
        "train": {"steps": arguments.steps, "threads": arguments.threads},
    }
    config = recipes.load("shakespeare-char", overrides)
    block = config.model.block_size
    memory = arm | ({"length": arm["length"] * block} if "length" in arm else {})
    cost = flops_per_token(config.model) + _extra(config.model, arm)
    steps = round(arguments.steps * flops_per_token(config.model) / cost)
    return derive(config, train={"memory": memory, "steps": steps})


def _extra(model: ModelConfig, arm: dict[str, Any]) -> int:
    """Operations for a token that the memory takes: longer rows of scores; and queries, keys and values of what is
    remembered as inputs, once forward and once for the gradient of the matrix."""
    blocks = arm.get("length", 0)
    scores = 12 * model.n_layer * model.n_embd * blocks * model.block_size
    return scores + (4 * model.n_layer * 3 * model.n_embd**2 * blocks if arm["kind"] == "hidden" else 0)


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/carry.py --steps 1000 --seeds 2")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--steps", type=positive, default=1000, help="steps of the run without memory (default: 1000)")
    options.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    options.add_argument("--only", nargs="*", default=[], metavar="ARM", help="these arms alone, and `none`")
    options.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
