"""`bonsai finetune`: the result is a run that needs nothing of the one it came from; bad input writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.data.examples import example_batches
from bonsaigpt.data.plan import BatchPlan


def bonsai(*words: object) -> int:
    return main([str(word) for word in words])


def task(path: Path) -> Path:
    """Two words of the workshop's text, which fit into its block of 8; the label is whether the first has an a."""
    words = ["cat", "sat", "mat", "saw", "far", "the", "red", "run"]
    pairs = [(one, other) for one in words for other in words]
    records = [{"ask": f"{one} {other}", "say": "yes" if "a" in one else "no"} for one, other in pairs]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_run_is_tuned_and_is_a_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = task(Path("task.jsonl"))
    flags = ["--template", "{ask}{say}", "--label-tokens", "--name", "tuned", "--dropout", 0.1]
    tuning = ["--optim.lr", 0.02, "--freeze", "*.mlp.c_fc.*", "--layer-decay", 0.9, "--train.eval_interval", 10]
    assert (
        bonsai("finetune", "tiny", "--data", data, *flags, *tuning, "--train.steps", 60, "--train.batch_size", 64) == 0
    )
    run = RunDirectory.open(Path("runs/tuned"))
    assert run.config.data.kind == "examples"
    assert run.config.model.dropout == 0.1
    assert run.config.optim.schedule.warmup == 6  # a tenth of the steps that were asked for
    assert {"<|yes|>", "<|no|>", "<|endoftext|>"} <= run.tokenizer.special_tokens.keys()
    assert run.environment["finetuned"].startswith("runs/tiny@")
    before = RunDirectory.open(Path("runs/tiny")).load().model
    after = run.load().model
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if ".mlp.c_fc." in name}
    capsys.readouterr()
    assert bonsai("eval", "tuned", "--json") == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 1.0
    assert bonsai("task", "tuned", "--data", data, "--metric", "accuracy", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mean"] > 0.95
    assert said["recall"].keys() == {"yes", "no"}
    assert {p.name for p in Path("runs/tuned/tasks/task").iterdir()} == {
        "report.html",
        "answers.jsonl",
        "confusion.png",
    }
    assert bonsai("task", "tuned", "--data", data, "--tokens", 1, "--out", "there") == 0  # written, not chosen
    lines = [json.loads(line) for line in Path("there/answers.jsonl").read_text().splitlines()]
    assert np.mean([line["prediction"] == line["reference"] for line in lines]) == said["mean"]
    Path("runs/tiny").rename("elsewhere")  # the run needs nothing of the one it came from
    assert bonsai("train", "tuned", "--resume", "--train.steps", 62) == 0
    assert bonsai("sample", "tuned", "--prompt", "cat", "--tokens", 2) == 0


def test_it_tunes_further(workshop: Path) -> None:
    """A run that was tuned has all tokens already."""
    data = task(Path("task.jsonl"))
    for parent, name in (("tiny", "one"), ("one", "two")):
        flags = ["--template", "{ask}{say}", "--label-tokens", "--train.steps", 2]
        assert bonsai("finetune", parent, "--data", data, *flags, "--name", name) == 0
    one, two = (RunDirectory.open(Path(f"runs/{name}")) for name in ("one", "two"))
    assert one.tokenizer.to_json() == two.tokenizer.to_json()
    assert one.config.model == two.config.model


def test_epochs_are_steps(workshop: Path) -> None:
    data = task(Path("task.jsonl"))
    assert bonsai("finetune", "tiny", "--data", data, "--val", data, "--template", "{ask} {say}", "--epochs", 2) == 0
    config = RunDirectory.open(Path("runs/tiny-tuned")).config
    source = example_batches(config.data, seed=config.seed, plan=BatchPlan.of(config))  # type: ignore[arg-type]
    assert config.train.steps == -(-2 * len(source.rows) // config.train.batch_size)


TASK = ["--data", "task.jsonl", "--template", "{ask}{say}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["--data", "task.jsonl"], "say how they make an example"),
        ([*TASK, "--freeze", "nothing"], "matches no parameter"),
        ([*TASK, "--freeze", "*"], "leaves nothing to train"),
        ([*TASK, "--epochs", "0"], "no number of epochs"),
        ([*TASK, "--optim.lrr", "1"], "--optim.lr"),
        (["--data", "task.jsonl", "--template", "{ask}={say}"], "'='"),
        ([*TASK, "--dropout", "2"], "dropout"),
        ([*TASK, "--adapter", "lora", "--layer-decay", "0.9"], "leave one out"),
        ([*TASK, "--adapter", "lora", "--freeze", "*"], "leaves nothing"),
    ],
)
def test_bad_input_writes_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    task(Path("task.jsonl"))
    assert bonsai("finetune", "tiny", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in Path("runs").iterdir()] == ["tiny"]


def test_adapters_are_merged_or_kept_beside_the_base(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = task(Path("task.jsonl"))
    flags = ["--template", "{ask}{say}", "--label-tokens", "--train.steps", 8, "--train.batch_size", 16]
    assert bonsai("finetune", "tiny", "--data", data, *flags, "--adapter", "lora", "--rank", 2, "--name", "small") == 0
    assert "of them trained (" in capsys.readouterr().out
    run = RunDirectory.open(Path("runs/small"))
    assert {s.kind for s in run.config.model.structure.values()} == {"lora"}
    before, after = (RunDirectory.open(Path(f"runs/{name}")).load().model for name in ("tiny", "small"))
    known = len(before["transformer.wte.weight"])
    for name in ("transformer.wte.weight", "lm_head.weight"):  # rows of new tokens are learned, beside the adapters
        if name in after:
            assert len(after[name]) > known
            assert not np.array_equal(after[name][:known], before[name])
    assert np.array_equal(after["transformer.h.0.mlp.c_fc.weight.base"], before["transformer.h.0.mlp.c_fc.weight"])
    assert bonsai("adapter", "merge", "small", "--name", "merged") == 0
    assert bonsai("adapter", "save", "small") == 0
    assert bonsai("adapter", "apply", "tiny", "small.safetensors", "--name", "again") == 0
    assert Path("small.safetensors").stat().st_size < 4 * 3536  # a header of some kB is much beside so few weights
    found = []
    for name in ("small", "merged", "again"):
        capsys.readouterr()
        assert bonsai("eval", name, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    small, merged, again = found
    assert again["loss"] == small["loss"]
    assert merged["loss"] == pytest.approx(small["loss"], abs=1e-5)
    assert not RunDirectory.open(Path("runs/merged")).config.model.structure
    assert bonsai("train", "merged", "--resume", "--train.steps", 1) == 0
    for words, message in (
        (["finetune", "tiny", "--data", data, "--template", "{ask}{say}", "--adapt", "*"], "say which kind"),
        (["finetune", "small", "--data", data, *flags, "--adapter", "lora"], "made of factors already"),
        (["adapter", "merge", "tiny"], "no adapters to merge"),
        (["adapter", "apply", "tiny"], "a base and a file"),
        (["adapter", "save", "tiny"], "give it with --base"),
        (["adapter", "save", "small"], "exists already"),
        (["adapter", "apply", "small", "small.safetensors", "--name", "x"], "trained on other weights"),
    ):
        assert bonsai(*words) == 2
        assert message in capsys.readouterr().err
    assert not Path("runs/x").exists()
