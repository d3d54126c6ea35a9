"""Which tasks a store has, each with the version that is served: kept true while files come, change and go.

The store is the truth and this is what was last seen of it. Whatever changes what is held reads the file and notes
what it found under one lock, so a slow look can never put an older file in the place of a newer one. Readers
take ``entries`` as it is: a mapping that is never changed, only replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from piggyback.errors import (
    InputError,
    OtherClassesError,
    PiggybackError,
    TaskFileError,
    UnavailableError,
    UnknownTaskError,
    check_is,
    near_misses,
)
from piggyback.kinds import kind_of
from piggyback.kinds.base import Kind
from piggyback.serve.store.stores import SUFFIX, Stamp, Store
from piggyback.taskfile.checks import check_fingerprint
from piggyback.taskfile.header import Shapes, TaskHeader, header_of
from piggyback.taskfile.task import KEEP, ROW_HEADS, check_name
from piggyback.texts.preprocessing import Prepares

LOGGER = logging.getLogger(__name__)

Key = tuple[str, str]
"""A task's name and version: what is asked for and what is kept in memory go by it."""
Check = Callable[[bytes, str], TaskHeader]
"""Takes a file's bytes and the task's name; raises PiggybackError for what cannot be served."""
Retire = Callable[["TaskEntry", bool], object]
"""Takes an entry that is served no longer, and whether its task is gone."""


@dataclass(frozen=True)
class TaskEntry:
    """A task that is served, by the content of its file; equal entries, equal content."""

    name: str
    version: str
    """The first 16 hex digits of the file's SHA-256."""
    file_bytes: int
    outputs: Kind
    """What the network's outputs mean: its classes, units, thresholds."""
    preprocessing: Prepares | None

    @property
    def key(self) -> Key:
        """Name and version."""
        return self.name, self.version


