"""What training gives back of what compression cost: Kronecker plans against their rivals, all healed alike.

Teachers are those of ``compress_oneshot.py``. Every arm stores the same share of each MLP (the last one is a smaller
MLP that knows nothing of the teacher's weights), and learns for so many steps from the same batches and the teacher's
logits. Losses are over the whole validation split; nothing is chosen by it, but with ``--every``: then teachers and
arms alike keep their best look at it, as a training that overfits must.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Ledger, finish, guarded, machine, positive, progress, show
from compressing import Shape, alike, best_of, compression_parser, low_rank, near_square, teacher_of

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.compress.plan import Init, Plan
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config
from bonsaigpt.compress.subject import Advance, Subject, silent
from bonsaigpt.compress.upcycle import upcycled
from bonsaigpt.config import KroneckerStructure, LowRankStructure, ModelConfig, StructureConfig, derive
from bonsaigpt.engines import load_engine
from bonsaigpt.measure.statistics import estimate
from bonsaigpt.spec import parameter_count
from bonsaigpt.structure import Kronecker, LowRank, Structure
from bonsaigpt.train import start_state

PERMUTED = 0.35
"""Share of the values up to which `bonsai compress` brings like hidden units together."""


def vector_factor(out: int, into: int, share: float) -> Structure:
    """One term whose smaller factor is a vector, 512x32 (x) 1x4 at 25 %: the shape of 1536x32 (x) 1x12."""
    each = round(1 / share)
    a_shape = (out, into // each) if out >= into else (out // each, into)
    return Kronecker(out, into, a_shape, 1, False)


EXPERTS, ACTIVE = 4, 2


def of_experts(out: int, into: int, share: float) -> Structure:
    """Near-square products of which every expert is to own an A: fewer, so that all A and one B are the share."""
    one = near_square(out, into, share)
    (m1, n1), (m2, n2) = one.a_shape, one.b_shape
    return Kronecker(out, into, one.a_shape, int(share * out * into / (EXPERTS * m1 * n1 + m2 * n2)), False)


@dataclass(frozen=True)
class Arm:
    """A shape for every weight, and where its values come from."""

    shape: Shape
    init: Init = "activations"
    permute: bool = False
    experts: bool = False
    """Make each MLP four experts that share B, two of them active."""


OURS = "Kronecker, in sequence"
SCRATCH = "narrow, from scratch"
ARMS: dict[str, Arm] = {
    OURS: Arm(near_square, permute=True),
    "whitened SVD, in sequence": Arm(low_rank),
    "Van Loan": Arm(near_square, init="weight"),
    "vector factor, in sequence": Arm(vector_factor),
    "experts, in sequence": Arm(of_experts, permute=True, experts=True),
}


class Unscored(Subject):
    """No block is taken back here, so none is scored."""

    def validate(self, model: Any, advance: Advance = silent) -> float:
        """Within any limit."""
        return 0.0


def main() -> None:
    """Compress, heal, and print."""
    arguments = _arguments()
    arms = [arm for arm in [*ARMS, SCRATCH] if not arguments.only or any(words in arm for words in arguments.only)]
    ledger = Ledger(arguments.done)
    jobs = list(_jobs(arguments, arms))
    engine = load_engine("torch", device=arguments.device, threads=arguments.threads, workers=1)
    with progress("runs", len(jobs)) as advance:
        for done, settings in enumerate(jobs):
            if ledger.find(settings) is None:
                found = _measured(arguments, engine, settings)
                ledger.add(" ".join(str(value) for value in settings.values()), settings, found)
            advance(done + 1, f"{settings}: {ledger.find(settings)}")
    _print(ledger, arguments, arms)


def _jobs(arguments: Any, arms: list[str]) -> Iterator[dict[str, Any]]:
    for share in arguments.share:
        for seed in range(arguments.seeds):
            yield _settings(arguments, "dense", 1.0, seed, 0)
            for arm in arms:
                for heal in arguments.heal:
                    yield _settings(arguments, arm, share, seed, heal)


def _settings(arguments: Any, arm: str, share: float, seed: int, heal: int) -> dict[str, Any]:
    """All that a loss depends on, but the code."""
    kept = {name: getattr(arguments, name) for name in ("recipe", "steps", "every", "calibrate", "tokenizer")}
    return {"arm": arm, "share": share, "seed": seed, "heal": heal, "text": arguments.text.stem} | kept


def _measured(arguments: Any, engine: Any, settings: dict[str, Any]) -> dict[str, Any]:
    config, values, source = teacher_of(arguments, engine, 1337 + settings["seed"])
    subject = Subject(engine, config.model, values, source, arguments.calibrate)
    if settings["arm"] == "dense":
        return {"loss": subject.validate(subject.model), "stored": parameter_count(config.model)}
    name = f"{arguments.recipe}-{arguments.text.stem}-{arguments.tokenizer}-{arguments.steps}-{arguments.every}"
    place = arguments.cache / f"run-{name}-{config.seed}"
    if not place.exists():
        start = Checkpoint(model=values, optimizer={}, state=start_state(source))
        RunDirectory.create(place, config, source.tokenizer, {}, start=start)
    steps, teacher = settings["heal"], f"{place}@0"
    if settings["arm"] == SCRATCH:
        hidden = int(settings["share"] * config.model.hidden_of(0))
        learning = {
            "schedule": {"kind": "linear", "warmup": steps // 20},
            "distill": {"kind": "logits", "teacher": teacher},
        }
        model = {"structure": {"*.mlp": {"kind": "narrow", "hidden": hidden}}}
        healing, start_values = derive(config, model=model, optim=learning, train={"steps": steps}), None
    else:
        arm = ARMS[settings["arm"]]
        compressed = _compressed(subject, arm, settings["share"])
        if arm.experts:
            compressed = upcycled(compressed, experts=EXPERTS, active=ACTIVE)
        healing, start_values = healing_config(config, compressed, steps=steps, teacher=teacher), compressed.values
    _, loss = best_of(alike(healing), source, engine, start_values, every=arguments.every)
    return {"loss": loss, "stored": parameter_count(healing.model)}


def _compressed(subject: Subject, arm: Arm, share: float) -> Compressed:
    structure: dict[str, StructureConfig] = {}
    for name, (out, into) in _mlps(subject.config).items():
        match arm.shape(out, into, share):
            case Kronecker() as made:
                structure[name] = KroneckerStructure(a_shape=made.a_shape, terms=made.count)
            case LowRank() as made:
                structure[name] = LowRankStructure(rank=made.inner)
            case _:
                raise AssertionError
    plan = Plan(structure, arm.init, permute=arm.permute and share <= PERMUTED)
    return replace_blocks(
        Unscored(subject.engine, subject.config, subject.values, subject.source, subject.tokens), plan
    )


def _mlps(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in config.weight_shapes.items() if ".mlp." in name}


def _print(ledger: Ledger, arguments: Any, arms: list[str]) -> None:
    rows, figures = [], {}
    seeds = range(arguments.seeds)

    def losses(arm: str, share: float, heal: int) -> np.ndarray:
        return np.array([ledger.find(_settings(arguments, arm, share, seed, heal))["loss"] for seed in seeds])

    dense = losses("dense", 1.0, 0)
    for share in arguments.share:
        for heal in arguments.heal:
            for arm in arms:
                cost = losses(arm, share, heal) - dense
                stored = ledger.find(_settings(arguments, arm, share, 0, heal))["stored"]
                row = [f"{share:.0%} {arm}, {heal} steps", f"{stored:,}"]
                row.append(f"{cost.mean():+.4f} ({cost.min():+.4f} to {cost.max():+.4f})")
                figures[row[0]] = {"costs": cost.round(4).tolist(), "stored": stored}
                if OURS in arms and arm != OURS:
                    more = losses(arm, share, heal) - losses(OURS, share, heal)
                    spread = estimate(more.tolist())
                    figures[row[0]] |= {"over_ours": round(spread.mean, 4), "worse": int((more > 0).sum())}
                    figures[row[0]] |= {"margin": round(spread.margin, 4)} if spread.margin else {}
                    row.append(f"{spread.text('+.4f')}, {(more > 0).sum()} of {len(more)}")
                rows.append((*row, *[""] * (4 - len(row))))
    title = f"{machine(arguments.threads)}\nAll MLP matrices, {arguments.seeds} teachers of {arguments.steps} steps"
    heads = ["share, arm, healing", "stored", "against dense, mean (range)", "against ours, mean (95 %), worse in"]
    show(title, heads, rows)
    finish({"benchmark": "compress_heal", "seeds": arguments.seeds, "arms": figures})


def _arguments() -> Any:
    flags = compression_parser(__doc__ or "", "compress_heal.py --text tinyshakespeare.txt", what="arms", seeds=3)
    flags.add_argument("--heal", type=positive, nargs="+", default=[200], help="steps of healing (default: 200)")
    flags.add_argument(
        "--every",
        type=int,
        default=0,
        help="look at the loss so often and keep the best, in steps (default: 0, the last)",
    )
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
