"""Looking at a run's health changes no bit of it, alone or in a crowd, and its lines survive whatever happens."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import validate
from bonsaigpt.measure.health import Health, look_for
from bonsaigpt.torch_engine import compiling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.health import Checkup
from bonsaigpt.train.callbacks.health import read_health
from bonsaigpt.train.callbacks.jsonl import read_metrics
from tests.torch_engine.test_step import batch

RICH = (
    *("--optim.matrices.kind", "muon", "--optim.matrices.precision", "fp32", "--optim.ema", "0.9"),
    *("--model.mlp.kind", "relu2", "--model.attention.n_kv_head", "1", "--model.bias", "true"),
    *("--model.structure", '{"*.c_fc.weight": {"kind": "kronecker", "a_shape": [8, 4], "terms": 3}}'),
)
OFF, OFTEN = ("--train.health.interval", "0"), ("--train.health.interval", "3", "--train.health.tokens", "20")


@pytest.fixture
def command(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`bonsai train` for 20 steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    return [
        *("train", "zero-one", "--data.kind", "files", "--data.path", str(tiny_text), *tiny_flags),
        *("--train.steps", "20", "--train.eval_interval", "10", "--train.log_interval", "1"),
    ]


def result(name: str) -> tuple[list[float], Checkpoint]:
    """Losses and the last checkpoint of a run."""
    lines = read_metrics(Path("runs") / name / "metrics.jsonl")
    losses = [line[key] for line in lines for key in ("loss", "grad_norm", "val_loss") if key in line]
    return losses, RunDirectory.open(Path("runs") / name).load("last")


def equal(one: str, other: str) -> bool:
    """Whether two runs are equal in every bit."""
    (a, first), (b, second) = result(one), result(other)
    pairs = [(first.model[n], second.model[n]) for n in first.model]
    pairs += [(first.optimizer[n], second.optimizer[n]) for n in first.optimizer]
    return a == b and all(x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("more", [("--model.dropout", "0.2"), RICH], ids=["dropout", "rich"])
def test_looking_changes_no_bit(command: list[str], workers: str, more: tuple[str, ...]) -> None:
    for name, health in (("off", OFF), ("often", OFTEN)):
        assert main([*command, *more, *health, "--train.workers", workers, "--name", name]) == 0
    assert equal("off", "often")
    assert not Path("runs/off/health.jsonl").exists()
    assert [line["step"] for line in read_metrics(Path("runs/often/health.jsonl"))] == [3, 6, 9, 12, 15, 18]


def test_the_check_sees_a_look_that_touches(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    updates = Checkup.updates

    def touching(self: Checkup) -> None:
        updates(self)
        with torch.no_grad():
            self._parameters[0].mul_(1.0 + 2**-20)

    monkeypatch.setattr(Checkup, "updates", touching)
    for name, health in (("off", OFF), ("often", OFTEN)):
        assert main([*command, *health, "--name", name]) == 0
    assert not equal("off", "often")


def test_a_resumed_run_goes_on_with_its_lines(command: list[str]) -> None:
    assert main([*command, *OFTEN, "--name", "whole"]) == 0
    assert main([*command, *OFTEN, "--name", "cut", "--train.steps", "10", "--optim.schedule.kind", "constant"]) == 0
    path = Path("runs/cut/health.jsonl")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    late = json.loads(lines[-1]) | {"step": 12}  # of a run that was killed behind its last checkpoint
    path.write_text("\n".join([*lines, json.dumps(late), '{"step": 15, "to']))
    assert main(["train", "runs/cut", "--resume", "--train.steps", "20"]) == 0
    looks, _ = read_health(path, RunDirectory.open(Path("runs/cut")).config.model)
    assert [look.step for look in looks] == [3, 6, 9, 12, 15, 18]
    assert looks[3].as_dict() != late


def test_what_is_wrong_is_said_once(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """At a rate that no model can stand, and not again by the session that goes on."""
    wild = ("--optim.lr", "30", "--optim.schedule.kind", "constant", "--optim.schedule.warmup", "0")
    calm = ("--train.guard.rollbacks", "0", "--train.guard.spike", "0")
    hot = [*command, *OFTEN, *wild, *calm, "--optim.grad_clip", "0", "--train.eval_interval", "1000"]
    code = main([*hot, "--name", "wild", "--train.steps", "9"])
    said = capsys.readouterr()
    looks, monitor = read_health(Path("runs/wild/health.jsonl"), RunDirectory.open(Path("runs/wild")).config.model)
    assert code == 0, said.err
    assert len(looks) == 3
    assert monitor.findings
    assert len(told(said.out)) == len(monitor.findings)
    assert main(["train", "runs/wild", "--resume", "--train.steps", "15"]) in (0, 2)
    _, later = read_health(Path("runs/wild/health.jsonl"), RunDirectory.open(Path("runs/wild")).config.model)
    assert later.findings.keys() >= monitor.findings.keys()
    assert len(told(capsys.readouterr().out)) == len(later.findings) - len(monitor.findings)


def told(out: str) -> list[str]:
    """The lines of the terminal that say what is wrong."""
    return re.findall(r"^step \d+: .* block \d+: .*", out, flags=re.MULTILINE)


def test_a_rollback_takes_its_lines_back(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one step of the run goes wrong, the looks behind the checkpoint are of a path that was left."""
    from bonsaigpt.train.watch import Watch

    told: list[int] = []

    def trouble(self: Watch, **_: float) -> str | None:
        told.append(1)
        return "planted" if len(told) == 2 else None

    monkeypatch.setattr(Watch, "trouble", trouble)
    assert main([*command, *OFTEN, "--name", "back", "--train.eval_interval", "5"]) == 0
    assert len(read_metrics(Path("runs/back/rollbacks.jsonl"))) == 1
    assert [line["step"] for line in read_metrics(Path("runs/back/health.jsonl"))] == [3, 6, 9, 12, 15, 18]


