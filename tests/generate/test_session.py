"""Generation: cached equals uncached, past the block as well; text streams whole characters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bonsaigpt.data.tokenizers import ByteTokenizer, CharTokenizer
from bonsaigpt.errors import GenerateError, TokenizerError
from bonsaigpt.generate import generate, generate_text
from bonsaigpt.generate.context import context_start
from bonsaigpt.generate.reference import generate_uncached
from bonsaigpt.generate.text import TextStream
from bonsaigpt.sampling import Sampling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = TorchEngine(device="cpu")


def lively(name: str, **changes: object) -> GPT:
    """A model with opinions."""
    model = build(variant(name, **changes), seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    return model


def run(function, model: GPT, prompt: np.ndarray, **options) -> list[list[int]]:
    settings = {"tokens": 60, "sampling": Sampling(seed=5)} | options
    return np.stack(list(function(ENGINE, model, prompt, **settings)), axis=1).tolist()


PROMPT = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("slide", [None, 1, 24])
def test_cached_equals_uncached_far_past_the_block(name: str, slide: int | None) -> None:
    """60 tokens over a block of 24: the context slides many times."""
    model = lively(name)
    cached = run(generate, model, PROMPT, slide=slide)
    assert cached == run(generate_uncached, model, PROMPT, slide=slide)
    assert cached[0] != cached[1]


def test_sliding_by_one_is_nanogpts_moving_window() -> None:
    """By its own rule: at every step the last block_size tokens, and nothing else."""
    model = lively("gpt2")
    greedy = Sampling(temperature=0)
    made = run(generate, model, PROMPT[:1], slide=1, sampling=greedy, tokens=40)[0]
    seen = PROMPT[:1].tolist()[0]
    for token in made:
        window = torch.tensor([seen[-24:]])
        with torch.inference_mode():
            assert model(window)[0, -1].argmax().item() == token
        seen.append(token)


def test_context_start() -> None:
    assert [context_start(n, 8, 2) for n in (1, 8, 9, 10, 11, 12, 13)] == [0, 0, 2, 2, 4, 4, 6]
    assert [context_start(n, 8, 1) for n in (8, 9, 10)] == [0, 1, 2]
    for length in range(1, 60):
        for slide in range(1, 9):
            kept = length - context_start(length, 8, slide)
            assert 1 <= kept <= 8
            assert length <= 8 or kept > 8 - slide


def test_a_prompt_longer_than_the_block_is_cut_at_its_start() -> None:
    model = lively("rope")
    long = np.tile(np.arange(17), (1, 3))
    assert run(generate, model, long) == run(generate_uncached, model, long)


def test_error_mode_refuses_before_anything_is_made_and_allows_a_full_block() -> None:
    model = lively("gpt2")
    options = {"overflow": "error", "sampling": Sampling()}
    assert len(run(generate, model, PROMPT[:1], tokens=20, **options)[0]) == 20  # 5 + 20 - 1 = 24: the last is not read
    with pytest.raises(GenerateError, match=r"block of 24.*--overflow slide"):
        next(generate(ENGINE, model, PROMPT[:1], tokens=21, overflow="error", sampling=Sampling()))


def test_a_row_is_the_same_however_many_are_drawn_beside_it() -> None:
    model = lively("modern")
    same = np.repeat(PROMPT[:1], 3, axis=0)
    three = run(generate, model, same)
    assert run(generate, model, same[:1])[0] == three[0]
    assert three[0] != three[1]
    assert run(generate, model, same[:1], sampling=Sampling(seed=6))[0] != three[0]


@pytest.mark.parametrize(
    ("bad", "word"), [({"slide": 0}, "slide = 0"), ({"slide": 25}, "slide"), ({"tokens": -1}, "-1")]
)
def test_impossible_requests(bad: dict, word: str) -> None:
    with pytest.raises(GenerateError, match=word):
        run(generate, lively("gpt2"), PROMPT, **bad)
    with pytest.raises(GenerateError, match="empty"):
        next(generate(ENGINE, lively("gpt2"), np.zeros((1, 0)), tokens=1, sampling=Sampling()))


def test_text_streams_whole_characters_and_equals_the_whole() -> None:
    model = lively("gpt2", vocab_size=257)
    pieces: dict[int, str] = {0: "", 1: ""}

    def on_text(row: int, piece: str) -> None:
        pieces[row] += piece

    texts = generate_text(
        ENGINE, model, ByteTokenizer(), "é", samples=2, tokens=40, sampling=Sampling(), on_text=on_text
    )
    assert texts == [pieces[0], pieces[1]]
    assert texts[0] != texts[1]


def test_a_character_in_pieces_is_held_back_until_it_is_whole() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(b) for b in "a🌱".encode()] == ["a", "", "", "", "🌱"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"
    assert stream.text == "a🌱\ufffd"


def test_an_unknown_character_in_the_prompt_is_named() -> None:
    with pytest.raises(TokenizerError, match="'é'"):
        generate_text(ENGINE, lively("gpt2"), CharTokenizer("abcdefghijklmnopq"), "bé", tokens=1, sampling=Sampling())
