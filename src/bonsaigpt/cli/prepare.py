"""`bonsai prepare`: text to verified token shards."""

from __future__ import annotations

from rich.console import Console

from bonsaigpt import recipes
from bonsaigpt.cli.common import Parser, add_settings, count, progress_bar, runs_folder, settings
from bonsaigpt.config import ShakespeareData, validate
from bonsaigpt.data.corpora import shakespeare
from bonsaigpt.data.prepare import prepare
from bonsaigpt.errors import ConfigError

__all__ = ["run"]

_KINDS = ("files", "shakespeare", "stdlib", "zero_one")
_EXAMPLE = """  bonsai prepare shakespeare --download
  bonsai prepare files --data.path my-texts/ --data.pattern "**/*.md" --data.tokenizer.kind bpe"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("prepare", "Tokenise a source once, into shards with hashes. `train` does it by itself.", _EXAMPLE)
    parser.add_argument("source", help=f"one of {', '.join(_KINDS)}, or a recipe whose data is meant")
    parser.add_argument("--download", action="store_true", help="fetch the text if it is not here (shakespeare only)")
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes that clean and encode; 0: this one alone (default: one a core, 0 for a few MB); the shards are "
        "the same bytes",
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
    if arguments.download:
        if not isinstance(config.data, ShakespeareData) or config.data.path:
            raise ConfigError("--download fetches Tiny Shakespeare only: leave it out for text that is here already.")
        console.print(f"fetching {shakespeare.URL}", highlight=False)
        shakespeare.download()
    with progress_bar(console) as advance:
        corpus = prepare(
            config.data,
            arguments.corpora,
            seed=config.seed,
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
