"""`bonsai prepare`: text to verified token shards."""

from __future__ import annotations

from rich.console import Console

from bonsaigpt import recipes
from bonsaigpt.cli.common import Parser, add_settings, count_from, progress_bar, runs_folder, settings
from bonsaigpt.config import TextData, validate
from bonsaigpt.data.prepare import prepare
from bonsaigpt.errors import ConfigError

__all__ = ["run"]

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
    parser = Parser("prepare", "Tokenise a source once, into shards with hashes. `train` does it by itself.", _EXAMPLE)
    parser.add_argument("source", help=f"one of {', '.join(_KINDS)}, or a recipe whose data is meant")
    parser.add_argument("--download", action="store_true", help="let a source that is not on this disk use the network")
    parser.add_argument(
        "--workers",
        type=count_from(0),
        metavar="N",
        help="processes that clean and encode; 0: this one alone; the shards are the same bytes (default: one a "
        "core, 0 for a few MB)",
    )
    runs_folder(parser)
    flags = add_settings(parser, "seed", "data")
    arguments = parser.parse(argv)
    overrides = settings(flags, argv)
    console = Console()

    if arguments.source in _KINDS:
        given = recipes.merge({"data": {"kind": arguments.source}}, overrides)
        config = validate(given, origin="the given settings")
    else:
        config = recipes.load(arguments.source, overrides)
    if arguments.download and not (isinstance(config.data, TextData) and config.data.is_remote):
        raise ConfigError("--download is for text that must be fetched, and this one needs no network: leave it out.")
    with progress_bar(console) as advance:
        corpus = prepare(
            config.data,
            arguments.corpora,
            seed=config.seed,
            download=arguments.download,
            workers=arguments.workers,
            say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            advance=advance,
        )
    console.print(
        f"{corpus.folder}: {corpus.count('train'):,} training and {corpus.count('val'):,} validation tokens in "
        f"{len(corpus.shards)} shards ({corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} in the vocabulary), "
        "hashes checked",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for name, value in corpus.notes.items():
        console.print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)
    return 0
