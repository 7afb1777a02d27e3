"""`bonsai eval`: the loss over a whole validation split, or over any text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt.cli.common import Opened, Parser, add_placement, count_from, open_model, progress_bar, runs_folder
from bonsaigpt.cli.sampling_flags import add_kv
from bonsaigpt.config import HiddenMemory, KeyValueMemory, KVConfig, MemoryConfig, ModelConfig, NoMemory, memory_flaw
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.corpora.document import read_document
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import open_source
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.engines import Engine
from bonsaigpt.errors import ConfigError, DataError, GenerateError
from bonsaigpt.kv import write_policy
from bonsaigpt.measure import evaluate
from bonsaigpt.measure.conventions import CONVENTIONS, score_by
from bonsaigpt.measure.kv import KVScore, contiguous, score_policy
from bonsaigpt.measure.kv_answers import KVAnswers, score_answers
from bonsaigpt.measure.statistics import with_margin
from bonsaigpt.train.callbacks.console import score_line
from bonsaigpt.train.resume import check_data
from bonsaigpt.units import named

__all__ = ["memory_of", "run", "score_through", "source_of", "window_source"]

_EXAMPLE = """  bonsai eval runs/shakespeare-char
  bonsai eval runs/shakespeare-char@last --text sonnets.txt --json
  bonsai eval runs/shakespeare-char --weights int8
  bonsai eval gpt2-folder --text wiki.test.tokens --convention krony-wikitext
  bonsai eval runs/streams --memory 256
  bonsai eval runs/shakespeare-char --stride 16 --against runs/shakespeare-char-best
  bonsai eval runs/shakespeare-char --kv 'window(64), int4(group=32), chunk=1'"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "eval",
        "Loss (nats a token), perplexity and bits per byte, every target scored exactly once.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--text", type=Path, metavar="FILE", help="score this text instead of the validation split")
    parser.add_argument(
        "--weights",
        choices=["fp32", "int8", "int4"],
        default="fp32",
        help="int8: with the matrices rounded as for decoding, and what that costs; int4: as for GGUF's q4_0, a scale "
        "for every 32 inputs (default: fp32)",
    )
    parser.add_argument(
        "--memory",
        type=count_from(0),
        metavar="N",
        help="tokens that are remembered from window to window; 0: none (default: as the run was trained)",
    )
    parser.add_argument(
        "--details",
        action="store_true",
        help="target by target: standard errors, loss by position, calibration, and a page (RUN/evaluations)",
    )
    parser.add_argument(
        "--stride",
        type=count_from(1),
        metavar="N",
        help="details of windows that begin every N tokens, of which the last N are scored (default: the block, "
        "windows that do not overlap)",
    )
    parser.add_argument(
        "--against", metavar="RUN", help="details, and how much worse another model is, paired (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        help="besides, the perplexity of --text as a paper counted it: "
        + "; ".join(f"{name}, {convention.about}" for name, convention in CONVENTIONS.items())
        + " (default: none)",
    )
    add_kv(parser)
    add_placement(parser)
    runs_folder(parser)
    arguments = parser.parse(argv)
    if arguments.kv is not None and arguments.weights != "fp32":
        raise GenerateError("--kv and --weights int8 cannot go together: measure one at a time")
    if arguments.kv is not None and arguments.memory:
        raise GenerateError("--kv and --memory cannot go together: a cache policy already says what is remembered")
    if arguments.details or arguments.stride is not None or arguments.against is not None:
        if arguments.convention or arguments.kv is not None or arguments.memory or arguments.weights != "fp32":
            raise GenerateError("details go with no --convention, --kv, --memory or --weights: ask for one at a time")
        from bonsaigpt.cli.eval_details import run_details

        return run_details(arguments, argv, source_of)
    if arguments.convention is not None:
        return _by_convention(arguments)
    opened = open_model(arguments.model, runs=arguments.runs)
    source = source_of(opened, arguments.text, arguments.corpora)
    memory = opened.config, memory_of(opened, arguments.memory)
    engine, model = opened.on(arguments)
    if arguments.kv is not None:
        return _through_cache(arguments, opened, engine, model, source)
    with progress_bar(Console(stderr=True)) as advance:
        result = evaluate(engine, model, source, advance=advance, memory=memory)
        about: dict[str, object] = {"model": opened.label}
        words = ""
        if arguments.weights != "fp32":
            narrow = engine.rounded(model, arguments.weights)
            whole, result = result, evaluate(engine, narrow, source, advance=advance, memory=memory)
            about |= {"weights": arguments.weights, "loss_added": result.loss - whole.loss}
            words = f"  {arguments.weights} weights: {result.loss - whole.loss:+.5f} nats against {whole.loss:.4f}"
    if arguments.json:
        print(json.dumps({**about, **result.as_dict()}))
    else:
        print(f"{opened.label}  {score_line(result)}  ({named(result.tokens, 'token')}){words}")
    return 0


