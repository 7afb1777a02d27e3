"""What `bonsai compress` costs: the plan, its blocks in sequence, and what training afterwards gives back.

Teachers are those of ``compress_oneshot.py``. Of every teacher and share there is a plan for each way to allocate,
carried out block by block; then the first of them is healed for so many steps, from the text alone and from the
teacher's logits too. Losses are over the whole validation split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Ledger, finish, guarded, machine, parser, positive, progress, show
from compress_oneshot import teacher_of

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.compress.pricing import AUTO, choose, price
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config
from bonsaigpt.compress.subject import Subject
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.engines import load_engine
from bonsaigpt.train import start_state
from bonsaigpt.train.schedule import schedule_share

WAYS: dict[str, tuple[tuple[str, ...], bool]] = {
    "Kronecker, even": (("kronecker",), True),
    "Kronecker, measured": (("kronecker",), False),
    "any of three, measured": (AUTO, False),
}
"""Kinds of structure, and whether every weight keeps the same share."""


def main() -> None:
    """Plan, replace, heal, and print."""
    arguments = _arguments()
    ways = [way for way in WAYS if not arguments.only or any(words in way for words in arguments.only)]
    ledger = Ledger(arguments.done)
    jobs = [(s, share, way) for s in range(arguments.seeds) for share in arguments.share for way in ways]
    engine = load_engine("torch", device="cpu", threads=arguments.threads, workers=1)
    with progress("compressions", len(jobs)) as advance:
        for done, (seed, share, way) in enumerate(jobs):
            settings = {"way": way, "share": share, "seed": seed, "steps": arguments.steps, "heal": arguments.heal}
            if ledger.find(settings) is None:
                config, values, source = teacher_of(arguments, engine, 1337 + seed)
                subject = Subject(engine, config.model, values, source)
                kinds, even = WAYS[way]
                offers = price(subject, kinds, ["*.mlp.*"], share)
                dense = sum(offer.dense.stored for offer in offers)
                plan, chosen = choose(offers, budget=int(share * dense), even=even)
                compressed = replace_blocks(subject, plan)
                found: dict[str, Any] = {
                    "dense": compressed.dense_loss,
                    "compressed": compressed.loss,
                    "predicted": sum(option.loss for option in chosen.values()),
                }
                if way == ways[0]:
                    found |= _healed(arguments, subject, config, compressed)
                ledger.add(f"{way}, {share}, seed {seed}", settings, found)
            advance(done + 1, f"{way}, {share}, seed {seed}: {ledger.find(settings)}")
    _print(ledger, arguments, ways)


def _healed(arguments: Any, subject: Subject, config: RunConfig, compressed: Compressed) -> dict[str, float]:
    place = arguments.cache / f"teacher-run-{arguments.steps}-{config.seed}"
    if not place.exists():
        start = Checkpoint(model=subject.values, optimizer={}, state=start_state(subject.source))
        RunDirectory.create(place, config, subject.source.tokenizer, {}, start=start)
    found: dict[str, float] = {}
    for steps in arguments.heal:
        for name, teacher in (("plain", None), ("distilled", f"{place}@0")):
            decided = {"workers": 1, "micro_batch": 12, "compile": "off", "attention_kernel": "sdpa"}
            settings = derive(healing_config(config, compressed, steps=steps, teacher=teacher), train=decided)
            state = subject.engine.init(settings, compressed.values)
            for step in range(steps):
                share, batch = schedule_share(settings, step), subject.source.batch_at(step)
                subject.engine.step(state, batch, config=settings, share=share, step=step)
            found[f"{name}, {steps} steps"] = subject.validate(subject.engine.model_of(state))
    return found


def _print(ledger: Ledger, arguments: Any, ways: list[str]) -> None:
    rows, figures = [], {}
    for share in arguments.share:
        for way in ways:
            fixed = {"way": way, "share": share, "steps": arguments.steps, "heal": arguments.heal}
            runs = [ledger.find(fixed | {"seed": seed}) for seed in range(arguments.seeds)]
            dense = np.array([run["dense"] for run in runs])
            for name in (name for name in runs[0] if name not in ("dense", "predicted")):
                cost = np.array([run[name] for run in runs]) - dense
                label = f"{share:.0%} {way}, {name}"
                figures[label] = cost.round(4).tolist()
                rows.append((label, f"{cost.mean():+.3f} ({cost.min():+.3f} to {cost.max():+.3f})"))
    title = f"{machine(arguments.threads)}\nAll MLP matrices, {arguments.seeds} teachers of {arguments.steps} steps"
    show(title, ["share, plan, stage", "against dense, nats, mean (range)"], rows)
    finish({"benchmark": "compress_heal", "seeds": arguments.seeds, "costs": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/compress_heal.py --text tinyshakespeare.txt --seeds 2")
    flags.add_argument("--text", type=Path, default=Path("tinyshakespeare.txt"), help="Tiny Shakespeare (a path)")
    flags.add_argument("--steps", type=positive, default=1000, help="of each teacher (default: 1000)")
    flags.add_argument("--seeds", type=positive, default=2, help="teachers (default: 2)")
    flags.add_argument("--share", type=float, nargs="+", default=[0.5, 0.25], help="of the parameters of all matrices")
    flags.add_argument("--heal", type=positive, nargs="*", default=[200, 500], help="steps of healing")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--only", nargs="*", default=[], metavar="WORDS", help="ways whose name has one of these")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where teachers and token shards are kept")
    flags.add_argument("--done", type=Path, default=Path("compress_heal.jsonl"), help="finished runs are kept here")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
