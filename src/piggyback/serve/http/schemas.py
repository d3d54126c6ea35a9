"""The shapes of answers, for the OpenAPI document; what is sent is made from ``answers.py``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Chance = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Tier = Literal["dense", "packed", "disk"]


class Exact(BaseModel):
    """Nothing but the fields that are named."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ClassChance(Exact):
    """A class and how likely it is."""

    name: str = Field(alias="class")
    probability: Chance


class TimingMs(Exact):
    """Milliseconds of one image."""

    prepare: Milliseconds = Field(description="Decoding and resizing.")
    queue: Milliseconds = Field(description="Waiting for its batch.")
    load: Milliseconds = Field(description="Waiting for its task to be read from disk.")
    run: Milliseconds = Field(description="The batch: making the task live, and the network.")
    total: Milliseconds
    batch: int = Field(ge=1, description="Images answered together.")


class AnswerBody(Exact):
    """What one task says about one image."""

    task: str
    version: str = Field(
        description="First 16 digits of the SHA-256 of the task file that answered."
    )
    classes: list[ClassChance] = Field(description="The top_k likeliest, likeliest first.")
    confidence: Chance = Field(
        description="1 - entropy / log(classes): by which a task is inferred."
    )
    tier: Tier = Field(description="Where the task was.")
    timing_ms: TimingMs


class AnswersBody(Exact):
    """One answer an image, in their order."""

    answers: list[AnswerBody]


class InferredBody(Exact):
    """What several tasks say about one image."""

    task: str = Field(description="The surest.")
    inferred: bool = Field(description="True when the request named no tasks.")
    answers: list[AnswerBody] = Field(description="The surest first.")


class InferencesBody(Exact):
    """One item an image, in their order."""

    images: list[InferredBody]


class TaskBody(Exact):
    """A task that can be asked for."""

    name: str
    version: str
    kind: str
    classes: list[str]
    file_bytes: int
    memory_bytes: int = Field(description="Its bits, head and normalisation in memory; 0 on disk.")
    tier: Tier
    image_size: int | None = Field(description="Side of the square the network sees, in pixels.")


class BackboneBody(Exact):
    """The network that all tasks share."""

    source: str = Field(description="How it can be loaded; empty for a network of one's own.")
    fingerprint: str


class LimitsBody(Exact):
    """How much may be asked for; more is refused."""

    body_bytes: int = Field(description="Of a request with images.")
    pixels: int = Field(description="Of one image.")
    images: int = Field(description="In one request.")
    tasks: int = Field(description="Asked about one image.")


class TasksBody(Exact):
    """Everything that is served."""

    backbone: BackboneBody
    speed: str = Field(description="How the network is run.")
    tasks: list[TaskBody]
    refused: dict[str, str] = Field(description="Files that are not served, and why.")
    limits: LimitsBody


class HealthBody(Exact):
    """Whether there are answers."""

    status: Literal["ready", "starting", "stopping", "failed"]
    reason: str | None = None


class ErrorDetail(Exact):
    """What went wrong."""

    code: str
    message: str = Field(description="One line.")
    request_id: str | None = Field(
        None, description="Of a fault of the server: its log has the reason."
    )


class ErrorBody(Exact):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail
