"""The functions of ``bonsaigpt.api`` do what the verbs do, and say the same errors; the examples run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bonsaigpt as bonsai
import bonsaigpt.api
from bonsaigpt.api import Rules
from bonsaigpt.api.words import flags, setting_flags
from bonsaigpt.cli import (
    compress,
    export,
    fetch,
    finetune,
    main,
    parity,
    prepare,
    shrink,
    stretch,
    study_compress,
    study_kv,
    sweep,
    task,
    train,
)
from bonsaigpt.cli.common import Parser
from bonsaigpt.config import dump_toml
from bonsaigpt.errors import BonsaiError, CheckpointError, ConfigError, DataError, GenerateError, OutputError
from bonsaigpt.sampling import Sampling
from bonsaigpt.study.plan import parse_axis

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tiny(tiny_text: Path, tiny_flags: list[str]) -> dict[str, Any]:
    """Settings of a model that trains in a tenth of a second, on a text of its own."""
    names = [flag.removeprefix("--") for flag in tiny_flags[::2]]
    more = {"data.path": tiny_text, "data.tokenizer.kind": "chars", "train.eval_interval": 4, "train.sample_tokens": 5}
    return {**dict(zip(names, tiny_flags[1::2], strict=True)), **more}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all tests of this file."""
    with contextlib.chdir(folder := tmp_path_factory.mktemp("api")), pytest.MonkeyPatch.context() as patch:
        for name in ("BONSAI_RUNS", "BONSAI_CORPORA"):
            patch.delenv(name, raising=False)
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)  # of every run, half a second each
        yield folder


