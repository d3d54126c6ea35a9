"""The engine: one network in memory, a folder of task files, and answers for all of them.

    predict -> prepare the image as the task says -> queue of the task -> batch -> answer

Nothing here knows of a network between machines: ``http/`` and ``cluster/`` carry these calls to others.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, Thread, current_thread
from typing import Any, Self
from weakref import ref

import torch
from torch import nn

from piggyback.errors import InputError, TaskStateError, UnknownTaskError, check_is
from piggyback.names import check_several
from piggyback.network.backbone import Backbone
from piggyback.network.hardware import check_device
from piggyback.schemas import Answer, TaskStatus
from piggyback.serve.inputs import samples
from piggyback.serve.options import EngineOptions, parse_bytes
from piggyback.serve.replicas.network import Network
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.scheduler.scheduler import BatchRequest, Failed, Scheduler, check_timeout
from piggyback.serve.scheduler.workers import load, use_cores, work
from piggyback.serve.stats import Stats
from piggyback.serve.store.decoding import Decoder
from piggyback.serve.store.folder import TaskEntry, TaskFolder, servable
from piggyback.serve.store.stores import open_store
from piggyback.taskfile import file
from piggyback.texts.preprocessing import Prepares, TextPreprocessing
from piggyback.zoo.load import load_backbone

LOADER_END_S = 1.0
"""How long ``close`` waits for a loader that is reading a file."""
WATCHER_END_S = 5.0
"""How long it waits for a look at the folder that is going on."""


class Engine:
    """Answers for every task file in a folder, from one network in memory.

    ``memory`` bounds what tasks take, in bytes or as "2GiB": live copies of the network for the tasks used last, packed
    bits for others; the rest waits on disk. Calls may come from any thread; requests of all of them are batched by
    task. Raises UnavailableError where the folder cannot be listed, BackboneError where the backbone cannot be had,
    TaskStateError for a network that a MultiTaskModel holds, InputError for too little memory.

    >>> import tempfile, torch
    >>> from piggyback import MultiTaskModel
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    >>> model = MultiTaskModel(net)
    >>> model.start_task("parity", classes=["even", "odd"])
    >>> task = model.finish_task()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_task("parity", folder + "/parity.safetensors")
    ...     with Engine(model.release(), folder) as engine:
    ...         engine.predict(torch.zeros(4), "parity", top_k=2).classes in (("even", "odd"), ("odd", "even"))
    True
    """

    def __init__(
        self,
        backbone: str | Backbone | nn.Module,
        tasks_dir: str | Path,
        memory: int | str = "2GiB",
        options: EngineOptions | None = None,
    ) -> None:
        check_is(
            "backbone", backbone, (str, Backbone, nn.Module), "a name, a Backbone or a network"
        )
        check_is("tasks_dir", tasks_dir, (str, os.PathLike), "a folder or a URL")
        self.options = EngineOptions() if options is None else options
        check_is("options", self.options, EngineOptions, "an EngineOptions")
        self._process = os.getpid()
        budget = parse_bytes(memory, "memory")
        store = open_store(tasks_dir)
        store.list()  # a folder that is not there is told before the network is loaded
        check_device(self.options.place)
        workers, threads = self.options.division()
        if isinstance(backbone, str):
            backbone = load_backbone(backbone)
        with _torch_threads(threads):  # the network is measured as it will run
            self._network = Network(
                backbone,
                device=self.options.place,
                precision=self.options.precision,
                compile=self.options.compile,
            )
            self.source = self._network.source
            """How the backbone can be loaded again; empty for a module of one's own."""
            self.fingerprint = self._network.fingerprint
            """SHA-256 of the backbone."""
            self.speed = self._network.speed
            """How the network is run, in words."""
            shapes = self._network.shapes
            check = servable(shapes, self.fingerprint, self._network.preprocessing)
            self._start(budget, workers, threads)
            self._folder = TaskFolder(store, check, self._scheduler.retire)
            self._decoder = Decoder(shapes) if self.options.decode_apart else None
        self._stopping = Event()
        self._watcher = Thread(target=self._watch, name="piggyback-watcher", daemon=True)
        try:
            self.rescan()
        except BaseException:
            self.close(drain=False)
            raise
        if self.options.watch_s:
            self._watcher.start()

    # -- how it is -----------------------------------------------------------------------------

    @property
    def queue_depth(self) -> int:
        """Queued images."""
        return self._scheduler.depth

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or made in another process, where its threads are."""
        return self._stopping.is_set() or os.getpid() != self._process

    @property
    def problem(self) -> str | None:
        """Why the folder could not be looked at last time; what is in memory is answered for all the same."""
        return self._folder.problem

    # -- answers -------------------------------------------------------------------------------

    def submit(self, image: Any, task: str, top_k: int = 5) -> Future[Answer]:
        """Queue an image and return its answer to come; ``cancel`` drops it as long as it waits."""
        (request,) = self._scheduler.submit(BatchRequest([image], [self._entry(task)], top_k))
        waiting = ref(request)  # who keeps the future shall not keep the image

        def done(future: Future[Answer]) -> None:
            cancelled = waiting() if future.cancelled() else None
            if cancelled is not None:
                self._scheduler.withdraw(cancelled)

        request.future.add_done_callback(done)
        return request.future

    def predict(
        self,
        image_or_batch: Any,
        task: str,
        top_k: int = 5,
        timeout: float | None = None,
        return_errors: bool = False,
    ) -> Any:
        """Return the ``Answer`` for an image, or a list of them for a list or a 4-D tensor.

        An image is a file's path or bytes, a PIL image, a uint8 tensor (3, h, w) or array (h, w, 3); it is prepared as
        the task's file says. A floating tensor is what the network sees, without the batch's dimension. ``timeout`` is
        in seconds. ``return_errors``: of a batch, an image that cannot be used has its DataError in its answer's place,
        and the others are answered. Raises UnknownTaskError, DataError for an image that cannot be read, InputError,
        OverloadError, DeadlineError, UnavailableError for a task that cannot be loaded now, ClosedError.
        """
        asked, batch = self._of_task(image_or_batch, task, top_k, return_errors)
        answers = self._answers(asked, timeout)
        return answers if batch else answers[0]

    async def predict_async(
        self,
        image_or_batch: Any,
        task: str,
        top_k: int = 5,
        timeout: float | None = None,
        return_errors: bool = False,
    ) -> Any:
        """Return what ``predict`` does, without blocking the event loop; cancelling it drops what waits."""
        asked, batch = self._of_task(image_or_batch, task, top_k, return_errors)
        answers = await self._scheduler.answers_async(asked, timeout)
        return answers if batch else answers[0]

    def infer(
        self,
        image: Any,
        tasks: Sequence[str] | None = None,
        top_k: int = 5,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Return the answer of each of ``tasks`` for one image, the surest first.

        None asks all tasks, and leaves out those that cannot answer now and those that label every pixel. Raises
        InputError where one of the latter is named, or no other is there.
        """
        asked = self._of_tasks(image, tasks, top_k)
        return _surest_first(self._answers(asked, timeout))

    async def infer_async(
        self,
        image: Any,
        tasks: Sequence[str] | None = None,
        top_k: int = 5,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Return what ``infer`` does, without blocking the event loop."""
        asked = self._of_tasks(image, tasks, top_k)
        return _surest_first(await self._scheduler.answers_async(asked, timeout))

    # -- tasks ---------------------------------------------------------------------------------

    def tasks(self) -> list[TaskStatus]:
        """Return every task that can be asked for, by name."""
        return [self._status(entry) for _, entry in sorted(self._folder.entries.items())]

    def task(self, name: str) -> TaskStatus:
        """Return one task's state; raises UnknownTaskError."""
        return self._status(self._folder.entry(name))

    def refused(self) -> dict[str, str]:
        """Return why files of the folder cannot be served, by name."""
        return dict(self._folder.refused)

    def put_task(self, name: str, data: bytes, replace_classes: bool = False) -> TaskStatus:
        """Add or replace a task by the bytes of its file; requests from now on get the new one.

        Everything is checked before the folder is touched: the file is decoded to its last byte. Raises TaskNameError,
        TaskFileError, BackboneMismatchError, InputError for a task that cannot be served, OtherClassesError for one
        of another kind or with other classes or units than the one it replaces, unless ``replace_classes``,
        UnavailableError where the disk does not take it.
        """
        check_is("data", data, (bytes, bytearray, memoryview), "the bytes of a task file")
        check_is("replace_classes", replace_classes, bool, "True or False")
        return self._status(self._folder.put(name, data, self._packed, replace_classes))

    def delete_task(self, name: str) -> None:
        """Delete a task's file; what is queued for it is still answered."""
        self._folder.remove(name)

    def rescan(self) -> None:
        """Look at the folder now: take in what was added, replaced or removed."""
        self._folder.scan()

    def stats(self) -> Stats:
        """Return what was done so far, and where everything is."""
        found = self._scheduler.stats(self._folder.entries.values())
        return replace(found, files=dict(self._folder.changes))

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Stop: answer what is queued if ``drain``, within ``timeout`` seconds; what is left gets ClosedError."""
        check_timeout(timeout)
        self._stopping.set()
        if self._watcher.is_alive():  # a look at a disk that hangs may never end
            self._watcher.join(WATCHER_END_S)
        until = None if timeout is None else time.monotonic() + timeout
        self._scheduler.close(drain, timeout)
        for thread in self._workers:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        for thread in self._loaders:  # one at a disk that hangs may never end
            thread.join(LOADER_END_S)
        self._preparers.shutdown(wait=False)
        if self._decoder is not None:
            self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside --------------------------------------------------------------------------------

    def _start(self, budget: int, workers: int, threads: int) -> None:
        """Start all threads; they have told torch how many cores they use when this returns."""
        preparing, loading = max(2, workers), self.options.loaders
        started = Barrier(workers + loading + preparing + 1)
        self._preparers = ThreadPoolExecutor(preparing, "piggyback-prepare")
        copies = [self._network.new_copy() for _ in range(workers)]
        self._scheduler = Scheduler(
            budget, copies, self._network.copy_bytes, self.options, self._preparers
        )
        for _ in range(preparing):  # none is free before all are there, so each call starts one
            self._preparers.submit(use_cores, 1, started)
        working = (self._scheduler, threads, started)
        self._workers = [Thread(target=work, args=working) for _ in range(workers)]
        bringing = (self._scheduler, self._network, self._load, started)
        self._loaders = [Thread(target=load, args=bringing) for _ in range(loading)]
        for thread in (*self._workers, *self._loaders):
            thread.daemon = True  # an engine that was not closed does not keep the process alive
            thread.start()
        started.wait()

    def _watch(self) -> None:
        """Look at the folder again and again: works on every file system, also where nobody tells of changes."""
        while not self._stopping.wait(self.options.watch_s):
            try:
                self.rescan()
            except Exception:  # whatever went wrong, the next look may go well
                logging.getLogger(__name__).exception("a look at the tasks directory failed")

    def _load(self, entry: TaskEntry) -> tuple[TaskEntry, PackedTask]:
        found, data = self._folder.read(entry)
        if self._decoder is None:
            return found, self._packed(found.name, data)
        return found, self._network.pack(self._decoder.load(data, found.name))

    def _packed(self, name: str, data: bytes) -> PackedTask:
        return self._network.pack(file.load(data, name, expect=self._network.shapes))

    def __reduce__(self) -> Any:
        raise TaskStateError(
            "an Engine has threads, which no other process can have: make one in each process"
        )

    def _entry(self, task: str) -> TaskEntry:
        self._check_process()
        return self._folder.entry(task)

    def _check_process(self) -> None:
        """Raise TaskStateError in a process where the engine's threads are not: nobody would answer."""
        if os.getpid() != self._process:
            raise TaskStateError(
                f"this Engine was made in process {self._process} and its threads are there, not in {os.getpid()}: "
                "make an Engine after the fork, in each process its own"
            )

    def _answers(self, asked: BatchRequest, timeout: float | None) -> list[Any]:
        """Wait for answers; raises TaskStateError in a callback of ``submit``'s future, which a worker calls."""
        if current_thread() in self._workers:
            raise TaskStateError(
                "predict in a future's callback: that runs in the engine's own worker, which would wait for itself; "
                "use submit there, or another thread"
            )
        return self._scheduler.answers(asked, timeout)

    def _of_task(
        self, image_or_batch: Any, task: str, top_k: int, return_errors: bool
    ) -> tuple[BatchRequest, bool]:
        """What is asked of one task, and whether it is about a batch."""
        images, batch = samples(image_or_batch)
        entries = [self._entry(task)] * len(images)
        failed: Failed = "return" if batch and return_errors else "raise"
        return BatchRequest(images, entries, top_k, failed), batch

    def _of_tasks(self, image: Any, tasks: Sequence[str] | None, top_k: int) -> BatchRequest:
        """What is asked of several tasks about one image."""
        self._check_process()
        found = list(self._folder.entries.values())
        if tasks is not None:
            found = list({name: self._entry(name) for name in check_several(tasks)}.values())
        if not found:
            raise UnknownTaskError("no tasks to choose from: put task files into the folder first")
        whole = [entry for entry in found if not entry.outputs.per_pixel]
        if len(whole) < len(found) and (tasks is not None or not whole):
            name = next(entry.name for entry in found if entry.outputs.per_pixel)
            raise InputError(
                f"task {name!r} labels every pixel: no task is inferred from that; ask it alone, by its name"
            )
        return BatchRequest(
            [image] * len(whole), whole, top_k, "skip" if tasks is None else "raise"
        )

    def _status(self, entry: TaskEntry) -> TaskStatus:
        tier, memory = self._scheduler.where(entry)
        return TaskStatus(
            name=entry.name,
            version=entry.version,
            kind=entry.outputs.name,
            classes=entry.outputs.classes,
            file_bytes=entry.file_bytes,
            memory_bytes=memory,
            tier=tier,
            **_sizes(entry.preprocessing),
        )


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Let torch use ``number`` cores within the block.

    Threads that start in it and call ``torch.set_num_threads`` keep their own number; others are as before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)  # also for threads to come: torch has one number for them


def _sizes(prepared: Prepares | None) -> dict[str, int]:
    """The fields of a task's status that say how large an image is seen, or how long a text."""
    if prepared is None:
        return {}
    if isinstance(prepared, TextPreprocessing):
        return {"max_tokens": prepared.max_length}
    return {"image_size": prepared.image_size}


def _surest_first(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: -answer.confidence)
