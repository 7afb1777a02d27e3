"""`bonsai bench decode`: figures that follow from each other, counts by hand; `bonsai eval --weights int8`."""

from __future__ import annotations

import json

import pytest

from bonsaigpt.cli import main
from bonsaigpt.measure.decoding import measure_decoding
from bonsaigpt.torch_engine.engine import TorchEngine
from tests.torch_engine.decoders import make, model_of


def test_bytes_are_those_of_the_buffers_and_rates_those_of_the_times() -> None:
    decoder = make("eager", model_of("grouped queries"), rows=3)
    found = measure_decoding(decoder, vocab_size=17, rows=[1, 3], prompt=6, new=5, seconds=0.0, read_rate=1e9)
    assert [one.rows for one in found] == [1, 3]
    for one in found:
        token_bytes = decoder.bits() / 8 / 3 / 24
        assert one.cache_bytes == round(one.rows * token_bytes * 9)  # 7, 8, 9, 10, 11 slots are seen: 9 on average
        assert one.decode == pytest.approx(one.rows / one.step_ms * 1e3)
        assert one.prefill == pytest.approx(6 / one.first_token_ms * 1e3)
        assert one.bandwidth == pytest.approx((one.weight_bytes + one.cache_bytes) / one.step_ms * 1e3)
        assert one.roofline == one.bandwidth / 1e9
        assert one.decode_best >= one.decode
        assert one.rounds == 3


def test_the_verb_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--seconds", "0.01", "--batch", "1,2", "--prompt", "5", "--tokens", "4", "--threads", "1"]
    assert main(["bench", "decode", "--preset", "gpt-nano", *few]) == 0
    out = capsys.readouterr().out
    assert "preset gpt-nano: " in out
    assert "roofline" in out
    assert main(["bench", "decode", "--preset", "gpt-nano", "--json", "--weights", "int8", *few]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["rows"] for one in found["figures"]] == [1, 2]
    assert found["weights"] == "int8"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either a run, or --preset"),
        (["--preset", "gpt-nano", "--prompt", "64"], "do not fit the block of 64"),
        (["--preset", "gpt-nano", "--tokens", "65"], "do not fit the block of 64"),
        (["--preset", "gpt-nano", "--batch", "0"], "whole numbers from 1 on"),
        (["--preset", "gpt-nono"], "gpt-nano"),
        (["runs/none"], "runs/none"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--seconds", "0.01", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_memory_is_read_at_some_gigabytes_a_second() -> None:
    assert 1e8 < TorchEngine(device="cpu").read_rate(seconds=0.05) < 1e13
