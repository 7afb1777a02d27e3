"""JSON lines to examples: a template says which fields make one, and what of it is to be said.

An example is a row of segments, texts that are either given or to be said. A template has fields in braces; the last
one, and whatever stands behind it, is to be said, all before it is given. Messages alternate: what the assistant says
is to be said, and where its turn ends (see ``data/template.py``), so that `bonsai chat` can talk with the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bonsaigpt.data.corpora.compressed import open_bytes
from bonsaigpt.data.corpora.document import check_text, check_there, decode, lines
from bonsaigpt.data.template import Template
from bonsaigpt.errors import ConfigError, DataError, did_you_mean

__all__ = [
    "CHOSEN",
    "MESSAGES",
    "REJECTED",
    "Example",
    "Segment",
    "example_of",
    "fill",
    "guess_template",
    "read_examples",
    "read_records",
]

MESSAGES = "messages"
"""The template of records that hold a dialogue."""
CHOSEN, REJECTED = "{prompt}{chosen}", "{prompt}{rejected}"
"""Those of the two answers of a pair."""
_FIELD = re.compile(r"\{(\w+)\}")
_GUESSES = (
    ("{prompt}{completion}", {"prompt", "completion"}),
    (MESSAGES, {"messages"}),
    ("{text}", {"text"}),
    (CHOSEN, {"prompt", "chosen"}),
)


@dataclass(frozen=True)
class Segment:
    """A piece of an example."""

    text: str
    said: bool
    """Whether the model is to say it; otherwise it is given."""


@dataclass(frozen=True)
class Example:
    """One line of a file."""

    segments: tuple[Segment, ...]
    record: Mapping[str, Any]
    """The line itself."""

    @property
    def prompt(self) -> str:
        """All that stands before what is to be said last."""
        return "".join(segment.text for segment in self.segments[:-1])

    @property
    def completion(self) -> str:
        """What is to be said last."""
        return self.segments[-1].text

    @property
    def is_text(self) -> bool:
        """Whether nothing is given, so that no answer can be right or wrong."""
        return all(segment.said for segment in self.segments)


def read_examples(path: Path, template: str = "") -> tuple[list[Example], str]:
    """The examples of a file of JSON lines, and the template that they were made by: the one given, or a guess.

    Raises:
        DataError: names the file, the line and what is wrong with it.
        ConfigError: the template has no field.
    """
    records = read_records(path)
    template = template or guess_template(records[0][1], path)
    return [example_of(record, template, where) for where, record in records], template


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, each with where it stands.

    Raises:
        DataError: no such file, nothing in it, no UTF-8, or a line that is no JSON object.
    """
    check_there(path)
    records: list[tuple[str, dict[str, Any]]] = []
    with open_bytes(path) as (file, _):
        check_text(path, file)
        for number, offset, line in lines(path, file):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                record: Any = json.loads(decode(path, line, offset, f"line {number}, "))
            except ValueError as error:
                raise DataError(f"{where} is no JSON ({error}): give one object a line.") from None
            if not isinstance(record, dict):
                raise DataError(f"{where} is a JSON {type(record).__name__}, no object: give one object a line.")
            records.append((where, record))
    if not records:
        raise DataError(f"{path} has no examples: give one JSON object a line.")
    return records


def guess_template(record: Mapping[str, Any], path: Path) -> str:
    """The template that the fields of a record suggest."""
    for template, fields in _GUESSES:
        if fields <= record.keys():
            return template
    has = ", ".join(map(repr, record)) or "nothing"
    raise DataError(
        f"{path} has neither prompt and completion (or chosen) nor messages nor text, but {has}: say how they make an "
        "example, e.g. --template '{question} {answer}'"
    )


def example_of(record: Mapping[str, Any], template: str, where: str) -> Example:
    """The example that a record is.

    Raises:
        DataError: a field is missing or no text, or nothing is to be said.
        ConfigError: the template has no field.
    """
    if template == MESSAGES:
        segments = _dialogue(record.get("messages"), where)
    else:
        *_, last = [None, *_FIELD.finditer(template)]
        if last is None:
            raise ConfigError(f"the template {template!r} has no field in braces: use e.g. '{{prompt}}{{completion}}'")
        given = fill(template[: last.start()], record, where)
        said = Segment(fill(template[last.start() :], record, where), said=True)
        segments = [Segment(given, said=False), said] if given else [said]
    if not segments[-1].text:
        raise DataError(f"{where} leaves nothing for the model to say: fill its last field, or leave the line out.")
    return Example(tuple(segments), record)


def fill(template: str, record: Mapping[str, Any], where: str) -> str:
    """The template with the record's fields in place of their names. Numbers are written as JSON writes them."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in record:
            raise DataError(f"{where} has no field '{name}' of the template.{did_you_mean(name, record)}")
        found = record[name]
        if isinstance(found, str):
            return found
        if isinstance(found, int | float):
            return json.dumps(found)
        raise DataError(f"{where}: the field '{name}' is a {type(found).__name__}, no text.")

    return _FIELD.sub(value, template)


def _dialogue(messages: Any, where: str) -> list[Segment]:
    """Neighbours that are alike become one. After what the assistant said comes the user's role, which ends its turn:
    that is to be said too."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: 'messages' must be a list of objects with a role and a content.")
    template, pieces = Template(), list[tuple[str, bool]]()
    before = ""
    for message in messages:
        role, content = _message(message, where)
        if role == "system":
            pieces.append((content + template.end, False))
        elif role == "user":
            pieces += [(template.user, before == "assistant"), (content + template.end, False)]
        else:
            pieces += [(template.assistant, False), (content + template.end, True)]
        before = role
    if before != "assistant":
        raise DataError(f"{where} ends with what the {before} says: the last message must be the assistant's.")
    return _joined(pieces)


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise DataError(f"{where}: each message needs a role and a content that is text.")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise DataError(f"{where} has a message of role {role!r}: use system, user or assistant.")
    return role, message["content"]


def _joined(pieces: Iterable[tuple[str, bool]]) -> list[Segment]:
    segments: list[Segment] = []
    for text, said in pieces:
        if segments and segments[-1].said == said:
            text = segments.pop().text + text
        segments.append(Segment(text, said))
    return segments
