"""How many steps does a longer context take? A model is trained at a short context and goes on at a long one, with its
positions as they are, or scaled in one of three ways, or learned and interpolated; beside it, one that was trained at
the long context from the start, for as many steps in all and with as many tokens in each.

Losses are over the whole validation split, in windows of the long context, after so many steps at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import finish, guarded, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.adapt import stretched_arrays, stretched_config
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.train.schedule import schedule_share

_ROPE = {"kind": "rope", "pairs": "neighbours"}
ARMS: dict[str, tuple[str, str | None]] = {
    "rope as it is": ("rope", None),
    "rope, linear": ("rope", "linear"),
    "rope, ntk": ("rope", "ntk"),
    "rope, yarn": ("rope", "yarn"),
    "learned, interpolated": ("learned", None),
}
_LOOKS = (0, 10, 30, 100, 300, 1000)
_NEAR = 0.01


def main() -> None:
    """Train, stretch and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    looks = [n for n in _LOOKS if n < arguments.stretch] + [arguments.stretch]
    engine = load_engine("torch", device="cpu", threads=arguments.threads)
    figures: dict[str, Any] = {"benchmark": "stretch", "steps": arguments.steps, "looks": looks, "seeds": {}}
    chosen = {name: arm for name, arm in ARMS.items() if not arguments.only or name in arguments.only}
    kinds = list(dict.fromkeys(kind for kind, _ in chosen.values()))
    with progress("runs", arguments.seeds * (2 * len(kinds) + len(chosen))) as advance:
        done = 0
        for seed in range(1337, 1337 + arguments.seeds):
            rows: dict[str, list[float]] = {}
            states: dict[str, Any] = {}
            for kind in kinds:
                config = _config(arguments, seed, kind, arguments.short)
                states[kind] = config, engine.arrays(_train(engine, config, arguments, [])[0])
                long = _config(arguments, seed, kind, arguments.long, arguments.steps + arguments.stretch)
                _, [at_length] = _train(engine, long, arguments, [long.train.steps])
                rows[f"{kind} at {arguments.long} from the start"] = [at_length]
                done += 2
                advance(done, f"{kind}: {at_length:.4f}")
            for name, (kind, rope) in chosen.items():
                config, (model, optimizer) = states[kind]
                long = stretched_config(config, arguments.long, rope=rope, steps=arguments.stretch)  # type: ignore[arg-type]
                arrays = [stretched_arrays(a, config.model, long.model) for a in (model, optimizer)]
                _, rows[name] = _train(engine, long, arguments, looks, arrays)
                done += 1
                advance(done, f"{name}: {rows[name][-1]:.4f}")
            figures["seeds"][seed] = rows
            _show(arguments, seed, looks, rows)
    finish(figures)


def _show(arguments: Any, seed: int, looks: list[int], rows: dict[str, list[float]]) -> None:
    lines = []
    for name, losses in rows.items():
        kind = name.split()[0].rstrip(",")
        [goal] = rows[f"{kind} at {arguments.long} from the start"]
        there = next((n for n, loss in zip(looks, losses, strict=False) if loss <= goal + _NEAR), None)
        cells = [f"{loss:.4f}" for loss in losses] if len(losses) > 1 else ["" for _ in looks[1:]] + [f"{goal:.4f}"]
        lines.append((name, *cells, "" if len(losses) == 1 else str(there) if there is not None else "more"))
    title = f"Seed {seed}: loss at {arguments.long} tokens after so many steps"
    show(
        f"{title}, {arguments.steps} at {arguments.short} before",
        ["", *map(str, looks), f"within {_NEAR}"],
        lines,
    )


def _config(arguments: Any, seed: int, kind: str, block: int, steps: int | None = None) -> RunConfig:
    """nanoGPT's CPU recipe at one context, with the tokens of its step."""
    overrides = {
        "seed": seed,
        "model": {"block_size": block, "position": _ROPE if kind == "rope" else {"kind": "learned"}},
        "data": {"path": arguments.text},
        "train": {
            "steps": steps or arguments.steps,
            "threads": arguments.threads,
            "batch_size": max(1, 12 * 64 // block),
        },
    }
    return derive(recipes.load("shakespeare-char", overrides), model={"vocab_size": 65})


def _train(
    engine: Engine, config: RunConfig, arguments: Any, looks: list[int], arrays: list[Any] | None = None
) -> tuple[Any, list[float]]:
    """The last state, and the losses after so many steps at each look."""
    source = open_source(config, arguments.corpora)
    state = engine.init(config) if arrays is None else engine.restore(config, *arrays)
    found = []
    for step in range(config.train.steps + 1):
        if step in looks:
            found.append(evaluate(engine, engine.model_of(state), source).loss)
        if step < config.train.steps:
            share = schedule_share(config, step)
            engine.step(state, source.batch_at(step), config=config, share=share, step=step)
    return state, found


def _arguments() -> Any:
    options = parser(__doc__ or "", "python benchmarks/stretch.py --steps 1000 --stretch 300")
    options.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    options.add_argument("--short", type=positive, default=64, help="context of the first training (default: 64)")
    options.add_argument("--long", type=positive, default=256, help="the longer context, tokens (default: 256)")
    options.add_argument("--steps", type=positive, default=1000, help="steps at the short context (default: 1000)")
    options.add_argument("--stretch", type=positive, default=300, help="steps at the long one (default: 300)")
    options.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    options.add_argument("--only", nargs="*", default=[], metavar="ARM", help="these arms alone")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    options.add_argument("--corpora", type=Path, default=Path("corpora"), help="where token shards live")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
