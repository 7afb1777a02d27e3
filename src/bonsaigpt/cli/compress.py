"""`bonsai compress`: a trained run made smaller, block by block, and healed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli.common import (
    Opened,
    Parser,
    add_settings,
    check_run_name,
    open_model,
    print_table,
    progress_bar,
    runs_folder,
    settings,
)
from bonsaigpt.cli.compress_flags import add_flags
from bonsaigpt.cli.experiment import environment_of, make_engine, open_data, with_overrides
from bonsaigpt.cli.train import train_made
from bonsaigpt.compress.candidates import Candidate
from bonsaigpt.compress.plan import Plan, read_plan, write_plan
from bonsaigpt.compress.planner import Option
from bonsaigpt.compress.pricing import Offer, choose, chosen_weights, price
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config, write_run
from bonsaigpt.compress.subject import Subject
from bonsaigpt.compress.upcycle import experts_config, upcycled
from bonsaigpt.config import (
    ExpertsMLP,
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
from bonsaigpt.measure.accounting import matrix_parameters
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.resume import check_data
from bonsaigpt.units import named, size

__all__ = ["compress_run", "run"]

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
    return compress_run(argv)[1]


def compress_run(argv: list[str]) -> tuple[RunDirectory | None, int]:
    """What the verb does; the new run, none of --dry-run, and the exit code of its healing."""
    parser = Parser(
        "compress",
        "Make a trained run smaller: structured weights in place of dense ones, one block at a time, each fitted to "
        "real activations behind what is compressed already; then heal it by training. The result is a new run.",
        _EXAMPLE,
    )
    add_flags(parser)
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
    job.check_experts(plan, parent)
    if arguments.dry_run:
        console.print("nothing was compressed, and no run was written", highlight=False)
        return None, 0
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
        return made, 0
    _, code = train_made(made.path, arguments)
    if (last := made.last()) is not None and code == 0:
        best, dense = read_state(last)["best_loss"], compressed.dense_loss
        words = f"dense {dense:.4f}, compressed {compressed.loss:.4f}, healed {best:.4f} ({best - dense:+.4f} nats)"
        console.print(words, highlight=False)
    return made, code


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

    def check_experts(self, plan: Plan, parent: RunConfig) -> None:
        """Refuse what cannot be made experts of, before the work."""
        if (experts := self.arguments.experts) is not None:
            experts_config(plan.applied(parent).model, experts=experts, active=self.arguments.active)

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
        if (experts := self.arguments.experts) is None:
            return found
        return upcycled(found, experts=experts, active=self.arguments.active, seed=seed)

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
        cost_words = f"{cost:+.4f} nats before healing"
        if isinstance(mlp := compressed.config.mlp, ExpertsMLP):
            met = matrix_parameters(compressed.config)
            cost_words += f"; a token meets {mlp.active} of {mlp.experts} experts, {met:,} values in matrices"
        return f"{named(before, 'value')} became {after:,} ({size(_BYTES * after)}): {cost_words}"


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
