"""OpenAI's own client against a live server: the answers are those of `bonsai sample`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="pip install openai")

from bonsaigpt.cli import main  # noqa: E402
from tests.serve.conftest import Live  # noqa: E402


@pytest.fixture
def client(server: Live):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def sampled(runs: Path, capsys: pytest.CaptureFixture[str], *flags: str, name: str = "letters") -> list[dict[str, Any]]:
    with contextlib.chdir(runs.parent):
        command = ["sample", f"runs/{name}", "--json", "--device", "cpu", "--threads", "1", *flags]
        assert main(command) == 0
    return json.loads(capsys.readouterr().out)["completions"]


def test_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["letters", "bytes"]
    assert client.models.retrieve("bytes").owned_by == "bonsai"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'letters'"):
        client.models.retrieve("leters")


def test_the_same_seed_gives_what_bonsai_sample_writes(client, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Far past the block, three texts of one seed, with rules and a bias."""
    flags = "--prompt", "the cat", "--tokens", "80", "--samples", "3", "--seed", "7", "--temperature", "0.9"
    rules = "--top-k", "9", "--presence-penalty", "0.5", "--logit-bias", "3=1.5", "--logprobs", "2"
    expected = sampled(runs, capsys, *flags, *rules)
    made = client.completions.create(
        model="letters",
        prompt="the cat",
        max_tokens=80,
        n=3,
        best_of=3,
        seed=7,
        temperature=0.9,
        presence_penalty=0.5,
        logit_bias={"3": 1.5},
        logprobs=2,
        extra_body={"top_k": 9},
    )
    assert [choice.text for choice in made.choices] == [one["text"] for one in expected]
    assert len({choice.text for choice in made.choices}) == 3
    assert {choice.finish_reason for choice in made.choices} == {"length"}
    for choice, one in zip(made.choices, expected, strict=True):
        assert choice.logprobs.token_logprobs == [p["logprob"] for p in one["logprobs"]]
        tops = [[entry["logprob"] for entry in p["top"]] for p in one["logprobs"]]
        assert [list(top.values())[:2] for top in choice.logprobs.top_logprobs] == tops
        drawn = zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True)
        assert [top[token] for token, top in drawn] == choice.logprobs.token_logprobs
        assert {len(top) for top in choice.logprobs.top_logprobs} == {2, 3}  # one more where it is none of the two
        assert "".join(choice.logprobs.tokens) == choice.text
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (7, 240)
    other = client.completions.create(model="letters", prompt="the cat", max_tokens=80, seed=8)
    assert other.choices[0].text not in [one["text"] for one in expected]


def test_a_stream_is_the_whole_in_pieces(client) -> None:
    asked: Any = {"model": "bytes", "prompt": ["the ", "red dogs"], "n": 2, "max_tokens": 40, "seed": 1, "logprobs": 1}
    whole = client.completions.create(**asked)
    texts, logprobs, finishes, usage = [""] * 4, [[] for _ in range(4)], [None] * 4, None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs[choice.index] += choice.logprobs.token_logprobs
            finishes[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert texts[0] != texts[1]


def test_a_text_ends_before_its_stop(client, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: Any = {"model": "letters", "prompt": "the cat", "max_tokens": 80, "seed": 2}
    free = client.completions.create(**asked).choices[0].text
    stop = free[20:23]
    [expected] = sampled(
        runs, capsys, "--prompt", "the cat", "--tokens", "80", "--seed", "2", "--temperature", "1", "--stop", stop
    )
    for stops in (stop, ["never", stop]):
        [made] = client.completions.create(**asked, stop=stops).choices
        assert (made.text, made.finish_reason) == (free[: free.index(stop)], "stop")
        assert made.text == expected["text"]
    streamed = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected["text"]


def test_echo_scores_the_prompt_as_it_would_have_been_written(client) -> None:
    asked: Any = {"model": "letters", "prompt": "the cat", "seed": 4, "logprobs": 0}
    [made] = client.completions.create(**asked, max_tokens=12).choices
    [scored] = client.completions.create(**asked | {"prompt": "the cat" + made.text}, max_tokens=0, echo=True).choices
    assert scored.text == "the cat" + made.text
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[7:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-4)
    assert scored.logprobs.text_offset == list(range(19))


def test_chat(client) -> None:
    messages: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "on a mat?"},
    ]
    asked: Any = {"model": "bytes", "messages": messages, "max_tokens": 30, "seed": 5}
    made = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    [choice] = made.choices
    text = "Be kind.\nUser: the cat?\nAssistant: sat\nUser: on a mat?\nAssistant: "
    plain = client.completions.create(model="bytes", prompt=text, max_tokens=30, seed=5, stop="\nUser:").choices[0]
    assert choice.message.content == plain.text
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    streamed = list(client.chat.completions.create(**asked, stream=True))
    assert streamed[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.text
    with pytest.raises(openai.BadRequestError, match="cannot have a dialogue"):
        client.chat.completions.create(**asked | {"model": "letters"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"promt": "x"}, "Unrecognized request argument supplied: promt. Did you mean 'prompt'"),
        ({"prompt": "die Katze"}, "the character 'i'"),
        ({"prompt": ""}, "empty"),
        ({"prompt": [99]}, "outside the vocabulary of 18"),
        ({"prompt": [1.5]}, "prompt"),
        ({"max_tokens": 301}, "ask for 300"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"n": 5}, "4 at most"),
        ({"best_of": 2}, "'best_of' other than 'n'"),
        ({"best_of": 1, "n": 2}, "'best_of' other than 'n'"),
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"99": 1}}, "99"),
        ({"stream_options": {}}, "only allowed with 'stream'"),
        ({"prompt": "cat " * 400}, "too many"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_by_name(client, body: dict[str, Any], words: str, stream: bool) -> None:
    if stream and "stream_options" in body:
        pytest.skip("is allowed there")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="letters", prompt="the", extra_body=body, stream=stream)
    assert words in str(caught.value)
    assert caught.value.type == "invalid_request_error"
