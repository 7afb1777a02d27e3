"""`bonsai chat`: a dialogue with a model in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator, Iterator
from types import FrameType

from rich.console import Console
from rich.markup import escape

from bonsaigpt.cli.common import Parser, add_placement, open_model, runs_folder, whisper
from bonsaigpt.cli.sampling_flags import add_context, add_rules, sampling_of
from bonsaigpt.errors import BonsaiError, GenerateError
from bonsaigpt.generate import Event, Request, Session
from bonsaigpt.generate.context import check_lengths
from bonsaigpt.generate.dialogue import Dialogue, Template

__all__ = ["run"]

_EXAMPLE = """  bonsai chat runs/assistant
  bonsai chat runs/shakespeare-char --user "ROMEO:" --assistant "JULIET:" --end $'\\\\n\\\\n'
in the dialogue: /reset forgets all, /retry asks for another answer, /quit or Ctrl-D leaves; Ctrl-C stops an answer"""

_COMMANDS = "/reset, /retry, /quit"


def run(argv: list[str]) -> int:
    """The verb."""
    arguments = _parser().parse(argv)
    sampling = sampling_of(arguments)
    if arguments.tokens < 1:
        raise GenerateError(f"--tokens {arguments.tokens} leaves no room for an answer: use 1 or more")
    opened = open_model(arguments.model, runs=arguments.runs)
    tokenizer = opened.tokenizer
    template = Template(system=arguments.system, user=arguments.user, assistant=arguments.assistant, end=arguments.end)
    request = Request(
        prompt=[],
        max_tokens=arguments.tokens,
        sampling=sampling,
        stop_tokens=[tokenizer.end_of_text] if tokenizer.end_of_text is not None else [],
        overflow=arguments.overflow,
        slide=arguments.slide,
    )
    engine, model = opened.on(arguments)
    say = whisper(Console(stderr=True))
    decoder = engine.decoder(model, rows=1, weights=arguments.weights, say=say, kv=arguments.kv)
    check_lengths(1, arguments.tokens, decoder.block_size, "slide", arguments.slide)
    dialogue = Dialogue(Session(decoder, tokenizer, reuse=True), tokenizer, request, template)
    Console(stderr=True).print(f"[dim]{escape(opened.label)}; {_COMMANDS}; Ctrl-C stops an answer[/]", highlight=False)
    while True:
        try:
            said = input(arguments.user)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print(f"\n({_COMMANDS}; Ctrl-D leaves)")
            continue
        if said.strip() == "/quit":
            return 0
        if said.strip() == "/reset":
            dialogue.reset()
            continue
        if said.startswith("/") and said.strip() != "/retry":
            print(f"there is no command {said.split()[0]}: {_COMMANDS}")
            continue
        try:
            answer = dialogue.retry() if said.strip() == "/retry" else dialogue.say(said)
            _show(answer, arguments.assistant)
        except BonsaiError as error:  # a character that the model does not know, a full block: the dialogue goes on
            full = " (or begin anew with /reset)" if arguments.overflow == "error" else ""
            print(f"bonsai: {error}{full}", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(
        "chat",
        "Talk with a model, best one that was trained on dialogues. The history stays in its cache.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="tokens of an answer (default: 200)")
    group = parser.add_argument_group("template", "How the dialogue is written down; as in the texts of the training.")
    group.add_argument("--system", default="", metavar="TEXT", help="before the first turn (default: nothing)")
    group.add_argument("--user", default="User: ", metavar="TEXT", help="before your turns (default: 'User: ')")
    group.add_argument(
        "--assistant", default="Assistant: ", metavar="TEXT", help="before the model's (default: 'Assistant: ')"
    )
    group.add_argument(
        "--end",
        default="\n",
        metavar="TEXT",
        help="after each turn; it ends the model's, mere space together with your role (default: a new line)",
    )
    add_rules(parser)
    add_context(parser)
    add_placement(parser)
    runs_folder(parser)
    return parser


def _show(answer: Generator[Event, None, None], role: str) -> None:
    """Print an answer as it is made, until it ends or Ctrl-C."""
    print(role, end="", flush=True)
    with _ctrl_c() as pressed, contextlib.closing(answer):
        for event in answer:
            print(event.piece, end="", flush=True)
            if pressed.is_set:
                break
    print()


class _Pressed:
    """Whether Ctrl-C was pressed."""

    is_set = False


@contextlib.contextmanager
def _ctrl_c() -> Iterator[_Pressed]:
    """Note Ctrl-C instead of raising: an exception in the middle of a step would leave the cache half-written."""
    pressed = _Pressed()

    def note(number: int, frame: FrameType | None) -> None:
        pressed.is_set = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
