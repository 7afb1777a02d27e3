"""The OpenAPI description of the server, made of the forms that requests are checked against."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from bonsaigpt import __version__
from bonsaigpt.serve.playground import AttentionRequest, NextRequest, ReadRequest, WriteRequest
from bonsaigpt.serve.schemas import ChatRequest, CompletionRequest

__all__ = ["openapi"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_REFUSALS = {
    "400": "The body cannot be met as it is; `param` names the field.",
    "401": "The key is missing or wrong.",
    "404": "There is no such model.",
    "408": "The body took too long to come.",
    "413": "The body is too long.",
    "415": "The body is not declared as JSON.",
    "421": "The server is not called by that name.",
    "429": "There is no room; `Retry-After` says when to try again.",
    "503": "The request took too long, or there are too many connections.",
}


@cache
def openapi(names: tuple[str, ...]) -> dict[str, Any]:
    """As OpenAPI 3.1 has it; ``names``: of the models."""
    schemas: dict[str, Any] = {"Error": _ERROR}

    def form(model: type[BaseModel]) -> dict[str, Any]:
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(made.pop("$defs", {}))
        made["properties"]["model"]["enum"] = list(names)
        schemas[model.__name__] = made
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    def answers(good: dict[str, Any], *refusals: str) -> dict[str, Any]:
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        refused = {status: {"description": _REFUSALS[status], "content": error} for status in refusals}
        return {"200": {"description": "What was asked for.", "content": good}, **refused}

    def get(summary: str, *refusals: str, kind: str = "application/json", **more: Any) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": answers({kind: {}}, "421", *refusals), **more}}

    def post(summary: str, model: type[BaseModel]) -> dict[str, Any]:
        body = {"required": True, "content": {"application/json": {"schema": form(model)}}}
        good = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
        return {"post": {"summary": summary, "requestBody": body, "responses": answers(good, *_REFUSALS)}}

    name = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(names)}}
    paths = {
        "/health": get("Whether the server runs."),
        "/metrics": get("Counters for Prometheus.", "401", kind="text/plain"),
        "/v1/models": get("All models.", "401"),
        "/v1/models/{model}": get("One model.", "401", "404", parameters=[name]),
        "/v1/completions": post("Go on with a text.", CompletionRequest),
        "/v1/chat/completions": post("Go on with a dialogue.", ChatRequest),
        "/bonsai/models": get("All models, as the playground shows them.", "401"),
        "/bonsai/read": post("The probability of each token of a text, and what the cache holds of it.", ReadRequest),
        "/bonsai/next": post("What may come next, before and after the rules of sampling.", NextRequest),
        "/bonsai/write": post("Go on with a text, token by token with its alternatives.", WriteRequest),
        "/bonsai/attention": post("What each token takes of each earlier one, by layer and head.", AttentionRequest),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "BonsaiGPT", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
