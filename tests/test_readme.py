"""README and handbook are true: their commands run, their links lead somewhere, their tests exist."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bonsaigpt import api
from bonsaigpt.cli import VERBS, main
from tests.data.dumps import Page, dump
from tests.handbook import ROOT, commands, executes, furnish, possible, quick

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def programs(page: str) -> list[str]:
    """The Python blocks of the page."""
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for granted."""
    furnish(tmp_path, monkeypatch)
    return tmp_path


@executes("README.md")
def test_the_readmes_commands_run_in_order(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) >= 12
    for command in possible(found):
        if any("shakespeare" in word for word in command):
            continue  # its text is not on every disk: the next test
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "compare.html").is_file()


def test_the_readmes_shakespeare_commands_run(
    workshop: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(shared_data / "tinyshakespeare.txt", workshop)  # as if it had been downloaded
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    for command in [c for c in found if any("shakespeare" in word for word in c)]:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "runs" / "shakespeare-char" / "report.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_programs_run(page: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, compress = api.train, api.Run.compress
    few = {"model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "train.eval_interval": 2, "train.compile": "off"}

    def quick_train(recipe: str, *, steps: int, settings: dict[str, Any], **more: Any) -> api.Run:
        return train(recipe, steps=4, settings={**settings, **few}, **more)

    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    monkeypatch.setattr("bonsaigpt.api.train", quick_train)
    monkeypatch.setattr(api.Run, "compress", lambda *a, heal, **more: compress(*a, heal=4, calibrate=400, **more))
    found = programs((ROOT / page).read_text(encoding="utf-8"))
    assert found
    names: dict[str, Any] = {}
    for program in found:
        exec(program, names)
    assert names["run"].history.finished


@executes("studies.md")
def test_the_commands_of_sweeps_and_studies_run(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)  # of two dozen runs
    found = commands((ROOT / "docs" / "studies.md").read_text(encoding="utf-8"))
    assert {tuple(c[:2]) for c in found} == {("sweep", "my-text"), ("study", "batch"), ("study", "lr")}
    for command in found:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    for written in (
        "my-text-sweep/sweep.html",
        "my-text-batch/batch.png",
        "wide/studies/batch.json",
        "my-text-lr/lr.png",
    ):
        assert (workshop / "runs" / written).is_file()


@executes("data.md")
def test_the_commands_of_data_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
    assert {c[0] for c in found} == {"prepare", "train", "data"}
    for command in found:
        words = [w for word in command for w in (sorted(glob.glob(word)) if "*" in word else [word])]  # as a shell does
        assert main(quick(words)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert list((workshop / "corpora").glob("*/stats.png"))


@executes("dryrun.md")
def test_the_commands_before_the_run_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / "dryrun.md").read_text(encoding="utf-8"))
    assert len(found) == 2
    for command in found:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
        assert "nothing was trained" in capsys.readouterr().out
    assert not (workshop / "runs").exists()


@executes("health.md")
def test_the_commands_of_health_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / "health.md").read_text(encoding="utf-8"))
    assert [c[0] for c in found] == ["train", "report", "train"]
    for command in found:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert len((workshop / "runs" / "watched" / "health.jsonl").read_text().splitlines()) == 2
    assert "<h2>Health</h2>" in (workshop / "runs" / "watched" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Health</h2>" not in (workshop / "runs" / "unwatched" / "report.html").read_text(encoding="utf-8")


@executes("decoding.md")
def test_the_commands_of_decoding_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = shlex.split("train my-text --data.path my-texts --name mine")
    found = commands((ROOT / "docs" / "decoding.md").read_text(encoding="utf-8"))
    assert [c[0] for c in found] == ["bench", "bench", "eval"]
    for command in [train, *found]:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert "int8 weights: " in capsys.readouterr().out


@executes("context.md")
def test_the_commands_of_context_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / "context.md").read_text(encoding="utf-8"))
    verbs = ["study", "study", "train", "stretch", "eval", "stretch", "train", "eval", "eval", "eval", "data"]
    assert [c[0] for c in found] == verbs
    for command in found[2:]:
        small = [word if word != "100" else "3" for word in command]  # steps
        few = ["--steps", "3"] if command[0] == "stretch" and "--steps" not in command else []
        assert main([*quick(small), *few]) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert "starts anew" in capsys.readouterr().out
    assert (workshop / "runs" / "short-256" / "report.html").is_file()
    assert main(quick([*found[2][:-1], "long", "--model.block_size", "128"])) == 0
    for command in found[:2]:
        few = ["--rows", "2", "--lengths", "64,128", "--steps", "0,1", "--fast", "--only", "yarn"]
        assert main([*command, *few]) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "runs" / "short" / "studies" / "context.csv").is_file()


