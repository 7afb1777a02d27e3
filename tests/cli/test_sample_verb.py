"""`bonsai sample`: every way to write, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bonsaigpt.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A run of characters and one of bytes."""
    folder = tmp_path_factory.mktemp("sample")
    places = ["--runs", str(folder), "--corpora", str(folder / "corpora"), "--data.path", str(tiny_text)]
    for kind in ("chars", "bytes"):
        steps = [
            "--train.steps",
            "60",
            "--train.keep_every",
            "20",
            "--train.eval_interval",
            "20",
            "--optim.lr",
            "1e-2",
            "--data.tokenizer.kind",
            kind,
        ]
        assert main(["train", "my-text", "--name", kind, *places, *tiny_flags, *steps]) == 0
    return folder


class Said:
    """Runs a command and keeps what it printed."""

    def __init__(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs, self.capsys = runs, capsys

    def __call__(self, *words: object, run: str = "chars", tokens: int = 20) -> str:
        self.capsys.readouterr()
        command = ["sample", run, "--runs", self.runs, "--prompt", "the ", "--tokens", tokens, *words]
        assert main([str(w) for w in command]) == 0
        out, self.errors = self.capsys.readouterr()
        return out

    def json(self, *words: object, **options: Any) -> dict[str, Any]:
        return json.loads(self(*words, "--json", **options))


@pytest.fixture
def sample(runs: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(runs, capsys)


def test_samples_are_the_texts_of_their_rows_however_many_there_are(sample: Said) -> None:
    one = sample("--seed", 4)
    twenty = sample("--seed", 4, "--samples", 20)  # more than there are rows
    assert twenty.startswith(f"--- 1 ---\n{one}--- 2 ---\nthe ")
    assert twenty.count("--- ") == 20
    three = sample("--seed", 4, "--samples", 3)
    assert twenty.startswith(three)
    assert "400 tokens" not in sample.errors
    assert "60 tokens" in sample.errors


def test_rules_change_the_text_and_greedy_ignores_the_seed(sample: Said) -> None:
    assert sample("--temperature", 0, "--seed", 1) == sample("--temperature", 0, "--seed", 2)
    plain = sample("--temperature", 1.5)
    for rule in (
        ["--top-k", 2],
        ["--top-p", 0.5],
        ["--min-p", 0.3],
        ["--typical-p", 0.3],
        ["--repetition-penalty", 4],
        ["--frequency-penalty", 3],
        ["--presence-penalty", 5],
    ):
        assert sample("--temperature", 1.5, *rule) != plain, rule
    assert "e" not in sample("--logit-bias", "5=-100", tokens=60).removeprefix("the ")


def test_json_says_why_texts_ended_and_how_likely_they_were(sample: Said) -> None:
    made = sample.json("--logprobs", 2, "--samples", 2)
    assert made["model"].endswith("chars@60")
    assert made["prompt"] == "the "
    assert [len(done["tokens"]) for done in made["completions"]] == [20, 20]
    for done in made["completions"]:
        assert done["finish_reason"] == "length"
        assert done["mean_logprob"] == pytest.approx(sum(p["logprob"] for p in done["logprobs"]) / 20)
        for token, found in zip(done["tokens"], done["logprobs"], strict=True):
            assert found["token"] == token
            likeliest = [top["logprob"] for top in found["top"]]
            assert len(likeliest) == 2
            assert likeliest == sorted(likeliest, reverse=True)
            assert found["logprob"] <= likeliest[0] <= 0
    hot = sample.json("--logprobs", 0, "--temperature", 0.01)["completions"][0]["logprobs"]
    assert any(p["logprob"] < -0.01 for p in hot)  # the model's own, not what the temperature made of them


def test_stops(sample: Said) -> None:
    whole = sample.json(tokens=60)["completions"][0]["text"]
    cut = sample.json("--stop", "nothing like it", "--stop", "a", tokens=60)["completions"][0]
    assert cut["finish_reason"] == "stop_string"
    assert cut["text"] == whole[: whole.index("a")]
    by_token = sample.json("--stop-token", 1, tokens=60)["completions"][0]  # the space
    assert by_token["finish_reason"] == "stop_token"
    assert by_token["text"] == whole[: whole.index(" ")]
    assert sample.json("--stop-token", "end", run="bytes")["completions"][0]["finish_reason"] in (
        "length",
        "stop_token",
    )


def test_best_of_prints_the_likeliest_of_the_samples(sample: Said) -> None:
    all_of_them = sample.json("--samples", 6, "--logprobs", 0)["completions"]
    best = max(all_of_them, key=lambda done: done["mean_logprob"])
    assert sample("--best-of", 6) == f"the {best['text']}\n"
    assert [c["text"] for c in sample.json("--best-of", 6)["completions"]] == [best["text"]]


def test_beams_find_a_likelier_text_than_greed(sample: Said) -> None:
    assert sample("--beams", 1) == sample("--temperature", 0)
    assert sample("--beams", 4, "--length-penalty", 0.5).startswith("the ")
    assert len(sample.json("--beams", 4)["completions"]) == 1


def test_guesses_keep_the_text_and_say_how_many_stood(sample: Said) -> None:
    plain = sample(tokens=80)
    assert sample("--lookup", 2, tokens=80) == plain
    assert "guesses stood" in sample.errors
    greedy = sample("--temperature", 0, tokens=80)
    assert sample("--temperature", 0, "--draft", "chars@20", "--guesses", 2, tokens=80) == greedy
    itself = sample.json("--draft", "chars", "--slide", 6, tokens=80)["speculation"]
    assert itself["right"] == itself["guessed"] > 20


def test_patterns(sample: Said, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is missing: pip install 'bonsaigpt[constrain]'")
    for run in ("chars", "bytes"):
        made = sample.json("--pattern", "(cat|dogs) [a-z]{2,4}", "--samples", 5, run=run)
        for done in made["completions"]:
            assert done["text"][:4] in ("cat ", "dogs")
            assert done["finish_reason"] == "complete"
    made = sample.json("--pattern", "[a-z]{30}", "--samples", 2)
    assert {done["finish_reason"] for done in made["completions"]} == {"incomplete"}
    assert "before the pattern was complete" in " ".join(sample.errors.split())
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [{"cat": 1}, {"dogs": [2, 3]}]}', encoding="utf-8")
    for done in sample.json("--json-schema", schema, "--samples", 4, run="bytes")["completions"]:
        assert json.loads(done["text"]) in ({"cat": 1}, {"dogs": [2, 3]})


def test_a_pattern_that_leads_nowhere_is_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="llguidance is missing: pip install 'bonsaigpt[constrain]'")
    assert main(["sample", "chars", "--runs", str(runs), "--pattern", "[a-z]X"]) == 2
    assert "no token of the vocabulary could go on" in capsys.readouterr().err
    assert main(["sample", "chars", "--runs", str(runs), "--pattern", "X"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "no token of the vocabulary can begin the pattern 'X'" in error


def test_help_groups_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    text = capsys.readouterr().out.lower()
    order = ["rules of sampling", "search", "speculation", "patterns"]
    assert [text.index(f"\n{name}:") for name in order] == sorted(text.index(f"\n{name}:") for name in order)


@pytest.mark.parametrize(
    "words",
    [
        "--beams 2 --temperature 0",
        "--beams 2 --temperature 1",
        "--beams 2 --seed 1",
        "--beams 2 --lookup 1",
        "--beams 1 --samples 3",
        "--beams 1 --samples 1",
        "--best-of 1 --samples 1",
        "--lookup 1 --draft chars",
    ],
)
def test_flags_that_contradict_each_other_are_refused_whatever_their_values(
    words: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "chars", "--runs", str(runs), *words.split()]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert "cannot go together" in errors


def test_a_length_penalty_of_nothing_ranks_by_probability(sample: Said) -> None:
    """A text that ends at once is likelier than any that goes on."""
    assert sample("--beams", 3, "--length-penalty", 0, "--stop", "e") == sample(
        "--beams", 3, "--length-penalty", 1e-9, "--stop", "e"
    )
    assert sample("--beams", 3, "--length-penalty", 0, "--stop", "e") != sample(
        "--beams", 3, "--length-penalty", 5, "--stop", "e"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--top-p 2", "--top-p 2.0 is no probability"),
        ("--temperature -1", "--temperature -1.0 cannot be"),
        ("--logit-bias 5=1 --logit-bias 5=2", "the second one of token 5"),
        ("--repetition-penalty 5e-324", "milder"),
        ("--frequency-penalty 1e308 --presence-penalty 1e308 --temperature 0", ""),
    ],
)
def test_settings_that_cannot_be_are_told_by_their_flags(
    words: str, told: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "chars", "--runs", str(runs), "--tokens", "9", *words.split()]) == (2 if told else 0)
    errors = capsys.readouterr().err
    assert told in errors
    assert "Warning" not in errors


@pytest.mark.parametrize("schema", ["true", "false"])
def test_schemas_that_are_truth_values(schema: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "schema.json").write_text(schema, encoding="utf-8")
    words = ["sample", "bytes", "--runs", str(runs), "--json-schema", str(tmp_path / "schema.json"), "--tokens", "5"]
    assert main(words) == (0 if schema == "true" else 2)
    assert ("no value fits" in capsys.readouterr().err) == (schema == "false")


def test_what_is_wrong_with_a_pattern_is_told_without_our_own_grammar(runs: Path, capsys: Any) -> None:
    assert main(["sample", "chars", "--runs", str(runs), "--pattern", r"\bThe\b"]) == 2
    errors = capsys.readouterr().err
    assert "lookarounds not supported" in errors
    assert "llguidance" not in errors
