"""The track: to nanoGPT's loss in a fraction of its time, and how low in equal steps and equal time.

Fixed: Tiny Shakespeare in characters, the first 90 % to train on; the loss over the whole validation split at block 64,
by this project's evaluator; nanoGPT's README recipe for a CPU, unmodified, as the mark to beat. For each seed the
entries run one after the other, each in a process of its own, in an order that is reversed every other seed; only
ratios inside one seed count. Seconds are of training, from the first weights to the last step, whatever that takes
(choosing, compiling), without evaluation.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Summary, finish, guarded, machine, parser, positive, progress, show
from duel import Remote, add_flags, text_overrides, write_bins
from sides import Decisions, Setup, check_nanogpt

from bonsaigpt import recipes
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.spec import parameter_count

TARGET = 1.8857
"""Where nanoGPT's recipe ends by its own estimate, nats a character (shared record of its README recipe)."""
MOST_PARAMETERS = 810_000
NANOGPT = "nanoGPT, 2,000 steps"
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("shakespeare-char-fast", {}),
    "equal steps": ("shakespeare-char-best", {"train": {"steps": 2000}}),
    "equal time": ("shakespeare-char-best", {}),
}
"""What we enter: a recipe and settings on top; `equal time` gets the steps that fit nanoGPT's seconds."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one entry."""

    seed: int
    loss: float
    seconds: float
    steps: int
    decided: Decisions


Runs = Mapping[str, Sequence[Run]]
"""Of each entry, by seed."""


def main() -> None:
    """Run all entries with all seeds and print."""
    arguments = _arguments()
    nanogpt = check_nanogpt(arguments.nanogpt)
    chosen = [name for name in (NANOGPT, *ENTRIES) if name == NANOGPT or name in arguments.only]
    results: dict[str, list[Run]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder, progress("runs", arguments.seeds * len(chosen)) as advance:
        for number in range(arguments.seeds):
            seed = 1337 + number
            # nanoGPT first in every seed: the entry of equal time needs its seconds; the rest turn around.
            others = [name for name in chosen if name != NANOGPT]
            for name in [NANOGPT, *(others if number % 2 == 0 else reversed(others))]:
                config = _config(name, seed, arguments, results)
                result = _train(name, config, Path(folder), nanogpt, arguments.threads)
                results[name].append(result)
                words = f"seed {seed}, {name}: {result.loss:.4f} in {result.seconds:.1f} s; {_settings(result.decided)}"
                advance(sum(map(len, results.values())), words)
    _print(results, arguments)


def _config(name: str, seed: int, arguments: Any, results: Runs) -> RunConfig:
    # nanoGPT computes in fp32, as it does on a CPU by its own defaults; ours in what it decides to.
    peer: tuple[str, dict[str, Any]] = ("shakespeare-char", {"train": {"precision": "fp32"}})
    recipe, settings = peer if name == NANOGPT else ENTRIES[name]
    placed = {"seed": seed, "train": {"device": "cpu"}}
    overrides = recipes.merge(recipes.merge(placed, settings), text_overrides(arguments.text))
    if name == "equal time":
        steps = arguments.equal_time_steps
        if not steps:
            seconds = results[NANOGPT][-1].seconds
            loss_free = results["equal steps"][-1] if results.get("equal steps") else None
            rate = loss_free.seconds / loss_free.steps if loss_free else seconds / 2000 * 1.3
            steps = int(seconds / rate)
        overrides = recipes.merge(overrides, {"train": {"steps": steps}})
    return recipes.load(recipe, overrides)


def _train(name: str, config: RunConfig, folder: Path, nanogpt: Path, threads: int) -> Run:
    source = open_source(config, folder)
    assert isinstance(source, TokenBatches)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    assert parameter_count(config.model) <= MOST_PARAMETERS
    assert config.model.block_size == 64
    write_bins(config, folder, source)
    side = Remote(
        "nanogpt" if name == NANOGPT else "ours",
        Setup(config=config, folder=folder, nanogpt=nanogpt, threads=threads),
    )
    try:
        seconds = side.start() + side.advance(config.train.steps)
        engine = load_engine("torch", device="cpu", precision="fp32")
        loss = evaluate(engine, engine.model(config.model, side.weights()), source).loss
        decided = side.decisions()
    finally:
        side.close()
    return Run(
        seed=config.seed, loss=round(loss, 5), seconds=round(seconds, 3), steps=config.train.steps, decided=decided
    )


def _settings(decided: Decisions) -> str:
    """``compile on, precision fp32, workers 2``; without the reasons, which are in the last line."""
    return ", ".join(f"{name.removeprefix('train.')} {value}" for name, value in decided.settings.items())


def _print(results: Runs, arguments: Any) -> None:
    where = machine(arguments.threads)
    print(f"{where}\nloss: nats a character over the whole validation split at block 64; {arguments.seeds} seeds\n")
    theirs = [run.seconds for run in results[NANOGPT]]
    rows, figures = [], {}
    for name, runs in results.items():
        loss, seconds = Summary.of([r.loss for r in runs]), Summary.of([r.seconds for r in runs])
        ratio = Summary.of([other / r.seconds for other, r in zip(theirs, runs, strict=True)])
        reached = sum(r.loss <= TARGET for r in runs)
        figures[name] = {
            "runs": [asdict(run) for run in runs],
            "loss": loss.as_dict(),
            "seconds": seconds.as_dict(),
            "nanogpt_seconds_over_ours": ratio.as_dict(),
            "reached_target": reached,
        }
        rows.append(
            (
                name,
                f"{median(r.steps for r in runs):,.0f}",
                f"{loss.median:.4f} ({loss.low:.4f} to {loss.high:.4f})",
                f"{seconds.median:.1f}",
                f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                f"{reached} of {len(runs)}",
            )
        )
    columns = ("entry", "steps", "loss: median (range)", "seconds", "nanoGPT's seconds / ours", f"at most {TARGET}")
    show("Medians, with the range over seeds", columns, rows)
    print("decided, in so many runs:")
    for name, runs in results.items():
        for words, times in Counter(_settings(run.decided) for run in runs).items():
            print(f"  {name}, {times}: {words}")
    finish({"benchmark": "track", "machine": where, "target": TARGET, "entries": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/track/race.py --nanogpt ~/nanoGPT --text tinyshakespeare.txt")
    add_flags(flags)
    flags.add_argument("--seeds", type=positive, default=5, help="trainings of each entry (default: 5)")
    flags.add_argument("--only", nargs="*", default=list(ENTRIES), metavar="ENTRY", help=f"of {list(ENTRIES)}")
    flags.add_argument(
        "--equal-time-steps",
        type=int,
        default=0,
        metavar="N",
        help="steps of the entry `equal time`; 0: as many as fit nanoGPT's seconds at the pace of `equal steps`",
    )
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
