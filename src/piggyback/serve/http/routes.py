"""The routes, and what they depend on; ``errors.py`` answers for what they raise."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from piggyback.errors import AccessError, DataError, ForbiddenError, InputError, UnsupportedError
from piggyback.names import TASK_NAME, check_name
from piggyback.schemas import (
    Answer,
    Answers,
    BackboneStatus,
    ErrorBody,
    Health,
    ImageError,
    Inference,
    Inferences,
    RequestLimits,
    TaskList,
    TaskStatus,
)
from piggyback.serve.http.body import (
    InferBody,
    PredictBody,
    PredictRequest,
    body_schema,
    check_plain,
    infer_request,
    predict_request,
)
from piggyback.serve.http.service import Service
from piggyback.texts.preprocessing import Text
from piggyback.zoo import runs_code

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine

T = TypeVar("T")

PATIENCE_S = 0.05
"""Before anyone looks whether the client is still there: most requests have been answered by then."""

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Something is wrong with the request."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer now, or failed."},
}
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


# -- what routes depend on ---------------------------------------------------------------------


def service_of(request: Request) -> Service:
    """Return the application's service."""
    service: Service = request.app.state.service
    return service


async def get_engine(request: Request) -> Engine:
    """Return the engine; raises StartingError, StartFailedError or ClosedError where there is none to ask."""
    return service_of(request).engine


class _Token(HTTPBearer):
    """One dependency, not two: FastAPI solves each of them anew for every request."""

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        """Raise AccessError for a request without the server's token, if that has one."""
        token = service_of(request).token
        if token is None:
            return
        given = await super().__call__(request)
        found = "" if given is None else given.credentials.strip()
        if not hmac.compare_digest(found.encode("latin-1", "replace"), token.encode()):
            what = "another one" if found else "none"
            raise AccessError(
                f"this server requires a token: expected 'Authorization: Bearer TOKEN', found {what}"
            )


require_token = _Token(scheme_name="token", auto_error=False)


async def may_change(request: Request) -> None:
    """Raise ForbiddenError on a server that has no token: anyone could change its tasks."""
    if service_of(request).token is None:
        raise ForbiddenError(
            "tasks can be changed only on a server that was started with a token; "
            "put files into its folder, or start it with one"
        )


EngineDep = Annotated["Engine", Depends(get_engine)]
TaskPath = Annotated[str, Path(json_schema_extra={"pattern": TASK_NAME}, examples=["flowers"])]


async def known_task(request: Request, task: TaskPath, engine: EngineDep) -> str:
    """Return the path's task; raises TaskNameError or UnknownTaskError, before anything is read for it."""
    engine.task(check_name(task))
    request.state.task = task  # for the log
    return task


KnownTask = Annotated[str, Depends(known_task)]

open_routes = APIRouter()
api = APIRouter(dependencies=[Depends(require_token)], responses=ERRORS)

# -- answers -----------------------------------------------------------------------------------


@api.post("/v1/tasks/{task}/predict", openapi_extra=body_schema(PredictBody))
async def predict(
    request: Request,
    engine: EngineDep,
    task: KnownTask,
    asked: Annotated[PredictRequest, Depends(predict_request)],
) -> Answers:
    """Answer for images or texts with one task; inputs that cannot be used do not affect the others."""
    timeout = service_of(request).limits.timeout_s
    whole = [image for image in asked.images if image]
    found: list[Any] = []
    if whole:
        work = engine.predict_async(whole, task, asked.top_k, timeout, return_errors=True)
        found = await unless_gone(request, work)
    answers, errors = _in_place(asked, found)
    return Answers(answers=answers, errors=errors)


@api.post("/v1/predict", openapi_extra=body_schema(InferBody))
async def infer(
    request: Request,
    engine: EngineDep,
    asked: Annotated[PredictRequest, Depends(infer_request)],
) -> Inferences:
    """Answer for images or texts with several tasks, the surest first; with all of them when none is named.

    No task is the answer where none is as sure as ``at_least``.
    """
    limits = service_of(request).limits
    if asked.tasks is None and (number := len(engine.tasks())) > limits.tasks:
        raise InputError(
            f"{number} tasks are served, more than the {limits.tasks} that one request may ask: "
            "name some of them in fields 'task'"
        )
    for name in asked.tasks or ():
        engine.task(name)

    async def ask(image: bytes | Text) -> Inference | DataError:
        try:
            answers = await engine.infer_async(image, asked.tasks, asked.top_k, limits.timeout_s)
        except DataError as error:
            return error
        sure = answers[0].confidence >= asked.at_least
        task = answers[0].task if sure else None
        return Inference(task=task, inferred=asked.tasks is None, answers=answers)

    whole = [image for image in asked.images if image]
    found = await unless_gone(request, together([ask(image) for image in whole]))
    images, errors = _in_place(asked, found)
    return Inferences(images=images, errors=errors)


