"""The images or texts in a request, however they were sent: as they are, in a form, or in JSON, images in base64."""

from __future__ import annotations

import base64
import binascii
import re
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from piggyback.errors import (
    BadRequestError,
    InputError,
    MalformedJsonError,
    TooLargeError,
    UnsupportedError,
)
from piggyback.names import TASK_NAME, check_name
from piggyback.schemas import AT_LEAST
from piggyback.serve.http.errors import invalid_request
from piggyback.serve.http.limits import Limits
from piggyback.strict_json import strict_json
from piggyback.texts.preprocessing import Text

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif")
"""Content types of a body that is an image, as they are documented; what it really is decides the decoder."""
_ALSO_IMAGES = frozenset(
    {
        "", "application/octet-stream", "binary/octet-stream", "image/*", "image/jpg", "image/pjpeg", "image/jfif",
        "image/x-png", "image/x-bmp", "image/x-ms-bmp", "image/x-windows-bmp", "image/x-webp",
    }
)  # fmt: skip
"""What programs also call these, or bytes that they know nothing of."""
TEXT_TYPE = "text/plain"
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
"""Of a text that is a body."""
INPUTS = ("image", "images", "text", "texts")
TOP_K = 5
MAX_TOP_K = 10_000
MAX_URI_HEAD = 1000
"""Letters of a data URI before its data."""
MAX_NAME = 255
"""Letters of a file's name, of which the last are kept."""
MAX_BRACKETS = 8
"""Objects and lists in a JSON body, which needs three."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


_DATA_URI = re.compile(r"data:[^,;]*(;[^,;]*)*?;base64,", re.IGNORECASE)
_URL_LETTERS = str.maketrans("-_", "+/")


def _decoded(value: object) -> object:
    """Base64 as programs write it: of either alphabet, padded or not, in lines, or as a data URI."""
    if not isinstance(value, str):
        return value
    start = 0
    if value[:5].lower() == "data:":
        found = _DATA_URI.match(value[:MAX_URI_HEAD])
        if found is None:
            raise BadRequestError("a data URI: expected data:image/...;base64, and the image")
        start = found.end()
    text = "".join(value[start:].split()).translate(_URL_LETTERS).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters beyond ASCII
        raise BadRequestError(f"not base64: {error}") from None


Base64 = Annotated[
    bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "format": "byte"})
]
TaskName = Annotated[
    str, AfterValidator(check_name), Field(json_schema_extra={"pattern": TASK_NAME})
]
AtLeast = Annotated[
    float,
    Field(ge=0, le=1, description=f"How sure a task has to be; {AT_LEAST} if it is not said."),
]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many classes.")]


class PredictQuery(BaseModel):
    """What the query may say of a request for one task."""

    model_config = ConfigDict(extra="forbid")
    top_k: TopK | None = None


class InferQuery(PredictQuery):
    """What the query may say of a request for several."""

    at_least: AtLeast | None = None
    task: list[TaskName] = Field(
        [], description="A task to ask, as often as wanted; without any, all are asked."
    )


class PredictBody(BaseModel):
    """A JSON body: one image, or several, in base64; or one text, or several."""

    model_config = ConfigDict(extra="forbid")
    image: Base64 | None = None
    images: list[Base64] | None = None
    text: str | None = None
    texts: list[str] | None = None
    top_k: TopK | None = None


class InferBody(PredictBody):
    """A JSON body, with the tasks to ask; without any, all are asked."""

    tasks: list[TaskName] | None = Field(None, min_length=1)
    at_least: AtLeast | None = None


@dataclass(frozen=True)
class PredictRequest:
    """Images or texts, and what is asked about each of them."""

    images: list[bytes] | list[Text]
    names: list[str | None]
    """The file names that they came with."""
    top_k: int
    tasks: list[str] | None
    at_least: float


async def predict_request(
    request: Request, query: Annotated[PredictQuery, Query()]
) -> PredictRequest:
    """Return what is asked of one task; see ``_read`` for what may be wrong with it."""
    return await _read(request, PredictBody, query, [])


async def infer_request(request: Request, query: Annotated[InferQuery, Query()]) -> PredictRequest:
    """Return what is asked of several tasks."""
    return await _read(request, InferBody, query, query.task)


def check_plain(request: Request) -> None:
    """Raise UnsupportedError for a body that is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedError("a compressed body: send it as it is")


