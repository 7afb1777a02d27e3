"""What the verbs do right: every flag's every value, honest help, and refusals that need a trained run."""

from __future__ import annotations

import json
import re
import shutil
import typing
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.cli.common import Parser, add_settings, settings
from bonsaigpt.config import Config, RunConfig, validate
from bonsaigpt.recipes import flatten


def bonsai(*words: object) -> int:
    """One command in this process."""
    return main([str(w) for w in words])


@pytest.fixture
def run(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run `a` in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(tiny_text.read_text())
    steps = ["--train.steps", 6, "--train.eval_interval", 4]
    assert bonsai("train", "my-text", "--name", "a", "--data.path", text, *tiny_flags, *steps, *CHARS) == 0
    return Path("runs/a")


CHARS = ["--data.tokenizer.kind", "chars"]


def kinds(model: type[Config], prefix: str = "") -> list[tuple[str, str]]:
    """Every value of every choice: the kinds of unions and other literals."""
    found: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        if typing.get_origin(field.annotation) is dict:
            continue  # a map is given whole
        for leaf in _leaves(field.annotation):
            if isinstance(leaf, type) and issubclass(leaf, Config):
                found += kinds(leaf, f"{prefix}{name}.")
            elif isinstance(leaf, str):
                found.append((prefix + name, leaf))
    return found


def _leaves(annotation: object) -> list[object]:
    inner = typing.get_args(annotation)
    return [leaf for a in inner for leaf in _leaves(a)] if inner else [annotation]


# The parts of a mixture are a list: one JSON flag gives them all.
@pytest.mark.parametrize(("name", "value"), sorted({c for c in kinds(RunConfig) if not c[0].startswith("data.parts.")}))
def test_every_choice_can_be_given_as_a_flag(name: str, value: str) -> None:
    """`none`, for one, is a kind of position and not Python's None."""
    parser = Parser("test", "", "")
    source = add_settings(parser)
    assert flatten(settings(source, [f"--{name}", value])) == {name: value}


def test_unset_is_none() -> None:
    source = add_settings(Parser("test", "", ""))
    given = settings(source, ["--model.attention.n_kv_head", "unset"])
    assert given == {"model": {"attention": {"n_kv_head": None}}}
    assert validate(given, origin="flags").model.attention.n_kv_head is None


def test_help_states_the_true_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, default in {
        "model.mlp.kind": "gelu",
        "model.position.kind": "learned",
        "model.norm.kind": "layernorm",
        "data.kind": "stdlib",
        "data.tokenizer.kind": "chars",
        "train.steps": "2000",
    }.items():
        said = text[text.index(f"--{name} ") :]
        assert f"(default: {default})" in said[: said.index(" --", 3)], name
    assert "ifdef" not in text
    assert "undefined" not in text


def test_a_runs_own_config_file_replays_it(run: Path) -> None:
    assert bonsai("train", run / "config.toml", "--name", "b") == 0
    one, two = (Path(f"runs/{n}/checkpoints/step-000006/model.safetensors").read_bytes() for n in "ab")
    assert one == two
    assert bonsai("train", run / "config.toml", "--name", "c", "--seed", 2) == 0
    assert Path("runs/c/checkpoints/step-000006/model.safetensors").read_bytes() != one


def test_a_changed_text_is_not_scored_as_if_it_were_the_old_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bonsai("eval", run) == 0
    Path("text.txt").write_text("the red cat " * 400)
    capsys.readouterr()
    assert bonsai("eval", run) == 2
    assert "not what this run was trained on" in capsys.readouterr().err
    assert bonsai("eval", run, "--text", "text.txt") == 0


def test_weights_are_not_taken_into_another_function(
    run: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Post-norm has the same parameters as pre-norm and computes something else."""
    command = ["train", "my-text", "--data.path", "text.txt", *tiny_flags, *CHARS, "--init", run, "--train.steps", 2]
    assert bonsai(*command, "--name", "b", "--model.norm_position", "post") == 2
    assert "norm_position is post, but the weights of runs/a@" in capsys.readouterr().err
    assert not Path("runs/b").exists()
    assert bonsai(*command, "--name", "b") == 0
    start = json.loads(Path("runs/b/metrics.jsonl").read_text().splitlines()[0])
    end = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert start["val_loss"] == pytest.approx(end["val_loss"], rel=1e-6)


def test_keep_every_keeps_between_evaluations_and_for_good(run: Path) -> None:
    assert bonsai("train", run, "--resume", "--train.steps", 14, "--train.keep_every", 5) == 0
    assert {p.name for p in (run / "checkpoints").glob("step-*")} >= {"step-000010", "step-000014"}
    assert bonsai("train", run, "--resume", "--train.steps", 20, "--train.keep_every", 0) == 0
    assert {p.name for p in (run / "checkpoints").glob("step-*")} >= {"step-000010", "step-000020"}


def test_a_head_padded_beyond_the_tokenizer_never_writes_an_id_without_a_text(
    tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*tiny_flags, *CHARS, "--train.steps", 1, "--model.vocab_size", 512]
    assert bonsai("train", "my-text", "--name", "p", "--data.path", tiny_text, *flags) == 0
    assert bonsai("sample", "p", "--prompt", "the ", "--tokens", 40, "--temperature", 5) == 0


def test_resuming_is_noted_beside_the_first_session(run: Path) -> None:
    first = json.loads((run / "environment.json").read_text())
    assert bonsai("train", run, "--resume", "--train.steps", 8) == 0
    later = json.loads((run / "environment.json").read_text())
    [session] = later.pop("resumed")
    assert later == first
    assert "--resume" in session


def test_what_a_resumed_run_leaves_open_is_decided_for_the_steps_to_come(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bonsaigpt.torch_engine.compiling.what_is_missing", lambda device: None)
    shutil.copytree(run, "runs/b")
    numbers, words = ["workers", "micro_batch"], ["compile", "attention_kernel", "precision"]
    settings = [(name, 0) for name in numbers] + [(name, "auto") for name in words]
    flags = [word for name, value in settings for word in (f"--train.{name}", value)]
    capsys.readouterr()
    assert bonsai("train", "runs/b", "--resume", "--train.steps", 8, "--dry-run", *flags) == 0
    assert "timing a few steps" in capsys.readouterr().out
    assert bonsai("train", "runs/b", "--resume", "--train.steps", 8, *flags) == 0
    said = capsys.readouterr().out
    assert re.search(r"train\.compile: off: 2 steps of .* could save", said)
    opened = RunDirectory.open(Path("runs/b"))
    assert opened.config.left_open == ()
    assert (opened.config.train.compile, opened.config.train.micro_batch) == ("off", 4)
    [session] = opened.environment["resumed"]
    assert "train.compile: off: 2 steps of" in session
    assert bonsai("train", run, "--resume", "--train.steps", 8) == 0
    assert "timing a few steps" not in capsys.readouterr().out
    assert opened.config == RunDirectory.open(run).config


def test_out_of_memory_is_a_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("bonsaigpt.cli.eval.evaluate", exhausted)
    assert bonsai("eval", run) == 2
    assert "out of memory: lower" in capsys.readouterr().err
    monkeypatch.setattr("bonsaigpt.cli.eval.evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug of ours is not dressed up as the user's
        bonsai("eval", run)
