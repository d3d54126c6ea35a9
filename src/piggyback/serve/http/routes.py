"""The routes, and what they depend on; ``errors.py`` answers for what they raise."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from piggyback.errors import AccessError, ForbiddenError, InputError, UnsupportedError
from piggyback.names import TASK_NAME, check_name
from piggyback.schemas import (
    Answers,
    BackboneStatus,
    ErrorBody,
    Health,
    Inference,
    Inferences,
    RequestLimits,
    TaskList,
    TaskStatus,
)
from piggyback.serve.http import metrics
from piggyback.serve.http.body import (
    InferBody,
    PredictBody,
    PredictRequest,
    body_schema,
    infer_request,
    predict_request,
)
from piggyback.serve.http.service import Service
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


async def get_service(request: Request) -> Service:
    """Return the application's service."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


async def get_engine(service: ServiceDep) -> Engine:
    """Return the engine; raises StartingError, StartFailedError or ClosedError where there is none to ask."""
    return service.engine


async def require_token(
    service: ServiceDep,
    given: Annotated[
        HTTPAuthorizationCredentials | None,
        Depends(HTTPBearer(scheme_name="token", auto_error=False)),
    ],
) -> None:
    """Raise AccessError for a request without the server's token, if that has one."""
    if service.token is None:
        return
    found = "" if given is None else given.credentials.strip()
    if not hmac.compare_digest(found.encode("latin-1", "replace"), service.token.encode()):
        what = "another one" if found else "none"
        raise AccessError(
            f"this server wants a token: expected 'Authorization: Bearer TOKEN', found {what}"
        )


async def may_change(service: ServiceDep) -> None:
    """Raise ForbiddenError on a server that has no token: anyone could change its tasks."""
    if service.token is None:
        raise ForbiddenError(
            "tasks can be changed only on a server that was started with a token; "
            "put files into its folder, or start it with --token-file"
        )


EngineDep = Annotated["Engine", Depends(get_engine)]
TaskPath = Annotated[str, Path(json_schema_extra={"pattern": TASK_NAME}, examples=["flowers"])]


async def named_task(task: TaskPath) -> str:
    """Return the path's task; raises TaskNameError for what cannot be one."""
    return check_name(task)


NamedTask = Annotated[str, Depends(named_task)]


async def known_task(request: Request, task: NamedTask, engine: EngineDep) -> str:
    """Return the path's task; raises UnknownTaskError, before anything is read for it."""
    engine.task(task)
    request.state.task = task  # for the log
    return task


KnownTask = Annotated[str, Depends(known_task)]

open_routes = APIRouter()
api = APIRouter(dependencies=[Depends(require_token)], responses=ERRORS)

# -- answers -----------------------------------------------------------------------------------


@api.post("/v1/tasks/{task}/predict", openapi_extra=body_schema(PredictBody))
async def predict(
    request: Request,
    service: ServiceDep,
    engine: EngineDep,
    task: KnownTask,
    asked: Annotated[PredictRequest, Depends(predict_request)],
) -> Answers:
    """Classify images with one task."""
    images = asked.images if len(asked.images) > 1 else asked.images[0]
    work = engine.predict_async(images, task, asked.top_k, service.limits.timeout_s)
    found = await unless_gone(request, work)
    return Answers(answers=found if len(asked.images) > 1 else [found])


@api.post("/v1/predict", openapi_extra=body_schema(InferBody))
async def infer(
    request: Request,
    service: ServiceDep,
    engine: EngineDep,
    asked: Annotated[PredictRequest, Depends(infer_request)],
) -> Inferences:
    """Classify images with several tasks, the surest first; with all of them when none is named."""
    limits = service.limits
    if asked.tasks is None and (number := len(engine.tasks())) > limits.tasks:
        raise InputError(
            f"{number} tasks are served, more than the {limits.tasks} that one request may ask: "
            "name some of them in fields 'task'"
        )
    for name in asked.tasks or ():
        engine.task(name)
    works = [
        engine.infer_async(image, asked.tasks, asked.top_k, limits.timeout_s)
        for image in asked.images
    ]
    found = await unless_gone(request, together(works))
    inferred = asked.tasks is None
    return Inferences(
        images=[
            Inference(task=answers[0].task, inferred=inferred, answers=answers) for answers in found
        ]
    )


# -- tasks -------------------------------------------------------------------------------------


@api.get("/v1/tasks")
async def list_tasks(service: ServiceDep, engine: EngineDep) -> TaskList:
    """List the tasks that are served."""
    limits = service.limits
    return TaskList(
        backbone=BackboneStatus(source=_shown(engine.source), fingerprint=engine.fingerprint),
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
    responses={201: {"model": TaskStatus}},
    openapi_extra={"requestBody": {"required": True, "content": BINARY}},
)
async def put_task(
    request: Request, response: Response, engine: EngineDep, task: NamedTask
) -> TaskStatus:
    """Add or replace a task by its file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", *BINARY):
        raise UnsupportedError(
            f"content type {kind[:80]!r}: expected application/octet-stream, the task file's bytes"
        )
    data = await request.body()
    new = task not in {status.name for status in engine.tasks()}
    status = await run_in_threadpool(engine.put_task, task, data)
    request.state.task = task
    response.status_code = 201 if new else 200
    return status


@api.delete(
    "/v1/tasks/{task}",
    status_code=204,
    dependencies=[Depends(may_change)],
)
async def delete_task(engine: EngineDep, task: KnownTask) -> None:
    """Delete a task's file."""
    await run_in_threadpool(engine.delete_task, task)


# -- the server itself -------------------------------------------------------------------------


@open_routes.api_route(
    "/health",
    methods=["GET", "HEAD"],
    response_model_exclude_none=True,
    responses={503: {"model": Health, "description": "Starting, stopping or failed."}},
)
@open_routes.api_route(
    "/readyz", methods=["GET", "HEAD"], response_model_exclude_none=True, include_in_schema=False
)
async def health(service: ServiceDep, response: Response) -> Health:
    """Say whether the server answers: 200 if so. ``/readyz`` says the same."""
    response.status_code = 200 if service.status == "ready" else 503
    return service.health


@open_routes.api_route("/livez", methods=["GET", "HEAD"])
async def livez(service: ServiceDep, response: Response) -> dict[str, str]:
    """Say whether the process is worth keeping: 503 once the engine could not be started."""
    failed = service.status == "failed"
    response.status_code = 503 if failed else 200
    return {"status": "failed" if failed else "alive"}


@api.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
def prometheus(request: Request) -> Response:
    """Return the numbers for Prometheus; in a thread, for a thousand tasks make a megabyte of text."""
    return Response(metrics.exposition(request.app.state.metrics), media_type=metrics.KIND)


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


def _shown(source: str) -> str:
    """What strangers see of how the network was loaded: of a Python file its name, not where it is."""
    return re.split(r"[/\\]", source)[-1] if runs_code(source) else source