@executes("kronecker.md")
def test_the_commands_of_compression_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = shlex.split("train my-text --data.path my-texts --name mine")
    found = commands((ROOT / "docs" / "kronecker.md").read_text(encoding="utf-8"))
    assert {c[0] for c in found} == {"compress", "train", "study"}
    for command in [train, *found]:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "plan.toml").is_file()
    assert (workshop / "runs" / "quarter" / "plan.toml").is_file()
    assert (workshop / "runs" / "mine" / "studies" / "compress.csv").is_file()


@executes("kv.md")
def test_the_commands_of_the_cache_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "--model.position.kind rope --model.block_size 16 --model.n_layer 1 --model.n_head 2 --model.n_embd 16"
    assert main(quick(shlex.split(f"train my-text --data.path my-texts --name mine {model}"))[:-4]) == 0
    found = commands((ROOT / "docs" / "kv.md").read_text(encoding="utf-8"))
    verbs = ["sample", "chat", "eval", "study", "train", "shrink", "eval", "shrink", "train", "eval", "study"]
    assert [c[0] for c in found] == verbs
    for command in found:
        few = ["--rows", "2", "--length", "24", "--chunk", "8", "--fast"] if command[0] == "study" else []
        few = few if not few or "runs/lookup" not in command else ["--policy", "window(8)", "--rows", "2"]
        few += ["--steps", "3"] if command[0] == "shrink" else []
        few += ["--model.n_layer", "2"] if "whole" in command and command[0] == "train" else []  # one reads the other's
        small = [word.replace("32", "8").replace("28", "8").replace("16,", "4,").replace("24", "8") for word in command]
        words = small if command[0] == "study" else quick(small)
        assert main([*words, *few]) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "runs" / "mine" / "studies" / "kv.csv").is_file()


@executes("tokenizers.md")
def test_the_commands_of_tokenizers_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / "tokenizers.md").read_text(encoding="utf-8"))
    assert len(found) == 4
    for command in found:
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert (workshop / "runs" / "pieces" / "report.html").is_file()


@executes("corpora.md")
def test_the_commands_of_the_sources_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    [recipe] = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (workshop / "wiki.toml").write_text(recipe.replace("4096", "300"), encoding="utf-8")  # as the workshop is small
    words = [
        f"== Tree {i} ==\nA [[bonsai]] is a tree. {{{{cite}}}} " + "It is pruned, not hurried. " * i for i in range(40)
    ]
    pages = [Page(f"Tree {i}", text) for i, text in enumerate(words)]
    (workshop / "simplewiki-latest-pages-articles.xml.bz2").write_bytes(bz2.compress(dump(pages)))
    (workshop / "reviews").mkdir()
    lines = "".join(json.dumps({"review": text}) + "\n" for text in words)
    (workshop / "reviews" / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (workshop / "wikitext-2").mkdir()
    articles = "".join(f" \n = Tree {i} = \n \n {text} \n" for i, text in enumerate(words))
    (workshop / "wikitext-2" / "wiki.train.tokens").write_text(articles)
    found = commands(page)
    assert {c[1] for c in found if c[0] == "prepare"} >= {"files", "wiki.toml", "wikitext", "tinystories", "hub"}
    for command in found:
        if "--download" in command:  # needs the network: its flags are right nevertheless
            capsys.readouterr()
            assert main([word for word in command if word != "--download"]) == 2
            assert "--download" in capsys.readouterr().err
        else:
            assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"


@executes("watch.md")
def test_the_commands_of_watching_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workshop / "runs" / "my-text-sweep").mkdir(parents=True)
    for command in commands((ROOT / "docs" / "watch.md").read_text(encoding="utf-8")):
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
    assert "watching runs at" in capsys.readouterr().err


