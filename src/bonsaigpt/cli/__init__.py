"""The command line: one file a verb, each imported only when it is called, so that `bonsai --help` is instant."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib import import_module

from bonsaigpt import __version__
from bonsaigpt.errors import BonsaiError, CheckpointError, DataError, DeviceError, did_you_mean
from bonsaigpt.processes import Process

__all__ = ["exit_code", "main"]

VERBS = {
    "train": "grow a model: from a recipe, or go on with a run",
    "sample": "let a model write",
    "chat": "talk with a model in the terminal",
    "serve": "models over HTTP, as OpenAI's clients speak it",
    "eval": "score a model on its whole validation split, or on any text",
    "finetune": "go on with a trained model on examples of a task",
    "adapter": "merge adapters, or keep them as small files beside the base",
    "harness": "tasks of lm-evaluation-harness on a model as it is",
    "task": "score a model's answers to examples, with a page of its mistakes",
    "stretch": "train a run on at a longer context",
    "shrink": "train a run on with a smaller key/value cache",
    "compress": "make a trained run smaller: structured weights, block by block, then healing",
    "export": "write a model for other programs",
    "fetch": "a model from the Hugging Face hub, into a folder",
    "sweep": "train a recipe over a grid of settings and several seeds",
    "study": "experiments by name: `bonsai study lr`, `bonsai study batch`",
    "bench": "how fast a model decodes here, against the machine's limit",
    "profile": "tell where the time of a training step goes",
    "parity": "hold the engines against each other on a checkpoint",
    "compare": "hold runs against each other: a table and a page",
    "report": "write a run's report.html again",
    "watch": "runs in the browser while they train",
    "recipes": "list, show and diff the recipes",
    "tokenizer": "train a tokenizer, show its pieces, hold several against each other",
    "prepare": "turn a text into verified token shards (train does it by itself)",
    "data": "verify, show and count what prepare made",
}

_HELP = """bonsai {version}: a workshop for small GPTs

usage: bonsai VERB ...        (bonsai VERB --help tells all about one)

{verbs}

for example:
  bonsai train stdlib --train.steps 300
  bonsai sample runs/stdlib --prompt "def "
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; exit code 0, 2 for what the user can mend, 130 and 143 after Ctrl-C and SIGTERM."""
    arguments = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold characters that this terminal cannot show
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items())
        print(_HELP.format(version=__version__, verbs=verbs))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"bonsai {__version__}")
        return 0
    verb, *rest = arguments

    def run() -> int:
        if verb not in VERBS:
            raise BonsaiError(f"there is no verb '{verb}'.{did_you_mean(verb, VERBS)} `bonsai --help` lists them.")
        return import_module(f"bonsaigpt.cli.{verb}").run(rest)

    return exit_code(run)


def exit_code(work: Callable[[], int]) -> int:
    """What the work returns; where it fails, a sentence on standard error and the code for that."""
    try:
        code = work()
        sys.stdout.flush()  # a full disk under standard output is known now, not after we have left
        return code
    except BonsaiError as error:
        process = Process.here()
        if process.is_main:
            print(f"bonsai: {error}", file=sys.stderr)
        elif isinstance(error, CheckpointError | DataError | DeviceError):  # perhaps its own alone; the rest all have
            print(f"bonsai, process {process.rank}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has gone, e.g. `bonsai recipes list | head -1`
        _discard_output()
        return 0
    except OSError as error:  # what no verb foresaw: standard output on a full disk, a path too long, ...
        print(f"bonsai: {error}. Check the disk, the path and its permissions.", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return 2
    except (MemoryError, RuntimeError) as error:
        words = f"{type(error).__name__} {error}".lower()
        if not any(sign in words for sign in ("memoryerror", "out of memory", "outofmemory", "can't allocate memory")):
            raise
        print(
            "bonsai: out of memory: lower what is done at once (in training --train.micro_batch or --train.batch_size; "
            "or try --train.recompute true), use a smaller model or block, or close other programs.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("bonsai: stopped", file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Nobody can take what is still buffered for standard output; without this Python would try again and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
