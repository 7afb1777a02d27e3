"""`bonsai tokenizer train`: learn a byte-level BPE from text files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import Parser, progress_bar
from bonsaigpt.cli.tokenizer_texts import Texts, add_texts
from bonsaigpt.data.tokenizers import BpeTokenizer
from bonsaigpt.data.tokenizers.training import smallest_vocabulary
from bonsaigpt.errors import BonsaiError, OutputError
from bonsaigpt.files import write_text
from bonsaigpt.units import named

__all__ = ["run"]

_EXAMPLE = """  bonsai tokenizer train my-texts --vocab 4096 -o tokenizer.json
  bonsai train my-text --data.path my-texts --data.tokenizer.kind file --data.tokenizer.path tokenizer.json"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("tokenizer train", "Learn a byte-level BPE; the same text gives the same tokenizer.", _EXAMPLE)
    add_texts(parser)
    parser.add_argument("--vocab", type=int, default=8192, help="tokens of the vocabulary (default: 8192)")
    parser.add_argument(
        "--split", choices=["gpt2", "gpt4"], default="gpt2", help="how text is split before merges (default: gpt2)"
    )
    parser.add_argument(
        "--special", action="append", default=[], metavar="TOKEN", help="a token besides <|endoftext|>; may be repeated"
    )
    parser.add_argument(
        "--megabytes", type=float, default=100.0, help="text to learn from, MB; 0: all (default: 100, the first ones)"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("tokenizer.json"), metavar="FILE", help="where to")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    arguments = parser.parse(argv)
    output: Path = arguments.output
    least = smallest_vocabulary(arguments.special)
    if not least <= arguments.vocab <= 1 << 24:  # before any text is read
        raise BonsaiError(
            f"--vocab {arguments.vocab} is no size for a vocabulary: 256 bytes, <|endoftext|> and "
            f"{len(arguments.special)} special tokens need {least}; give more, e.g. --vocab 8192"
        )
    if not arguments.megabytes >= 0:
        raise BonsaiError(f"--megabytes {arguments.megabytes:g} is no amount of text: give 0 (all) or more.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise OutputError(f"{output} is no file that can be written: give a file in a folder that exists with -o.")
    if output.exists() and not arguments.force:
        raise OutputError(f"{output} exists already: give another file with -o, or write over it with --force.")
    texts = Texts(arguments)
    train_bytes = int(arguments.megabytes * 1e6)
    size = texts.size
    wanted = min(size, train_bytes) if train_bytes else size
    console = Console()
    texts.tell(console)
    began = time.perf_counter()
    with progress_bar(console) as advance:

        def parts() -> Iterator[str]:
            done = 0
            for part in (part for number in range(len(texts)) for part in texts.documents(number)):
                advance("reading", min(done, wanted), wanted)
                yield part
                done += len(part.encode("utf-8", errors="surrogatepass"))
                if train_bytes and done >= train_bytes:
                    break
            texts.check(done)
            advance("merging", 0, 0)

        tokenizer = BpeTokenizer.train(
            parts(), arguments.vocab, split=arguments.split, special=arguments.special, train_bytes=train_bytes
        )
    write_text(output, tokenizer.to_json())
    seconds = time.perf_counter() - began
    share = f"the first {wanted / 1e6:,.1f} of {size / 1e6:,.1f} MB" if wanted < size else f"{size / 1e6:,.1f} MB"
    fewer = "; the text has no more merges" if tokenizer.vocab_size < arguments.vocab else ""
    line = (
        f"{output}: {tokenizer.vocab_size:,} tokens from {share} in {named(len(texts), 'file')}, {seconds:.1f} s{fewer}"
    )
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0
