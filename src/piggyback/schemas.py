"""What the engine, the HTTP server and the client say to each other: one model for each thing, and its JSON.

A model is made once, by the engine, and read again by the client: ``Answer.model_validate_json(...)`` of what
``answer.model_dump_json()`` wrote. Nothing here needs torch or NumPy.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

Tier = Literal["dense", "packed", "disk"]
"""Where a task is: a live copy of the network holds it, its bits are in memory, or only its file is there."""


Milliseconds = Annotated[
    float,
    PlainSerializer(lambda ms: round(ms, 3), return_type=float, when_used="json"),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
Chance = Annotated[
    float,
    PlainSerializer(lambda chance: round(chance, 6), return_type=float, when_used="json"),
    # Described, not checked: a sum of float32 may come to 1.0000001.
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]

Percent = Annotated[
    float, PlainSerializer(lambda p: round(p, 4), return_type=float, when_used="json")
]
Png = Annotated[
    bytes,
    BeforeValidator(lambda png: b64decode(png) if isinstance(png, str) else png),
    PlainSerializer(lambda png: b64encode(png).decode(), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "byte", "contentMediaType": "image/png"}),
]


FileName = Annotated[
    str | None,
    Field(
        exclude_if=lambda name: name is None,
        description="The file name that the image came with in a form.",
    ),
]

AT_LEAST = 0.5
"""How sure a task has to be, by its confidence, to answer where nobody has named the task; see docs/SERVING.md."""


class Model(BaseModel):
    """Unchangeable. Fields are filled by their Python names or by those in JSON; unknown ones are left out, so that a
    client understands a newer server."""

    model_config = ConfigDict(
        frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class Timing(Model):
    """Milliseconds of one request, and the batch it was answered in."""

    prepare: Milliseconds = Field(description="Decoding and resizing the image.")
    queue: Milliseconds = Field(
        description="From being queued to the start of its batch, without `load`."
    )
    load: Milliseconds = Field(
        description="Of the time in the queue, how long its task was being read from disk."
    )
    run: Milliseconds = Field(
        description="Its batch's: making the task live, the network's forward pass, and drawing label maps."
    )
    total: Milliseconds
    batch: int = Field(description="Images answered together.")


class RankedClass(Model):
    """A class and how likely it is."""

    name: str = Field(validation_alias="class", serialization_alias="class")
    probability: Chance


class Value(Model):
    """A number that a task gives, and its unit."""

    name: str
    value: float
    unit: str = ""


class ClassShare(Model):
    """How much of a picture a class takes."""

    name: str = Field(validation_alias="class", serialization_alias="class")
    label: int = Field(
        description="Value of its pixels: its place among the task's classes, from 0."
    )
    percent: Percent = Field(description="Of the pixels that the network sees.")
    colour: str = Field(description="In the picture, as #rrggbb.")


class LabelMap(Model):
    """The class of each pixel of an image, at the image's own size."""

    width: int
    height: int
    shares: tuple[ClassShare, ...] = Field(
        validation_alias="classes",
        serialization_alias="classes",
        description="Every class that occurs, the largest first.",
    )
    png: Png = Field(
        description="Palette PNG, in base64: pixel values are labels, 255 where the network does not look."
    )


class Span(Model):
    """Words of a text that a task marks."""

    start: int = Field(
        description="Of the text, counted in characters (Unicode code points) from 0."
    )
    end: int = Field(description="First character after the span.")
    text: str
    label: str
    probability: Chance = Field(description="The mean of its words' tags.")


def _absent(value: object) -> bool:
    """Whether a field stays out of the JSON, so that answers of classes look as they always did."""
    return value is None


class Said(Model):
    """What a task's outputs for one image mean, by its kind.

    >>> Said(labels=("road",)).labels
    ('road',)
    """

    ranking: tuple[RankedClass, ...] = Field(
        default=(),
        validation_alias="classes",
        serialization_alias="classes",
        description="The top_k likeliest, likeliest first; none of a regression, of tokens or of a segmentation.",
    )
    labels: tuple[str, ...] | None = Field(
        default=None,
        exclude_if=_absent,
        description="Multilabel: those that pass their threshold.",
    )
    values: tuple[Value, ...] | None = Field(
        default=None, exclude_if=_absent, description="Regression: every number."
    )
    label_map: LabelMap | None = Field(
        default=None, exclude_if=_absent, description="Segmentation: the class of each pixel."
    )
    spans: tuple[Span, ...] | None = Field(
        default=None, exclude_if=_absent, description="Tokens: what is marked, in its order."
    )
    abstained: bool | None = Field(
        default=None,
        exclude_if=_absent,
        description="Whether the confidence is below what the task's file asks for; absent where it asks for none.",
    )
    confidence: Chance = Field(
        default=0.0,
        description="In [0, 1]: by which a task is inferred; 1 - entropy / log(classes), of a multilabel task the "
        "mean over its labels, 0 of a regression, of tokens and of a segmentation.",
    )


