"""`bonsai chat`: a dialogue in a real terminal, and through a pipe."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from bonsaigpt.cli import main

ROLES = ["--user", "dogs: ", "--assistant", "cat: "]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A run that knows the characters of a dialogue."""
    folder = tmp_path_factory.mktemp("chat")
    text = folder / "text.txt"
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    text.write_text(
        "\n".join(f"{'dogs' if i % 2 else 'cat'}: {line}" for i, line in enumerate(lines)), encoding="utf-8"
    )
    places = ["--runs", str(folder), "--corpora", str(folder / "corpora"), "--data.path", str(text)]
    steps = ["--train.steps", "20", "--data.tokenizer.kind", "chars", "--optim.lr", "1e-2"]
    assert main(["train", "my-text", "--name", "talk", *places, *tiny_flags, *steps]) == 0
    return folder


def talk(runs: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    capsys.readouterr()
    assert main(["chat", "talk", "--runs", str(runs), "--tokens", "12", *ROLES]) == 0
    return capsys.readouterr()


def test_through_a_pipe(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, error = talk(runs, "sat on\n/retry\n/reset\nsat on\n/what\nsat é\n/retry\n", monkeypatch, capsys)
    turns = out.split("dogs: ")
    first, second, after_reset, again = turns[1], turns[2], turns[4], turns[7]
    assert all(answer.startswith("cat: ") for answer in (first, second, after_reset, again))
    assert second != first  # other noise
    assert after_reset == first  # the very same dialogue once more
    assert again == second
    assert "no command /what" in turns[5]
    assert "'é'" in error
    assert out.endswith("\n")


def test_nothing_to_retry_is_said_and_the_dialogue_goes_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, error = talk(runs, "/retry\nsat\n/quit\nnever read\n", monkeypatch, capsys)
    assert "nothing was said yet" in error
    assert out.count("cat: ") == 1


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, where an earlier test has started it
def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(runs: Path) -> None:
    import pexpect

    arguments = ["-m", "bonsaigpt", "chat", "talk", "--runs", str(runs), "--tokens", "1000000", *ROLES]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=120, env={**os.environ, "TERM": "dumb"})
    child.expect("dogs: ")
    child.sendline("sat on")
    child.expect("cat: ")
    child.expect("[a-z ]{5}")
    child.sendintr()
    child.expect("\r\ndogs: ")
    child.sendintr()  # where nothing is written it leaves nothing either
    child.expect("Ctrl-D leaves")
    child.expect("dogs: ")
    child.sendline("/retry")
    child.expect("cat: ")
    child.expect("[a-z ]{5}")
    child.sendintr()
    child.expect("\r\ndogs: ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
