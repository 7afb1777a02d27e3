"""`bonsai data`: verify, show and count what `prepare` made."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, count_from, print_table, progress_bar, run_folder, runs_folder
from bonsaigpt.data.indexes import Indexes
from bonsaigpt.data.looking import SplitStats, readable, split_stats, windows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import file_hashes
from bonsaigpt.data.shards import Corpus, find_corpora, open_corpus, verify_shards
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError, OutputError
from bonsaigpt.units import named

__all__ = ["find_corpus", "run"]

_ACTIONS = {
    "verify": "read every file of a corpus and compare its hash",
    "show": "random windows as text, or what consecutive batches hold",
    "stats": "counts, and a page with the frequencies of tokens and the lengths of documents",
}
_EXAMPLE = """  bonsai data verify corpora/*
  bonsai data show runs/stdlib --split val --count 3
  bonsai data show runs/stdlib --order streams --rows 4 --length 64 --count 2
  bonsai data stats stdlib"""
_SPLITS = ("train", "val")
_FREQUENT = 8


def run(argv: list[str]) -> int:
    """The verb."""
    listed = "\n".join(f"  {name:8}{what}" for name, what in _ACTIONS.items())
    about = f"Look at prepared corpora; `bonsai data ACTION --help` tells all about one.\n\n{listed}"
    parser = Parser("data", about, _EXAMPLE)
    parser.add_argument("action", choices=list(_ACTIONS), help="what to do")
    action = parser.parse(argv[:1]).action
    return {"verify": _verify, "show": _show, "stats": _stats}[action](argv[1:])


def find_corpus(place: str, corpora: Path, runs: Path) -> Corpus:
    """The corpus that a user means by its folder, by its name, or by a run that was trained on it.

    Raises:
        DataError: there is none; the message says where it was looked for.
    """
    for folder in (Path(place), corpora / place):
        if (folder / "corpus.json").is_file():
            return open_corpus(folder)
    folder = run_folder(place, runs)
    if not (folder / "config.toml").is_file():
        raise DataError(
            f"{place} is neither a corpus (it has no corpus.json), nor the name of one in {corpora}, nor a run: "
            "`bonsai prepare` makes a corpus and says where it is."
        )
    found = find_corpora(corpora, str(RunDirectory.open(folder).environment.get("data", "")))
    if not found:
        raise DataError(
            f"no corpus in {corpora} is the one that {place} was trained on: say where it is with --corpora DIR, or "
            f"prepare it again with `bonsai prepare {folder}`."
        )
    return open_corpus(found[0])


def _parser(action: str, about: str, example: str) -> Parser:
    parser = Parser(f"data {action}", about, example)
    parser.add_argument(
        "corpus", nargs="+", help="folder of a corpus, or its name, or a run: then the corpus that it was trained on"
    )
    runs_folder(parser)
    return parser


def _verify(argv: list[str]) -> int:
    about = (
        "Read every shard, the tokenizer and the indexes of corpora, whatever is remembered, and compare the hashes."
    )
    arguments = _parser("verify", about, "  bonsai data verify corpora/*").parse(argv)
    console = Console()
    damaged: list[str] = []
    for place in arguments.corpus:
        try:
            corpus = find_corpus(place, arguments.corpora, arguments.runs)
            with progress_bar(console) as advance:
                verify_shards(corpus, file_hashes(corpus.folder.parent), anew=True, advance=advance)
            if indexes := Indexes.of(corpus, arguments.corpora).damaged():
                names = ", ".join(map(str, indexes))
                raise DataError(f"{names} is not what was written: training makes it anew, or delete it")
        except DataError as error:
            damaged.append(str(error))
            continue
        tokens = named(sum(shard.tokens for shard in corpus.shards), "token")
        print(f"{corpus.folder}: {named(len(corpus.shards), 'shard')}, {tokens}, every hash as it was written")
    if damaged:
        raise DataError("; ".join(damaged))
    return 0


def _show(argv: list[str]) -> int:
    parser = _parser(
        "show",
        "Windows of corpora at random places, as text; or, of rows that read on, consecutive batches.",
        "  bonsai data show runs/stdlib --split val --count 3\n"
        "  bonsai data show runs/stdlib --order streams --rows 4 --length 64 --count 2",
    )
    parser.add_argument("--split", choices=_SPLITS, default="train", help="of which split (default: train)")
    parser.add_argument(
        "--count", type=count_from(1), default=3, metavar="N", help="windows, or batches of streams (default: 3)"
    )
    parser.add_argument("--length", type=count_from(1), default=200, metavar="N", help="tokens in each (default: 200)")
    parser.add_argument(
        "--order",
        choices=["random", "streams"],
        default="random",
        help="windows from anywhere, or consecutive batches of --rows rows that each read on (default: random)",
    )
    parser.add_argument(
        "--rows", type=count_from(1), default=2, metavar="N", help="rows of a batch of streams (default: 2)"
    )
    parser.add_argument(
        "--seed", type=count_from(0), default=0, metavar="N", help="another one, other windows (default: 0)"
    )
    arguments = parser.parse(argv)
    for place in arguments.corpus:
        corpus = find_corpus(place, arguments.corpora, arguments.runs)
        found = _streams(corpus, arguments) if arguments.order == "streams" else _windows(corpus, arguments)
        for title, ids in found:
            _print(f"{corpus.folder.name}, {arguments.split}, {title}", readable(corpus, ids))
    return 0


def _windows(corpus: Corpus, arguments: Namespace) -> Iterator[tuple[str, np.ndarray]]:
    found = windows(corpus, arguments.split, count=arguments.count, length=arguments.length, seed=arguments.seed)
    for start, ids in found:
        yield f"tokens {start:,} to {start + len(ids):,}", ids


def _streams(corpus: Corpus, arguments: Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """The first batches as `data.order = streams` gives them: row by row, with a mark where a row starts anew."""
    stream = corpus.stream(arguments.split)
    batches = TokenBatches(
        train=stream,
        val=stream,
        tokenizer=corpus.tokenizer,
        order="streams",
        seed=arguments.seed,
        plan=BatchPlan(batch_size=arguments.rows, block_size=arguments.length),
        fingerprint=corpus.folder.name,
    )
    for step in range(arguments.count):
        batch = batches.batch_at(step)
        assert batch.reset_B is not None
        for row, (ids, anew) in enumerate(zip(batch.tokens_BT, batch.reset_B.tolist(), strict=True)):
            yield f"step {step}, row {row}{', starts anew' if anew else ''}", ids


def _print(title: str, text: str) -> None:
    console = Console()
    console.print(title, style="bold green", highlight=False, markup=False, soft_wrap=True)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print()


def _stats(argv: list[str]) -> int:
    parser = _parser(
        "stats",
        "Count tokens, and draw the frequencies of tokens and the lengths of documents: a page and a PNG.",
        "  bonsai data stats stdlib\n  bonsai data stats /mnt/archive/files-4426faf04774 -o .",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for NAME.stats.html and .png (default: the corpus' own, or this one if that is read-only)",
    )
    arguments = parser.parse(argv)
    for place in arguments.corpus:
        corpus = find_corpus(place, arguments.corpora, arguments.runs)
        with progress_bar(Console()) as advance:
            stats = [split_stats(corpus, split, advance) for split in _SPLITS if corpus.count(split)]
        print(f"{corpus.folder}: {corpus.source}; {corpus.split}")
        print_table(["", *(s.split for s in stats)], _rows(corpus, stats))
        _draw(corpus, stats, arguments.output)
    return 0


def _draw(corpus: Corpus, stats: list[SplitStats], output: Path | None) -> None:
    """Page and picture, beside the shards or wherever they can be written."""
    from bonsaigpt.report.tokens import frequent_tokens, token_page, token_png

    top = frequent_tokens(corpus, stats[0], _FREQUENT)
    print("most frequent: " + "  ".join(f"{name} {share:.1%}" for name, _, share in top))
    elsewhere = f"{corpus.folder.resolve().name}.stats"
    if output is not None:
        stems = [output / elsewhere]
    else:
        stems = [corpus.folder / "stats", Path(elsewhere)]
    for stem in stems:
        try:
            page = token_page(corpus, stats, stem.with_name(f"{stem.name}.html"))
            print(f"{page} and {token_png(corpus, stats, stem.with_name(f'{stem.name}.png'))}")
            return
        except OutputError:
            if stem == stems[-1]:
                raise


def _rows(corpus: Corpus, stats: list[SplitStats]) -> list[list[str]]:
    known = [corpus.counts[s.split] for s in stats] if corpus.counts else []
    rows = [["tokens", *(f"{s.tokens:,}" for s in stats)]]
    if known:
        rows += [
            ["documents", *(f"{c.documents:,}" for c in known)],
            ["characters", *(f"{c.characters:,}" for c in known)],
            ["bytes", *(f"{c.bytes:,}" for c in known)],
            ["bytes a token", *(f"{c.bytes / c.tokens:.3f}" for c in known)],
        ]
    size = corpus.tokenizer.vocab_size
    rows += [
        [f"vocabulary used, of {size:,}", *(f"{s.used:,} ({s.used / size:.1%})" for s in stats)],
        ["entropy of the frequencies, nats", *(f"{s.entropy:.4f}" for s in stats)],
    ]
    if stats[0].lengths is not None:
        for share, name in ((0.5, "half"), (0.9, "90 %"), (0.99, "99 %")):
            rows.append([f"tokens of a document, {name} at most", *(f"{s.length_quantile(share):,}" for s in stats)])
    return rows
