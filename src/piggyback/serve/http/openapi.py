"""Each route with what the OpenAPI document says of it: bodies, parameters, answers, examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from piggyback.serve.http import routes
from piggyback.serve.http.bodies import IMAGE_TYPES, MAX_TOP_K, TOP_K
from piggyback.serve.http.schemas import (
    AnswersBody,
    ErrorBody,
    HealthBody,
    InferencesBody,
    TaskBody,
    TasksBody,
)

_EXAMPLE_ANSWER = {
    "task": "flowers",
    "version": "9f86d081884c7d65",
    "classes": [
        {"class": "dandelion", "probability": 0.913204},
        {"class": "sunflower", "probability": 0.050127},
    ],
    "confidence": 0.71,
    "tier": "dense",
    "timing_ms": {
        "prepare": 2.1,
        "queue": 0.4,
        "load": 0.0,
        "run": 14.2,
        "total": 16.7,
        "batch": 1,
    },
}
_EXAMPLE_TASK = {
    "name": "flowers",
    "version": "9f86d081884c7d65",
    "kind": "classification",
    "classes": ["dandelion", "sunflower"],
    "file_bytes": 412_345,
    "memory_bytes": 441_204,
    "tier": "dense",
    "image_size": 224,
}
_EXAMPLE_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"}
_TASK_IN_PATH = {
    "name": "task",
    "in": "path",
    "required": True,
    "schema": _NAME,
    "example": "flowers",
}
_TOP_K_SCHEMA = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": TOP_K}
_TOP_K = {
    "name": "top_k",
    "in": "query",
    "schema": _TOP_K_SCHEMA,
    "description": "How many classes.",
}
_TASKS = {
    "name": "task",
    "in": "query",
    "schema": {"type": "array", "items": _NAME},
    "explode": True,
    "description": "A task to ask, as often as wanted; without any, all are asked.",
}
_BINARY = {"type": "string", "format": "binary"}
_REASONS = {
    400: "What was sent cannot be read.",
    401: "The token is missing or wrong.",
    403: "The server has no token.",
    404: "No such task; the message names those that are spelled alike.",
    408: "The body came too slowly.",
    413: "More bytes, pixels, images or parts than the server takes.",
    415: "A content type that is not taken.",
    422: "It can be read, but asks for something impossible.",
    429: "Too many requests are waiting; see Retry-After.",
    503: "Not ready: starting, stopping, or the task cannot be had now.",
    504: "No answer in time.",
}


@dataclass(frozen=True)
class Described:
    """A route and its description."""

    method: str
    path: str
    handler: routes.Handler
    summary: str
    answer: type[BaseModel] | None = None
    example: Any = None
    status: int = 200
    errors: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    also: dict[int, str] = field(default_factory=dict)
    """Other good answers with the same body."""

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Return what FastAPI takes as ``responses``."""
        found: dict[int | str, dict[str, Any]] = {}
        for status, what in {self.status: self.summary, **self.also}.items():
            found[status] = {"description": what}
            if self.answer is not None:
                content = {"application/json": {"example": self.example}}
                found[status] |= {"model": self.answer, "content": content}
        for status in self.errors:
            found[status] = {"model": ErrorBody, "description": _REASONS[status]}
        return found


def _images(*, several_tasks: bool) -> dict[str, Any]:
    form: dict[str, Any] = {
        "image": {"type": "array", "items": _BINARY, "minItems": 1},
        "top_k": _TOP_K_SCHEMA,
    }
    text: dict[str, Any] = {
        "image": {"type": "string", "format": "byte", "description": "One image in base64."},
        "images": {"type": "array", "items": {"type": "string", "format": "byte"}},
        "top_k": _TOP_K_SCHEMA,
    }
    example: dict[str, Any] = {"image": _EXAMPLE_BASE64, "top_k": 3}
    if several_tasks:
        form["task"] = text["tasks"] = {"type": "array", "items": _NAME}
        example["tasks"] = ["flowers", "signs"]
    one_of = [{"required": ["image"]}, {"required": ["images"]}]
    schema = {"type": "object", "properties": text, "oneOf": one_of, "additionalProperties": False}
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": form, "required": ["image"]}
        },
        "application/json": {"schema": schema, "example": example},
    }
    content.update({kind: {"schema": _BINARY} for kind in IMAGE_TYPES})
    return {"required": True, "content": content}


_BUSY = (400, 401, 408, 413, 415, 422, 429, 503, 504)

DESCRIBED = (
    Described(
        "POST",
        "/v1/tasks/{task}/predict",
        routes.predict,
        "Classify images with one task.",
        AnswersBody,
        {"answers": [_EXAMPLE_ANSWER]},
        errors=(*_BUSY, 404),
        extra={"parameters": [_TASK_IN_PATH, _TOP_K], "requestBody": _images(several_tasks=False)},
    ),
    Described(
        "POST",
        "/v1/predict",
        routes.infer,
        "Classify images with several tasks, the surest first; with all of them when none is named.",
        InferencesBody,
        {"images": [{"task": "flowers", "inferred": True, "answers": [_EXAMPLE_ANSWER]}]},
        errors=(*_BUSY, 404),
        extra={"parameters": [_TASKS, _TOP_K], "requestBody": _images(several_tasks=True)},
    ),
    Described(
        "GET",
        "/v1/tasks",
        routes.tasks,
        "List the tasks that are served.",
        TasksBody,
        {
            "backbone": {
                "source": "timm:efficientnet_lite0.ra_in1k",
                "fingerprint": "2c26b46b68ffc68f",
            },
            "speed": "float32, channels last",
            "tasks": [_EXAMPLE_TASK],
            "refused": {},
            "limits": {"body_bytes": 16_777_216, "pixels": 25_000_000, "images": 32, "tasks": 32},
        },
        errors=(401, 503),
    ),
    Described(
        "GET",
        "/v1/tasks/{task}",
        routes.task,
        "Show one task.",
        TaskBody,
        _EXAMPLE_TASK,
        errors=(401, 404, 422, 503),
        extra={"parameters": [_TASK_IN_PATH]},
    ),
    Described(
        "PUT",
        "/v1/tasks/{task}",
        routes.put_task,
        "Replaced.",
        TaskBody,
        _EXAMPLE_TASK,
        errors=(401, 403, 408, 413, 415, 422, 503),
        also={201: "Added."},
        extra={
            "summary": "Add or replace a task by its file.",
            "parameters": [_TASK_IN_PATH],
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": _BINARY}},
            },
        },
    ),
    Described(
        "DELETE",
        "/v1/tasks/{task}",
        routes.delete_task,
        "Delete a task's file.",
        status=204,
        errors=(401, 403, 404, 422, 503),
        extra={"parameters": [_TASK_IN_PATH]},
    ),
    Described(
        "GET",
        "/health",
        routes.health,
        "Say whether the server answers: 200 if so.",
        HealthBody,
        {"status": "ready"},
        also={503: "Starting, stopping or failed."},
    ),
)
"""Every route that answers in JSON."""