def _in_place(
    asked: PredictRequest, found: Sequence[Answer | Inference | DataError]
) -> tuple[list[Any], list[ImageError]]:
    """What is said about each image, under its file's name, None for one that is bad; and what is wrong with those.

    ``found`` is about those that are not empty. Raises the first error where all are bad.
    """
    left = iter(found)
    said: list[Any] = []
    bad: list[DataError] = []
    errors: list[ImageError] = []
    for index, (image, name) in enumerate(zip(asked.images, asked.names, strict=True)):
        one = (
            next(left)
            if image
            else DataError("it is empty: expected an image file's bytes, or a text")
        )
        if not isinstance(one, DataError):
            said.append(one if name is None else one.model_copy(update={"file": name}))
            continue
        said.append(None)
        bad.append(one)
        line = " ".join(str(one).split())
        errors.append(ImageError(index=index, code=one.code, message=line, file=name))
    if len(bad) < len(said):
        return said, errors
    first, name = bad[0], asked.names[0]
    what = "texts" if isinstance(asked.images[0], Text) else "images"
    some = "" if len(bad) == 1 else f"none of the {len(bad)} {what} can be used; the first: "
    error = type(first)(f"{some}{'' if name is None else f'{name!r}: '}{first}")
    error.each = errors if len(bad) > 1 else ()
    raise error


# -- tasks -------------------------------------------------------------------------------------


@api.get("/v1/tasks")
async def list_tasks(request: Request, engine: EngineDep) -> TaskList:
    """List the tasks that are served."""
    limits = service_of(request).limits
    # What strangers see of how the network was loaded: of a Python file its name, not where it is.
    code = runs_code(engine.source)
    source = re.split(r"[/\\]", engine.source)[-1] if code else engine.source
    return TaskList(
        backbone=BackboneStatus(source=source, fingerprint=engine.fingerprint),
        speed=engine.speed,
        tasks=engine.tasks(),
        refused=engine.refused(),
        limits=RequestLimits(
            body_bytes=limits.body_bytes,
            pixels=engine.options.max_pixels,
            images=limits.images,
            tasks=limits.tasks,
        ),
    )


@api.get("/v1/tasks/{task}")
async def show_task(engine: EngineDep, task: KnownTask) -> TaskStatus:
    """Show one task."""
    return engine.task(task)


@api.put(
    "/v1/tasks/{task}",
    dependencies=[Depends(may_change)],
    responses={201: {"model": TaskStatus, "description": "Added."}},
    openapi_extra={"requestBody": {"required": True, "content": BINARY}},
)
async def put_task(
    request: Request,
    response: Response,
    engine: EngineDep,
    task: TaskPath,
    replace: Literal["classes"] | None = None,
) -> TaskStatus:
    """Add or replace a task by its file; one with other classes only if asked to replace them."""
    check_name(task)
    check_plain(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", *BINARY):
        raise UnsupportedError(
            f"content type {kind[:80]!r}: expected application/octet-stream, the task file's bytes"
        )
    data = await request.body()
    new = task not in {status.name for status in engine.tasks()}
    status = await run_in_threadpool(engine.put_task, task, data, replace == "classes")
    request.state.task = task
    response.status_code = 201 if new else 200
    return status


@api.delete("/v1/tasks/{task}", status_code=204, dependencies=[Depends(may_change)])
async def delete_task(engine: EngineDep, task: KnownTask) -> None:
    """Delete a task's file."""
    await run_in_threadpool(engine.delete_task, task)


# -- the server itself -------------------------------------------------------------------------


UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"model": Health, "description": "Starting, stopping or failed."}
}


@open_routes.head("/health", include_in_schema=False)
@open_routes.head("/readyz", include_in_schema=False)
@open_routes.get("/readyz", response_model_exclude_none=True, responses=UNREADY)
@open_routes.get("/health", response_model_exclude_none=True, responses=UNREADY)
async def health(request: Request, response: Response) -> Health:
    """Say whether the server answers: 200 if so. ``/readyz`` says the same."""
    service = service_of(request)
    response.status_code = 200 if service.status == "ready" else 503
    return service.health


@open_routes.head("/livez", include_in_schema=False)
@open_routes.get("/livez")
async def livez(request: Request, response: Response) -> dict[str, str]:
    """Say whether the process is worth keeping: 503 once the engine could not be started."""
    failed = service_of(request).status == "failed"
    response.status_code = 503 if failed else 200
    return {"status": "failed" if failed else "alive"}


@api.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
def prometheus(request: Request) -> Response:
    """Return the numbers for Prometheus; in a thread, for a thousand tasks make a megabyte of text."""
    text = generate_latest(request.app.state.metrics)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


# -- waiting -----------------------------------------------------------------------------------


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` does; cancel it and raise ClientDisconnect should the client go away."""
    answer = asyncio.ensure_future(work)
    gone: asyncio.Future[None] | None = None
    try:
        await asyncio.wait([answer], timeout=PATIENCE_S)
        if not answer.done():
            gone = asyncio.ensure_future(_disconnected(request))
            await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        if gone is not None:
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all of ``works`` do; when one fails or this is cancelled, the others are cancelled."""
    running = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
