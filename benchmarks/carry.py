"""What does a memory of what stood before a row bring (Transformer-XL), at equal compute? A recipe with rotary
positions over streams; a run with a memory takes as many steps fewer as its steps have more operations.

Losses are over the whole validation split, read in streams with the memory of training and with others. Differences
are paired by seed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import Ledger, finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import KeyValueMemory, ModelConfig, NoMemory, RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.measure import evaluate, flops_per_token
from bonsaigpt.study import paired_difference
from bonsaigpt.train.schedule import schedule_share

ARMS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "keys and values, 1 block": {"kind": "kv", "length": 1},
    "keys and values, 2 blocks": {"kind": "kv", "length": 2},
    "keys and values, 4 blocks": {"kind": "kv", "length": 4},
    "inputs, 1 block": {"kind": "hidden", "length": 1},
    "inputs, 2 blocks": {"kind": "hidden", "length": 2},
}


def main() -> None:
    """Train every arm and print."""
    arguments = _arguments()
    chosen = {name: arm for name, arm in ARMS.items() if not arguments.only or name in ("none", *arguments.only)}
    seeds = range(1337, 1337 + arguments.seeds)
    engine, ledger = load_engine("torch", device="cpu", threads=arguments.threads), Ledger(arguments.done)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with progress("runs", len(chosen) * len(seeds)) as advance:
        for seed in seeds:
            for name, arm in chosen.items():
                config = _config(arguments, seed, arm)
                settings = config.model_dump(mode="json")
                if ledger.find(settings) is None:
                    ledger.add(f"{name}, seed {seed}", settings, _measured(engine, config, arguments))
                found[name].append(ledger.find(settings))
                losses = found[name][-1]["losses"]
                advance(sum(map(len, found.values())), f"{name}: {min(losses.values()):.4f}")
    _print(arguments, found)


def _measured(engine: Engine, config: RunConfig, arguments: Any) -> dict[str, Any]:
    """One run: seconds of its training on the CPU, and its losses by the blocks of memory at the evaluation."""
    source = open_source(config, arguments.corpora)
    state = engine.init(config)
    began = time.process_time()
    for step in range(config.train.steps):
        share = schedule_share(config, step)
        engine.step(state, source.batch_at(step), config=config, share=share, step=step)
    seconds = time.process_time() - began
    losses = {}
    for blocks in _scored(config.train.memory.tokens(config.model.block_size) // config.model.block_size):
        memory = _memory(config, blocks)
        losses[str(blocks)] = evaluate(engine, state.model, source, memory=(config.model, memory)).loss
    return {"steps": config.train.steps, "seconds": seconds, "losses": losses}


def _scored(trained: int) -> list[int]:
    """Blocks of memory at evaluations of a run that was trained with so many: none, as many, twice as many."""
    return [0, trained, 2 * trained] if trained else [0, 1]


def _memory(config: RunConfig, blocks: int) -> Any:
    if not blocks:
        return NoMemory()
    trained = config.train.memory
    kind = KeyValueMemory if trained.kind == "none" else type(trained)
    return kind(length=blocks * config.model.block_size)


def _print(arguments: Any, found: dict[str, list[dict[str, Any]]]) -> None:
    """Means over the seeds; and each arm, read as it was trained, against the best way to read the one without."""
    means: dict[str, dict[str, float]] = {
        name: {blocks: sum(run["losses"][blocks] for run in runs) / len(runs) for blocks in runs[0]["losses"]}
        for name, runs in found.items()
    }
    best = min(means["none"], key=lambda blocks: means["none"][blocks])
    base = [run["losses"][best] for run in found["none"]]
    columns = sorted({blocks for losses in means.values() for blocks in losses}, key=int)
    rows, differences = [], {}
    for name, runs in found.items():
        difference = ""
        if name != "none":
            own = str(ARMS[name]["length"])
            differences[name] = paired_difference([run["losses"][own] for run in runs], base)
            difference = differences[name].text("+.4f")
        steps, seconds = runs[0]["steps"], sum(run["seconds"] for run in runs) / len(runs)
        rows.append(
            (
                name,
                str(steps),
                f"{seconds:.0f}",
                *(f"{means[name][b]:.4f}" if b in means[name] else "" for b in columns),
                difference,
            )
        )
    block = _config(arguments, 1337, ARMS["none"]).model.block_size
    show(
        f"{machine(arguments.threads)}\n{arguments.recipe}, blocks of {block}, seeds: {arguments.seeds}. Validation "
        "loss by the blocks of memory at the evaluation; the last column: with the memory of its training, less the "
        "least of `none`",
        ["memory in training", "steps", "CPU s", *(f"{n} blocks" for n in columns), "gain"],
        rows,
    )
    arms: dict[str, Any] = {}
    for name, runs in found.items():
        mean = sum(run["seconds"] for run in runs) / len(runs)
        own = means[name][str(ARMS[name].get("length", 0))]
        arms[name] = {"steps": runs[0]["steps"], "seconds": mean, "losses": means[name], "own": own}
        if name in differences:
            arms[name] |= {"gain": differences[name].mean, "margin": differences[name].margin}
    finish({"benchmark": "carry", "recipe": arguments.recipe, "runs": found, "arms": arms})


def _config(arguments: Any, seed: int, arm: dict[str, Any]) -> RunConfig:
    """The recipe with the tokens of its step, in blocks of another length if asked, and with its compute."""
    plain = recipes.load(arguments.recipe)
    block = arguments.block or plain.model.block_size
    position = plain.model.position
    rows = plain.train.batch_size * plain.model.block_size // block
    overrides = {
        "seed": seed,
        "model": {
            "block_size": block,
            "vocab_size": 65,
            "position": {"kind": "rope", "pairs": "neighbours"}
            if position.kind == "learned"
            else position.model_dump(),
        },
        "data": {"path": arguments.text, "order": "streams"},
        "train": {"steps": arguments.steps, "threads": arguments.threads, "batch_size": rows},
    }
    config = recipes.load(arguments.recipe, overrides)
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
    options = parser(__doc__ or "", "python benchmarks/carry.py --block 32 --seeds 3")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--recipe", default="shakespeare-char-best", help="what is trained (shakespeare-char-best)")
    options.add_argument("--block", type=positive, default=None, help="tokens of a row (default: the recipe's)")
    options.add_argument("--steps", type=positive, default=1000, help="steps of the run without memory (default: 1000)")
    options.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    options.add_argument("--only", nargs="*", default=[], metavar="ARM", help="these arms alone, and `none`")
    options.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    options.add_argument("--done", type=Path, default=Path("carry.jsonl"), help="finished runs are kept here")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
