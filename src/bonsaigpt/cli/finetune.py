"""`bonsai finetune`: a trained model goes on with examples of a task, as a run of its own."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt import __version__
from bonsaigpt.adapt import finetuned_config, frozen, grown_vocabulary, layerwise, on_top, tokenizer_with
from bonsaigpt.adapt.adapters import ADAPTERS_ALONE, EMBEDDING_AND_HEAD, adapted_model, adapted_names
from bonsaigpt.checkpoint import Arrays, Checkpoint, RunDirectory
from bonsaigpt.cli.common import (
    Opened,
    Parser,
    add_settings,
    check_run_name,
    count_from,
    number_above_zero,
    open_model,
    runs_folder,
    settings,
    whisper,
)
from bonsaigpt.cli.experiment import make_engine, with_overrides
from bonsaigpt.cli.train import train_made
from bonsaigpt.config import (
    DataConfig,
    ExamplesData,
    FileTokenizerConfig,
    LikelihoodObjective,
    ModelConfig,
    ObjectiveConfig,
    PairsData,
    PreferenceObjective,
    RewardObjective,
    RunConfig,
    TaskData,
    derive,
)
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.examples import example_batches
from bonsaigpt.data.examples.pairs import are_pairs, pair_batches
from bonsaigpt.data.examples.reading import CHOSEN, read_examples
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.data.toys import task_batches
from bonsaigpt.errors import ConfigError
from bonsaigpt.spec import parameter_count, parameters
from bonsaigpt.train import start_state
from bonsaigpt.units import named, size

__all__ = ["finetune_run", "run"]

_REWARD_STEPS = 100
_EPOCHS = 3.0
_RANK = 8

_EXAMPLE = """  bonsai finetune runs/wiki --data intents.jsonl --template "{text}{intent}" --label-tokens --epochs 10
  bonsai finetune runs/wiki --data chat.jsonl --name assistant --optim.lr 3e-4
  bonsai finetune runs/wiki --data questions.jsonl --freeze "transformer.h.0.*" --layer-decay 0.8 --train.patience 3
  bonsai finetune runs/wiki --data pairs.jsonl --template "{prompt}{chosen}" --name assistant
  bonsai finetune runs/assistant --data pairs.jsonl --beta 0.1
  bonsai finetune runs/sort --reward --samples 8 --train.batch_size 256