@executes("serving.md")
def test_the_commands_of_serving_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("mine", "chars"), ("mine-bytes", "bytes")):
        train = f"train my-text --data.path my-texts --name {name} --data.tokenizer.kind {kind}"
        assert main(quick(shlex.split(train))) == 0
    found = commands((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))
    assert len(found) >= 2
    for command in found:
        capsys.readouterr()
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"
        assert "open http://127.0.0.1:" in capsys.readouterr().err


@executes("reading.md", "toys.md")
@pytest.mark.parametrize("page", ["reading.md", "toys.md"])
def test_the_commands_of_reading_and_toys_run(page: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(found) >= 2
    for command in found:
        sizes = ["--model.block_size", "16"] if page == "reading.md" else ["--data.sequences", "100"]
        small = sizes if command[1] in ("my-text", "stdlib", "markov") else ["--data.val_examples", "100"]
        assert main([*quick(command), *small]) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"


@executes("sampling.md", "generation.md")
def test_the_commands_of_sampling_and_generation_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [("mine", 2, "chars"), ("small", 1, "chars"), ("mine-bytes", 1, "bytes")]
    for name, layers, kind in sizes:
        train = f"train my-text --data.path my-texts --name {name} --data.tokenizer.kind {kind}"
        assert main([*quick(shlex.split(train)), "--model.n_layer", str(layers)]) == 0
    (workshop / "schema.json").write_text('{"type": "integer", "minimum": 0, "maximum": 99}', encoding="utf-8")
    found = [c for page in ("sampling", "generation") for c in commands((ROOT / f"docs/{page}.md").read_text("utf-8"))]
    assert len(found) >= 12
    for command in possible(found):
        assert main(quick(command)) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"


@executes("start.md", "coins.md", "sorting.md", "shrinking.md")
@pytest.mark.slow
@pytest.mark.parametrize("page", ["start", "coins", "sorting", "shrinking"])
def test_the_commands_of_the_worked_paths_run(
    page: str, workshop: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In small; what they print at full size is recorded, see test_figures.py."""
    shutil.copy(shared_data / "tinyshakespeare.txt", workshop)
    small = {"zero-one": ["--data.sequences", "100"], "zero_one": ["--data.sequences", "100"]}
    small |= {"sort": ["--data.val_examples", "100"], "runs/zero-one": []}
    for command in commands((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        if "jax" in command and find_spec("optax") is None:
            continue
        words = [*quick(command), *small.get(command[1] if command[0] in ("train", "prepare", "study") else "", [])]
        if "--resume" in command:
            words = [*command, "--train.steps", "6", "--train.eval_interval", "6"]
        assert main(words) == 0, f"bonsai {shlex.join(command)}\n{capsys.readouterr().err}"


def test_the_check_sees_a_command_that_does_not_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [command] = commands("```sh\nbonsai train stdlib --modl.n_layer 3\n```")
    assert main(quick(command)) == 2
    assert "Did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for named in re.findall(r"`((?:tests|benchmarks|docs|src)/[\w./-]+)`", text):
        assert (ROOT / named).exists(), f"{page.name} names {named}"
    assert "@@" not in text


def test_every_verb_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert f"bonsai {verb}" in out
        assert "example:" in out