@pytest.mark.slow
@pytest.mark.skipif(compiling.what_is_missing(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_a_compiled_step_is_neither_changed_nor_compiled_again() -> None:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
    run = validate({"model": model, "train": {"batch_size": 8, "compile": "on"}}, origin="test")
    engine = TorchEngine(device="cpu", workers=2)
    found: list[dict[str, bytes]] = []
    compiled: list[int] = []
    for looks in (False, True):
        state = engine.init(run)
        for step in range(6):
            asked = look_for(run.model, run.train.health) if looks and step % 2 else None
            metrics = engine.step(state, batch(seed=step), config=run, share=1.0, step=step, look=asked)
            if step == 0:
                before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
        figures = metrics.health()
        assert (figures is not None) == looks
        found.append({name: value.tobytes() for name, value in engine.arrays(state)[0].items()})
    assert compiled == [0, 0]
    assert found[0] == found[1]


@pytest.mark.skipif(os.name != "posix", reason="processes are forked as POSIX does")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_crowd_sees_what_one_process_sees(command: list[str], tmp_path: Path, parallel: str) -> None:
    from crowd import run_crowd
    from launcher import run

    flags = [*command, *RICH, "--train.compile", "off", "--optim.schedule.kind", "constant"]
    assert run(tmp_path, [*flags, *OFTEN, "--train.workers", "1", "--name", "one"]) == 0, said(tmp_path)
    for name, health in (("two", OFTEN), ("blind", OFF)):
        crowd = [*flags, *health, "--train.parallel", parallel, "--name", name]
        assert run_crowd(tmp_path, crowd, 2) == [0, 0], said(tmp_path)
    assert equal("two", "blind")
    one, two = (read_health(Path("runs") / n / "health.jsonl", _model(n))[0] for n in ("one", "two"))
    assert len(one) == len(two) == 6
    for ours, theirs in zip(one, two, strict=True):
        for name, value in _numbers(ours).items():
            # Sums in another order, rounded to 4 digits; then AdamW divides by what may be almost nothing.
            assert _numbers(theirs)[name] == pytest.approx(value, rel=5e-3, abs=2e-3), (ours.step, name)


def said(folder: Path) -> str:
    """What the processes in a folder have said on standard error."""
    file = folder / "errors.txt"
    return file.read_text() if file.exists() else ""


def _model(name: str):
    return RunDirectory.open(Path("runs") / name).config.model


def _numbers(health: Health) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for field in ("grad_norm", "grad_rms", "update_ratio", "effective_rank", "balance"):
        found |= {f"{field}.{name}": value for name, value in getattr(health, field).items()}
    found |= {f"entropy.{i}.{j}": v for i, heads in enumerate(health.entropy) for j, v in enumerate(heads)}
    return found | {f"dead.{i}": v for i, v in enumerate(health.dead)} | {"tokens": health.tokens}