class TaskFolder:
    """The tasks of a store. All methods may be called from several threads.

    ``retire`` is told of each entry that is served no longer, and whether its task is gone or was replaced.

    >>> import tempfile
    >>> from piggyback.serve.store.stores import LocalStore
    >>> from piggyback.taskfile.file import Task, save
    >>> from piggyback.taskfile.header import header_of
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = TaskFolder(LocalStore(place), lambda data, name: header_of(data), print)
    ...     entry = folder.put("signs", save(Task("signs", {}, {})))
    ...     list(folder.entries)
    ['signs']
    """

    def __init__(self, store: Store, check: Check, retire: Retire) -> None:
        self.entries: Mapping[str, TaskEntry] = {}
        self.refused: Mapping[str, str] = {}
        """Why not, by file name; an older version of the file may still be served."""
        self.problem: str | None = None
        """Why the store could not be listed at the last scan."""
        self.changes: Counter[str] = Counter(added=0, replaced=0, removed=0, refused=0)
        """What happened to files so far; each is a line in the log, too."""
        self._store = store
        self._check, self._retire = check, retire
        self._stamps: dict[str, Stamp] = {}
        """Of the files whose content is known, good or bad."""
        self._scanning = threading.Lock()
        self._lock = threading.Lock()

    def scan(self) -> None:
        """Look at the store now.

        Only files with a new stamp are read. A bad file is refused; if there was a good one before, its entry
        stays. A store that cannot be listed changes nothing but ``problem``.
        """
        with self._scanning:
            try:
                listed = self._store.list()
            except UnavailableError as error:
                if self.problem is None:
                    LOGGER.warning({"event": "tasks unreachable", "reason": str(error)})
                self.problem = str(error)
                return
            if self.problem is not None:
                LOGGER.info({"event": "tasks reachable again"})
            self.problem = None
            for name, stamp in listed.items():
                if self._stamps.get(name) != stamp:
                    self._look(name, stamp)
            for name in self.entries.keys() - listed.keys():
                self._look(name, None)  # listings miss files that are being replaced
            with self._lock:
                self._stamps = {n: s for n, s in self._stamps.items() if n in listed}
                self._clear(set(self.refused) - {file_name(n) for n in (*listed, *self.entries)})

    def entry(self, name: str) -> TaskEntry:
        """Return what is served as ``name``.

        UnknownTaskError lists names like it; UnavailableError where the store may have it, and cannot be listed.
        """
        check_is("task", name, str, "a task's name")
        entry = self.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def read(self, entry: TaskEntry) -> tuple[TaskEntry, bytes]:
        """Return a task's bytes, and the entry that they are: another one where the file was replaced.

        Raises UnknownTaskError where the file is gone, UnavailableError where it cannot be read or was replaced by
        one that cannot be served.
        """
        try:
            data = self._store.read(entry.name)
            if version_of(data) == entry.version and self.entries.get(entry.name) == entry:
                return entry, data
            with self._lock:
                data = self._store.read(entry.name)  # once more: a newer file may have been put
                return self._accept(entry.name, data), data
        except UnknownTaskError as error:
            if self.problem is None:
                raise
            # An object store cannot tell a file that is gone from a bucket that is.
            raise self._unknown(entry.name) from error
        except UnavailableError:
            raise
        except PiggybackError as error:
            raise UnavailableError(
                f"task {entry.name!r}: its file was replaced by one that cannot be served ({error}); "
                "put a good file in its place"
            ) from error

    def put(
        self,
        name: str,
        data: bytes,
        decode: Callable[[str, bytes], object] | None = None,
        replace_classes: bool = False,
    ) -> TaskEntry:
        """Write a task's file and return its entry.

        Everything is checked before a byte is written: TaskNameError, TaskFileError and whatever ``check`` raises, and
        ``decode`` of name and bytes if it is given. OtherClassesError where the task is of another kind than the
        one that it replaces, or has other classes, another order of them or other units, unless ``replace_classes``.
        UnavailableError where the file cannot be written; then the old one is still there.
        """
        check_name(name)
        entry = self._checked(name, data)
        if decode is not None:
            decode(name, data)
        with self._lock:
            if not replace_classes:
                self._check_classes(entry)
            self._store.write(name, data)
            self._hold(entry)
        return entry

    def remove(self, name: str) -> None:
        """Delete a task's file; UnknownTaskError lists names like it."""
        with self._lock:
            self.entry(name)
            with contextlib.suppress(UnknownTaskError):  # somebody else was faster
                self._store.delete(name)
            self._forget(name)

    def _look(self, name: str, stamp: Stamp | None) -> None:
        """Take in what the store has for ``name``; ``stamp`` is what it was listed with, None if it was not."""
        with self._lock:
            self._stamps.pop(name, None)
            try:
                self._accept(check_name(name), self._store.read(name))
            except UnknownTaskError:
                self._forget(name)
                return
            except UnavailableError as error:  # without a stamp it is looked at again next time
                self._refuse(name, str(error))
                return
            except MemoryError:
                self._refuse(name, "memory was too short to read it")
                return
            except PiggybackError as error:
                self._refuse(name, str(error))
            if stamp is not None:
                self._stamps[name] = stamp

    def _accept(self, name: str, data: bytes) -> TaskEntry:
        """The entry for what was read of a file, from now on the one that is served; holding the lock."""
        known = self.entries.get(name)
        if known is not None and known.version == version_of(data):
            self._clear({file_name(name)})
            return known
        entry = self._checked(name, data)
        self._hold(entry)
        return entry

    def _check_classes(self, entry: TaskEntry) -> None:
        """Raises OtherClassesError where answers would mean something else than those of the entry it would replace."""
        old = self.entries.get(entry.name)
        if old is not None and (change := _change(old.outputs, entry.outputs)):
            raise OtherClassesError(
                f"task {entry.name!r}: {change}; callers may rely on the old ones: put it "
                "under another name, or ask for it with replace_classes=True (?replace=classes over HTTP)"
            )

    def _checked(self, name: str, data: bytes) -> TaskEntry:
        info = self._check(data, name).info
        return TaskEntry(name, version_of(data), len(data), kind_of(info), info.preprocessing)

    def _hold(self, entry: TaskEntry) -> None:
        old = self.entries.get(entry.name)
        self.entries = {**self.entries, entry.name: entry}
        self._clear({file_name(entry.name)})
        if old is None:
            self._tell("added", task=entry.name, version=entry.version, bytes=entry.file_bytes)
        elif old != entry:
            change = _change(old.outputs, entry.outputs)
            more = {"classes": change} if change else {}
            self._tell(
                "replaced", task=entry.name, version=entry.version, before=old.version, **more
            )
            self._retire(old, False)

    def _forget(self, name: str) -> None:
        old = self.entries.get(name)
        self._stamps.pop(name, None)
        self.entries = {held: entry for held, entry in self.entries.items() if held != name}
        self._clear({file_name(name)})
        if old is not None:
            self._tell("removed", task=name, version=old.version)
            self._retire(old, True)

    def _refuse(self, name: str, why: str) -> None:
        if (
            self.refused.get(file_name(name)) != why
        ):  # a disk that hangs is asked again every second
            still = self.entries.get(name)
            more = {"still_served": still.version} if still else {}
            self._tell("refused", file=file_name(name), reason=why, **more)
        self.refused = {**self.refused, file_name(name): why}

    def _tell(self, what: str, **facts: object) -> None:
        """Count a change, and log it: what operators ask first is when a file came, and why it is not served."""
        self.changes[what] += 1
        level = logging.WARNING if what == "refused" else logging.INFO
        LOGGER.log(level, {"event": f"task {what}", **facts})

    def _clear(self, files: set[str]) -> None:
        if not files.isdisjoint(self.refused):
            self.refused = {f: why for f, why in self.refused.items() if f not in files}

    def _unknown(self, name: str) -> PiggybackError:
        if self.problem is not None:  # which names the place: not for those who ask a server
            return UnavailableError(
                f"task {name[:100]!r}: it is not in memory, and the tasks directory cannot be listed; bring it back"
            )
        held = f"{len(self.entries)} tasks are served" if self.entries else "no task is served"
        why = self.refused.get(file_name(name))
        hint = near_misses(name, self.entries) if why is None else f"; its file is refused: {why}"
        return UnknownTaskError(f"unknown task {name[:100]!r}: {held}{hint}")


