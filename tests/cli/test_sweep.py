"""`bonsai sweep` and `bonsai study` from the command line to the result: nothing is run twice, nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from here import Here, pool_without_processes

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig
from bonsaigpt.torch_engine.compiling import Decision
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.trace import Room

RUNS = ["lr=1e-3,seed=1337", "lr=2e-3,seed=1337", "lr=1e-3,seed=1338", "lr=2e-3,seed=1338"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """An empty working folder, and a pool without processes."""
    monkeypatch.chdir(tmp_path)
    return pool_without_processes(monkeypatch)


@pytest.fixture
def flags(tiny_text: Path, tiny_flags: list[str]) -> list[str]:
    """A tiny model on a tiny text, 6 steps."""
    steps = ["--train.steps", "6", "--train.eval_interval", "3", "--model.dropout", "0.1"]
    return ["zero-one", "--data.kind", "files", "--data.path", str(tiny_text), *tiny_flags, *steps]


def sweep(*words: str) -> int:
    return main(["sweep", *words])


GRID = ["--grid", "optim.lr=1e-3,2e-3", "--seeds", "2", "--name", "s"]


def weights(name: str) -> bytes:
    return (RunDirectory.open(Path("runs") / name).find("last") / "model.safetensors").read_bytes()


def test_each_run_is_what_bonsai_train_makes(here: Here, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*flags, *GRID) == 0
    assert here.names == RUNS
    out = capsys.readouterr().out
    assert "Lowest final validation loss: lr=" in out
    for written in ("sweep.csv", "sweep.html", "sweep.json"):
        assert Path("runs/s", written).is_file()
    assert main(["train", *flags, "--name", "alone", "--optim.lr", "2e-3", "--seed", "1338"]) == 0
    assert weights("alone") == weights("s/lr=2e-3,seed=1338")
    assert len({weights(f"s/{name}") for name in RUNS}) == 4
    final = json.loads(Path("runs/alone/metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    assert f"{final:.4f}" in Path("runs/s/sweep.html").read_text()
    assert main(["sample", "runs/s/lr=1e-3,seed=1337", "--tokens", "3"]) == 0


def test_the_same_command_again_runs_nothing_and_more_seeds_only_those(
    here: Here, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*flags, *GRID) == 0
    table = capsys.readouterr().out.splitlines()[-6:]
    assert sweep(*flags, *GRID) == 0
    assert len(here.names) == 4
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 of 4 runs have ended before"
    assert out[-6:] == table
    assert sweep(*flags, *GRID, "--seeds", "3") == 0
    assert here.names[4:] == ["lr=1e-3,seed=1339", "lr=2e-3,seed=1339"]
    assert sweep(*flags, *GRID, "--train.steps", "7") == 2
    assert "has train.steps = 6, not 7: choose another name with --name" in capsys.readouterr().err


def test_half_done_runs_are_resumed_and_end_in_the_same_bits(here: Here, flags: list[str]) -> None:
    whole = [*flags, "--optim.schedule.kind", "constant"]
    assert sweep(*whole, *GRID, "--seeds", "1", "--name", "whole") == 0
    # the first run as a kill after three of its six steps has left it
    stump = [*whole, "--train.steps", "3", "--optim.lr", "1e-3", "--runs", "runs/s", "--name", RUNS[0]]
    assert main(["train", *stump]) == 0
    begun = weights(f"s/{RUNS[0]}")
    toml = Path("runs/s", RUNS[0], "config.toml")
    toml.write_text(toml.read_text().replace("steps = 3\n", "steps = 6\n"))
    Path("runs/s/plan").mkdir()
    Path("runs/s/sweep.json").write_text('{"runs": []}')
    here.names.clear()
    assert sweep(*whole, *GRID, "--seeds", "1") == 0
    assert here.names == RUNS[:2]
    for name in RUNS[:2]:
        assert weights(f"s/{name}") == weights(f"whole/{name}")
    assert weights(f"s/{RUNS[0]}") != begun, "the control: it was not finished"
    assert "resumed" in json.loads(Path("runs/s", RUNS[0], "environment.json").read_text())


def test_a_point_that_diverges_is_recorded_and_stops_nobody(
    here: Here, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--grid", "optim.lr=1e9,1e-3", "--optim.grad_clip", "0", "--name", "s"]
    assert sweep(*words) == 0
    record = json.loads(Path("runs/s/sweep.json").read_text())
    bad, good = record["runs"]
    assert bad["status"] == "failed"
    assert bad["reason"].startswith("training diverged at step")
    assert good["status"] == "done"
    assert "1 of 2 runs failed" in capsys.readouterr().out
    assert sweep(*words) == 0
    assert len(here.names) == 2
    assert sweep(*words, "--retry") == 0
    assert here.names[2:] == ["lr=1e9,seed=1337"]
    alone = [*flags, "--grid", "optim.lr=1e9,1e8", "--optim.grad_clip", "0", "--name", "all"]
    assert sweep(*alone) == 2
    assert "no run was finished; the first failed because: training diverged" in capsys.readouterr().err


def test_ctrl_c_ends_the_sweep_and_the_command_goes_on(
    here: Here, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    here.stop_at = 1
    assert sweep(*flags, *GRID) == 130
    assert here.names == RUNS[:2]
    assert "Go on with: bonsai sweep zero-one" in capsys.readouterr().out
    assert sweep(*flags, *GRID) == 0
    assert here.names == RUNS


OPEN = ["--train.compile", "auto", "--train.precision", "auto", "--optim.matrices.kind", "muon"]


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A clock by which compiling pays every other time it is tried; gives the names of what was decided by it."""
    found: list[str] = []
    monkeypatch.setattr("bonsaigpt.torch_engine.compiling.what_is_missing", lambda device: None)
    monkeypatch.setattr("bonsaigpt.torch_engine.states.what_is_missing", lambda device: "it is only said to compile")

    def decide(config: RunConfig, device: object, seconds: object, *, begin: int) -> Decision:
        if config.train.compile != "auto":
            return Decision(config.train.compile == "on", config.train.attention_kernel, "as asked")
        found.append(f"{config.model.n_embd} wide")
        return Decision(len(found) % 2 == 1, "plain" if len(found) % 2 == 1 else "sdpa", f"try {len(found)}")

    monkeypatch.setattr("bonsaigpt.torch_engine.deciding.decide_compiling", decide)
    return found