class Answer(Said):
    """What one task says about one image.

    >>> timing = Timing(prepare=1.5, queue=2, load=0, run=3.25, total=6.75, batch=4)
    >>> stop = RankedClass(name="stop", probability=0.75)
    >>> answer = Answer(
    ...     task="signs", version="0" * 16, ranking=[stop], confidence=0.5, tier="dense", timing=timing
    ... )
    >>> answer.classes, answer.probabilities
    (('stop',), (0.75,))
    >>> Answer.model_validate_json(answer.model_dump_json()) == answer
    True
    """

    task: str
    version: str = Field(
        description="First 16 digits of the SHA-256 of the task file that answered."
    )
    tier: Tier = Field(description="Where the task was when its batch was begun.")
    timing: Timing = Field(validation_alias="timing_ms", serialization_alias="timing_ms")
    file: FileName = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the ``top_k`` likeliest classes, likeliest first."""
        return tuple([one.name for one in self.ranking])

    @property
    def probabilities(self) -> tuple[float, ...]:
        """How likely each of ``classes`` is."""
        return tuple([one.probability for one in self.ranking])


class ImageError(Model):
    """Why one of several images has no answer."""

    index: int = Field(description="Of the image in the request, from 0.")
    code: str
    message: str = Field(description="One line.")
    file: FileName = None


Errors = Annotated[
    list[ImageError],
    Field(
        exclude_if=lambda errors: not errors,
        description="Of images that cannot be used; left out where there are none.",
    ),
]


class Answers(Model):
    """One answer per image, in their order; null for one that cannot be used: ``errors`` says why."""

    answers: list[Answer | None]
    errors: Errors = []


class Inference(Model):
    """What several tasks say about one image."""

    task: str | None = Field(description="The surest; null if none is as sure as `at_least`.")
    inferred: bool = Field(description="True when the request named no tasks.")
    answers: list[Answer] = Field(description="The surest first.")
    file: FileName = None


class Inferences(Model):
    """One item per image, in their order; null for one that cannot be used: ``errors`` says why."""

    images: list[Inference | None]
    errors: Errors = []


class TaskStatus(Model):
    """A task that can be asked for."""

    name: str
    version: str = Field(description="First 16 digits of the SHA-256 of its file.")
    kind: str
    classes: tuple[str, ...]
    file_bytes: int
    memory_bytes: int = Field(
        description="Its packed bits, head and normalisation in memory; 0 on disk. A live copy is not counted."
    )
    tier: Tier
    image_size: int | None = Field(
        default=None,
        description="Side of the square the network sees, in pixels; null where the file does not say, and for texts.",
    )
    max_tokens: int | None = Field(
        default=None,
        description="Tokens of a text that the network sees; null for a task on images.",
    )


class BackboneStatus(Model):
    """The network that all tasks share."""

    source: str = Field(description="How it can be loaded; empty for your own network.")
    fingerprint: str


class RequestLimits(Model):
    """How much may be asked for; more is refused."""

    body_bytes: int = Field(description="Of a request with images.")
    pixels: int = Field(description="Of one image.")
    images: int = Field(description="In one request.")
    tasks: int = Field(description="Asked about one image.")


class TaskList(Model):
    """Everything that is served."""

    backbone: BackboneStatus
    speed: str = Field(description="How the network is run.")
    tasks: list[TaskStatus]
    refused: dict[str, str] = Field(description="Files that are not served, and why.")
    limits: RequestLimits


class Health(Model):
    """Whether there are answers."""

    status: Literal["ready", "starting", "stopping", "failed"]
    reason: str | None = None


class ErrorDetail(Model):
    """What went wrong."""

    code: str
    message: str = Field(description="One line.")
    request_id: str | None = Field(
        None, description="Set for internal errors; look it up in the server's log."
    )


class ErrorBody(Model):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail
    errors: Errors = []
