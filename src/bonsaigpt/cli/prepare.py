"""`bonsai prepare`: text to verified token shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt import recipes
from bonsaigpt.cli.common import Parser, add_settings, count_from, progress_bar, runs_folder, settings
from bonsaigpt.config import DataConfig, MixtureData, PreparedData, RunConfig, TextData, validate
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.shards import Corpus
from bonsaigpt.errors import ConfigError, did_you_mean
from bonsaigpt.units import named

__all__ = ["prepare_corpora", "run"]

_KINDS = (
    "files",
    "wikipedia",
    "wikitext",
    "tinystories",
    "openwebtext",
    "fineweb",
    "fineweb_edu",
    "hub",
    "shakespeare",
    "stdlib",
    "zero_one",
)
_EXAMPLE = """  bonsai prepare files --data.path my-texts/ --data.pattern "**/*.md" --data.tokenizer.kind bpe
  bonsai prepare wikipedia --data.path cswiki-latest-pages-articles.xml.bz2 --data.tokenizer.kind bpe
  bonsai prepare tinystories --download --data.limit_mb 100 --data.tokenizer.kind bytes"""


def run(argv: list[str]) -> int:
    """The verb."""
    prepare_corpora(argv)
    return 0


def prepare_corpora(argv: list[str]) -> list[Corpus]:
    """What the verb does; one corpus, or those of a mixture's parts."""
    parser = Parser("prepare", "Tokenise a source once, into shards with hashes. `train` does it by itself.", _EXAMPLE)
    parser.add_argument("source", help=f"one of {', '.join(_KINDS)}, or a recipe or run whose data is meant")
    parser.add_argument("--download", action="store_true", help="let a source that is not on this disk use the network")
    parser.add_argument(
        "--workers",
        type=count_from(0),
        metavar="N",
        help="processes that clean and encode; 0: this one alone; the shards are the same bytes (default: one a "
        "core, 0 for a few MB)",
    )
    runs_folder(parser)
    flags = add_settings(parser, "seed", "data", data=PreparedData)
    arguments = parser.parse(argv)
    overrides = settings(flags, argv)
    config = _config(arguments.source, overrides)
    parts = [part.data for part in config.data.parts] if isinstance(config.data, MixtureData) else [config.data]
    if arguments.download and not any(isinstance(part, TextData) and part.is_remote for part in parts):
        raise ConfigError("--download is for text that must be fetched, and this one needs no network: leave it out.")
    console = Console()
    return [_prepare(part, config.seed, arguments, console) for part in parts]


def _config(source: str, overrides: dict[str, Any]) -> RunConfig:
    """Of a source of text, a recipe, or a run."""
    if source in _KINDS:
        return validate(recipes.merge({"data": {"kind": source}}, overrides), origin="the given settings")
    run = Path(source) / "config.toml"
    if run.is_file():
        return recipes.load(str(run), overrides)
    if not source.endswith(".toml") and source not in recipes.names():
        raise ConfigError(
            f"there is no source or recipe '{source}'.{did_you_mean(source, [*_KINDS, *recipes.names()])} Sources are "
            f"{', '.join(_KINDS)}; `bonsai recipes` lists the recipes; a file ends in .toml."
        )
    return recipes.load(source, overrides)


def _prepare(data: DataConfig, seed: int, arguments: argparse.Namespace, console: Console) -> Corpus:
    with progress_bar(console) as advance:
        corpus = prepare(
            data,
            arguments.corpora,
            seed=seed,
            download=arguments.download and isinstance(data, TextData) and data.is_remote,
            workers=arguments.workers,
            say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            advance=advance,
        )
    console.print(
        f"{corpus.folder}: {corpus.count('train'):,} training and {corpus.count('val'):,} validation tokens in "
        f"{named(len(corpus.shards), 'shard')} ({corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} in the "
        "vocabulary), hashes checked",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for name, value in corpus.notes.items():
        console.print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)
    return corpus
