"""`--kv` and `bonsai study kv` on the command line: what comes out, and what is refused in one sentence."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import KeyValueMemory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A run with RoPE, one with learned positions, and two whose attention takes no policy."""
    folder = tmp_path_factory.mktemp("kv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
        for name, kind, attention in (
            ("turned", "rope", "softmax"),
            ("learned", "learned", "softmax"),
            ("latent", "rope", "latent"),
            ("linear", "none", "linear"),
        ):
            places = ["--runs", str(folder), "--corpora", str(folder / "corpora"), "--data.path", str(tiny_text)]
            flags = [
                "--name",
                name,
                "--model.position.kind",
                kind,
                "--model.attention.kind",
                attention,
                "--data.tokenizer.kind",
                "chars",
                "--train.steps",
                "4",
                "--train.sample_tokens",
                "0",
            ]
            assert main(["train", "my-text", *flags, *places, *tiny_flags]) == 0
    return folder


def bonsai(runs: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([*words, "--runs", str(runs), "--corpora", str(runs / "corpora"), "--threads", "1"]) == code
    return capsys.readouterr()


def test_everything_is_the_default(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["sample", "turned", "--prompt", "the ", "--tokens", "30", "--seed", "3"]
    plain, _ = bonsai(runs, capsys, *sample)
    full, _ = bonsai(runs, capsys, *sample, "--kv", "full")
    assert full == plain
    text, said = bonsai(runs, capsys, *sample, "--kv", "window(6), int8")
    assert len(text) == len("the ") + 30 + 1
    assert "cache policy window(6), int8" in " ".join(said.split())


def test_samples_beyond_the_block_and_many_at_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = bonsai(
        runs, capsys, "sample", "turned", "--prompt", "the ", "--tokens", "40", "--overflow", "error", "--kv",
        "window(3)+h2o(4), int4", "--samples", "3", "--lookup", "1", "--json",
    )  # fmt: skip
    found = json.loads(text)["completions"]
    assert [len(one["tokens"]) for one in found] == [40] * 3


def test_chat_holds_its_history_in_a_cache_that_forgets(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("sat on\n/retry\nfar away\n/reset\nsat on\n"))
    roles = ["--user", "dogs ", "--assistant", "cat ", "--tokens", "12"]
    out, _ = bonsai(runs, capsys, "chat", "turned", "--kv", "sinks(1)+window(5), int4", *roles)
    turns = out.split("dogs ")
    assert turns[1] == turns[5] != turns[2]


def test_eval_tells_loss_and_bits(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = bonsai(runs, capsys, "eval", "turned", "--kv", "window(8), int8, chunk=1", "--json")
    found = json.loads(text)
    assert found["kv"] == "window(8), int8, chunk=1"
    assert found["bits"] == 7 * 2 * 2 * (8 * 8 + 16) + 16 * 32
    assert abs(found["loss_added"]) < 1e-3
    line, _ = bonsai(runs, capsys, "eval", "learned", "--kv", "full, int2")
    assert "nats" in line
    assert "in pieces of 8" in line


def test_the_study_writes_and_recommends(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--policy", "window(8), int8", "--policy", "window(4), bf16"]
    few = ["--rows", "2", "--length", "24", "--chunk", "4", "--out", str(tmp_path / "made")]
    text, _ = bonsai(runs, capsys, "study", "kv", "turned", *words, *few, "--max-bits", "100")
    assert "Best uncompressed" in text
    assert "Found by search" in text
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"kv.html", "kv.png", "kv.csv"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sample", "turned", "--kv", "windw(4)"], "'windw' in the cache policy is not known.*Did you mean 'window'"),
        (["sample", "turned", "--kv", "int4(group=3)"], "does not fit the model: group=3 does not divide the 8"),
        (["sample", "learned", "--kv", "window(4), positions=slot"], "not rope: use positions=true"),
        (["chat", "turned", "--kv", "sinks(4)"], "go with a window"),
        (["eval", "turned", "--kv", "int8", "--weights", "int8"], "cannot go together: measure one at a time"),
        (["eval", "turned", "--kv", "int8", "--memory", "8"], "--kv and --memory cannot go together"),
        (["study", "kv", "learned"], "learned positions.*`bonsai eval --kv` measures a policy within the block"),
        (["study", "kv", "turned", "--policy", "int9"], "'int9' in the cache policy is not known"),
        (["study", "kv", "turned", "--length", "4"], "use --length with more than 8"),
        (["study", "kv", "turned", "--max-loss", "-1"], "'-1' cannot be a limit: use a number above 0"),
        (["study", "kv", "turned", "--max-loss", "1", "--max-bits", "1"], "not allowed with argument"),
    ],
)
def test_what_is_refused(words: list[str], why: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    out, error = bonsai(runs, capsys, *words, code=2)
    assert not out
    assert re.search(why, " ".join(error.split())), error


@pytest.mark.parametrize("run", ["latent", "linear"])
@pytest.mark.parametrize("verb", ["sample", "chat", "eval", "serve", "study kv", "shrink"])
def test_attention_without_keys_and_values_is_refused_in_one_sentence(
    verb: str, run: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to do instead."""
    words = [*verb.split(), run] + (["--kv", "window(4), int4"] if verb != "study kv" else ["--policy", "int4"])
    capsys.readouterr()
    assert main([*words, "--runs", str(runs)]) == 2
    out, error = capsys.readouterr()
    told = " ".join(error.split())
    assert not out
    assert told.startswith("bonsai: ")
    remedy = f"beside it with --variant {run}" if verb == "study kv" else "leave the policy out, its own cache is small"
    assert remedy in told


def test_training_through_a_policy_needs_keys_and_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "copy", "--model.attention.kind", "latent", "--train.kv", "int4", "--runs", str(tmp_path)]
    assert main(words) == 2
    assert "leave the policy out" in " ".join(capsys.readouterr().err.split())


def test_no_convention_knows_a_memory(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("some.txt").write_text("the cat sat on the mat " * 8, encoding="utf-8")
    words = ["eval", "tiny", "--text", "some.txt", "--convention", "krony-wikitext"]
    assert main(words) == 0
    monkeypatch.setattr("bonsaigpt.cli.eval.memory_of", lambda opened, tokens: KeyValueMemory(length=4))
    assert main(words) == 2
    assert "--memory 0 scores it without" in capsys.readouterr().err
