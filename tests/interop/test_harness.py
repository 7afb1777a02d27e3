"""lm-evaluation-harness on the live model gives what its own `hf` model gives on the exported one."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.config import validate
from bonsaigpt.data.tokenizers import BpeTokenizer, CharTokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.interop.harness import harness_model, run_harness
from bonsaigpt.interop.writing import write_folder
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.engine import TorchEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the harness is slow to import, and warns
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'bonsaigpt[eval]'"),
]

TASKS = {
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no", "perhaps so"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "whole": """
task: whole
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "written": """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    root = tmp_path_factory.mktemp("tasks")
    os.environ["HF_DATASETS_CACHE"] = str(root / "cache")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "red", "dogs", "run", "far", "away", "from", "home"]
    draws = np.random.default_rng(0)
    rows = [
        {
            "question": " ".join(draws.choice(words, 6)) + "?",
            "answer": int(draws.integers(3)),
            "text": " ".join(draws.choice(words, int(draws.integers(3, 60)))),
        }
        for _ in range(24)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        (root / f"{name}.yaml").write_text(task.replace("DATA", str(root / "data.jsonl")))
    return root


def samples(found: dict[str, Any], task: str) -> list[Any]:
    """What was answered to each question, in order."""
    return [s["filtered_resps"] for s in sorted(found["samples"][task], key=lambda s: s["doc_id"])]


def numbers(answers: list[Any]) -> np.ndarray:
    return np.array([float(part) for answer in answers for part in np.ravel(np.array(answer, dtype=object))])


def test_the_live_model_scores_as_the_exported_one(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    text = (folder / "data.jsonl").read_text()
    tokenizer = BpeTokenizer.train([text], 320)
    sizes = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 32,
        "vocab_size": tokenizer.vocab_size,
        "bias": True,
    }
    config = validate({"model": sizes}, origin="test").model
    weights = {p.name: 5 * initial_value(p, 1) for p in parameters(config) if p.tied_to is None}
    engine = TorchEngine(device="cpu", precision="fp32", workers=1)
    ours = run_harness(harness_model(engine, engine.model(config, weights), tokenizer), list(TASKS), include=folder)
    write_folder(folder / "hf", config, weights, tokenizer, origin="test", card="", dtype="fp32")
    theirs = run_harness(
        HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=4), list(TASKS), include=folder
    )
    assert samples(ours, "written") == samples(theirs, "written")
    for task in ("choices", "whole"):
        one, other = numbers(samples(ours, task)), numbers(samples(theirs, task))
        np.testing.assert_allclose(one, other, rtol=1e-4)  # sums of up to 60 losses in float32
        assert np.ptp(one) > 1.0
    for task, metrics in ours["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and "stderr" not in name:
                assert value == pytest.approx(theirs["results"][task][name], rel=1e-4), name


def test_what_the_harness_cannot_have(folder: Path) -> None:
    tokenizer = CharTokenizer("abc")
    engine = TorchEngine(device="cpu", precision="fp32", workers=1)
    with pytest.raises(DataError, match="a token that begins a text"):
        harness_model(engine, _tiny(engine), tokenizer)
    model = harness_model(engine, _tiny(engine), BpeTokenizer.train(["abc"], 257))
    with pytest.raises(DataError, match=r"no task 'choiced'.*choices"):
        run_harness(model, ["choiced"], include=folder)


def _tiny(engine: TorchEngine) -> Any:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 257}
    config = validate({"model": sizes}, origin="test").model
    return engine.model(config, {p.name: initial_value(p, 1) for p in parameters(config) if p.tied_to is None})