def how(name: str) -> tuple[str, str, str]:
    train = RunDirectory.open(Path("runs/s") / name).config.train
    return train.compile, train.attention_kernel, train.precision


def test_all_runs_compute_as_one_has_decided(
    here: Here, flags: list[str], unsteady: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, *OPEN, "--grid", "model.n_embd=16,32,8", "--seeds", "2", "--name", "s"]
    words = [w for i, w in enumerate(words) if "--model.n_embd" not in (w, words[i - 1])]
    here.stop_at = 1
    assert sweep(*words) == 130
    out = capsys.readouterr().out
    assert "deciding how all runs compute, by n_embd=32,seed=1337" in out  # it has the most work
    assert "train.compile = on (try 1)" in out
    assert unsteady == ["32 wide"]
    assert sweep(*words) == 0
    assert sweep(*words, "--seeds", "3") == 0
    assert unsteady == ["32 wide"], "and never again"
    assert {how(name) for name in here.names} == {("on", "plain", how(here.names[0])[2])}
    assert len(here.names) == 9
    configs = [RunDirectory.open(Path("runs/s") / name).config for name in here.names]
    assert len({config.optim.matrices.precision for config in configs if config.optim.matrices.kind == "muon"}) == 1
    assert all(config.left_open == () for config in configs)


def test_what_is_swept_or_given_stays(here: Here, flags: list[str], unsteady: list[str]) -> None:
    words = [*flags, "--grid", "train.compile=off,auto", "--train.precision", "fp32", "--name", "s"]
    words = [w for i, w in enumerate(words) if "--train.compile" not in (w, words[i - 1])]
    assert sweep(*words) == 0
    assert [how(name) for name in here.names] == [("off", "plain", "fp32"), ("on", "plain", "fp32")]
    assert len(unsteady) == 1
    assert sweep(*flags, "--seeds", "2", "--name", "closed") == 0
    assert not Path("runs/closed/plan/decided.json").exists(), "nothing was left to the clock"


