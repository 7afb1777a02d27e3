"""`bonsai study kv`: what the key/value cache costs, in bits and in loss."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import (
    Opened,
    Parser,
    add_placement,
    count_from,
    number_above_zero,
    open_model,
    progress_bar,
    runs_folder,
)
from bonsaigpt.cli.eval import source_of
from bonsaigpt.cli.studying import tell
from bonsaigpt.config import KVConfig
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.kv import read_policy, write_policy
from bonsaigpt.measure.kv import contiguous, cut
from bonsaigpt.study.kv import Bench, Subject, policies, variant_policies
from bonsaigpt.study.kv_answers import KVAnswersStudy, answers_table, study_answers, write_answers
from bonsaigpt.study.kv_page import KVStudy, kv_table, write_kv
from bonsaigpt.study.kv_search import Found, search
from bonsaigpt.study.kv_seen import kept, to_see, to_write, written

__all__ = ["measure", "run"]

_LIMIT = number_above_zero("cannot be a limit: use a number above 0")
_WRITTEN = 200
"""Tokens that are written through some policies."""
_EXAMPLE = """  bonsai study kv runs/shakespeare-char
  bonsai study kv runs/recall --policy "window(16), bf16" --policy "full, x=int4"
  bonsai study kv runs/shakespeare-char --max-loss 0.05
  bonsai study kv runs/whole --variant runs/whole-shrunk --variant runs/multi-query
  bonsai study kv runs/shakespeare-char --policy "window(32), int4" --policy "window(16), int8\""""


def run(argv: list[str]) -> int:
    """The verb."""
    measure(argv)
    return 0


