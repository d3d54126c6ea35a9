"""Whether a task file can be served on a backbone: asked of its header, before it is stored or loaded."""

from __future__ import annotations

from dataclasses import replace

from piggyback.errors import InputError, TaskFileError
from piggyback.serve.store.folder import Check
from piggyback.taskfile.fit import check_fingerprint
from piggyback.taskfile.header import TaskHeader
from piggyback.taskfile.parse import Shapes, header_of


def servable(shapes: Shapes, fingerprint: str) -> Check:
    """Return a check for files of tasks on the backbone with these shapes (by name) and fingerprint.

    It takes a file's bytes and the name to serve it as, and returns the header under that name. It raises
    TaskFileError for a damaged file, BackboneMismatchError for another backbone's, InputError for a task that
    cannot be served: one that does not classify, or whose head is a module of its own.

    >>> from piggyback.taskfile.file import Task, save
    >>> servable({}, "")(save(Task("signs", {}, {})), "roads").name
    'roads'
    """

    def check(data: bytes, name: str) -> TaskHeader:
        try:
            header = replace(header_of(data, shapes), name=name)
        except TaskFileError as error:
            raise TaskFileError(f"task {name!r}: {error}") from error
        check_fingerprint(name, header.info.backbone, fingerprint)
        kind, head = header.info.kind, header.info.head_kind
        if kind == "segmentation" or head == "segmentation":
            raise InputError(
                f"task {name!r} labels every pixel: a server answers with classes of whole images; "
                "use: piggyback predict --out DIR"
            )
        if kind != "classification":
            raise InputError(
                f"task {name!r} is of kind {kind[:40]!r}: a server expects 'classification'; "
                "run it with MultiTaskModel"
            )
        if head not in ("linear", "conv"):
            raise InputError(
                f"task {name!r}: its head of kind {head[:40]!r} is a module of its own: a server expects "
                "'linear' or 'conv'; run it with MultiTaskModel and head=<that module>"
            )
        return header

    return check