a line of the data is {"prompt": ..., "completion": ...}, {"messages": [...]}, {"text": ...}, or as --template says; of
preferences (DPO) {"prompt": ..., "chosen": ..., "rejected": ...}"""


def run(argv: list[str]) -> int:
    """The verb."""
    return finetune_run(argv)[1]


def finetune_run(argv: list[str]) -> tuple[RunDirectory, int]:
    """What the verb does; the new run, and the exit code of its training."""
    parser = _parser()
    source = add_settings(parser, "optim", "train")
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    target = _make(arguments, overrides, argv)
    return train_made(target, arguments)


def _parser() -> Parser:
    parser = Parser(
        "finetune",
        "Go on with a trained model on examples of a task; the loss counts what the model is to say, and nothing else. "
        "The result is a run like any other.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    data = parser.add_argument_group("examples", "Files of JSON lines.")
    data.add_argument("--data", type=Path, metavar="FILE", help="to train on; this, or --reward")
    data.add_argument(
        "--val",
        type=Path,
        metavar="FILE",
        help="to validate on (default: a tenth of --data, by a hash of its prompts)",
    )
    data.add_argument(
        "--template",
        default="",
        help="how fields make an example, the last one is to be said: '{question} {answer}' (default: by the fields)",
    )
    data.add_argument(
        "--label-tokens", action="store_true", help="make each different completion one new token: for classes"
    )
    data.add_argument("--balance", action="store_true", help="show every completion equally often")
    data.add_argument("--prompts", action="store_true", help="count prompts in the loss as well")
    data.add_argument("--no-pack", action="store_true", help="give each example a row of its own")
    wishes = parser.add_argument_group("preferences and rewards")
    wishes.add_argument(
        "--beta",
        type=number_above_zero("is no strength: use one above 0, e.g. 0.1"),
        metavar="X",
        help="with pairs: how closely the model is held to what it was, more is closer (default: 0.1)",
    )
    wishes.add_argument(
        "--reward",
        action="store_true",
        help="without data: the model's own answers to the toy that it was trained on (sort, add, copy) are rewarded",
    )
    wishes.add_argument(
        "--samples", type=count_from(2), metavar="N", help="with --reward: answers to a problem (default: 8)"
    )
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--epochs",
        type=number_above_zero("is no number of epochs: use one above 0"),
        metavar="N",
        help="passes over the examples; --train.steps says it in steps (default: 3.0; 100 steps with --reward)",
    )
    tuning.add_argument(
        "--freeze",
        action="append",
        metavar="GLOB",
        help="leave these as they are; repeatable (default: all are trained)",
    )
    tuning.add_argument(
        "--layer-decay",
        type=number_above_zero("is no factor: use one above 0, e.g. 0.8"),
        default=1.0,
        metavar="X",
        help="factor on the learning rate for each block further from the end (default: 1.0)",
    )
    tuning.add_argument(
        "--adapter",
        choices=["lora", "dora", "lokr"],
        help="train small changes beside frozen weights: low rank, with lengths of rows apart, Kronecker products "
        "(default: the weights themselves)",
    )
    tuning.add_argument(
        "--rank", type=count_from(1), metavar="N", help="of adapters; of lokr its products (default: 8)"
    )
    tuning.add_argument(
        "--adapt",
        action="append",
        metavar="GLOB",
        help="weights that get one; repeatable (default: those of the blocks)",
    )
    tuning.add_argument("--dropout", type=float, metavar="P", help="another rate of dropout (default: the model's)")
    tuning.add_argument("--name", help="name of the new run (default: the run's, and -tuned)")
    runs_folder(parser)
    return parser


def _make(arguments: argparse.Namespace, overrides: dict[str, Any], argv: list[str]) -> Path:
    """The new run, with the checkpoint of step 0 that it goes on from."""
    say = whisper(Console())
    opened = open_model(arguments.model, runs=arguments.runs)
    target = arguments.runs / check_run_name(arguments.name or f"{Path(opened.label.partition('@')[0]).name}-tuned")
    RunDirectory.refuse_existing(target)
    base = opened.run.config if opened.run is not None else derive(RunConfig(), model=_dumped(opened.config))
    data, objective = _lessons(arguments, opened, base, target)
    _refuse_in_vain(arguments, objective)
    tokenizer = opened.tokenizer
    if not isinstance(data, TaskData):
        labels = read_examples(arguments.data, arguments.template)[0] if arguments.label_tokens else None
        tokenizer = tokenizer_with(opened.tokenizer, labels)
    model, weights = _model(opened, arguments, tokenizer)
    new_tokens = tokenizer.vocab_size > opened.tokenizer.vocab_size
    if new_tokens and isinstance(data, PairsData):
        raise ConfigError(
            f"{opened.label} does not know where an answer ends: tune it on the chosen answers of these pairs first, "
            f"with --template '{CHOSEN}'"
        )
    scales = layerwise(model, arguments.layer_decay) if arguments.layer_decay != 1.0 else {}
    if arguments.adapter is not None:
        if scales:
            raise ConfigError("--layer-decay is for the weights themselves, and --adapter trains none: leave one out")
        names = adapted_names(model, arguments.adapt or ["transformer.h.*"])
        model, weights = adapted_model(
            model, weights, names, arguments.adapter, arguments.rank or _RANK, seed=base.seed
        )
        scales = ADAPTERS_ALONE
        if new_tokens:
            scales = scales | {name: 1.0 for name in EMBEDDING_AND_HEAD if name in weights}
    elif arguments.adapt:
        raise ConfigError("--adapt says which weights get an adapter: say which kind with --adapter lora")
    scales = on_top(scales, frozen(model, arguments.freeze or ()))

    def config_for(steps: int, exact: bool) -> RunConfig:
        how: dict[str, Any] = {"scales": scales, "exact": exact, "new_tokens": new_tokens, "objective": objective}
        return with_overrides(finetuned_config(base, model, data, steps=steps, **how), overrides)

    first = config_for(1, False)
    source, rows = _source(data, base.seed, BatchPlan.of(first), tokenizer)
    steps = max(1, math.ceil((arguments.epochs or _EPOCHS) * rows / first.train.batch_size)) if rows else _REWARD_STEPS
    if "steps" in overrides.get("train", {}):
        steps = first.train.steps
    config = config_for(steps, source.exact_match)
    make_engine(config).close()  # refuses what it cannot compute before anything is made
    _tell_parameters(config, say)
    RunDirectory.create(
        target,
        config,
        tokenizer,
        {
            "bonsaigpt": __version__,
            "command": shlex.join(["bonsai", "finetune", *argv]),
            "finetuned": opened.label,
            "data": source.fingerprint,
        },
        start=Checkpoint(
            model=weights,
            optimizer={},
            state=start_state(source) | {"keep": isinstance(objective, PreferenceObjective)},  # the reference
        ),
    )
    return target


def _lessons(
    arguments: argparse.Namespace, opened: Opened, base: RunConfig, target: Path
) -> tuple[DataConfig, ObjectiveConfig]:
    """What is learned from, and by which objective."""
    flags = {
        "--template": arguments.template,
        "--label-tokens": arguments.label_tokens,
        "--balance": arguments.balance,
        "--prompts": arguments.prompts,
        "--no-pack": arguments.no_pack,
    }
    given = next((flag for flag, value in flags.items() if value), None)
    if arguments.reward:
        if arguments.data is not None or arguments.val is not None or given:
            raise ConfigError("--reward makes its own problems: leave out --data and what belongs to it")
        if opened.run is None or not isinstance(base.data, TaskData):
            raise ConfigError(f"--reward needs a run on a toy (sort, add, copy), and {opened.label} is none")
        return base.data, RewardObjective(**_given(samples=arguments.samples))
    if arguments.data is None:
        raise ConfigError("say what to learn from: --data FILE, or --reward for a run on a toy")
    own = FileTokenizerConfig(path=target / "tokenizer.json")  # the run brings its own
    if not arguments.template and are_pairs(arguments.data):
        if given:
            raise ConfigError(
                f"{arguments.data} has pairs of answers, to which {given} does not apply: leave it out, or learn the "
                f"chosen answers alone, with --template '{CHOSEN}'"
            )
        pairs = PairsData(path=arguments.data, val=arguments.val, tokenizer=own)
        return pairs, PreferenceObjective(reference=f"{target}@0", **_given(beta=arguments.beta))  # what it was
    examples = ExamplesData(
        path=arguments.data,
        val=arguments.val,
        template=arguments.template,
        tokenizer=own,
        prompts=arguments.prompts,
        pack=not arguments.no_pack,
        balance=arguments.balance,
    )
    return examples, LikelihoodObjective()


def _given(**settings: Any) -> dict[str, Any]:
    """Without those that were not given."""
    return {name: value for name, value in settings.items() if value is not None}


def _refuse_in_vain(arguments: argparse.Namespace, objective: ObjectiveConfig) -> None:
    """Refuse flags that would have no effect.

    Raises:
        ConfigError: names the flag, and what it is for.
    """
    flags = {
        "--beta is for pairs of answers": arguments.beta is not None and objective.kind != "preference",
        "--samples is for --reward": arguments.samples is not None and objective.kind != "reward",
        "--epochs counts passes over --data (with --reward say --train.steps)": (
            arguments.epochs is not None and objective.kind == "reward"
        ),
        "--rank is of adapters (say which kind with --adapter)": arguments.rank is not None and not arguments.adapter,
    }
    if words := next((words for words, vain in flags.items() if vain), None):
        raise ConfigError(f"{words}: it would have no effect here, so leave it out")


def _source(data: DataConfig, seed: int, plan: BatchPlan, tokenizer: Tokenizer) -> tuple[BatchSource, int]:
    """The batches, and how many rows all of the data are; 0: without end."""
    if isinstance(data, ExamplesData):
        examples = example_batches(data, seed=seed, plan=plan, tokenizer=tokenizer)
        return examples, len(examples.rows)
    if isinstance(data, PairsData):
        pairs = pair_batches(data, seed=seed, plan=plan, tokenizer=tokenizer)
        return pairs, 2 * len(pairs)
    assert isinstance(data, TaskData)
    return task_batches(data, seed=seed, plan=plan), 0


def _model(opened: Opened, arguments: argparse.Namespace, tokenizer: Tokenizer) -> tuple[ModelConfig, Arrays]:
    """The model that is tuned: with rows for all tokens, and another rate of dropout."""
    config, weights = grown_vocabulary(opened.config, opened.weights, opened.tokenizer, tokenizer)
    if arguments.dropout is not None:
        config = derive(RunConfig(), model=_dumped(config) | {"dropout": arguments.dropout}).model
    return config, weights


def _dumped(config: ModelConfig) -> dict[str, Any]:
    return config.model_dump(exclude_none=True, exclude={"preset"})


def _tell_parameters(config: RunConfig, say: Any) -> None:
    total = parameter_count(config.model)
    table = [p for p in parameters(config.model) if p.tied_to is None and config.optim.scale_of(p.name) > 0]
    trained = sum(p.size for p in table)
    if not trained:
        raise ConfigError("--freeze leaves nothing to train: freeze less")
    muon = config.optim.matrices.kind == "muon"
    state = sum(p.size * (1 if muon and p.role == "matrix" else 2) for p in table)
    say(
        f"{named(total, 'parameter')}, {trained:,} of them trained ({trained / total:.1%}), with "
        f"{size(4 * (trained + state))} of gradients and optimizer's state"
    )