def _by_convention(arguments: argparse.Namespace) -> int:
    """Print the perplexity of a convention beside that of the same text, every target scored once."""
    if arguments.text is None:
        raise DataError("--convention says how a file is scored: say which with --text FILE")
    if arguments.kv is not None or arguments.memory or arguments.weights != "fp32":
        raise GenerateError("--convention goes with no --kv, --memory or --weights: nobody published by such")
    opened = open_model(arguments.model, runs=arguments.runs)
    if memory_of(opened, arguments.memory).kind != "none":
        raise GenerateError(
            f"{opened.label} was trained with a memory, and no convention knows one: --memory 0 scores it without"
        )
    text = CONVENTIONS[arguments.convention].text(read_document(arguments.text).text)
    source = window_source(opened, text, origin=str(arguments.text))
    engine, model = opened.on(arguments)
    with progress_bar(Console(stderr=True)) as advance:
        result = evaluate(engine, model, source, advance=advance)
        ids = opened.tokenizer.encode(text)
        found = score_by(engine, model, ids, block=opened.config.block_size, advance=advance)
    if arguments.json:
        print(json.dumps({"model": opened.label, arguments.convention: asdict(found), **result.as_dict()}))
        return 0
    print(f"{opened.label}  {score_line(result)}  ({named(result.tokens, 'token')})")
    print(
        f"{opened.label}  {arguments.convention}: perplexity {found.perplexity:.2f}  (mean over "
        f"{named(found.windows, 'window')}, {result.tokens - found.targets:,} tokens not scored)"
    )
    return 0


def memory_of(opened: Opened, tokens: int | None) -> MemoryConfig:
    """The run's memory, or one of another length.

    Raises:
        ConfigError: this model cannot remember so much.
    """
    trained = opened.run.config.train.memory if opened.run is not None else NoMemory()
    if tokens is None:
        return trained
    if tokens == 0:
        return NoMemory()
    memory = HiddenMemory(length=tokens) if trained.kind == "hidden" else KeyValueMemory(length=tokens)
    if (flaw := memory_flaw(memory, opened.config)) is not None:
        raise ConfigError(f"{opened.label} cannot be scored with --memory {tokens}: {flaw}.")
    return memory


def _through_cache(
    arguments: argparse.Namespace, opened: Opened, engine: Engine, model: Any, source: BatchSource
) -> int:
    """Print the loss through a cache policy; of a task, its answers."""
    policy = write_policy(arguments.kv)
    with progress_bar(Console(stderr=True)) as advance:
        found = score_through(engine, model, opened.config, arguments.kv, source, advance=advance)
    if isinstance(found, KVAnswers):
        line = (
            f"exact {found.exact:.2%}  through {policy}: "
            f"{found.points_lost} points lost, {found.bits:,.0f} bits held, 1/{found.factor:.2f} of a problem "
            f"in 16 bits  ({named(found.problems, 'problem')})"
        )
    else:
        line = (
            f"loss {found.loss:.4f}  through {policy}: {with_margin(found.loss_added, found.margin, '+.5f')} nats, "
            f"{found.bits:,.0f} bits held, 1/{found.factor:.2f} of a block in 16 bits  "
            f"({named(found.tokens, 'token')} in pieces of {found.piece:,})"
        )
    about = {"model": opened.label, "kv": policy, **asdict(found)}
    print(json.dumps(about) if arguments.json else f"{opened.label}  {line}")
    return 0


def score_through(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    kv: KVConfig,
    source: BatchSource,
    *,
    advance: Callable[[str, int, int], None] | None = None,
) -> KVScore | KVAnswers:
    """A validation split read through a cache policy: the loss of a text, the answers of a task."""
    if source.exact_match:
        return score_answers(engine, model, config, [kv], source, advance=advance)[0]
    return score_policy(engine, model, config, kv, contiguous(source), advance=advance)


def source_of(opened: Opened, text: Path | None, corpora: Path) -> BatchSource:
    """What a model is scored on: the text of a file, or the validation split of its own data."""
    return window_source(opened, read_document(text).text, origin=str(text)) if text else _run_source(opened, corpora)


def _run_source(opened: Opened, corpora: Path) -> BatchSource:
    if opened.run is None:
        raise DataError(f"{opened.label} brings no data of its own: say what to score with --text FILE.")
    source = open_source(opened.run.config, corpora)
    check_data(opened.run.environment.get("data", source.fingerprint), opened.tokenizer, source)
    return source


def window_source(opened: Opened, text: str, *, origin: str) -> BatchSource:
    """The whole text as a validation split, in the model's own tokens.

    Raises:
        DataError: it has not two tokens.
        TokenizerError: a character outside the vocabulary.
    """
    ids = opened.tokenizer.encode(text)
    block = min(opened.config.block_size, len(ids) - 1)
    if block < 1:
        raise DataError(f"{origin} has {named(len(ids), 'token')}: scoring needs at least two.")
    return TokenBatches(
        train=TokenStream.of(ids),
        val=TokenStream.of(ids),
        tokenizer=opened.tokenizer,
        order="shuffled",
        seed=0,
        plan=BatchPlan(batch_size=1, block_size=block),
        fingerprint=origin,
    )
