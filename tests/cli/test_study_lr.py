"""`bonsai study lr` from the command line to the flags to type: it goes on at an edge, and nothing is run twice."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from here import Here, pool_without_processes

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """An empty working folder, and a pool without processes."""
    monkeypatch.chdir(tmp_path)
    return pool_without_processes(monkeypatch)


@pytest.fixture
def words(tiny_text: Path, tiny_flags: list[str]) -> list[str]:
    """A tiny model on a tiny text, 8 of 16 steps, with Muon: of these rates the largest is the best by far."""
    muon = ["--optim.matrices.kind", "muon", "--optim.matrices.lr", "2e-5", "--optim.lr", "1e-5"]
    data = ["--data.kind", "files", "--data.path", str(tiny_text), *tiny_flags, "--train.steps", "16"]
    return ["study", "lr", "zero-one", *data, *muon, "--steps", "8", "--multiples", "1,8,64", "--name", "s"]


def runs_of(*multiples: float, seeds: int = 1) -> list[str]:
    return [f"x{m:g},seed={1337 + seed}" for seed in range(seeds) for m in multiples]


def weights(name: str) -> bytes:
    return (RunDirectory.open(Path("runs") / name).find("last") / "model.safetensors").read_bytes()


def test_it_goes_on_beyond_the_edge_until_the_best_is_inside(
    here: Here, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert here.names[:3] == runs_of(1, 8, 64)
    assert here.names[3:4] == runs_of(512), "64 was the best of the first three"
    assert "the lowest loss is at the edge of what was tried: going on with x512" in out
    record = json.loads(Path("runs/s/studies/lr.json").read_text())
    tried = {m["multiple"]: m["final_loss"]["mean"] for m in record["multiples"]}
    best = min(tried, key=tried.__getitem__)
    assert min(tried) < best < max(tried)
    assert record["suggestion"]["through"][1] == best
    rates = record["suggestion"]["rates"]
    assert rates["optim.matrices.lr"] == pytest.approx(2 * rates["optim.lr"], rel=0.1), "they move together"
    flags = f"--optim.lr {rates['optim.lr']:g} --optim.matrices.lr {rates['optim.matrices.lr']:g}"
    assert f"Use {flags}\n" in out
    for written in ("lr.html", "lr.png", "sweep.json"):
        assert Path("runs/s", written).is_file()
    assert main(["train", "zero-one", *words[3 : words.index("--steps")], *shlex.split(flags), "--name", "a"]) == 0


def test_a_trial_is_what_bonsai_train_makes(here: Here, words: list[str]) -> None:
    assert main([*words, "--optim.schedule.warmup", "4"]) == 0
    flags = words[3 : words.index("--steps")]
    flags += ["--train.steps", "8", "--train.eval_interval", "8", "--optim.schedule.warmup", "2"]
    assert main(["train", "zero-one", *flags, "--optim.lr", "8e-5", "--optim.matrices.lr", "16e-5", "--name", "a"]) == 0
    assert weights("a") == weights("s/x8,seed=1337")
    assert weights("a") != weights("s/x1,seed=1337")


def test_the_same_command_again_runs_nothing_and_more_seeds_only_those(
    here: Here, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    count = len(here.names)
    assert count > 3
    table = capsys.readouterr().out.splitlines()[-8:]
    assert main(words) == 0
    assert len(here.names) == count
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{count} of {count} runs have ended before", "those that it added itself as well"
    assert out[-8:] == table
    assert main([*words, "--seeds", "2"]) == 0
    assert {name.split("=")[1] for name in here.names[count:]} == {"1338"}
    assert main([*words, "--steps", "9"]) == 2
    assert "is a sweep whose x1,seed=1337 has optim.schedule.warmup = 10, not 11" in capsys.readouterr().err


@pytest.mark.parametrize("stop_at", [1, 3])
def test_ctrl_c_ends_it_and_the_command_goes_on(
    here: Here, words: list[str], stop_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    here.stop_at = stop_at  # of six; after three the best is known to be at the edge
    words = [*words, "--seeds", "2"]
    assert main(words) == 130
    assert here.names == runs_of(1, 8, 64, seeds=2)[: stop_at + 1]
    out = capsys.readouterr().out
    assert "going on with" not in out, "who has asked to stop wants nothing added"
    assert "Go on with: bonsai study lr zero-one" in out
    assert main(words) == 0
    assert here.names[:6] == runs_of(1, 8, 64, seeds=2)


def test_rates_that_diverge_end_it_there(here: Here, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wild = [*words, "--optim.grad_clip", "0", "--optim.matrices.kind", "adamw", "--multiples", "1,64,1e12,1e13"]
    wild = [w for i, w in enumerate(wild) if "--optim.matrices.lr" not in (w, wild[i - 1])]
    assert main(wild) == 0
    assert here.names == runs_of(1, 64, 1e12, 1e13)
    out = capsys.readouterr().out
    assert "Beyond it a training failed" in out
    assert "2 of 4 runs failed" in out
    assert main([*wild, "--multiples", "1e11,1e12,1e13", "--name", "all"]) == 2
    assert "no run was finished; the first failed because: training diverged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "17"], "--steps 17 is more than the recipe's own 16: use fewer"),
        (["--steps", "0"], "'0' is no count: use 1 or more"),
        (["--multiples", "1,2"], "three different positive factors or more: e.g. 0.5,1,2"),
        (["--multiples", "1,1,1,2"], "three different positive factors or more"),
        (["--multiples", "0,1,2"], "three different positive factors or more"),
        (["--multiples", "1,2,inf"], "three different positive factors or more"),
        (["--multiples", "1,2,nan"], "three different positive factors or more"),
        (["--multiples", "1,2,many"], "'1,2,many' is not three"),
        (["--optim.lrr", "1"], "Did you mean --optim.lr?"),
        (["--name", "a/b"], "cannot be named"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    here: Here, words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
    assert here.names == []


def test_another_sweeps_folder_is_left_alone(here: Here, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = words[3 : words.index("--steps")]
    assert main(["sweep", "zero-one", *flags, "--grid", "model.dropout=0,0.1", "--name", "s"]) == 0
    before = sorted(Path("runs/s").rglob("*"))
    capsys.readouterr()
    assert main(words) == 2
    assert "which this command leaves out: choose another name with --name" in capsys.readouterr().err
    assert sorted(Path("runs/s").rglob("*")) == before
