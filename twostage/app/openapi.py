"""The HTTP interface for programs as an OpenAPI document."""

from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from twostage import __version__
from twostage.app.api import PARAMETERS
from twostage.app.service import Service
from twostage.audio.sound_files import FORMATS
from twostage.inference.catalog import ModelInfo
from twostage.inference.restoration import RestorationReport

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}
REFUSALS = {
    400: "A parameter is unknown, or its value is invalid.",
    401: "A token is needed: `Authorization: Bearer TOKEN`.",
    403: "The request comes from a page of another server.",
    411: "The request does not state its length.",
    413: "The file is larger, or its sound longer, than this server accepts.",
    421: "The request is addressed to a host name that this server does not accept.",
    422: "The file cannot be restored: it is not a sound file, damaged, or has the wrong number of channels.",
    503: "Too many requests are waiting, or the server is closing.",
    507: "The server's storage is full.",
}


def document(service: Service) -> dict[str, Any]:
    """The OpenAPI 3.1 document for the models, devices and limits of ``service``."""
    limits = service.limits
    limit_text = f"At most {limits.mb} MB and {limits.seconds} s of sound, its channels added up."
    restore = {
        "operationId": "restore",
        "summary": "Restore one recording",
        "description": f"{limit_text} Send `Accept: application/json` for the report and the sound in one JSON object.",
        "parameters": [_parameter(name, service) for name in PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}
                },
                "application/octet-stream": {"schema": BINARY},
                "audio/*": {"schema": BINARY},
            },
        },
        "responses": {
            "200": {
                "description": "The restored file.",
                "headers": {"X-Twostage-Report": {"description": "A Report as JSON.", "schema": {"type": "string"}}},
                "content": {"audio/*": {"schema": BINARY}, "application/json": {"schema": _ref("Restored")}},
            },
            **{str(status): _refused(text) for status, text in REFUSALS.items()},
        },
    }
    models = _answer("models", "The available models, the default first", _ref("Models"))
    health = _answer("health", "Whether the server is running, and how many requests are waiting", _ref("Health"))
    return {
        "openapi": "3.1.0",
        "info": {"title": "twostage", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": {
            "/v1/restore": {"post": restore},
            "/v1/models": {"get": models},
            "/v1/health": {"get": health | {"security": []}},
        },
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }


def _parameter(name: str, service: Service) -> dict[str, Any]:
    schemas: dict[str, dict[str, Any]] = {
        "model": {"type": "string", "enum": service.models.labels},
        "device": {"type": "string", "enum": list(service.devices)},
        "sample_rate": {"type": "string", "enum": ["model", "input"], "default": "model"},
        "format": {"type": "string", "enum": list(FORMATS)},
        "level": {"type": "string", "enum": ["input", "model"], "default": "input"},
        "keep_low_band": {"type": "number", "minimum": 0, "default": 0},
        "if_full_band": {"type": "string", "enum": ["restore", "copy", "error"], "default": "restore"},
    }
    schema = schemas.get(name, {"type": "string"})
    return {"name": name, "in": "query", "description": PARAMETERS[name], "schema": schema}


def _schemas() -> dict[str, Any]:
    restored = {"report": _ref("Report"), "media_type": {"type": "string"}}
    restored["audio"] = {"type": "string", "contentEncoding": "base64"}
    return {
        "Report": _schema(RestorationReport, without=("plot",)),
        "Model": _schema(ModelInfo),
        "Models": _object({"models": {"type": "array", "items": _ref("Model")}}),
        "Restored": _object(restored),
        "Health": _object({"status": {"const": "ok"}, "version": {"type": "string"}, "waiting": {"type": "integer"}}),
        "Error": _object({"error": {"type": "string"}}),
    }


def _schema(cls: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return _object({f.name: _type(hints[f.name]) for f in fields(cls) if f.name not in without})


def _type(kind: Any) -> dict[str, Any]:
    """The JSON type of a field.

    >>> _type(list[str]), _type(float | None)
    ({'type': 'array', 'items': {'type': 'string'}}, {'type': ['number', 'null']})
    """
    if get_origin(kind) is list:
        return {"type": "array", "items": _type(get_args(kind)[0])}
    if get_origin(kind) is UnionType:
        return {"type": [TYPES.get(part, "null") for part in get_args(kind)]}
    return {"type": TYPES[kind]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _answer(name: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, "401": _refused(REFUSALS[401])},
    }


def _refused(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref("Error")}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
