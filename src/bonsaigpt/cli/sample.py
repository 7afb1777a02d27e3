"""`bonsai sample`: let a model write."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt.cli.common import Opened, Parser, add_placement, open_model, progress_bar, runs_folder, whisper
from bonsaigpt.cli.sampling_flags import (
    RULES,
    add_context,
    add_patterns,
    add_rules,
    pattern_of,
    refuse_together,
    sampling_of,
)
from bonsaigpt.engines import Engine
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Completion, Event, Request, Session, best_first
from bonsaigpt.generate.beams import beam_search
from bonsaigpt.generate.speculation import Draft, LookupDraft, ModelDraft, Speculation

__all__ = ["run"]

_EXAMPLE = """  bonsai sample runs/shakespeare-char --prompt "ROMEO:" --tokens 300 --temperature 0.8
  bonsai sample runs/stdlib@last --prompt @start.txt --samples 3 --seed 1
  bonsai sample runs/shakespeare-char --tokens 2000 --kv "sinks(4)+window(60), int4"
  printf "class " | bonsai sample runs/stdlib --prompt -
  bonsai sample runs/stdlib --prompt "version = " --pattern "[0-9]+[.][0-9]+" --json --logprobs 3"""

_ROWS = 16
"""Texts that are made at once; more wait for a row."""


def run(argv: list[str]) -> int:
    """The verb."""
    arguments = _parser().parse(argv)
    _check(arguments)
    sampling = sampling_of(arguments)
    prompt = read_prompt(arguments.prompt)
    opened = open_model(arguments.model, runs=arguments.runs)
    request = Request(
        prompt=opened.tokenizer.encode(prompt).tolist(),
        max_tokens=arguments.tokens,
        sampling=sampling,
        stop=arguments.stop,
        stop_tokens=[_token(word, opened) for word in arguments.stop_token],
        logprobs=0 if arguments.best_of is not None and arguments.logprobs is None else arguments.logprobs,
        overflow=arguments.overflow,
        slide=arguments.slide,
        pattern=pattern_of(arguments, opened.tokenizer),
    )
    engine, model = opened.on(arguments)
    count = arguments.samples or arguments.best_of or 1
    rows = arguments.beams or min(count, _ROWS)
    say = whisper(Console(stderr=True))
    decoder = engine.decoder(
        model, rows=rows, weights=arguments.weights, tokens=arguments.tokens * count, say=say, kv=arguments.kv
    )
    draft = _draft(arguments, engine, opened, rows, say)

    began = time.perf_counter()
    speculation = None
    streamed = count == 1 and not arguments.json and not arguments.beams
    unwritten = prompt  # it goes out with the first piece: what is refused writes nothing
    with progress_bar(Console(stderr=True)) as advance:
        made = 0

        def on_event(event: Event) -> None:
            nonlocal made, unwritten
            made += event.token is not None
            if streamed and event.piece:
                print(unwritten + event.piece, end="", flush=True)
                unwritten = ""
            elif not streamed:
                advance(f"{count} samples", made, arguments.tokens * count)

        if arguments.beams:
            penalty = arguments.length_penalty if arguments.length_penalty is not None else 1.0
            found = beam_search(decoder, opened.tokenizer, request, length_penalty=penalty)
            total = len(found[0].tokens)
            found = found[:1]
        else:
            session = Session(decoder, opened.tokenizer, draft=draft)
            requests = [replace(request, sampling=replace(sampling, row=row)) for row in range(count)]
            found = session.run(requests, on_event=on_event)
            total = sum(len(done.tokens) for done in found)
            speculation = session.speculation if draft is not None else None
    seconds = time.perf_counter() - began
    if arguments.best_of is not None:
        found = best_first(found)[:1]
    if streamed:
        print(unwritten)
    else:
        _print(arguments, opened.label, prompt, found, speculation)
    _tell(opened.label, found, total, seconds, speculation, decoder.why)
    return 0


def _parser() -> Parser:
    parser = Parser("sample", "Continue a prompt. The text goes to standard output, streamed as it is made.", _EXAMPLE)
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--prompt", default="\n", help="text, @FILE, or - for standard input (default: a new line)")
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="new tokens at most (default: 300)")
    parser.add_argument("--samples", type=int, metavar="N", help="how many continuations (default: 1)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end where this would begin; can be repeated"
    )
    parser.add_argument(
        "--stop-token",
        action="append",
        default=[],
        metavar="ID",
        help="end before this token, or `end` for the end of a text; can be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the reasons why texts ended")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: log-probability of each token, in nats, and of the N likeliest, before all rules",
    )
    add_rules(parser)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--best-of", type=int, metavar="N", help="make N, print the one of highest mean log-probability"
    )
    search.add_argument("--beams", type=int, metavar="N", help="beam search with N texts at once, without chance")
    search.add_argument(
        "--length-penalty", type=float, metavar="A", help="of beams: log-probability / length ** A (default: 1)"
    )
    speculation = parser.add_argument_group("speculation", "Guess tokens ahead; the distribution stays the same.")
    speculation.add_argument("--draft", metavar="RUN", help="guess with this smaller model of the same tokenizer")
    speculation.add_argument(
        "--lookup", type=int, metavar="N", help="guess what followed the last N tokens where they stood before"
    )
    speculation.add_argument("--guesses", type=int, metavar="N", help="tokens guessed at once (default: 4)")
    add_patterns(parser)
    add_context(parser)
    add_placement(parser)
    runs_folder(parser)
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, and flags that contradict each other."""
    for name, least in (("samples", 1), ("best_of", 1), ("beams", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise GenerateError(f"--{name.replace('_', '-')} {value} cannot be: ask for {least} or more")
    refuse_together(arguments, ["best_of", "samples"], why="--best-of prints one text")
    refuse_together(arguments, ["draft", "lookup"])
    chance = [*RULES, "logit_bias", "seed", "samples", "best_of"]
    for name in [*chance, "draft", "lookup", "pattern", "json_schema", "logprobs"]:
        why = "beam search takes the likeliest text, by the model's own probabilities"
        refuse_together(arguments, ["beams", name], why=why)
    if arguments.best_of is not None and arguments.temperature == 0:
        raise GenerateError("--best-of and --temperature 0 cannot go together: without chance all are the same text")
    if arguments.guesses is not None and arguments.draft is None and arguments.lookup is None:
        raise GenerateError("--guesses without a draft means nothing: add --draft RUN or --lookup 3")
    if arguments.length_penalty is not None and arguments.beams is None:
        raise GenerateError("--length-penalty is for beam search: add --beams 4")
    if arguments.logprobs is not None and not arguments.json:
        raise GenerateError("--logprobs needs a form to be printed in: add --json")


def _token(word: str, opened: Opened) -> int:
    """The id of a stop token."""
    tokenizer = opened.tokenizer
    if word == "end":
        if tokenizer.end_of_text is None:
            raise GenerateError(f"the tokenizer of {opened.label} has no token for the end of a text: use --stop TEXT")
        return tokenizer.end_of_text
    if not word.isdecimal() or int(word) >= tokenizer.vocab_size:
        raise GenerateError(
            f"--stop-token {word} is no token of {opened.label}: use 0 to {tokenizer.vocab_size - 1}, or `end`"
        )
    return int(word)


def _draft(
    arguments: argparse.Namespace, engine: Engine, opened: Opened, rows: int, say: Callable[[str], None]
) -> Draft | None:
    """What guesses, if anything does."""
    count = arguments.guesses if arguments.guesses is not None else 4
    if arguments.lookup is not None:
        return LookupDraft(length=arguments.lookup, count=count)
    if arguments.draft is None:
        return None
    draft = open_model(arguments.draft, runs=arguments.runs)
    if draft.tokenizer.to_json() != opened.tokenizer.to_json():
        raise GenerateError(
            f"{draft.label} has another tokenizer than {opened.label}: a draft must be trained with the same one"
        )
    model = engine.model(draft.config, draft.weights)
    decoder = engine.decoder(model, rows=rows, weights=arguments.weights, tokens=arguments.tokens, say=say)
    return ModelDraft(decoder, count=count)


def _print(
    arguments: argparse.Namespace, label: str, prompt: str, found: list[Completion], speculation: Speculation | None
) -> None:
    if not arguments.json:
        for number, done in enumerate(found, start=1):
            heading = f"--- {number} ---\n" if len(found) > 1 else ""
            print(f"{heading}{prompt}{done.text}")
        return
    answer: dict[str, Any] = {"model": label, "prompt": prompt}
    if speculation is not None:
        answer["speculation"] = {
            "rounds": speculation.rounds,
            "guessed": speculation.guessed,
            "right": speculation.right,
        }
    answer["completions"] = [_as_json(done, logprobs=arguments.logprobs is not None) for done in found]
    print(json.dumps(answer, indent=1))


def _as_json(done: Completion, *, logprobs: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"text": done.text, "finish_reason": done.finish, "tokens": done.tokens}
    if logprobs:
        made["mean_logprob"] = done.mean_logprob
        made["logprobs"] = [
            {"token": p.token, "logprob": p.logprob, "top": [{"token": t, "logprob": v} for t, v in p.top]}
            for p in done.logprobs
        ]
    return made


def _tell(
    label: str, found: list[Completion], total: int, seconds: float, speculation: Speculation | None, why: str
) -> None:
    """The line on standard error, and what a user should know of the end.

    Raises:
        GenerateError: no token could go on with the pattern.
    """
    tell: Callable[[str], None] = lambda line: Console(stderr=True).print(  # noqa: E731
        f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True
    )
    tell(f"{label}: {total} tokens, {total / seconds:.0f} tokens/s ({why})")
    if speculation is not None:
        tell(
            f"speculation: {speculation.agreement:.0%} of {speculation.guessed} guesses stood, "
            f"{speculation.tokens_a_round:.2f} tokens for each of {speculation.rounds} passes"
        )
    if any(done.finish == "incomplete" for done in found):
        tell("the text ended before the pattern was complete: allow more --tokens, or a shorter pattern")
    if any(done.finish == "stuck" for done in found):
        raise GenerateError("no token of the vocabulary could go on with the pattern: change it")


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
