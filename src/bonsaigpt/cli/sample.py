"""`bonsai sample`: let a model write."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bonsaigpt.cli.common import Parser, add_placement, open_model, progress_bar, runs_folder
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import generate_text
from bonsaigpt.sampling import Sampling
from bonsaigpt.units import named

__all__ = ["run"]

_EXAMPLE = """  bonsai sample runs/shakespeare-char --prompt "ROMEO:" --tokens 300 --temperature 0.8
  bonsai sample runs/stdlib@last --prompt @start.txt --samples 3 --seed 1
  printf "class " | bonsai sample runs/stdlib --prompt -"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("sample", "Continue a prompt. The text goes to standard output, streamed as it is made.", _EXAMPLE)
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a GPT-2 folder of Hugging Face format")
    parser.add_argument("--prompt", default="\n", help="text, @FILE, or - for standard input (default: a new line)")
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="new tokens (default: 300)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="how many continuations (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy, 1 the model's own (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens of total probability P"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument(
        "--overflow",
        choices=["slide", "error"],
        default="slide",
        help="past the block size: let the context slide, or refuse (default: slide)",
    )
    parser.add_argument(
        "--slide",
        type=int,
        metavar="N",
        help="tokens dropped at once when sliding (default: an eighth of the block)",
    )
    add_placement(parser)
    runs_folder(parser)
    arguments = parser.parse(argv)
    sampling = Sampling(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed
    )
    if arguments.samples < 1:
        raise GenerateError(f"--samples {arguments.samples} cannot be: ask for 1 or more")
    prompt = read_prompt(arguments.prompt)
    opened = open_model(arguments.model, runs=arguments.runs)
    engine, model = opened.on(arguments)

    errors = Console(stderr=True)
    began = time.perf_counter()
    streamed = arguments.samples == 1
    unwritten = prompt if streamed else ""  # it goes out with the first piece: what is refused writes nothing
    with progress_bar(errors) as advance:
        made = 0

        def on_text(row: int, piece: str) -> None:
            nonlocal made, unwritten
            if streamed:
                print(unwritten + piece, end="", flush=True)
                unwritten = ""
            elif row == 0:
                made += 1
                advance(f"{arguments.samples} samples", made, arguments.tokens)

        texts = generate_text(
            engine,
            model,
            opened.tokenizer,
            prompt,
            samples=arguments.samples,
            tokens=arguments.tokens,
            sampling=sampling,
            overflow=arguments.overflow,
            slide=arguments.slide,
            on_text=on_text,
        )
    if streamed:
        print(unwritten)
    else:
        for number, text in enumerate(texts, start=1):
            print(f"--- {number} ---\n{prompt}{text}")
    seconds = time.perf_counter() - began
    total = arguments.tokens * arguments.samples
    errors.print(
        f"[dim]{escape(opened.label)}: {named(total, 'token')}, {total / seconds:,.0f} tokens/s[/]", highlight=False
    )
    return 0


def read_prompt(prompt: str) -> str:
    """The text itself, ``@FILE``'s content, or standard input's for ``-``.

    Raises:
        GenerateError: the file is missing, empty or not UTF-8.
    """
    where = "standard input" if prompt == "-" else prompt[1:] if prompt.startswith("@") else "--prompt"
    try:
        if prompt == "-":
            text = sys.stdin.read()
        elif prompt.startswith("@"):
            text = Path(where).read_text(encoding="utf-8")
        else:
            text = prompt
        text.encode("utf-8")  # in some locales Python lets through what is no UTF-8, as lone surrogates
    except OSError as error:
        raise GenerateError(
            f"the prompt file {where} cannot be read: {error.strerror}. Check the path; "
            "a prompt that begins with @ itself goes through a pipe, with --prompt -."
        ) from None
    except UnicodeError:
        raise GenerateError(f"the prompt from {where} is not UTF-8 text: convert it, e.g. with iconv.") from None
    if not text:
        raise GenerateError(f"the prompt from {where} is empty: give at least one character")
    return text
