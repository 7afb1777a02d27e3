"""Errors in the form that OpenAI's clients read: ``{"error": {"message", "type", "param", "code"}}``.

What is told is what the client sent or may do: never a path, a stack trace or a setting of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from bonsaigpt.errors import did_you_mean

__all__ = ["Refused", "invalid", "misread"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refused(Exception):
    """A request that is not met, and why.

    Args:
        param: the field that is at fault.
        code: for programs, e.g. ``model_not_found``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """A request that cannot be met as it is: 400."""
    return Refused(400, message, param=param, code=code)


def misread(error: ValidationError, known: list[str]) -> Refused:
    """What is wrong with a body, by its first fault.

    Args:
        known: names of fields, for near misses.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # What is inside a union names the branch as well, e.g. prompt.list[int].3: the client knows the field alone.
    param = str(first["loc"][0])[:100] if first["loc"] else None
    if first["type"] == "json_invalid":
        return invalid("We could not parse the JSON body of your request: send one JSON object in UTF-8.")
    if param is None:
        return invalid("The body of the request must be one JSON object.")
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return invalid(
            f"Unrecognized request argument supplied: {param}.{did_you_mean(param, known)}", param=param, code="unknown"
        )
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return invalid(f"You must provide the parameter {param}.", param=param)
    words = first["msg"][:300].removeprefix("Value error, ")
    return invalid(f"Invalid '{param}': {words}.", param=param)