def measure(argv: list[str]) -> KVStudy | KVAnswersStudy:
    """What the verb does, and what it found; of a task's model its answers."""
    arguments = _parser().parse(argv)
    chosen = [read_policy(words) for words in arguments.policy]
    opened = open_model(arguments.model, runs=arguments.runs)
    if opened.config.attention.kind != "softmax":
        raise ConfigError(
            f"{opened.label} has {opened.config.attention.kind} attention, whose cache takes no policy: study a run "
            f"with softmax attention, and this one beside it with --variant {arguments.model}"
        )
    source = source_of(opened, arguments.text, arguments.corpora)
    if source.exact_match:
        return _answers(arguments, opened, source, chosen)
    ids = contiguous(source)
    config, block = opened.config, opened.config.block_size
    if config.position.kind == "learned":
        raise DataError(
            f"{opened.label} has learned positions, of which there are none past its block of {block}: the study reads "
            "beyond it. `bonsai eval --kv` measures a policy within the block."
        )
    length = arguments.length or 9 * block
    rows = min(arguments.rows, (len(ids) - 1) // length // 2)
    if length <= block or rows < 1:
        raise DataError(
            f"the text has {len(ids):,} tokens, but two sets of pieces of {length:,} tokens are read, each longer than "
            f"the block of {block}: use --length with more than {block}, or more text with --text FILE"
        )
    streams = cut(ids, 2 * rows, length)
    engine, model = opened.on(arguments)
    base = Subject(label=opened.label, model=model, config=config, trained=_trained(opened))
    variants = [_variant(address, opened, engine, arguments) for address in arguments.variant]
    # Every other piece is for the search, so that nothing is chosen by the text that it is reported on.
    bench = Bench(engine, base, streams[::2], chunk=arguments.chunk, variants=variants)
    own = [] if base.trained is None else [base.trained]
    work: list[tuple[KVConfig | None, Subject]] = [
        (kv, base) for kv in chosen or [*own, *(read_policy(words) for words in policies(config))]
    ]
    for variant in variants:
        takes = variant.config.attention.kind == "softmax"
        work += [(kv, variant) for kv in (chosen if takes else []) or variant_policies(variant)]
    found = None
    with progress_bar(Console(stderr=True)) as advance:
        bench.refer(windows=not arguments.fast, advance=advance)
        if arguments.max_bits is not None or arguments.max_loss is not None:
            other = Bench(engine, base, streams[1::2], chunk=arguments.chunk)
            other.refer(windows=False, advance=advance)

            def say(step: Found) -> None:
                advance("searching", step.tried, 0, f"{step.bits:,.0f} bits, {step.added:+.4f} nats")

            found = search(config, other.quick, max_bits=arguments.max_bits, max_loss=arguments.max_loss, say=say)
            work.append((found.kv, base))
        points = []
        for number, (kv, subject) in enumerate(work):
            points.append(bench.measure(kv, subject))
            advance("policies", number + 1, len(work), points[-1].policy)
        seen = [kept(engine, base, kv, streams[0, : 2 * block]) for kv in to_see(points, base.label)]
        advance("writing", 0, 1)
        front = to_write(points, base.label)
        texts = written(engine, base, opened.tokenizer, front, streams[0, :block], tokens=_WRITTEN)
    study = KVStudy(
        label=opened.label,
        block=block,
        tokens=bench.tokens,
        chunk=arguments.chunk,
        references=bench.references,
        best=bench.best,
        points=points,
        found=found,
        kept=seen,
        written=texts,
    )
    tell(kv_table(points), study.verdict, write_kv(study, _folder(arguments, opened)))
    if found is not None:
        print(f'{found.bits:,.0f} bits a token: bonsai sample {arguments.model} --kv "{write_policy(found.kv)}"')
    return study


def _answers(
    arguments: argparse.Namespace, opened: Opened, source: BatchSource, chosen: list[KVConfig]
) -> KVAnswersStudy:
    """The study of a task, whose problems are read whole."""
    asked = {
        "--max-bits": arguments.max_bits,
        "--max-loss": arguments.max_loss,
        "--length": arguments.length,
        "--variant": arguments.variant,
    }
    if given := [name for name, value in asked.items() if value]:
        raise ConfigError(
            f"{opened.label} answers a task, of which whole problems are read: {' and '.join(given)} are of text; "
            "leave them out"
        )
    engine, model = opened.on(arguments)
    tried = chosen or [read_policy(words) for words in policies(opened.config)]
    with progress_bar(Console(stderr=True)) as advance:
        found = study_answers(engine, model, opened.config, source, tried, label=opened.label, advance=advance)
    tell(answers_table(found), found.verdict, write_answers(found, _folder(arguments, opened)))
    return found


def _folder(arguments: argparse.Namespace, opened: Opened) -> Path:
    folder = arguments.out or (opened.run.path / "studies" if opened.run is not None else Path("."))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _trained(opened: Opened) -> KVConfig | None:
    """The policy that a run was trained with."""
    kv = opened.run.config.train.kv if opened.run is not None else ""
    return read_policy(kv) if kv else None


def _variant(address: str, base: Opened, engine: Engine, arguments: argparse.Namespace) -> Subject:
    """Another run, to be read on the same text.

    Raises:
        ConfigError: it has another context, or reads other tokens.
    """
    opened = open_model(address, runs=arguments.runs)
    if opened.tokenizer.to_json() != base.tokenizer.to_json():
        raise ConfigError(
            f"{opened.label} has another tokenizer than {base.label}, so losses a token do not compare: give a run of "
            "the same data with --variant"
        )
    if opened.config.block_size != base.config.block_size:
        raise ConfigError(
            f"{opened.label} has a context of {opened.config.block_size} tokens, and {base.label} one of "
            f"{base.config.block_size}, by which bits are counted: give a run of the same block with --variant"
        )
    model = engine.model(opened.config, opened.weights)
    return Subject(label=opened.label, model=model, config=opened.config, trained=_trained(opened))


def _parser() -> Parser:
    parser = Parser(
        "study kv",
        "Read the validation text through many cache policies, past the training context, and draw bits held against "
        "loss: formats, windows, choices of tokens, their products, what a search finds within a budget, and runs that "
        "were trained to need less. Of a task's model the answers count instead of the loss. It trains nothing itself.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--text", type=Path, metavar="FILE", help="read this text instead of the validation split")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="POLICY",
        help="measure this one; can be repeated (default: some fifty)",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="RUN",
        help="also read this run, trained to need less (bonsai shrink, --train.kv, other attention), against the same "
        "references; can be repeated",
    )
    budget = parser.add_argument_group("search")
    limit = budget.add_mutually_exclusive_group()
    limit.add_argument("--max-bits", type=_LIMIT, metavar="N", help="find the least loss within N bits a token")
    limit.add_argument("--max-loss", type=_LIMIT, metavar="NATS", help="find the fewest bits within so much added loss")
    parser.add_argument(
        "--length", type=count_from(2), metavar="N", help="tokens of each piece of text (default: nine blocks)"
    )
    parser.add_argument("--rows", type=count_from(1), default=32, metavar="N", help="pieces of text (default: 32)")
    parser.add_argument(
        "--chunk",
        type=count_from(1),
        default=1,
        metavar="N",
        help="tokens read at once, at 16 bits (default: 1)",
    )
    parser.add_argument(
        "--fast", action="store_true", help="leave out the reference that reads each window anew from raw text"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/studies)")
    add_placement(parser)
    runs_folder(parser)
    return parser
