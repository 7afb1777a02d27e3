"""Documents that are a field of a record: JSON lines and parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonsaigpt.data.corpora.compressed import open_bytes
from bonsaigpt.data.corpora.document import check_text, decode, in_parts, lines
from bonsaigpt.data.corpora.source import Document
from bonsaigpt.errors import DataError, DeviceError

__all__ = ["by_json_line", "by_row"]

_ROWS = 256
"""Rows of a parquet file that are held at once."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def by_json_line(path: Path, name: str, field: str) -> Iterator[tuple[Document, int]]:
    """A field of each line, which is a JSON object. Null is no text.

    Raises:
        DataError: names the line and the byte: no JSON, no object, no such field, no text in it.
    """
    with open_bytes(path) as (file, taken):
        check_text(path, file)
        for number, offset, line in lines(path, file):
            if line.isspace():
                continue
            where = f"{path}, line {number} (byte {offset})"
            text = _field(where, decode(path, line, offset, f"line {number}, "), field)
            if b"\\ud" in line or b"\\uD" in line:  # half of a pair is a character that no UTF-8 can hold
                text = _SURROGATE.sub("\ufffd", text)
            for document in in_parts(f"{name}, line {number}", text):
                yield document, taken()


def _field(where: str, line: str, field: str) -> str:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where} is no JSON ({error}): give one object a line, or read plain text with --data.by file."
        ) from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is a JSON {type(record).__name__}, no object: give one object a line.")
    if field not in record:
        raise DataError(f"{where} has no field '{field}', only {_names(record)}: set --data.field.")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{where}: the field '{field}' is a {type(text).__name__}, no text: set --data.field.")
    return text


def by_row(path: Path, name: str, field: str) -> Iterator[tuple[Document, int]]:
    """A column of a parquet file, one document a row. Null is no text."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise DeviceError("reading parquet needs the package pyarrow: pip install 'bonsaigpt[corpora]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise DataError(f"{path} has no field '{field}', only {_names(schema.names)}: set --data.field.")
            kind: Any = schema.field(field).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{path}: the field '{field}' is of type {kind}, no text: set --data.field.")
            size, rows, row = path.stat().st_size, file.metadata.num_rows, 0
            for batch in file.iter_batches(_ROWS, columns=[field], use_threads=False):
                for text in batch.column(0).to_pylist():
                    row += 1
                    for document in in_parts(f"{name}, row {row}", text or ""):
                        yield document, size * row // rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): copy or fetch it again."
        ) from None


def _names(names: Any) -> str:
    return ", ".join(list(names)[:10]) or "nothing"
