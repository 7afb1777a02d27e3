"""`bonsai eval --details`: figures with errors, a page, and a pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bonsaigpt.cli import main


def test_details_of_a_run_against_another(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", "tiny", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["eval", "tiny", "--details", "--against", "tiny@2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["value"] == pytest.approx(plain["loss"], rel=1e-6)
    assert 0 < found["loss"]["error"] < 0.2
    against = found["against"]
    assert against["model"] == "runs/tiny@2"
    assert against["low"] < against["difference"] < against["high"]
    assert main(["eval", "tiny@2", "--json"]) == 0
    worse = json.loads(capsys.readouterr().out)["loss"] - plain["loss"]
    assert against["difference"] == pytest.approx(worse, abs=1e-5)
    assert {p.name for p in Path("runs/tiny/evaluations/validation").iterdir()} == {
        "details.html",
        "calibration.png",
        "positions.png",
    }
    assert main(["eval", "tiny", "--stride", "2", "--text", "text.txt"]) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "begin every 2 tokens" in out
    for words, message in (
        (["--stride", "9"], "leaves tokens out"),
        (["--details", "--weights", "int8"], "one at a time"),
    ):
        assert main(["eval", "tiny", *words]) == 2
        assert message in capsys.readouterr().err
