"""What the page's questions are answered, and the page's own promises: its size, and nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="pip install httpx")

from bonsaigpt.kv import full_bits_per_token, read_policy  # noqa: E402
from bonsaigpt.torch_engine.engine import TorchEngine  # noqa: E402
from tests.serve.conftest import Live, served  # noqa: E402

PAGE = files("bonsaigpt.serve") / "page"


@pytest.fixture
def http(server: Live) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def asked(http: Any, what: str, status: int = 200, **body: Any) -> Any:
    answer = http.post(f"/bonsai/{what}", json={"model": "letters"} | body)
    assert answer.status_code == status, answer.text
    return answer.json() if what != "write" or status != 200 else events(answer.text)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.removeprefix("data: ")) for part in text.strip().split("\n\n")]


def test_the_page_is_small_and_asks_for_nothing_from_elsewhere(http: Any) -> None:
    parts = {
        name: http.get("/" if name == "page.html" else f"/bonsai/{name}")
        for name in ("page.html", "page.css", "page.js")
    }
    assert sum(len(part.content) for part in parts.values()) < 60_000
    for name, part in parts.items():
        assert part.status_code == 200
        assert "default-src 'none'" in part.headers["content-security-policy"]
        addresses = re.findall(r"https?://[^\s\"')]+", part.text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name  # a name, not an address
    assert not re.search(r"\son\w+=|\sstyle=", parts["page.html"].text)  # the policy would forbid both


def test_models_tell_what_the_pickers_need(http: Any) -> None:
    letters, everything = http.get("/bonsai/models").json()["models"]
    assert (letters["vocabulary"], letters["tokenizer"], letters["block"]) == (18, "chars", 32)
    assert letters["no_policies"] == ""
    assert everything["id"] == "bytes"
    assert letters["alphabet"] != everything["alphabet"]


def test_what_is_written_is_what_completions_write_and_reading_it_finds_its_probabilities(http: Any) -> None:
    text = "the cat sat"
    ids = [token["id"] for token in asked(http, "read", text=text)["tokens"]]
    *written, end = asked(http, "write", tokens=ids, max_tokens=15, seed=3, temperature=0.9)
    body = {"model": "letters", "prompt": text, "max_tokens": 15, "seed": 3, "temperature": 0.9}
    plain = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "".join(token["text"] for token in written) == plain
    assert (end["finish"], end["made"]) == ("length", 15)
    assert end["seconds"] > 0
    read = asked(http, "read", tokens=[*ids, *(token["id"] for token in written)])
    assert read["tokens"][0]["logprob"] is None
    found = [token["logprob"] for token in read["tokens"][len(ids) :]]
    assert found == pytest.approx([token["logprob"] for token in written], abs=1e-4)
    every = [token["logprob"] for token in read["tokens"][1:]]
    assert read["loss"] == pytest.approx(-np.mean(every), abs=1e-4)


def test_a_policy_costs_loss_and_saves_bits(http: Any, runs: Any) -> None:
    text = "the red dogs run far away"
    whole, cut = (asked(http, "read", text=text, kv=kv) for kv in ("", "window(4), int4"))
    assert whole["bits_per_token"] == full_bits_per_token(served(runs, "letters").config)
    assert cut["bits"] < whole["bits"] / 4
    assert cut["loss"] != whole["loss"]
    assert "window(0)" in asked(http, "read", 400, text=text, kv="window(0)")["error"]["message"]
    assert asked(http, "read", 400, text=text, kv="widow(4)")["error"]["param"] == "kv"


def test_next_tells_both_distributions(http: Any) -> None:
    free = asked(http, "next", text="the ca", top=18)
    assert sum(p for _, _, p, _ in free["tokens"]) == pytest.approx(1, abs=1e-4)
    assert [p for _, _, p, _ in free["tokens"]] == pytest.approx([q for *_, q in free["tokens"]], abs=2e-6)
    cut = asked(http, "next", text="the ca", top=18, top_k=3, temperature=0.5)
    drawn = [q for *_, q in cut["tokens"] if q]
    assert len(drawn) == cut["kept"] == 3
    assert sum(drawn) == pytest.approx(1, abs=1e-5)
    assert [p for _, _, p, _ in cut["tokens"]] == [p for _, _, p, _ in free["tokens"]]


@pytest.mark.parametrize("kv", ["", "sinks(1)+window(3)"])
def test_attention_is_the_engines(http: Any, runs: Any, kv: str) -> None:
    told = asked(http, "attention", text="the cat sat on", kv=kv)
    shape = told["layers"], told["heads"], told["tokens"], told["tokens"]
    maps = np.frombuffer(base64.b64decode(told["maps"]), dtype=np.uint8).reshape(shape) / 255
    model = served(runs, "letters")
    ids = np.array(model.encode("the cat sat on"))
    exact = TorchEngine(device="cpu").attention_maps(model.model, ids, read_policy(kv or "full"))
    assert np.abs(maps - exact).max() <= 0.5 / 255 + 1e-6
    assert (maps[0, 0, -1] == 0).any() == bool(kv)


@pytest.mark.parametrize("what", ["read", "next", "write", "attention"])
@pytest.mark.parametrize(
    "body", [{"model": "nobody"}, {"tokens": [99]}, {"text": "Ü"}, {"tokens": []}, {"kv": "x" * 400}, {"nonsense": 1}]
)
def test_what_cannot_be_is_refused(http: Any, what: str, body: dict[str, Any]) -> None:
    status = 404 if "model" in body else 400
    assert asked(http, what, status, **({"text": "the"} | body if "tokens" not in body else body))["error"]["message"]


def test_a_text_past_the_block_is_read_as_it_goes_on(http: Any) -> None:
    """The model goes on with the last part of it; the first part has no probabilities."""
    long = "the cat sat on a mat and saw the red dogs run far away"
    read = asked(http, "read", text=long)
    assert len(read["tokens"]) == len(long)
    assert read["read"] <= 32
    told = asked(http, "next", text=long, top=18)
    body = {"model": "letters", "prompt": long, "max_tokens": 1, "logprobs": 18}
    [tops] = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert {text: p for _, text, p, _ in told["tokens"]} == pytest.approx(
        {text: float(np.exp(value)) for text, value in tops.items()}, abs=1e-4
    )