async def _read(
    request: Request, model: type[PredictBody], query: PredictQuery, tasks: list[str]
) -> PredictRequest:
    """What is asked, all limits checked.

    Raises BadRequestError for a body that cannot be read, UnsupportedError for a content type that is not taken,
    TooLargeError, and InputError for fields that are not known or have impossible values.
    """
    limits: Limits = request.app.state.service.limits
    try:
        body, names = await _body(request, model, limits)
    except ValidationError as error:
        raise invalid_request(error) from None
    named = [*tasks, *(getattr(body, "tasks", None) or ())]
    images = _inputs(body)
    asked = PredictRequest(
        images,
        names or [None] * len(images),
        _once("top_k", request, query, body, TOP_K),
        named or None,
        _once("at_least", request, query, body, AT_LEAST),
    )
    if len(asked.images) > limits.images:
        raise TooLargeError(
            f"{len(asked.images)} images or texts: at most {limits.images} per request; split it into several"
        )
    if len(named) > limits.tasks:
        raise InputError(f"{len(named)} tasks: at most {limits.tasks} per request")
    return asked


async def _body(
    request: Request, model: type[PredictBody], limits: Limits
) -> tuple[PredictBody, list[str | None]]:
    """The body as its content type says, and the names of a form's files; ValidationError besides ``_read``'s."""
    check_plain(request)
    names: list[str | None] = []
    kind, _, more = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind in IMAGE_TYPES or kind in _ALSO_IMAGES:
        body = model.model_construct(images=[await request.body()])
    elif kind == TEXT_TYPE:
        charset = more.partition("charset=")[2].partition(";")[0].strip("\"' ") or "utf-8"
        if charset not in CHARSETS:  # the bytes of UTF-16 are UTF-8 as well, of another text
            raise UnsupportedError(f"charset {charset[:40]!r}: expected a text in UTF-8")
        try:
            # Without the mark that some editors begin a file with, as in files of texts.
            body = model.model_construct(text=(await request.body()).decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadRequestError(
                f"the text cannot be read ({error.reason}): expected UTF-8"
            ) from None
    elif kind == "multipart/form-data":
        fields, names = await _form(request, limits)
        body = model.model_validate(fields)
    elif kind == "application/json":
        data = _checked((await request.body()).removeprefix(BOM_UTF8), limits)
        body = model.model_validate_json(data, strict=True)
        if any(data.count(b'"%s"' % name.encode()) > 1 for name in model.model_fields):
            try:  # a parser takes the last one
                strict_json(data)
            except ValueError as error:
                raise InputError(f"the body: {error}: expected it once") from None
    else:
        raise UnsupportedError(
            f"content type {kind[:80]!r}: expected multipart/form-data, application/json, {TEXT_TYPE}, "
            f"{', '.join(IMAGE_TYPES)}"
        )
    return body, names


def _once(name: str, request: Request, query: PredictQuery, body: PredictBody, default: Any) -> Any:
    """What the query or the body says, not both."""
    if len(request.query_params.getlist(name)) > 1:
        raise InputError(f"{name} is in the query more than once: expected it once")
    said = [value for one in (query, body) if (value := getattr(one, name, None)) is not None]
    if len(said) > 1:
        raise InputError(f"{name} is in the query and in the body: expected it once")
    return said[0] if said else default


def _inputs(body: PredictBody) -> list[bytes] | list[Text]:
    given = [name for name in INPUTS if getattr(body, name) is not None]
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: expected one of {', '.join(INPUTS)}")
    # A text of a stranger's must not pass for the path of an image.
    texts = body.texts or [] if body.text is None else [body.text]
    if texts:
        return [Text(text) for text in texts]
    images = body.images or [] if body.image is None else [body.image]
    if not images:
        raise InputError(
            "no image and no text: expected one or more, in fields named 'image' or 'text'"
        )
    return images


async def _form(request: Request, limits: Limits) -> tuple[dict[str, Any], list[str | None]]:
    """The fields of a form, under the names that they have in JSON, and the names of its files."""
    found: dict[str, Any] = {}
    names: list[str | None] = []
    end = b""

    async def pieces() -> AsyncGenerator[bytes]:
        nonlocal end
        async for piece in request.stream():
            end = (end + piece[-8:])[-8:]
            yield piece

    try:
        async with aclosing(pieces()) as stream:
            parser = MultiPartParser(
                request.headers,
                stream,
                max_files=limits.images + 1,
                max_fields=limits.tasks + limits.images + 3,
                max_part_size=limits.body_bytes,  # a field may be a text
            )
            # Not on a disk, which may be full, or not be there: the limit on bodies bounds all of it.
            parser.spool_max_size = 0
            form = await parser.parse()
    except MultiPartException as error:
        # Starlette has one error for all that may be wrong with a form.
        kind = TooLargeError if error.message.startswith("Too many") else BadRequestError
        raise kind(f"the form cannot be read: {error.message}") from None
    # The parser leaves out a part that is cut off, and says nothing.
    if not end.rstrip().endswith(b"--"):
        raise BadRequestError("the form cannot be read: it ends before its last boundary")
    for name, value in form.multi_items():
        if (name == "image") != isinstance(value, UploadFile):
            wanted = "a file" if name == "image" else "a text or number; images go into 'image'"
            raise InputError(f"form field {name[:40]!r}: expected {wanted}")
        if name in ("images", "tasks", "texts"):  # their names in JSON, which is filled below
            raise InputError(f"form field {name!r}: expected {name[:-1]!r}, as often as wanted")
        if isinstance(value, UploadFile):
            found.setdefault("images", []).append(await value.read())
            names.append((value.filename or "")[-MAX_NAME:] or None)
        elif name in ("task", "text"):
            found.setdefault(f"{name}s", []).append(value)
        elif name in found:
            raise InputError(f"form field {name[:40]!r}: expected it once")
        else:
            found[name] = value
    return found, names


def _checked(body: bytes, limits: Limits) -> bytes:
    """``body``, if its JSON has no more values than a request needs.

    A list of five million lists is 16 MiB of body, which the parser takes seconds and 800 MB for.
    """
    most = limits.images + limits.tasks + 8
    seen = body
    if seen.count(b"[") + seen.count(b"{") > MAX_BRACKETS or seen.count(b",") > most:
        seen = _STRING.sub(b"", body)  # texts may have as many as they want
    if seen.count(b"[") + seen.count(b"{") > MAX_BRACKETS:
        raise MalformedJsonError(
            "the body is not the JSON expected: too many lists and objects in it"
        )
    if seen.count(b",") > most:
        raise MalformedJsonError("the body is not the JSON expected: too many values in it")
    return body


def body_schema(model: type[PredictBody]) -> dict[str, Any]:
    """Return OpenAPI's description of a body that ``_read`` understands."""
    binary = {"type": "string", "format": "binary"}
    json = model.model_json_schema()
    fields = {name: one for name, one in json["properties"].items() if name not in INPUTS}
    texts = {"type": "array", "items": {"type": "string"}}
    form = {"image": {"type": "array", "items": binary}, "text": texts, **fields}
    if "tasks" in form:
        form["task"] = form.pop("tasks")
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {"type": "object", "properties": form}},
        "application/json": {"schema": json},
        TEXT_TYPE: {"schema": {"type": "string"}},
        **{kind: {"schema": binary} for kind in IMAGE_TYPES},
    }
    return {"requestBody": {"required": True, "content": content}}
