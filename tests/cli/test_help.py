"""`--help` of every verb: a flag that takes a value says what it is without, in words if that depends."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from importlib import import_module

import pytest

from bonsaigpt.cli import VERBS, common
from bonsaigpt.cli.common import Opened, Parser
from bonsaigpt.config import RunConfig, derive, setting_names

MODULES = [*(verb for verb in VERBS if verb != "study"), "study_batch", "study_compress", "study_lr"]
NOTHING = (
    *("--init", "--text", "--grid", "--submitit", "--target", "--block-size", "--preset"),
    *("--top-k", "--top-p", "--min-p", "--typical-p", "--logit-bias", "--pattern", "--json-schema"),
    *("--repetition-penalty", "--frequency-penalty", "--presence-penalty"),
    *("--stop", "--stop-token", "--logprobs", "--best-of", "--beams", "--draft", "--lookup"),
)
"""Without these flags there is just nothing of the kind, which needs no words."""


def flags_of(module: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.Action]:
    """The flags of a verb that take a value, without those of the settings."""
    parsers: list[Parser] = []
    monkeypatch.setattr(Parser, "print_help", lambda self, file=None: parsers.append(self))
    with pytest.raises(SystemExit):
        import_module(f"bonsaigpt.cli.{module}").run(["--help"])
    [parser] = parsers
    own = [a for a in parser._actions if a.option_strings and a.nargs != 0 and a.dest not in setting_names()]
    return [action for action in own if "." not in action.dest and action.option_strings[0][2:] not in _SECTIONS]


_SECTIONS = {name.partition(".")[0] for name in setting_names()}


@pytest.mark.parametrize("module", MODULES)
def test_every_default_is_told_and_true(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for action in flags_of(module, monkeypatch):
        name, words = action.option_strings[0], str(action.help)
        told = re.search(r"\(default: (.+)\)$", words)
        if name in NOTHING:
            continue
        assert told is not None, (name, words)
        if isinstance(action.default, list):
            assert told[1] == ",".join(f"{value:g}" for value in action.default), name
        elif isinstance(action.default, int | float):
            assert re.match(rf"{action.default}\b", told[1]), name


@pytest.mark.parametrize(("trained", "used"), [("fp32", "fp32"), ("bf16", "auto"), ("tf32", "auto"), ("auto", "auto")])
def test_a_model_is_opened_in_the_number_format_that_the_help_tells(
    trained: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        config = derive(RunConfig(), train={"precision": trained})

    class Stop(Exception): ...

    asked: list[str] = []

    def load_engine(name: str, *, device: str, precision: str, threads: int) -> None:
        asked.append(precision)
        raise Stop

    monkeypatch.setattr(common, "load_engine", load_engine)
    opened = Opened(label="", config=Run.config.model, weights={}, tokenizer=None, run=Run, step=1)  # type: ignore[arg-type]
    for flag in (None, "bf16"):
        with suppress(Stop):
            opened.on(argparse.Namespace(engine="torch", device="auto", precision=flag, threads=0))
    assert asked == [used, "bf16"]
