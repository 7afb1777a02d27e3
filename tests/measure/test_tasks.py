"""Tasks: choices by their likelihood, answers that are written, what they score, and the page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.config import validate
from bonsaigpt.data.examples.encoding import prompt_ids
from bonsaigpt.data.examples.reading import example_of
from bonsaigpt.data.tokenizers import ByteTokenizer, with_special
from bonsaigpt.errors import DataError
from bonsaigpt.measure.metrics import accuracy, by_script, exact, f1, metric_named, rouge
from bonsaigpt.measure.tasks import Answer, TaskResult, choose, class_scores, graded, write
from bonsaigpt.study.task_page import confusion, write_task
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def model() -> GPT:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 300}
    return build(validate({"model": sizes}, origin="test").model, seed=3).eval()


def ignored(done: int) -> None:
    """Progress that nobody follows."""


def by_hand(model: GPT, prompt: np.ndarray, choice: np.ndarray) -> float:
    """The log-probability of a choice, all read at once, without a cache."""
    ids = torch.from_numpy(np.concatenate([prompt, choice]).astype(np.int64))
    with torch.inference_mode():
        logs = model(ids[None])[0].double().log_softmax(-1)
    at = torch.arange(len(prompt) - 1, len(ids) - 1)
    return float(logs[at, ids[len(prompt) :]].sum())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_choice_scores_what_it_scores_read_as_a_whole(name: str) -> None:
    config = variant(name)
    model = build(config, seed=1).eval()
    draws = np.random.default_rng(0)
    ids = [draws.integers(0, config.vocabulary, n) for n in (3, 1, 3, 5, 1, 4, 2)]
    prompts, choices = ids[:4], ids[4:]
    found = ENGINE.choice_scores(model, prompts, choices, ignored)
    wanted = np.array([[by_hand(model, p, c) for c in choices] for p in prompts])
    np.testing.assert_allclose(found, wanted, atol=2e-4)  # float32 in another order: a few 1e-6 for each token
    others = ENGINE.choice_scores(model, [p[::-1] for p in prompts[:1]], choices, ignored)  # what stands before matters
    assert np.abs(others - wanted[:1]).max() > 1e-2


def test_the_likeliest_label_is_chosen(model: GPT) -> None:
    examples = [
        example_of({"a": word, "b": label}, "{a}={b}", "") for word, label in (("x", "yes"), ("yy", "no"), ("z", "oh"))
    ]
    labels = ["maybe", "no", "yes"]
    answers = choose(ENGINE, model, TOKENIZER, examples, labels)
    for example, answer in zip(examples, answers, strict=True):
        prompt = prompt_ids(example, TOKENIZER)
        assert prompt.tolist() == [256, *example.prompt.encode()]
        scores = [by_hand(model, prompt, np.append(TOKENIZER.encode(label), 256)) for label in labels]
        assert answer.prediction == labels[int(np.argmax(scores))]
        shares = np.exp(scores) / np.exp(scores).sum()
        assert answer.confidence == pytest.approx(shares.max(), abs=1e-4)
    assert answers[2].reference_rank is None
    assert answers[1].reference_rank in (1, 2, 3)
    with pytest.raises(DataError, match="nothing to choose from"):
        choose(ENGINE, model, TOKENIZER, examples, labels[:1])
    with pytest.raises(DataError, match="the longest label takes 41 tokens"):
        choose(ENGINE, model, TOKENIZER, examples, ["x" * 40, "y"])


def test_labels_that_are_tokens_need_no_end(model: GPT) -> None:
    tokenizer = with_special(TOKENIZER, ["<|yes|>", "<|no|>"])
    [example] = [example_of({"a": "x", "b": "yes"}, "{a}{b}", "")]
    [answer] = choose(ENGINE, model, tokenizer, [example], ["no", "yes"])
    one, two = (by_hand(model, prompt_ids(example, tokenizer), np.array([token])) for token in (257, 258))
    assert answer.prediction == ("yes" if one > two else "no")
    assert answer.confidence == pytest.approx(1 / (1 + math.exp(-abs(one - two))), abs=1e-4)


def test_a_text_is_written_greedily_to_its_end(model: GPT) -> None:
    examples = [example_of({"a": word, "b": "?"}, "{a}:{b}", "") for word in ("x", "long prompt")]
    answers = write(ENGINE, model, TOKENIZER, examples, max_tokens=4)
    for example, answer in zip(examples, answers, strict=True):
        ids = prompt_ids(example, TOKENIZER).tolist()
        said: list[int] = []
        while len(said) < 4:
            with torch.inference_mode():
                said.append(int(model(torch.tensor([ids + said]))[0, -1, : TOKENIZER.vocab_size].argmax()))
            if said[-1] == 256:
                break
        assert answer.prediction == TOKENIZER.decode(said)
        assert 0 < answer.confidence < 1
    with pytest.raises(DataError, match="leave no room"):
        write(ENGINE, model, TOKENIZER, examples, max_tokens=33)


def test_metrics_against_hand_counts() -> None:
    assert exact("The cat!", "a cat") == 1.0
    assert exact("cats", "cat") == 0.0
    assert accuracy("The cat", "cat") == 0.0
    assert accuracy(" cat", "cat") == 1.0
    assert f1("the red cat sat", "a cat sat down") == pytest.approx(2 * 2 / (3 + 3))
    assert f1("", "") == 1.0
    assert f1("x", "") == 0.0
    assert f1("red red", "red") == pytest.approx(2 / 3)
    assert rouge("the cat is on the mat", "the cat sat on the mat") == pytest.approx(5 / 6)
    assert rouge("mat the on", "on the mat") == pytest.approx(1 / 3)  # order counts
    assert metric_named("f1") is f1
    with pytest.raises(DataError, match=r"'f2' is no metric.*f1"):
        metric_named("f2")
    with pytest.raises(DataError, match=r"there is no script nothing\.py"):
        metric_named("nothing.py")


def test_a_script_of_the_users_scores(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("import json, sys\nfor x in sys.stdin: print(len(json.loads(x)['prediction']) / 10)\n")
    answers = [answer("ab", "x"), answer("abc", "y")]
    assert [a.score for a in graded(answers, script)] == [0.2, 0.3]
    for code, message in (
        ("raise ValueError('boom')", "failed: ValueError: boom"),
        ("print('good')", "must write a number"),
        ("print(1)", "was given 2 answers and wrote 1"),
        ("print('nan nan')", "one for each"),
    ):
        script.write_text(code)
        with pytest.raises(DataError, match=message):
            by_script(script, [{"a": 1}, {"a": 2}])


def answer(prediction: str, reference: str, confidence: float = 0.5) -> Answer:
    return Answer(
        prompt=f"is it {reference}?", reference=reference, prediction=prediction, confidence=confidence, record={}
    )


def test_a_result_has_its_error_and_the_worst_first(tmp_path: Path) -> None:
    pairs = [("a", "a", 0.9), ("a", "b", 0.4), ("a", "b", 0.8), ("b", "b", 0.7), ("c", "c", 0.2)]
    result = TaskResult(
        metric="accuracy", answers=graded([answer(*p) for p in pairs], accuracy), labels=["a", "b", "c"]
    )
    assert result.mean == pytest.approx(0.6)
    assert result.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert [a.confidence for a in result.worst_first] == [0.8, 0.4, 0.9, 0.7, 0.2]
    scores = {s.label: (s.examples, s.recall, s.precision) for s in class_scores(result.answers)}
    assert scores == {"a": (1, 1.0, 1 / 3), "b": (3, 1 / 3, 1.0), "c": (1, 1.0, 1.0)}
    assert result.as_dict()["macro_f1"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    names, counts = confusion(result.answers, 3)
    assert (names, counts.tolist()) == (["a", "b", "c"], [[1, 0, 0], [2, 1, 0], [0, 0, 1]])
    names, counts = confusion(result.answers, 2)
    assert (names, counts.tolist()) == (["a", "b", "all others"], [[1, 0, 0], [2, 1, 0], [0, 0, 1]])
    page = write_task(result, tmp_path / "out", label="runs/x@1", data=Path("t.jsonl"), command="bonsai task <x>")
    html = page.read_text()
    assert html.index("is it b?") < html.index("is it a?")
    assert "60.00%" in html
    assert "bonsai task &lt;x&gt;" in html
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [0, 0, 1, 1, 1]
