"""Bad input of every kind: one clear line, exit code 2, and nothing left behind.

Each case is a workshop (a text, a recipe, a trained run) that is spoilt in one way, a command, words of the cause and
of the remedy that the message must hold, and where it is cheap the mended command, which must work in the same place.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.errors import DataError
from tests.cli.bad_models import CHECKPOINTS, COMPRESSIONS, FORECASTS, PROMPTS, STUDIES
from tests.cli.bad_training import RUNS, SETTINGS, TEXTS
from tests.cli.spoiling import STEP, Case, assert_one_line, assert_unchanged, flip, tree

CASES = [*TEXTS, *SETTINGS, *RUNS, *CHECKPOINTS, *PROMPTS, *STUDIES, *FORECASTS, *COMPRESSIONS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: Case, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.spoil:
        case.spoil(workshop)
    before = tree(workshop)
    capsys.readouterr()
    code = main(shlex.split(case.command))
    out, error = capsys.readouterr()
    assert code == 2, out
    assert_one_line(error, case.says)
    assert_unchanged(before, workshop, prepares=case.prepares)
    if case.command.split()[0] != "train":
        assert out == ""  # half an answer on standard output would end up in somebody's file
    if case.mended:
        assert main(shlex.split(case.mended)) == 0, capsys.readouterr().err


def test_the_check_notices_what_is_left_behind(workshop: Path) -> None:
    before = tree(workshop)
    assert_unchanged(before, workshop)
    for name in ("runs/.new.part", "corpora/.files-0.part", "corpora/files-0"):
        (workshop / name).mkdir()
        with pytest.raises((AssertionError, DataError)):
            assert_unchanged(before, workshop, prepares=True)
        (workshop / name).rmdir()
    flip(f"{STEP}/model.safetensors")(workshop)
    with pytest.raises(AssertionError, match=r"model\.safetensors"):
        assert_unchanged(before, workshop)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("trian tiny.toml", ("no verb 'trian'", "Did you mean 'train'?")),
        ("train tiny.toml --model.n_layers 2", ("--model.n_layers", "Did you mean --model.n_layer?")),
        ("train tiny.toml --name new --data.path nowhere.txt", ("nowhere.txt", "--data.path")),
        ("sample tiny@123", ("no checkpoint of step 123",)),
    ],
)
def test_a_real_process_says_the_same(command: str, says: tuple[str, ...], workshop: Path) -> None:
    before = tree(workshop)
    done = subprocess.run(
        [sys.executable, "-m", "bonsaigpt", *shlex.split(command)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_line(done.stderr, says)
    assert_unchanged(before, workshop)


def test_square_brackets_in_names_are_no_markup(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split("train tiny.toml --name 'a[b]' --corpora 'c['")) == 0
    assert main(shlex.split("train 'a[b]' --resume --corpora 'c[/]' --train.steps 6 --train.sample_prompt '[/b]'")) == 0
    assert main(shlex.split("sample 'a[b]' --tokens 3 --device cpu")) == 0
    out, error = capsys.readouterr()
    assert "runs/a[b]" in out
    assert "runs/a[b]@6: 3 tokens" in error


def test_a_full_standard_output_is_one_line(workshop: Path) -> None:
    device = Path("/dev/full")
    if not device.is_char_device():
        pytest.skip("this system has no device /dev/full")
    with device.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bonsaigpt", "recipes", "show", "zero-one"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert_one_line(done.stderr, ("No space left",))
