"""Every command of the handbook is one that the real parser takes, and is run by a test, or says what it needs.

A page's `bonsai` commands are run in small by a test that is marked with ``executes`` (here, in ``test_readme.py``); a
benchmark's figures are kept (`docs/recorded/results/`). What no test can have (two machines, the network) stands in
the command's comment: `# needs two machines`.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import tests.test_readme  # noqa: F401  (its marks)
from bonsaigpt.cli import main
from bonsaigpt.cli.common import Parser
from bonsaigpt.errors import BonsaiError
from tests.handbook import EXECUTED, ROOT, commands, executes, furnish, quick, shell

BENCHMARKS = ROOT / "benchmarks"
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}

ELSEWHERE = {
    "benchmarks/blocks.py": "half an hour",
    "benchmarks/track/effects.py": "half an hour",
}
"""Benchmarks on the pages whose result is not kept as a file yet. It only gets shorter."""


class Parsed(BaseException):
    """The arguments were taken; nothing more is wanted."""


PARSERS: dict[tuple[str, ...], tuple[Parser, int]] = {}
"""By the verbs that lead to it, with how many words are not its own: made once."""


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program ends as soon as its arguments were parsed."""
    ours, theirs = Parser.parse, argparse.ArgumentParser.parse_args

    def parse(self: Parser, argv: list[str]) -> argparse.Namespace:
        ours(self, argv)
        raise Parsed(self, argv)

    def parse_args(self: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
        theirs(self, *arguments)  # pyright: ignore[reportCallIssue, reportArgumentType]
        raise Parsed

    monkeypatch.setattr(Parser, "parse", parse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for folder in (BENCHMARKS / "track", BENCHMARKS):
        monkeypatch.syspath_prepend(folder)


def taken(line: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the program that a line starts takes its arguments."""
    words = shlex.split(line, comments=True)
    try:
        if words[0] == "bonsai":
            for verbs, (parser, skipped) in PARSERS.items():
                if tuple(words[: len(verbs)]) == verbs:
                    with suppress(BonsaiError):  # perhaps that of another verb behind the verb
                        parser.parse(words[skipped:])
            main(words[1:])
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except Parsed as done:
        if done.args:
            parser, argv = done.args
            PARSERS[tuple(parser.prog.split())] = parser, len(words) - len(argv)
        return True
    except (BonsaiError, SystemExit):
        return False
    return False


def programs(page: Path) -> list[str]:
    """`bonsai` and benchmarks, also behind torchrun."""
    lines = [re.sub(r"^torchrun .*-m bonsaigpt ", "bonsai ", line) for line in shell(page.read_text(encoding="utf-8"))]
    return [line for line in lines if line.startswith(("bonsai ", "python benchmarks/"))]


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_taken_by_its_parser(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in programs(PAGES[name]):
        assert taken(line, monkeypatch), f"{line}\n{capsys.readouterr().err}"


@pytest.mark.usefixtures("parsing")
def test_the_commands_of_results_are_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (ROOT / "docs" / "recorded" / "results").glob("*.json"):
        line = json.loads(file.read_text(encoding="utf-8"))["command"]
        if "jax" not in line or find_spec("optax") is not None:
            assert taken(line, monkeypatch), f"{file.name}: {line}\n{capsys.readouterr().err}"


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("line", ["bonsai eval runs/a --detials", "python benchmarks/blocks.py --stepz 3"])
def test_a_flag_that_is_not_there_is_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken(line, monkeypatch)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_run_or_recorded_or_says_what_it_needs(name: str) -> None:
    assert not forgotten(name, PAGES[name].read_text(encoding="utf-8"))


def forgotten(name: str, page: str) -> list[str]:
    """Commands of a page that nobody runs."""
    measured = [json.loads(file.read_text()) for file in (ROOT / "docs" / "recorded" / "results").glob("*.json")]
    scripts = {result["command"].split()[1] for result in measured} | set(ELSEWHERE)
    lines = [line for line in shell(page) if "# needs " not in line]
    left = [line for line in lines if line.startswith("python benchmarks/") and line.split()[1] not in scripts]
    return left if name in EXECUTED else left + [line for line in lines if re.match(r"bonsai |torchrun ", line)]


def test_what_is_forgotten_is_seen() -> None:
    page = "```sh\nbonsai eval runs/a\nbonsai fetch a/b  # needs the network\npython benchmarks/none.py --fast\n```\n"
    assert forgotten("new.md", page) == ["python benchmarks/none.py --fast", "bonsai eval runs/a"]
    assert forgotten("kv.md", page) == ["python benchmarks/none.py --fast"]


def test_benchmarks_elsewhere_are_on_a_page_and_not_kept() -> None:
    lines = [line for page in PAGES.values() for line in programs(page)]
    assert set(ELSEWHERE) <= {line.split()[1] for line in lines if line.startswith("python")}
    results = (ROOT / "docs" / "recorded" / "results").glob("*.json")
    kept = {json.loads(file.read_text())["command"].split()[1] for file in results}
    assert not kept & set(ELSEWHERE), "its result is kept now: strike it out"


def test_targets_of_make_and_extras_of_pip_exist() -> None:
    lines = [line for page in PAGES.values() for line in shell(page.read_text(encoding="utf-8"))]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [line.split()[1] for line in lines if line.startswith("make ")]
    assert {"demo", "test"} <= set(named) <= set(targets)
    wanted = {extra for line in lines for extra in re.findall(r"pip install '[^\[']*\[(\w+)\]'", line)}
    assert {"serve", "constrain"} <= wanted <= set(extras)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's texts, and with small runs of the names that pages take for granted."""
    furnish(tmp_path, monkeypatch)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    return tmp_path


def run(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of a page prints, which ends well."""
    capsys.readouterr()
    code = main(command)
    said = capsys.readouterr()
    assert code == 0, f"bonsai {shlex.join(command)}\n{said.err}"
    return said.out


def trained(name: str, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    """A run of four steps on the user's texts."""
    run(quick(shlex.split(f"train my-text --data.path my-texts --name {name}")) + list(flags), capsys)


def found(page: str) -> list[list[str]]:
    return commands(PAGES[page].read_text(encoding="utf-8"))


@executes("profile.md")
@pytest.mark.slow
def test_the_commands_of_profile_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(quick(shlex.split("train stdlib --name first")), capsys)
    for command in found("profile.md"):
        small = [] if command[1].startswith("runs/") else ["--model.n_layer", "1", "--model.n_embd", "16"]
        small += ["--model.n_head", "2"] if small else []
        run([*quick(command), *small], capsys)


@executes("numbers.md")
def test_the_commands_of_numbers_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained("one", capsys)
    for name in ("shakespeare-char", "other", "wiki"):
        shutil.copytree("runs/one", f"runs/{name}")
    (workshop / "wiki.test.raw").write_text("A bonsai is pruned. " * 100, encoding="utf-8")
    for command in found("numbers.md"):
        if command[0] != "harness":  # its tasks: tests/interop/test_harness.py
            run(command, capsys)


@executes("interop.md")
def test_the_commands_of_models_of_others_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained("mine", capsys, "--data.tokenizer.kind", "bytes", "--model.mlp.kind", "swiglu", "--model.block_size", "16")
    run(quick(shlex.split("compress runs/mine --target-params 0.5 --name mine-kronecker")), capsys)
    for folder in ("SmolLM-135M", "gpt2"):
        run(["export", "runs/mine", "--out", f"models/{folder}"], capsys)
    (workshop / "sonnets.txt").write_text("A bonsai is pruned. " * 100, encoding="utf-8")
    for command in found("interop.md"):
        graph = {"torch", "onnx"} & set(command)  # half a minute each: tests/parity/test_graphs.py
        if not graph and ("gguf" not in command or find_spec("gguf") is not None):
            run([*command, "--train.steps", "4"] if "--init" in command else quick(command), capsys)


@executes("distributed.md")
def test_the_commands_of_several_processes_run_in_one(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What torchrun does: ``tests/train/test_torchrun.py``."""
    shutil.copytree("my-texts", "shared/my-texts")
    for command in found("distributed.md"):
        words = [word.replace("/shared/", "shared/") for word in command]
        steps = {"900": "6", "1100": "8"}
        words = [steps.get(word, word) for word in words]
        run(words if "--resume" in words else quick(words), capsys)


@executes("finetuning.md")
def test_the_commands_of_finetuning_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained("wiki", capsys, "--data.tokenizer.kind", "bytes", "--model.block_size", "32")
    run([*quick(["train", "sort"]), "--data.val_examples", "100"], capsys)
    asked = [{"text": f"where is my card {n}", "intent": ("lost", "late")[n % 2]} for n in range(24)]
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(24)]
    talk = [
        {"messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": f"yes {n}"}]}
        for n in range(24)
    ]
    questions = [{"question": f"{n}?", "answer": "a tree"} for n in range(4)]
    queries = [{"text": one["text"]} for one in asked]
    files = {"intents": asked, "train": asked, "val": asked[:4], "test": asked[:4], "pairs": pairs, "chat": talk}
    for name, lines in (files | {"questions": questions, "queries": queries}).items():
        (workshop / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    intents = shlex.split('--data intents.jsonl --template "{text}{intent}" --label-tokens --name intents')
    run(["finetune", "runs/wiki", *intents, "--train.steps", "2"], capsys)  # what the page's tasks take for granted
    there = {"intents"}
    for command in found("finetuning.md"):
        few = ["--train.steps", "2", "--samples", "2"] if "--reward" in command else ["--train.steps", "2"]
        small = [word if word != "256" else "4" for word in command]
        name = command[command.index("--name") + 1] if "--name" in command else ""
        if command[0] == "finetune":
            shutil.rmtree(Path("runs") / name, ignore_errors=True) if name in there else None
            there.add(name)
            run([*(w for i, w in enumerate(small) if "--epochs" not in small[max(0, i - 1) : i + 1]), *few], capsys)
        else:
            run([*small, *(["--tokens", "4"] if "f1" in small else [])], capsys)


@executes("course.md")
@pytest.mark.slow
def test_the_commands_of_the_course_run(workshop: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(shared_data / "tinyshakespeare.txt", workshop)
    for command in found("course.md"):
        few = ["--rows", "2", "--fast"] if command[0] == "study" and "--fast" not in command else []
        few += ["--lengths", "64,128", "--rows", "2"] if command[:2] == ["study", "context"] else []
        few += ["--length", "72", "--policy", "window(8)"] if command[:2] == ["study", "kv"] else []
        few += ["--steps", "0,1"] if command[:2] == ["study", "context"] and "--steps" not in command else []
        small = [word if word not in ("30", "200") else "2" for word in command]
        run([*(small if command[0] == "study" else quick(small)), *few], capsys)


@executes("jax.md")
@pytest.mark.slow
@pytest.mark.skipif(find_spec("optax") is None, reason="pip install 'bonsaigpt[jax]'")
def test_the_commands_of_jax_run(workshop: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(shared_data / "tinyshakespeare.txt", workshop)
    for command in found("jax.md"):
        run(quick([word if word != "4000" else "6" for word in command]), capsys)