@pytest.fixture(scope="module")
def run(workshop: Path, tiny: dict[str, Any]) -> bonsai.Run:
    return bonsai.train("my-text", name="a", steps=6, settings=tiny, quiet=True)


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a verb prints."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def test_importing_is_instant_and_the_names_are_there() -> None:
    code = (
        "import sys, bonsaigpt as bonsai\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'rich', 'matplotlib'} & set(sys.modules); assert not heavy, heavy\n"
        "assert {'train', 'load', 'Run'} <= set(dir(bonsai))\n"
        "assert callable(bonsai.train) and bonsai.load\n"
        "import bonsaigpt.train.loop as loop; assert bonsai.train.loop is loop and callable(bonsai.train)\n"
        "assert 'torch' not in sys.modules\n"
        "try: bonsai.trian\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit('found bonsai.trian')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_is_the_one_that_its_command_makes(
    run: bonsai.Run, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = run.directory.environment["command"]
    assert command.startswith("bonsai train my-text --name=a --model.n_layer=1 ")
    words = command.split()[1:]
    printed(capsys, *[word.replace("--name=a", "--name=b") for word in words])
    other = bonsai.load("b")
    assert dump_toml(other.directory.config) == dump_toml(run.directory.config)
    assert all(np.array_equal(other.opened.weights[name], value) for name, value in run.opened.weights.items())
    # The check would see another run:
    third = bonsai.train("my-text", name="c", steps=6, settings={**tiny, "seed": 1}, quiet=True)
    assert any(not np.array_equal(third.opened.weights[n], value) for n, value in run.opened.weights.items())


def test_answers_are_those_of_the_verbs(run: bonsai.Run, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--tokens", 20, "--seed", 3, "--top-k", 5]
    text = run.sample("the cat", tokens=20, seed=3, top_k=5)
    assert printed(capsys, "sample", "a", "--prompt", "the cat", *asked) == text + "\n"
    assert run.sample("the cat", tokens=20, seed=4, top_k=5) != text
    many = json.loads(printed(capsys, "sample", "a", "--prompt", "the", "--samples", 3, *asked, "--json"))
    found = run.complete("the", n=3, tokens=20, seed=3, top_k=5)
    assert [done.tokens for done in found] == [done["tokens"] for done in many["completions"]]
    scores = json.loads(printed(capsys, "eval", "a", "--json"))
    assert run.eval().loss == scores["loss"]
    through = json.loads(printed(capsys, "eval", "a", "--kv", "window(4), int8", "--json"))
    assert run.eval(kv="window(4), int8").loss == through["loss"] != scores["loss"]


def test_the_loss_of_a_text(run: bonsai.Run, workshop: Path) -> None:
    text = "a red cat sat"
    (workshop / "text.txt").write_text(text)
    assert run.loss(text) == run.eval(text="text.txt").loss
    assert run.loss(text) != run.loss("a red dog sat")


def test_it_goes_on(run: bonsai.Run, tiny: dict[str, Any]) -> None:
    first = bonsai.train("my-text", name="longer", steps=4, settings=tiny, quiet=True)
    assert first.resume(8, quiet=True).history.steps == 8
    again = bonsai.train("my-text", name="longer", steps=4, settings=tiny, auto_resume=True, quiet=True)
    assert again.history.steps == 8
    with pytest.raises(OutputError, match="exists already"):
        bonsai.train("my-text", name="longer", steps=4, settings=tiny)
    warm = bonsai.train("my-text", name="warm", steps=2, init=run, settings=tiny, quiet=True)
    assert warm.history.steps == 2
    assert bonsai.load("longer@8", device="cpu").opened.step == 8


def test_runs_of_a_run(run: bonsai.Run, capsys: pytest.CaptureFixture[str]) -> None:
    small = run.compress(0.5, calibrate=400, name="half", quiet=True)
    assert str(small.opened.label) == "runs/half@0"
    assert "half" in repr(small)
    pairs = [{"prompt": f"the {word} ", "completion": "sat"} for word in ("cat", "dogs", "mat", "red", "home", "far")]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    two = [{"prompt": pair["prompt"], "chosen": "sat", "rejected": "ran"} for pair in pairs]
    Path("two.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in two))
    tuned = run.finetune(
        "pairs.jsonl", val="pairs.jsonl", epochs=1, adapter="lora", rank=2, adapt=["*.c_fc.*", "*.c_proj.*"], quiet=True
    )
    assert tuned.config.vocabulary == run.config.vocabulary + 1  # an end of text
    assert {(s.kind, s.rank) for s in tuned.config.structure.values()} == {("lora", 2)}  # type: ignore[union-attr]
    answers = tuned.task("pairs.jsonl", tokens=3, out="there", quiet=True)
    assert len(answers.answers) == len(pairs)
    assert Path("there/report.html").is_file()
    preferred = tuned.finetune("two.jsonl", val="two.jsonl", beta=0.5, epochs=1, name="preferred", quiet=True)
    assert preferred.directory.config.optim.objective.model_dump()["beta"] == 0.5
    longer = run.stretch(16, steps=2, settings={"train.device": "cpu"}, quiet=True)
    assert longer.config.block_size == 16
    assert capsys.readouterr().out == ""
    assert run.report().is_file()
    assert "half" in bonsai.compare([run, small, "runs/a-16"]).read_text(encoding="utf-8")


def test_a_model_leaves_and_comes(run: bonsai.Run, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bonsai.export(run, out="elsewhere", quiet=True)
    assert (folder / "config.json").is_file()
    with pytest.raises(BonsaiError, match="q8_0 is no format of --to hf"):
        bonsai.export("a", dtype="q8_0")
    asked: list[list[str]] = []
    monkeypatch.setattr("bonsaigpt.api.verbs.fetch_folder", lambda argv: (asked.append(argv), Path("runs/a"))[1])
    fetched = bonsai.fetch("me/it", revision="main", out="elsewhere")  # whatever folder that is, it is opened
    assert asked == [["me/it", "--revision=main", "--out=elsewhere"]]
    assert fetched.loss("a red cat") == run.loss("a red cat")
    differences = bonsai.parity(run, engine="torch", device="cpu", tokens=4, quiet=True)
    assert differences
    assert not any(difference.parts for difference in differences)


def test_a_sweep_gives_its_points(tiny: dict[str, Any], workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.handbook import InThisProcess

    monkeypatch.setattr("bonsaigpt.cli.sweeping.ProcessPool", InThisProcess)
    points = bonsai.sweep(
        "my-text", {"model.mlp.kind": ["gelu", "relu2"]}, seeds=2, settings={**tiny, "train.steps": 2}, quiet=True
    )
    assert [point.point.settings["model.mlp.kind"] for point in points] == ["gelu", "relu2"]
    assert points[1].difference is not None
    assert points[1].difference.n == 2


def test_a_sweep_takes_values_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("bonsaigpt.api.verbs.sweep_runs", lambda argv: (asked.append(argv), ([], 130))[1])
    grid = {"optim.lr_scale": [{}, {"*.wte": 0.5, "*.wpe": 2}], "train.kv": ["full", "window(4), int8"]}
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        bonsai.sweep("my-text", grid)
    axes = [parse_axis(word.removeprefix("--grid=")) for word in asked[0] if word.startswith("--grid=")]
    assert [axis.values for axis in axes] == [("{}", '{"*.wte": 0.5, "*.wpe": 2}'), ("full", "window(4), int8")]


def test_errors_are_those_of_the_verbs(run: bonsai.Run, tiny: dict[str, Any], workshop: Path) -> None:
    def refused(kind: type[BonsaiError], words: str) -> Any:
        return pytest.raises(kind, match=words)

    with refused(BonsaiError, "Did you mean --model.n_layer"):
        bonsai.train("my-text", settings={"modl.n_layer": 3})
    with refused(ConfigError, "no recipe 'my-txt'. Did you mean 'my-text'"):
        bonsai.train("my-txt")
    with refused(CheckpointError, "Did you mean 'warm'|no run at"):
        bonsai.load("runs/worm")
    with refused(GenerateError, "no rule 'temprature'. Did you mean 'temperature'"):
        run.sample("a", temprature=1.0)  # type: ignore[call-arg]
    with refused(GenerateError, "ask for 1 or more"):
        run.complete("a", n=0)
    with refused(DataError, "needs at least two"):
        run.loss("a")
    assert sorted(p.name for p in workshop.iterdir() if p.name.startswith(".")) == []


def test_ctrl_c_ends_the_script(run: bonsai.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, error in ((130, KeyboardInterrupt), (143, SystemExit)):
        monkeypatch.setattr("bonsaigpt.api.run.train_run", lambda words, code=code: (run.directory, code))
        with pytest.raises(error) as raised:
            bonsai.train("my-text")
        assert ("bonsai.load('runs/a').resume() goes on" in str(raised.value)) == (code == 130)
    monkeypatch.setattr("bonsaigpt.api.run.train_run", lambda words: (run.directory, 0))
    assert bonsai.train("my-text").directory.path == run.directory.path


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_draws_nothing_on_any_stream(
    quiet: bool, run: bonsai.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdout, sys.stderr):  # bars are for terminals
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    run.study_kv(["full, int8"], fast=True, quiet=quiet)
    said = capsys.readouterr()
    assert (not said.err) == (not said.out) == quiet


def test_arguments_become_words() -> None:
    assert flags(block_size=8, dry_run=True, quiet=False, name=None) == ["--block-size=8", "--dry-run"]
    assert flags(freeze=["a", Path("b")], adapt=(), dropout=0.0) == ["--freeze=a", "--freeze=b", "--dropout=0.0"]
    asked = {"model.n_layer": 2, "train.tensorboard": False, "optim.lr": 1e-3, "a": None, "b": {"kind": "x"}}
    assert setting_flags(asked, steps=5) == [
        "--model.n_layer=2",
        "--train.tensorboard=false",
        "--optim.lr=0.001",
        "--a=unset",
        '--b={"kind": "x"}',
        "--train.steps=5",
    ]


class Caught(Exception):
    """A verb has made its parser."""


OWN = {"self", "settings", "quiet", "recipe", "source", "model", "run", "steps", "grid", "runs", "corpora"}
"""Keywords that are no flags of their own, or are flags of every verb."""
PLACED = {"engine", "device", "precision", "threads"}
"""Flags that a run was loaded with."""
MIRRORED: dict[str, tuple[Any, Any, set[str]]] = {
    # the function, the verb, and those of its flags that have no place in a function
    "train": (bonsaigpt.api.train, train.train_run, {"resume", "dry_run"}),
    "sweep": (bonsai.sweep, sweep.sweep_runs, set()),
    "prepare": (bonsai.prepare, prepare.prepare_corpora, set()),
    "fetch": (bonsai.fetch, fetch.fetch_folder, set()),
    "export": (bonsai.export, export.export_model, set()),
    "parity": (bonsai.parity, parity.engines_apart, set()),
    "compress": (bonsai.Run.compress, compress.compress_run, {"dry_run", "shapes"}),
    "finetune": (bonsai.Run.finetune, finetune.finetune_run, set()),
    "stretch": (bonsai.Run.stretch, stretch.stretch_run, set()),
    "shrink": (bonsai.Run.shrink, shrink.shrink_run, set()),
    "task": (bonsai.Run.task, task.task_result, {"json", *PLACED}),
    "study kv": (bonsai.Run.study_kv, study_kv.measure, PLACED),
    "study compress": (bonsai.Run.study_compress, study_compress.measure, set()),
}


@pytest.mark.parametrize("verb", MIRRORED)
def test_keywords_are_the_flags_of_the_verb(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In step: a flag that is added to a verb has to be added to its function."""
    function, words, left_out = MIRRORED[verb]
    seen: list[Parser] = []

    def caught(parser: Parser, argv: list[str]) -> None:
        seen.append(parser)
        raise Caught

    monkeypatch.setattr(Parser, "parse", caught)
    monkeypatch.setattr(Parser, "parse_known_args", caught)
    with pytest.raises(Caught):
        words(["x"])
    dests = {action.dest for action in seen[0]._actions}
    sections = {dest for dest in dests if any(other.startswith(f"{dest}.") for other in dests)} | {"seed", "about"}
    known = {dest for dest in dests if "." not in dest} - sections - OWN - {"help"}
    settings = [action for action in seen[0]._actions if "." in action.dest]
    short = {name.removeprefix("--") for action in settings for name in action.option_strings if "." not in name}
    keywords = set(inspect.signature(function).parameters)
    assert keywords - OWN - short == known - left_out
    assert left_out <= known


def test_rules_are_those_of_sampling() -> None:
    assert {*Rules.__annotations__, "seed", "row"} == {field.name for field in dataclasses.fields(Sampling)}


def example(name: str) -> ModuleType:
    """A script of ``examples/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLES = {
    "grow_and_sample": ({}, ["relu2: ", "the curves: compare.html", "Shall I compare"]),
    "prune_and_heal": ({"heal": 2, "calibrate": 400}, ["example-cut@0", "example-healed@"]),
    "shape_the_cache": ({"rows": 2, "length": 40}, ["window(8), int8 ", "Best uncompressed", "--- sinks(1)+window(3)"]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(
    name: str,
    workshop: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for i in range(25):
        (library / f"m{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n" * 40)
    monkeypatch.setattr("sysconfig.get_paths", lambda *_: {"stdlib": str(library)})
    monkeypatch.chdir(tmp_path)
    script = example(name)
    small = {"window(128)": "window(8)", "window(64)": "window(4)", "sinks(4)+window(28)": "sinks(1)+window(3)"}
    if name == "shape_the_cache":
        policies: list[str] = list(script.POLICIES)
        for wide, narrow in small.items():
            policies = [policy.replace(wide, narrow) for policy in policies]
        monkeypatch.setattr(script, "POLICIES", tuple(policies))
    few, expected = EXAMPLES[name]
    settings = {key: value for key, value in tiny.items() if not key.startswith("data.")}
    script.main(steps=4, settings={**settings, "data.tokenizer.kind": "bytes"}, **few)
    out = capsys.readouterr().out
    for words in expected:
        assert words in out


def test_every_example_is_tested() -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
