"""A convention gives what the code gave that the papers used, and not what is sound; a model of equal probabilities
gives the size of the vocabulary in either."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bonsaigpt.config import validate
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError
from bonsaigpt.measure import evaluate
from bonsaigpt.measure.conventions import CONVENTIONS, score_by
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build

ENGINE = TorchEngine(device="cpu", workers=1)
FILE = " \n = Robert <unk> = \n \n Robert <unk> is an English film actor . \n"


def model_of(scale: float = 20.0) -> GPT:
    config = validate(
        {"model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 256, "block_size": 8}}, origin="t"
    )
    model = build(config.model, seed=1).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(scale)
    return model


def of_transformers(model: GPT, ids: np.ndarray, block: int) -> float:
    """The loop of the guide "Perplexity of fixed-length models", with stride = max_length = block."""
    tokens, nlls, previous = torch.from_numpy(ids.astype(np.int64))[None], [], 0
    for begin in range(0, tokens.shape[1], block):
        end = min(begin + block, tokens.shape[1])
        inputs = tokens[:, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous)] = -100
        with torch.no_grad():
            logits = model(inputs)
        nlls.append(F.cross_entropy(logits[0, :-1], labels[0, 1:]))
        previous = end
    return torch.exp(torch.stack(nlls).mean()).item()


@pytest.mark.parametrize("length", [5, 8, 16, 21, 203])
def test_it_is_the_guides_loop(length: int) -> None:
    model, ids = model_of(), np.random.default_rng(length).integers(0, 256, length)
    found = score_by(ENGINE, model, ids, block=8)
    assert found.perplexity == pytest.approx(of_transformers(model, ids, 8), rel=1e-5)
    assert found.windows == math.ceil(length / 8)
    assert found.targets == length - found.windows


def test_it_is_not_what_is_sound() -> None:
    """The first token of each window is never asked for, and a short last window weighs as much as a whole one."""
    model, ids = model_of(), np.random.default_rng(0).integers(0, 256, 20)
    val = TokenStream.of(ids)
    plan = BatchPlan(batch_size=1, block_size=8)
    source = TokenBatches(
        train=val, val=val, tokenizer=ByteTokenizer(), order="shuffled", seed=0, plan=plan, fingerprint="x"
    )
    sound, found = evaluate(ENGINE, model, source), score_by(ENGINE, model, ids, block=8)
    assert (sound.tokens, found.targets) == (19, 17)
    assert abs(math.log(found.perplexity) - sound.loss) > 0.01
    even = model_of(0.0)
    assert score_by(ENGINE, even, ids, block=8).perplexity == pytest.approx(256, rel=1e-5)
    assert evaluate(ENGINE, even, source).perplexity == pytest.approx(256, rel=1e-5)


def test_a_last_token_alone_asks_nothing() -> None:
    model, ids = model_of(), np.random.default_rng(0).integers(0, 256, 17)
    assert math.isnan(of_transformers(model, ids, 8))
    found = score_by(ENGINE, model, ids, block=8)
    assert found == score_by(ENGINE, model, ids[:16], block=8)
    with pytest.raises(DataError, match="fewer than two tokens"):
        score_by(ENGINE, model, ids[:1], block=8)


def test_files_become_the_papers_texts() -> None:
    wikitext, lambada = (CONVENTIONS[f"krony-{name}"].text for name in ("wikitext", "lambada"))
    rows = ["", " = Robert <unk> = \n", "", " Robert <unk> is an English film actor . \n"]
    assert wikitext(FILE) == "\n\n".join(rows)
    assert lambada("one passage\n\nand another\n") == "one passage\n\nand another"


def test_lines_end_at_newlines_alone() -> None:
    assert CONVENTIONS["krony-wikitext"].text("a\u2028b\x85c\n \nd") == "a\u2028b\x85c\n\n\n\n\nd"
    assert CONVENTIONS["krony-lambada"].text("a\u2028b\x0cc\n\nd\n") == "a\u2028b\x0cc\n\nd"