def servable(shapes: Shapes, fingerprint: str, own: Prepares | None = None) -> Check:
    """Return a check for files of tasks on the backbone with these shapes (by name), fingerprint and preprocessing.

    It takes a file's bytes and the name to serve it as, and returns the header under that name. It raises
    TaskFileError for a damaged file, BackboneMismatchError for another backbone's, InputError for a task that
    cannot be served: one of an unknown kind, or whose head is a module of its own.

    >>> from piggyback.taskfile.file import Task, save
    >>> servable({}, "")(save(Task("signs", {}, {})), "roads").name
    'roads'
    """

    def check(data: bytes, name: str) -> TaskHeader:
        try:
            header = replace(header_of(data, shapes), name=name)
        except TaskFileError as error:
            raise TaskFileError(f"task {name!r}: {error}") from error
        if header.info.head_kind == KEEP:
            raise InputError(
                f"task {name!r} keeps the backbone's own head, as language models do: a server answers with classes; "
                "run it with MultiTaskModel"
            )
        check_fingerprint(name, header.info.backbone, fingerprint)
        if (prepared := header.info.preprocessing) is not None:
            bound = prepared.bound(own, name, header.info.backbone.source)
            header = replace(header, info=replace(header.info, preprocessing=bound))
        kind, head = header.info.kind, header.info.head_kind
        try:
            outputs = kind_of(header.info)
        except InputError as error:
            raise InputError(f"task {name!r}: {error}") from error
        if head == "segmentation" and not outputs.per_pixel:
            raise InputError(
                f"task {name!r} is of kind {kind!r}, its head scores every pixel: expected kind 'segmentation'"
            )
        known = (*ROW_HEADS, "segmentation")
        if head not in known:
            raise InputError(
                f"task {name!r}: its head of kind {head[:40]!r} is a custom module: a server expects "
                f"{' or '.join(map(repr, known))}; run it with MultiTaskModel and head=<that module>"
            )
        if outputs.per_token != (head == "tokens"):
            raise InputError(
                f"task {name!r}: a head of kind {head!r} for a task of kind {kind!r}: expected 'tokens' for both"
            )
        return header

    return check


def _change(before: Kind, after: Kind) -> str:
    """In words how what answers mean would change; empty where it would not."""
    if before.name != after.name:
        return f"it would be of kind {after.name!r}, it is of kind {before.name!r}"
    old, new = before.classes, after.classes
    if old == new:
        units, now = (one.units or ("",) * len(old) for one in (before, after))
        return f"its units would be {now}, they are {units}" if units != now else ""
    gone, come = (sorted(set(a) - set(b))[:3] for a, b in ((old, new), (new, old)))
    if not gone and not come:
        return "its classes would be in another order"
    lost, added = (", ".join(map(repr, names)) or "none" for names in (gone, come))
    return f"its {len(old)} classes would be {len(new)} (gone: {lost}; new: {added})"


def version_of(data: bytes) -> str:
    """Return what tells a file's content from all others: the first 16 hex digits of its SHA-256.

    >>> version_of(b"")
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(data).hexdigest()[:16]


def file_name(name: str) -> str:
    """Return the name of a task's file, fit to be shown whatever it contains.

    >>> file_name("signs"), file_name("si\\ngns")
    ('signs.safetensors', "'si\\\\ngns'.safetensors")
    """
    return f"{name if name.isprintable() else ascii(name)}{SUFFIX}"
