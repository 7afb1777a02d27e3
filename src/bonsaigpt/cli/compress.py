"""`bonsai compress`: a trained run made smaller, block by block, and healed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli import train as train_verb
from bonsaigpt.cli.common import (
    Opened,
    Parser,
    add_settings,
    check_run_name,
    count_from,
    open_model,
    print_table,
    progress_bar,
    runs_folder,
    settings,
)
from bonsaigpt.cli.experiment import environment_of, make_engine, open_data, with_overrides
from bonsaigpt.compress.candidates import Candidate
from bonsaigpt.compress.plan import INITS, Plan, read_plan, write_plan
from bonsaigpt.compress.planner import Option
from bonsaigpt.compress.pricing import AUTO, KINDS, Offer, choose, chosen_weights, price
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config, write_run
from bonsaigpt.compress.subject import Subject
from bonsaigpt.config import (
    KroneckerColumnsStructure,
    KroneckerStructure,
    LowRankStructure,
    MonarchStructure,
    NarrowStructure,
    RunConfig,
    StructureConfig,
    derive,
)
from bonsaigpt.errors import CheckpointError, ConfigError, did_you_mean
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.resume import check_data
from bonsaigpt.units import named, size

__all__ = ["run"]

_EXAMPLE = """  bonsai compress runs/shakespeare-char --dry-run --target-params 0.25
  bonsai compress runs/shakespeare-char --target-params 0.25 --heal 500 --distill --name quarter
  bonsai compress runs/shakespeare-char --max-loss 0.02 --structure kronecker,lowrank --layers "*.mlp.*,*.attn.*"
  bonsai compress runs/shakespeare-char --plan edited.toml"""

_BYTES = 4
"""Of a stored value, float32."""
_HEAL_LATER = 500
"""Steps that a run which is not healed at once is given, for `train --resume`."""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "compress",
        "Make a trained run smaller: structured weights in place of dense ones, one block at a time, each fitted to "
        "real activations behind what is compressed already; then heal it by training. The result is a new run.",
        _EXAMPLE,
    )
    _add_flags(parser)
    runs_folder(parser)
    source = add_settings(parser, "optim", "train")
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    console = Console()

    opened = open_model(arguments.model, runs=arguments.runs)
    if opened.run is None:
        raise CheckpointError(
            f"{opened.label} brings no data to calibrate on: train a run with --init {arguments.model} first."
        )
    job = _Job(arguments, overrides, argv, console, opened, opened.run)
    target = arguments.runs / check_run_name(arguments.name or f"{opened.run.path.name}-compressed")
    if not arguments.dry_run:
        RunDirectory.refuse_existing(target)
    subject, parent = job.subject()
    plan = job.plan(subject, parent)
    if arguments.dry_run:
        console.print("nothing was compressed, and no run was written", highlight=False)
        return 0
    compressed = job.replace(subject, plan)
    config = job.healing(parent, compressed)
    environment = environment_of(subject.engine, subject.source, "compress", argv)
    made = write_run(
        target,
        config,
        compressed,
        plan,
        parent=opened.run,
        label=opened.label,
        source=subject.source,
        environment=environment,
    )
    console.print(f"{made.path}: {job.summary(compressed)}", highlight=False, markup=False)
    if not arguments.heal:
        console.print(f"heal it with: bonsai train {made.path} --resume", highlight=False, markup=False)
        return 0
    folders = ["--runs", str(arguments.runs), "--corpora", str(arguments.corpora)]
    code = train_verb.run([str(made.path), "--resume", *folders])
    if (last := made.last()) is not None and code == 0:
        best, dense = read_state(last)["best_loss"], compressed.dense_loss
        words = f"dense {dense:.4f}, compressed {compressed.loss:.4f}, healed {best:.4f} ({best - dense:+.4f} nats)"
        console.print(words, highlight=False)
    return code


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the run (RUN, RUN@last, RUN@500)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-params",
        type=_target,
        metavar="N",
        help="values to keep: below 1 a share of those in the weights of --layers, from 1 on a count for the whole "
        "model (default: 0.5)",
    )
    target.add_argument(
        "--target-bytes",
        type=_size,
        metavar="N",
        help="bytes of the whole model in float32, e.g. 1500000 or 1.5M (default: by --target-params)",
    )
    target.add_argument(
        "--max-loss",
        type=_nats,
        metavar="NATS",
        help="as small as it gets for so much more validation loss, before healing (default: by --target-params)",
    )
    parser.add_argument(
        "--structure",
        type=_kinds,
        metavar="KINDS",
        default=",".join(AUTO),
        help=f"what weights may become, with commas between: {', '.join(KINDS)}, or auto (default: {','.join(AUTO)})",
    )
    parser.add_argument(
        "--allocate",
        choices=["even", "measured"],
        default="even",
        help="even: every weight keeps the same share; measured: shares by what each weight was measured to cost alone, "
        "as --max-loss always has it (default: even)",
    )
    parser.add_argument(
        "--layers",
        default="*.mlp.*",
        metavar="GLOBS",
        help="the weights, by name, globs with commas between (default: *.mlp.*)",
    )
    parser.add_argument(
        "--init",
        choices=INITS,
        help="where factors come from: activations, fitted to the outputs on real inputs; distilled, from there on by "
        "gradient; weight, fitted to the weight alone; pruned, rows kept and repeated; random (default: activations)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="carry out this plan instead of making one; where there is no such file, write it there (default: none)",
    )
    parser.add_argument("--dry-run", action="store_true", help="make the plan and show it, and compress nothing")
    parser.add_argument(
        "--shapes",
        metavar="WEIGHT",
        help="with the plan, list every legal shape of this weight at its target (default: of none)",
    )
    parser.add_argument(
        "--max-block-loss",
        type=_nats,
        metavar="NATS",
        help="a block that adds more validation loss takes a larger shape, or stays dense (default: no limit)",
    )
    parser.add_argument(
        "--heal", type=count_from(0), default=0, metavar="STEPS", help="train so many steps afterwards (default: 0)"
    )
    parser.add_argument(
        "--distill", action="store_true", help="heal with the logits of the uncompressed model as well as with the text"
    )
    parser.add_argument(
        "--calibrate",
        type=count_from(1),
        default=65_536,
        metavar="TOKENS",
        help="of training text, for activations (default: 65536)",
    )
    parser.add_argument("--name", help="name of the new run (default: the run's own and -compressed)")


@dataclass(frozen=True)
class _Job:
    """One call of the verb."""

    arguments: argparse.Namespace
    overrides: dict[str, Any]
    argv: list[str]
    console: Console
    opened: Opened
    run: RunDirectory

    def subject(self) -> tuple[Subject, RunConfig]:
        """The model on its engine, and the configuration of its run; what can be refused is refused before."""
        arguments, parent = self.arguments, self.run.config
        if arguments.distill and not arguments.heal:
            raise ConfigError("--distill is a way to heal: say for how long with --heal STEPS.")
        existing = arguments.plan is not None and arguments.plan.exists()
        given = [n for n in ("target_params", "target_bytes", "max_loss") if getattr(arguments, n) is not None]
        if existing and given:
            raise ConfigError(
                f"{arguments.plan} is a plan already, and --{given[0].replace('_', '-')} asks for another: give one of "
                "both"
            )
        chosen_weights(parent.model, self.layers)
        # Flags of the training may be wrong: hear of it now, and not after the work.
        teaching = {"kind": "logits", "teacher": self.teacher} if arguments.distill else {"kind": "none"}
        engine = make_engine(with_overrides(derive(parent, optim={"distill": teaching}), self.overrides))
        source = open_data(parent, arguments.corpora, self.console)
        check_data(self.run.environment.get("data", source.fingerprint), self.opened.tokenizer, source)
        subject = Subject(engine, self.opened.config, self.opened.weights, source, arguments.calibrate)
        return subject, parent

    @property
    def teacher(self) -> str:
        """The address of the very weights that are compressed."""
        return f"{self.run.path}@{self.opened.step}"

    @property
    def layers(self) -> list[str]:
        return self.arguments.layers.split(",")

    def plan(self, subject: Subject, parent: RunConfig) -> Plan:
        """Read, or made, shown and perhaps written."""
        arguments = self.arguments
        if arguments.plan is not None and arguments.plan.exists():
            plan = read_plan(arguments.plan, parent)
            chosen_weights(
                parent.model, [name for name in plan.structure if name in parent.model.weight_shapes] or ["*"]
            )
            if arguments.init:
                plan = Plan(plan.structure, arguments.init, plan.permute)
            print_table(("weight", "becomes"), [(n, _words(s)) for n, s in plan.structure.items()], words=True)
            return plan
        budget, share = self._budget(subject)
        with progress_bar(self.console) as advance:
            offers = price(subject, arguments.structure, self.layers, share, advance=advance)
        plan, chosen = choose(
            offers,
            budget=budget,
            loss=arguments.max_loss,
            even=arguments.allocate == "even",
            init=arguments.init or "activations",
        )
        if arguments.shapes is not None:
            _show_shapes(offers, arguments.shapes)
        _show_plan(offers, chosen, subject)
        if arguments.plan is not None:
            write_plan(arguments.plan, plan)
            self.console.print(f"plan: {arguments.plan}", highlight=False, markup=False)
        return plan

    def _budget(self, subject: Subject) -> tuple[int | None, float]:
        """Values for the weights of --layers (None: by loss), and the share that this is of theirs."""
        arguments = self.arguments
        dense = sum(structure.parameters for structure in chosen_weights(subject.config, self.layers).values())
        if arguments.max_loss is not None:
            return None, 0.5
        whole = parameter_count(subject.config)
        asked = arguments.target_params if arguments.target_params is not None else 0.5
        if arguments.target_bytes is not None:
            asked = arguments.target_bytes // _BYTES
        budget = int(asked * dense) if asked < 1 else int(asked) - (whole - dense)
        if budget >= dense:
            raise ConfigError(f"the model has {whole:,} values, so {int(asked):,} is no smaller: give a lower target")
        if budget < 1:
            raise ConfigError(
                f"{int(asked):,} values are less than the {whole - dense:,} that stay as they are: let more weights be "
                "compressed with --layers, or give a larger target"
            )
        return budget, budget / dense

    def replace(self, subject: Subject, plan: Plan) -> Compressed:
        """Carry out the plan, and tell what each block cost."""
        with progress_bar(self.console) as advance:
            seed = self.run.config.seed
            found = replace_blocks(subject, plan, allowed=self._allowed(plan), advance=advance, seed=seed)
        rows = [("dense", "", f"{parameter_count(subject.config):,}", f"{found.dense_loss:.4f}", "", "")]
        for step in found.steps:
            settings = ", ".join(map(_words, step.settings.values())) or "dense: nothing smaller was within the limit"
            again = f" (attempt {step.attempts})" if step.attempts > 1 and step.settings else ""
            row = (step.block, settings + again, f"{step.stored:,}", f"{step.loss:.4f}", f"{step.cost:+.4f}")
            rows.append((*row, f"{step.seconds:.1f}"))
        print_table(("block", "became", "values", "loss, nats", "cost, nats", "seconds"), rows)
        return found

    def _allowed(self, plan: Plan) -> Any:
        arguments = self.arguments
        if arguments.max_loss is None and arguments.max_block_loss is None:
            return None

        def allowed(number: int, count: int) -> float:
            limits = [(number + 1) * arguments.max_block_loss] if arguments.max_block_loss is not None else []
            limits += [arguments.max_loss * (number + 1) / count] if arguments.max_loss is not None else []
            return min(limits)

        return allowed

    def healing(self, parent: RunConfig, compressed: Compressed) -> RunConfig:
        """The configuration of the new run."""
        arguments = self.arguments
        steps = arguments.heal or _HEAL_LATER
        teacher = self.teacher if arguments.distill else None
        return with_overrides(healing_config(parent, compressed, steps=steps, teacher=teacher), self.overrides)

    def summary(self, compressed: Compressed) -> str:
        """``803,000 values became 541,000 (2.06 MiB): +0.0412 nats before healing``."""
        before, after = parameter_count(self.opened.config), parameter_count(compressed.config)
        cost = compressed.loss - compressed.dense_loss
        return f"{named(before, 'value')} became {after:,} ({size(_BYTES * after)}): {cost:+.4f} nats before healing"


def _show_plan(offers: Sequence[Offer], chosen: dict[str, Option], subject: Subject) -> None:
    rows = [_row(offer.name, chosen[offer.name], offer.dense.stored) for offer in offers]
    stored, dense = sum(option.stored for option in chosen.values()), sum(offer.dense.stored for offer in offers)
    loss, whole = sum(option.loss for option in chosen.values()), parameter_count(subject.config)
    rows.append(("together", "", f"{stored:,}", f"{stored / dense:.0%}", "", "", "", "", f"{loss:+.4f}"))
    print_table(_COLUMNS, rows)
    after = whole - dense + stored
    print(
        f"the whole model: {whole:,} values become {after:,}, {size(_BYTES * after)}. Predicted is for each weight "
        "alone, before healing; in sequence later blocks make up for a part of it."
    )


def _show_shapes(offers: Sequence[Offer], name: str) -> None:
    known = {offer.name: offer for offer in offers}
    if name not in known:
        raise ConfigError(f"--shapes '{name}' is none of the weights of --layers.{did_you_mean(name, known)}")
    offer = known[name]
    rows = [_row(name, option, offer.dense.stored)[1:] for option in (*offer.tried, *offer.shapes)]
    print_table(("tried, then all legal shapes", *_COLUMNS[2:]), rows)


_COLUMNS = (
    "weight",
    "becomes",
    "values",
    "share",
    "work a token, factors",
    "rank",
    "energy",
    "error",
    "predicted, nats",
)


def _row(name: str, option: Option, dense: int) -> tuple[str, ...]:
    candidate = option.candidate
    work, rank = f"{option.stored / dense:.2f}", ""
    if isinstance(candidate, Candidate):
        structure = candidate.structure
        orders = [f"{structure.macs(order) / dense:.2f} {order}" for order in structure.orders]
        work, rank = ", ".join(orders).replace("1.00 dense", "1.00"), str(structure.rank)
    return (
        name,
        candidate.words,
        f"{option.stored:,}",
        f"{option.stored / dense:.0%}",
        work,
        rank,
        f"{candidate.energy:.3f}",
        f"{candidate.error:.4f}",
        f"{option.loss:+.4f}",
    )


def _words(setting: StructureConfig) -> str:
    """``kronecker 32x8, 64 terms``, ``lowrank 12``."""
    match setting:
        case KroneckerStructure():
            (m1, n1), terms = setting.a_shape, setting.terms
            kept = f", {len(setting.columns)} columns" if isinstance(setting, KroneckerColumnsStructure) else ""
            return f"{setting.kind} {m1}x{n1}, {named(terms, 'term')}{kept}"
        case MonarchStructure():
            return f"monarch {setting.a_shape[0]}x{setting.a_shape[1]}, rank {setting.rank}"
        case LowRankStructure():
            return f"lowrank {setting.rank}"
        case NarrowStructure():
            return named(setting.hidden, "hidden unit")
        case _:
            return "dense"


def _target(text: str) -> float:
    """For argparse: a share or a count."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf") or (value >= 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"'{text}' is no target: use a share such as 0.5, or a count such as 400000")
    return value


def _size(text: str) -> int:
    """For argparse: bytes."""
    factor = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 1)
    try:
        value = float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no size: use bytes, e.g. 1500000 or 1.5M")
    return int(value)


def _nats(text: str) -> float:
    """For argparse: an amount of loss."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no loss: use nats a token from 0 on, e.g. 0.02")
    return value


def _kinds(text: str) -> tuple[str, ...]:
    """For argparse: kinds of structure."""
    kinds = AUTO if text == "auto" else tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(
                f"'{kind}' is no structure: use {', '.join(KINDS)} or auto.{did_you_mean(kind, KINDS)}"
            )
    if "narrow" in kinds and len(kinds) > 1:
        raise argparse.ArgumentTypeError("'narrow' takes whole MLPs, and goes with no other structure: give it alone")
    return kinds
