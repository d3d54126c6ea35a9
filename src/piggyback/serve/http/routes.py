"""What each route does; ``openapi.py`` describes them, ``gate.py`` answers for what they raise."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from piggyback.schemas import Answer
from piggyback.serve.http.bodies import TOP_K, Asked, read_asked
from piggyback.serve.http.calls import Call
from piggyback.serve.http.refusals import RefusedError, invalid
from piggyback.serve.http.replies import Reply, json_reply
from piggyback.taskfile.task import check_name
from piggyback.zoo import runs_code

Handler = Callable[[Call], Awaitable[Reply]]
T = TypeVar("T")


async def predict(call: Call) -> Reply:
    """Answer for one task."""
    engine, limits = call.service.engine, call.service.limits
    task = check_name(call.names["task"])
    engine.task(task)  # known? Nothing is read for a task that is not
    call.task_name = task
    asked = await read_asked(call, several_tasks=False)
    top_k = asked.top_k or TOP_K
    if len(asked.images) == 1:
        work = engine.predict_async(asked.images[0], task, top_k, limits.timeout_s)
        answers = [await call.attended(work)]
    else:
        work = engine.predict_async(asked.images, task, top_k, limits.timeout_s)
        answers = await call.attended(work)
    return json_reply({"answers": [answer.model_dump(mode="json") for answer in answers]})


async def infer(call: Call) -> Reply:
    """Answer for several tasks, or for whichever is surest."""
    engine, limits = call.service.engine, call.service.limits
    asked = await read_asked(call, several_tasks=True)
    if asked.tasks is None:
        number = len(engine.tasks())
        if number > limits.tasks:
            raise invalid(
                f"{number} tasks are served, more than the {limits.tasks} that one request may ask: "
                "name some of them in fields 'task'"
            )
    for name in asked.tasks or ():
        engine.task(check_name(name))
    found = await call.attended(
        together(
            [
                engine.infer_async(image, asked.tasks, asked.top_k or TOP_K, limits.timeout_s)
                for image in asked.images
            ]
        )
    )
    return json_reply({"images": [_inferred(answers, asked) for answers in found]})


async def tasks(call: Call) -> Reply:
    """List the tasks."""
    engine, limits = call.service.engine, call.service.limits
    call.queried(())
    return json_reply(
        {
            "backbone": {"source": _shown(engine.source), "fingerprint": engine.fingerprint},
            "speed": engine.speed,
            "tasks": [status.model_dump(mode="json") for status in engine.tasks()],
            "refused": engine.refused(),
            "limits": {
                "body_bytes": limits.body_bytes,
                "pixels": engine.options.max_pixels,
                "images": limits.images,
                "tasks": limits.tasks,
            },
        }
    )


async def task(call: Call) -> Reply:
    """Show one task."""
    return json_reply(
        call.service.engine.task(check_name(call.names["task"])).model_dump(mode="json")
    )


async def put_task(call: Call) -> Reply:
    """Add or replace a task."""
    _only_with_token(call)
    engine, name = call.service.engine, check_name(call.names["task"])
    kind = call.header(b"content-type").partition(";")[0].strip().lower()
    if kind not in ("", "application/octet-stream"):
        raise RefusedError(
            415,
            "unsupported",
            f"content type {kind[:80]!r}: expected application/octet-stream, the task file's bytes",
        )
    data = await call.body(call.service.limits.upload_bytes)
    there = name in {status.name for status in engine.tasks()}
    status = await call.service.aside(lambda: engine.put_task(name, data))
    call.task_name = name
    return json_reply(status.model_dump(mode="json"), 200 if there else 201)


async def delete_task(call: Call) -> Reply:
    """Remove a task."""
    _only_with_token(call)
    engine, name = call.service.engine, check_name(call.names["task"])
    engine.task(name)
    call.task_name = name
    await call.service.aside(lambda: engine.delete_task(name))
    return Reply(b"", 204)


async def health(call: Call) -> Reply:
    """Say whether there are answers."""
    service = call.service
    if service.status == "ready":
        return json_reply({"status": "ready"})
    return json_reply({"status": service.status, "reason": service.reason}, 503)


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all of ``works`` do; when one fails or this is cancelled, the others are cancelled."""
    if len(works) == 1:
        return [await works[0]]
    running = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()


def _shown(source: str) -> str:
    """What strangers see of how the network was loaded: of a Python file its name, not where it is."""
    return re.split(r"[/\\]", source)[-1] if runs_code(source) else source


def _inferred(answers: Sequence[Answer], asked: Asked) -> dict[str, Any]:
    return {
        "task": answers[0].task,
        "inferred": asked.tasks is None,
        "answers": [answer.model_dump(mode="json") for answer in answers],
    }


def _only_with_token(call: Call) -> None:
    if call.service.token is None:
        raise RefusedError(
            403,
            "forbidden",
            "tasks can be changed only on a server that was started with a token; "
            "put files into its folder, or start it with --token-file",
        )
