"""What the tests of the handbook's commands share: how commands are found, made quick, and a folder to run them in.

``tests/test_commands.py`` holds that none is forgotten.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bonsaigpt.serve.server import make_server
from bonsaigpt.study.pool import Work

Test = TypeVar("Test", bound=Callable[..., None])
ROOT = Path(__file__).resolve().parents[1]

EXECUTED: set[str] = set()
"""Pages all of whose commands a test runs, in small."""


def executes(*pages: str) -> Callable[[Test], Test]:
    """A test that runs every command of these pages, whichever these are today."""
    EXECUTED.update(pages)
    return lambda test: test


def shell(page: str) -> list[str]:
    """Lines of the page's shell blocks; one that goes on with a backslash is one line."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(page: str) -> list[list[str]]:
    """The page's `bonsai` commands, also where torchrun starts them, as one process then; without those that say what
    no test has (`# needs two machines`)."""
    lines = [re.sub(r"^torchrun .*-m bonsaigpt ", "bonsai ", line) for line in shell(page)]
    lines = [line for line in lines if line.startswith("bonsai ") and "# needs " not in line]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def possible(found: list[list[str]]) -> list[list[str]]:
    """Without the commands that need an extra which is not installed."""
    extra = find_spec("llguidance") is not None
    return [c for c in found if extra or not {"--pattern", "--json-schema"} & set(c)]


def quick(command: list[str]) -> list[str]:
    """The same command for the impatient: a few steps of a tiny model, every flag of the page still parsed."""
    if command[:2] == ["study", "compress"]:
        return [*command, "--heal", "0,1", "--seeds", "1", "--calibrate", "400", "--seconds", "0.01"]
    if command[0] in ("train", "sweep", "study") and "--resume" not in command:
        sizes = {"model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "train.steps": 4, "train.eval_interval": 2}
        few = [] if command[0] == "train" else ["--seeds", "1", "--train.sample_tokens", "0"]
        return [*command, *few, *(word for name, value in sizes.items() for word in (f"--{name}", str(value)))]
    if command[0] == "compress":
        return [*command, "--calibrate", "400", *([] if "--dry-run" in command else ["--train.steps", "4"])]
    if command[0] == "profile":
        return [*command, "--steps", "1", "--warmup", "1"]
    if command[0] == "bench":
        return [*command, "--seconds", "0.01", "--tokens", "2"]
    if command[0] in ("serve", "watch"):
        return [*command, "--port", "0"]
    if command[0] == "sample":
        return [*command, "--tokens", "5"]
    return command


def leaving(*arguments: Any, **options: Any) -> Any:
    """A server that starts, and ends at once."""
    server = make_server(*arguments, **options)
    server.should_exit = True
    return server


class InThisProcess:
    """Runs of a sweep without the seconds that a process of its own takes to import torch."""

    def start(self, work: Work) -> InThisProcess:
        self.code = work()
        return self

    def poll(self) -> int:
        return self.code

    def stop(self) -> None: ...
    def kill(self) -> None: ...


def furnish(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """What the README takes for granted: the user's texts, a small library. Nobody types, and servers end at once."""
    (folder / "my-texts").mkdir()
    for i in range(4):
        (folder / "my-texts" / f"{i}.txt").write_text(f"Chapter {i}. " + "A bonsai is pruned, not hurried. " * 300)
    library = folder / "library"
    library.mkdir()
    for i in range(25):
        (library / f"m{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n" * 40)
    patch.setattr("sysconfig.get_paths", lambda *_: {"stdlib": str(library)})
    patch.setattr("bonsaigpt.cli.sweeping.ProcessPool", InThisProcess)
    patch.setattr("bonsaigpt.serve.server.make_server", leaving)
    patch.setattr("sys.stdin", io.StringIO(""))  # of `bonsai chat`: nobody says anything
    patch.chdir(folder)
