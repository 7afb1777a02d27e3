"""`bonsai data`: verify, show and count what `prepare` made."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, count_from, print_table, progress_bar, run_folder, runs_folder
from bonsaigpt.data.looking import SplitStats, readable, split_stats, windows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import file_hashes
from bonsaigpt.data.shards import Corpus, find_corpora, open_corpus, verify_shards
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError

__all__ = ["find_corpus", "run"]

_EXAMPLE = """  bonsai data verify corpora/*
  bonsai data show runs/stdlib --split val --count 3
  bonsai data show runs/stdlib --order streams --rows 4 --length 64 --count 2
  bonsai data stats stdlib"""
_SPLITS = ("train", "val")
_FREQUENT = 8


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "data",
        "Look at prepared corpora. verify: read every shard and compare its hash. show: random windows as text. stats: "
        "counts, and a page with the frequencies of tokens and the lengths of documents.",
        _EXAMPLE,
    )
    parser.add_argument("action", choices=["verify", "show", "stats"])
    parser.add_argument(
        "corpus", nargs="+", help="folder of a corpus, or its name, or a run: then the corpus that it was trained on"
    )
    parser.add_argument("--split", choices=_SPLITS, default="train", help="show: of which split (default: train)")
    parser.add_argument("--count", type=count_from(0), default=3, metavar="N", help="show: windows (default: 3)")
    parser.add_argument(
        "--length", type=count_from(0), default=200, metavar="N", help="show: tokens in each (default: 200)"
    )
    parser.add_argument(
        "--order",
        choices=["random", "streams"],
        default="random",
        help="show: windows from anywhere, or consecutive batches of --rows rows that each read on (default: random)",
    )
    parser.add_argument(
        "--rows", type=count_from(1), default=2, metavar="N", help="show: rows of a batch of streams (default: 2)"
    )
    parser.add_argument("--seed", type=count_from(0), default=0, metavar="N", help="show: another seed, other windows")
    runs_folder(parser)
    arguments = parser.parse(argv)
    corpora = [find_corpus(place, arguments.corpora, arguments.runs) for place in arguments.corpus]
    if arguments.action == "verify":
        _verify(corpora)
    for corpus in corpora if arguments.action != "verify" else ():
        if arguments.action == "show":
            _show(corpus, arguments)
        else:
            _stats(corpus)
    return 0


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


def _verify(corpora: list[Corpus]) -> None:
    console = Console()
    damaged: list[str] = []
    for corpus in corpora:
        try:
            with progress_bar(console) as advance:
                verify_shards(corpus, file_hashes(corpus.folder.parent), anew=True, advance=advance)
        except DataError as error:
            damaged.append(str(error))
            continue
        shards = len(corpus.shards)
        print(f"{corpus.folder}: {shards} shards, {_tokens(corpus):,} tokens, every hash as it was written")
    if damaged:
        raise DataError("; ".join(damaged))


def _tokens(corpus: Corpus) -> int:
    return sum(shard.tokens for shard in corpus.shards)


def _show(corpus: Corpus, arguments: argparse.Namespace) -> None:
    console = Console()
    if arguments.order == "streams":
        _show_streams(corpus, arguments, console)
        return
    found = windows(corpus, arguments.split, count=arguments.count, length=arguments.length, seed=arguments.seed)
    for start, ids in found:
        title = f"{corpus.folder.name}, {arguments.split}, tokens {start:,} to {start + len(ids):,}"
        console.print(title, style="bold green", highlight=False, markup=False, soft_wrap=True)
        console.print(readable(corpus, ids), highlight=False, markup=False, soft_wrap=True)
        console.print()


def _show_streams(corpus: Corpus, arguments: argparse.Namespace, console: Console) -> None:
    """The first batches as `data.order = streams` gives them: row by row, with a mark where a row starts anew."""
    stream = corpus.stream(arguments.split)
    batches = TokenBatches(
        train=stream,
        val=stream,
        tokenizer=corpus.tokenizer,
        order="streams",
        seed=0,
        plan=BatchPlan(batch_size=arguments.rows, block_size=arguments.length),
        fingerprint=corpus.folder.name,
    )
    for step in range(arguments.count):
        batch = batches.batch_at(step)
        assert batch.reset_B is not None
        for row, (ids, anew) in enumerate(zip(batch.tokens_BT, batch.reset_B.tolist(), strict=True)):
            title = f"{corpus.folder.name}, {arguments.split}, step {step}, row {row}" + (
                ", starts anew" if anew else ""
            )
            console.print(title, style="bold green", highlight=False, markup=False, soft_wrap=True)
            console.print(readable(corpus, ids), highlight=False, markup=False, soft_wrap=True)
            console.print()


def _stats(corpus: Corpus) -> None:
    from bonsaigpt.report.tokens import frequent_tokens, token_page, token_png

    with progress_bar(Console()) as advance:
        stats = [split_stats(corpus, split, advance) for split in _SPLITS if corpus.count(split)]
    print(f"{corpus.folder}: {corpus.source}; {corpus.split}")
    print_table(["", *(s.split for s in stats)], _rows(corpus, stats))
    top = frequent_tokens(corpus, stats[0], _FREQUENT)
    print("most frequent: " + "  ".join(f"{name} {share:.1%}" for name, _, share in top))
    page = token_page(corpus, stats, corpus.folder / "stats.html")
    print(f"{page} and {token_png(corpus, stats, corpus.folder / 'stats.png')}")


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