def test_a_decision_that_fails_is_a_sentence_and_can_be_tried_again(
    here: Here, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, *OPEN, "--seeds", "2", "--name", "s"]
    monkeypatch.setattr(TorchEngine, "room", lambda self: Room(free=1000, total=1000))
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert "it could not be decided how all runs compute, by seed=1337 (this model needs" in error
    assert len(error.strip().splitlines()) == 1
    assert here.names == []
    monkeypatch.setattr(TorchEngine, "room", lambda self: None)
    assert sweep(*words) == 0
    assert here.names == ["seed=1337", "seed=1338"]
    Path("runs/s/plan/decided.json").write_text("{")
    assert sweep(*words, "--seeds", "3") == 2
    assert "decided.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "optim.lrr=1,2"], "Did you mean 'optim.lr'"),
        (["--grid", "optim.lr=1,2", "--optim.lr", "3"], "--optim.lr is a setting that varies"),
        (["--grid", "model.attention.n_kv_head=2,3"], "n_kv_head=3 is impossible"),
        (["--grid", "data.val_fraction=0.1,0.9999"], "too short to hold out"),
        ([], "nothing to sweep"),
        (["--seeds", "0"], "no count"),
        (["--seeds", "2", "--name", "a/b"], "cannot be named"),
        (["--seeds", "2", "--submitit", "timeout_min=5"], "--executor slurm"),
        (["--seeds", "2", "--executor", "slurm", "--submitit", "x"], "KEY=VALUE"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    here: Here, flags: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*flags, *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
    assert here.names == []


# ------------------------------------------------------------------ study


def test_study_batch(here: Here, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cut = {"--model.block_size", "--train.batch_size"}
    base = [w for i, w in enumerate(flags) if w not in cut and flags[i - 1] not in cut]
    words = ["study", "batch", *base, "--tokens-per-step", "16,32", "--blocks", "4,8", "--budget", "192"]
    assert main([*words, "--name", "b"]) == 0
    out = capsys.readouterr().out
    assert here.names == [f"{pair},seed=1337" for pair in ("4x4", "2x8", "8x4", "4x8")]
    assert "All scored at 4 tokens of context." in out
    record = json.loads(Path("runs/b/studies/batch.json").read_text())
    by_pair = {(p["batch_size"], p["block_size"]): p for p in record["pairs"]}
    assert {p["steps"] * p["tokens_per_step"] for p in record["pairs"]} == {192}
    short, long = by_pair[8, 4], by_pair[4, 8]
    assert short["own_context_loss"] == short["final_loss"]
    assert long["own_context_loss"] != long["final_loss"]
    assert main(["eval", "runs/b/4x8,seed=1337", "--json"]) == 0  # the run's own evaluation is the common one
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(long["final_loss"]["mean"], rel=1e-3)
    for written in ("batch.html", "batch.png"):
        assert Path("runs/b", written).is_file()
    assert main([*words, "--name", "c", "--train.batch_size", "4"]) == 2
    assert "--train.batch_size is a setting that varies" in capsys.readouterr().err


def test_an_unknown_study_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "bach"]) == 2
    assert "batch" in capsys.readouterr().err
    assert main(["study"]) == 2


# ------------------------------------------------------------------ processes


@pytest.mark.skipif(os.name != "posix", reason="processes are killed as POSIX does")
def test_a_killed_sweep_leaves_no_run_alone_and_goes_on_exactly(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL to the command while a run trains: it saves and leaves, and the same command ends in the same bits."""
    monkeypatch.chdir(tmp_path)
    longer = [*flags, "--train.steps", "500", "--train.eval_interval", "500"]
    words = [*longer, "--grid", "optim.lr=1e-3,2e-3", "--name", "s"]
    process = subprocess.Popen([sys.executable, "-m", "bonsaigpt", "sweep", *words], stdout=subprocess.DEVNULL)
    run, log = Path("runs/s", RUNS[0]), Path("runs/s/plan", f"{RUNS[0]}.log")
    try:
        until(lambda: (run / "metrics.jsonl").exists() and '"loss"' in (run / "metrics.jsonl").read_text())
    finally:
        process.kill()
        process.wait()
    until(lambda: "go on with" in log.read_text())
    [stopped] = RunDirectory.open(run).steps()
    assert 0 < stopped < 500, "it was faster than the kill"

    executor = pool_without_processes(monkeypatch)
    assert sweep(*words) == 0
    assert executor.names == RUNS[:2]
    assert main(["train", *longer, "--optim.lr", "1e-3", "--name", "alone"]) == 0
    assert weights("alone") == weights(f"s/{RUNS[0]}")


def until(true: object) -> None:
    limit = time.monotonic() + 90
    while not true():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.02)
