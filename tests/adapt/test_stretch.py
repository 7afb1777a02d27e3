"""A longer context: positions, the optimizer's state, and `bonsai stretch` from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.adapt import stretched_arrays, stretched_config, stretched_model
from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, validate
from bonsaigpt.errors import ConfigError

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}


def run_of(**changes: object) -> RunConfig:
    model = SIZES | changes
    return validate({"model": model, "train": {"batch_size": 10, "steps": 50, "compile": "on"}}, origin="test")


def test_learned_positions_lie_between_their_neighbours_and_so_do_the_moments() -> None:
    old = run_of().model
    new = stretched_model(old, 15)
    table = np.arange(6.0, dtype=np.float32)[:, None] * np.ones((1, 8), dtype=np.float32)
    arrays = {"transformer.wpe.weight": table, "exp_avg.transformer.wpe.weight": -table, "steps": np.float32(7)}
    found = stretched_arrays(arrays, old, new)
    wanted = np.minimum(np.arange(15) * 0.4, 5.0)
    np.testing.assert_allclose(found["transformer.wpe.weight"][:, 3], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["exp_avg.transformer.wpe.weight"][:, 3], -wanted, rtol=1e-6)
    assert found["steps"] == 7
    assert found["transformer.wpe.weight"].shape == (new.block_size, 8)
    turning = run_of(position={"kind": "rope"}).model
    assert stretched_arrays(arrays, turning, stretched_model(turning, 15)) == arrays  # the same arrays, none copied


def test_scaling_adds_up_and_remembers_the_first_context() -> None:
    model = run_of(position={"kind": "rope", "theta": 500.0}).model
    plain = stretched_model(model, 24)
    assert plain.position == model.position
    twice = stretched_model(stretched_model(model, 12, "yarn"), 24)
    once = stretched_model(model, 24, "yarn")
    assert twice == once
    scaling = once.position.model_dump()["scaling"]
    assert (scaling["factor"], scaling["original"]) == (4.0, 6)
    other = stretched_model(stretched_model(model, 12, "linear"), 24, "ntk").position.model_dump()["scaling"]
    assert other == {"kind": "ntk", "factor": 4.0}


def test_the_work_of_a_step_stays_and_the_engine_decides_again() -> None:
    config = stretched_config(run_of(), 24, steps=8)
    assert (config.train.batch_size, config.train.steps, config.train.eval_interval) == (2, 8, 2)
    assert config.optim.lr == 0.5e-3
    assert config.train.compile == "auto"
    assert config.model.block_size == 24


@pytest.mark.parametrize(
    ("model", "block", "rope", "words"),
    [
        ({}, 6, None, "longer --block-size than 6"),
        ({}, 12, "yarn", "model.position.kind is 'learned'"),
        ({"position": {"kind": "none"}}, 12, "ntk", "model.position.kind is 'none'"),
        ({"structure": {"*.wpe.weight": {"kind": "lowrank", "rank": 2}}}, 12, None, "made of factors"),
    ],
)
def test_what_cannot_be_stretched_is_refused(model: dict[str, object], block: int, rope: None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stretched_model(run_of(**model).model, block, rope)


@pytest.fixture
def trained(
    tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """A run of 8 steps, and the flags with which stretching it computes as it did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    rope = ["--model.position.kind", "rope", "--data.tokenizer.kind", "chars"]
    steps = ["--train.steps", "8", "--train.eval_interval", "4"]
    assert main(["train", "my-text", "--data.path", "text.txt", *tiny_flags, *rope, *steps, "--name", "short"]) == 0
    return tmp_path / "runs", ["--train.compile", "off", "--train.attention_kernel", "sdpa"]


def test_a_run_goes_on_at_a_longer_context(trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    runs, flags = trained
    assert main(["stretch", "short", "--block-size", "16", "--rope", "linear", "--steps", "4", *flags]) == 0
    assert "at 16 tokens instead of 8, 2 rows a step instead of 4" in capsys.readouterr().out
    run = RunDirectory.open(runs / "short-16")
    config = run.config
    assert config.model.position.model_dump()["scaling"] == {"kind": "linear", "factor": 2.0}
    assert (config.train.steps, config.train.batch_size) == (4, 2)
    old = RunDirectory.open(runs / "short").load("last")
    after = run.load("4")
    assert (old.optimizer["steps"], after.optimizer["steps"]) == (8, 12)  # the moments go on, and so does their count
    assert run.environment["stretched"] == "runs/short@8"
    assert main(["train", "runs/short-16", "--resume", "--train.steps", "6"]) == 0
    assert main(["eval", "runs/short-16"]) == 0
    assert main(["sample", "runs/short-16", "--tokens", "20"]) == 0
    # By hand, from the same weights and moments: the same run. Negative control: without the moments another.
    state = after.state | {
        "step": 0,
        "tokens": 0,
        "evaluation": None,
        "best_loss": None,
        "best_step": -1,
        "watch": None,
    }
    for name, optimizer, same in (("again", old.optimizer, True), ("fresh", {}, False)):
        begin = Checkpoint(model=old.model, optimizer=optimizer, state=state)
        other = RunDirectory.create(runs / name, config, run.tokenizer, run.environment, start=begin)
        assert main(["train", str(other.path), "--resume"]) == 0
        found = other.load("4").model
        assert all(np.array_equal(found[key], after.model[key]) for key in found) == same


def test_bad_calls_are_one_sentence_and_leave_nothing(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, _ = trained
    for words, message in [
        (["short", "--block-size", "4"], "longer --block-size than 8"),
        (["shrot", "--block-size", "16"], "Did you mean 'short'"),
        (["short@7", "--block-size", "16"], "has no checkpoint of step 7"),
        (["short", "--block-size", "16", "--name", "short"], "exists already"),
        (["short", "--block-size", "100000"], "use a smaller block size"),
    ]:
        capsys.readouterr()
        assert main(["stretch", *words]) == 2
        error = capsys.readouterr().err
        assert message in error, error
    assert [path.name for path in runs.iterdir()] == ["short"]


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_memory_of_other_rows_begins_anew(position: str) -> None:
    old = run_of(position={"kind": position}).model
    new = stretched_model(old, 2 * old.block_size)
    wpe = np.zeros((old.block_size, old.n_embd), dtype=np.float32)
    arrays = {"memory.k": np.zeros(3), "steps": np.ones(1), "transformer.wpe.weight": wpe}
    assert set(stretched_arrays(arrays, old, new)) == {"steps", "transformer.wpe.weight"}
