"""`bonsai finetune`: the result is a run that needs nothing of the one it came from; bad input writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import PairsData
from bonsaigpt.data.examples import example_batches
from bonsaigpt.data.examples.pairs import pair_batches
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.toys import task_batches
from bonsaigpt.report import write_report
from bonsaigpt.report.compare import comparison
from bonsaigpt.report.history import read_history
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.train.callbacks.jsonl import read_metrics


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


PAIRS = "".join(
    json.dumps({"prompt": one, "chosen": "at", "rejected": "an"}) + "\n" for one in ("c", "s", "m", "f", "r", "th") * 4
)
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
        ([], "say what to learn from"),
        (["--reward"], "needs a run on a toy"),
        (["--reward", "--data", "task.jsonl"], "makes its own problems"),
        (["--data", "pairs.jsonl", "--label-tokens"], "does not apply: leave it out"),
        (["--data", "pairs.jsonl"], "pairs first, with --template '{prompt}{chosen}'"),
    ],
)
def test_bad_input_writes_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    task(Path("task.jsonl"))
    Path("pairs.jsonl").write_text(PAIRS)
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


def test_what_was_chosen_is_preferred(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference is the model that was tuned, which stays in the run; that may go on without its parent."""
    Path("pairs.jsonl").write_text(PAIRS)
    flags = ["--data", "pairs.jsonl", "--val", "pairs.jsonl", "--train.batch_size", 8]
    examples = [{"prompt": one, "completion": two} for one in "csmfr" for two in ("at", "an")]
    Path("either.jsonl").write_text("".join(json.dumps(record) + "\n" for record in examples))
    either = ["--data", "either.jsonl", "--val", "either.jsonl", "--train.steps", 40, "--optim.lr", 0.02]
    assert bonsai("finetune", "tiny", *either, "--name", "either") == 0
    assert bonsai("finetune", "either", *flags, "--epochs", 4, "--optim.lr", 0.01, "--name", "prefers") == 0
    run = RunDirectory.open(Path("runs/prefers"))
    assert "50.00% of pairs gained, margin 0.000" in capsys.readouterr().out
    lines = [line for line in read_metrics(run.path / "metrics.jsonl") if "val_loss" in line]
    assert (lines[0]["val_ordered"], lines[0]["val_margin"]) == (0.5, 0.0)
    best = max(lines, key=lambda line: (line["val_ordered"], -line["val_loss"]))
    assert best["val_ordered"] == 1.0
    assert best["val_margin"] > 0.05
    assert run.config.train.best == "preference"
    assert run.find("best") == run.folder(best["step"])
    assert best["step"] > 0
    history = read_history(run)
    assert (history.score("ordered"), history.score("margin")) == (1.0, best["val_margin"])
    assert history.best["val_loss"] == min(line["val_loss"] for line in lines)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Pairs gained" in page
    assert {"ordered", "margin"} <= set(comparison([run])[0])
    assert run.config.optim.objective.model_dump() == {
        "kind": "preference",
        "reference": "runs/prefers@0",
        "beta": 0.1,
    }
    assert run.config.train.steps == 24  # 24 pairs of two rows, four times, eight rows a step
    figures = {}
    for name in ("either", "prefers"):
        opened = RunDirectory.open(Path(f"runs/{name}"))
        engine = TorchEngine(device="cpu", precision="fp32", workers=1)
        batch = pair_batches(
            PairsData(path=Path("pairs.jsonl"), val=Path("pairs.jsonl")),
            seed=1,
            plan=BatchPlan(batch_size=48, block_size=8),
            tokenizer=opened.tokenizer,
        ).batch_at(0)
        scores = engine.target_scores(engine.model(opened.config.model, opened.load("last").model), batch)
        rows = -np.bincount(scores.rows_N, weights=scores.losses_N, minlength=48)
        figures[name] = float((rows[0::2] - rows[1::2]).mean())
    assert figures["prefers"] > figures["either"] + 1.0
    start, parent = run.load("0").model, RunDirectory.open(Path("runs/either")).load().model
    assert all(np.array_equal(start[name], parent[name]) for name in parent)
    shutil.rmtree("runs/either")
    assert bonsai("train", "prefers", "--resume", "--train.steps", 26) == 0
    assert read_metrics(run.path / "metrics.jsonl")[-1]["val_margin"] > best["val_margin"] / 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--beta 0.5", "--beta is for pairs of answers"),
        ("--samples 4", "--samples is for --reward"),
        ("--rank 4", "--rank is of adapters"),
    ],
)
def test_a_flag_without_effect_is_refused(
    workshop: Path, flags: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plain.jsonl").write_text('{"prompt": "c", "completion": "at"}\n' * 4)
    assert bonsai("finetune", "tiny", "--data", "plain.jsonl", "--name", "vain", *flags.split()) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs/vain").exists()


def test_pairs_are_refused_before_anything_is_made(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mixed.jsonl").write_text('{"prompt": "c", "chosen": "at"}\n' + PAIRS)
    assert bonsai("finetune", "tiny", "--data", "mixed.jsonl", "--name", "mixed") == 2
    assert "mixed.jsonl, line 1 lacks 'chosen' or 'rejected'" in capsys.readouterr().err
    Path("pairs.jsonl").write_text(PAIRS)
    pytest.importorskip("optax")
    chosen = ["--data", "pairs.jsonl", "--train.steps", 1, "--template", "{prompt}{chosen}", "--name", "knows-ends"]
    assert bonsai("finetune", "tiny", *chosen) == 0
    words = ["--data", "pairs.jsonl", "--train.batch_size", 8, "--engine", "jax", "--name", "in-jax"]
    assert bonsai("finetune", "knows-ends", *words) == 2
    assert "JAX engine does not learn from preferences" in capsys.readouterr().err
    assert not Path("runs/mixed").exists()
    assert not Path("runs/in-jax").exists()


def test_a_folder_of_anothers_is_tuned_by_pairs_and_with_adapters(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pairs.jsonl").write_text(PAIRS)
    quick = ["--train.steps", 2, "--train.batch_size", 4, "--train.device", "cpu", "--train.compile", "off"]
    pairs = ["--data", "pairs.jsonl", "--val", "pairs.jsonl", *quick]
    chosen = [*pairs, "--template", "{prompt}{chosen}"]
    assert bonsai("finetune", "tiny", *chosen, "--name", "chosen") == 0
    assert bonsai("export", "chosen", "--out", "folder") == 0
    assert bonsai("finetune", "folder", *pairs, "--name", "preferred") == 0
    assert "margin" in capsys.readouterr().out
    assert bonsai("finetune", "folder", *chosen, "--adapter", "lora", "--rank", 2, "--name", "small") == 0
    assert bonsai("adapter", "save", "small") == 0
    assert bonsai("adapter", "apply", "folder", "small.safetensors") == 0
    again, small = (RunDirectory.open(Path(f"runs/{name}")).load().model for name in ("folder-small", "small"))
    assert all(np.array_equal(again[name], small[name]) for name in small)
    assert bonsai("adapter", "merge", "folder") == 2
    assert "is no run" in capsys.readouterr().err


def test_pairs_teach_where_answers_end_and_then_which_is_better(workshop: Path) -> None:
    """What the error of the first tuning says is what helps."""
    Path("pairs.jsonl").write_text(PAIRS)
    assert bonsai("finetune", "tiny", "--data", "pairs.jsonl") == 2
    flags = ["--data", "pairs.jsonl", "--train.steps", 3]
    assert bonsai("finetune", "tiny", *flags, "--template", "{prompt}{chosen}", "--name", "chosen") == 0
    assert bonsai("finetune", "chosen", *flags, "--train.batch_size", 8, "--name", "preferred") == 0
    chosen, preferred = (RunDirectory.open(Path(f"runs/{name}")).config for name in ("chosen", "preferred"))
    kinds = [(config.data.kind, config.optim.objective.kind) for config in (chosen, preferred)]
    assert kinds == [("examples", "likelihood"), ("pairs", "preference")]
    pretrained = RunDirectory.open(Path("runs/tiny")).config.optim.lr
    assert [config.optim.lr / pretrained for config in (chosen, preferred)] == pytest.approx([1.0, 0.03])
    assert bonsai("task", "preferred", "--data", "pairs.jsonl", "--tokens", 2, "--out", "there") == 0
    answers = [json.loads(line) for line in Path("there/answers.jsonl").read_text().splitlines()]
    assert {answer["reference"] for answer in answers} == {"at"}


def test_a_toy_is_rewarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy = ["--data.kind", "copy", "--data.vocab", 3, "--data.length", 1, "--data.val_examples", 3]
    shape = ["--model.n_layer", 1, "--model.n_head", 2, "--model.n_embd", 16, "--model.block_size", 4]
    quick = ["--train.device", "cpu", "--train.precision", "fp32", "--train.compile", "off", "--train.threads", 1]
    quick += ["--train.tensorboard", "false", "--train.batch_size", 32]
    assert bonsai("train", "copy", *toy, *shape, *quick, "--train.steps", 1, "--optim.lr", 1e-3, "--name", "toy") == 0
    flags = ["--reward", "--samples", 4, "--train.steps", 15, "--optim.lr", 0.03, "--name", "better"]
    assert bonsai("finetune", "toy", *flags, *quick[:8]) == 0
    run = RunDirectory.open(Path("runs/better"))
    assert run.config.optim.objective.kind == "reward"
    engine = TorchEngine(device="cpu", precision="fp32", workers=1)
    batch = task_batches(run.config.data, seed=run.config.seed, plan=BatchPlan.of(run.config)).batch_at(0)  # type: ignore[arg-type]
    before, after = (
        engine.evaluate(engine.model(one.config.model, one.load("last").model), batch, exact=True)[1]
        for one in (RunDirectory.open(Path("runs/toy")), run)
    )
    assert before < 20
    assert after > 28  # of 32
    assert bonsai("finetune", "toy", "--reward", "--samples", 5, "--name", "x") == 2
