"""``piggyback predict``: classes of image files, or of their pixels; from task files, or from a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piggyback.cli.answers import FileAnswer, Format, Mapped, no_answer, show, show_maps
from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.options import (
    CheckpointOption,
    ColumnOption,
    HeadOption,
    OtherBackboneOption,
    TokenFileOption,
    columns_of,
)
from piggyback.cli.screen import notes
from piggyback.errors import DataError, InputError, TaskNameError
from piggyback.images.find import SUFFIXES, find_images
from piggyback.names import check_name, plain, read_token
from piggyback.schemas import AT_LEAST
from piggyback.taskfile.disk import check_output, write_file
from piggyback.texts.preprocessing import Text, TextPreprocessing

if TYPE_CHECKING:
    from piggyback.client import Client
    from piggyback.model.multitask import MultiTaskModel
    from piggyback.schemas import Answer
    from piggyback.taskfile.header import TaskHeader

SUFFIX = ".safetensors"
NO_MAPS = "--out is for the label maps of a segmentation task: leave it out"
NO_FOLDER = "labels every pixel: give --out DIR for its label maps"


def run(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUTS...",
            help="Image files, folders, quoted globs, or tables of images; for a text task, files with one text per "
            "line, or tables.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A task file; with --url, a task's name. May be repeated."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A text to answer for. May be repeated."),
    ] = None,
    column: ColumnOption = None,
    infer_task: Annotated[
        bool,
        typer.Option("--infer-task", help="Give only the answer of the surest of several tasks."),
    ] = False,
    at_least: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=f"Minimum confidence for --infer-task; below it the answer is none.  [default: {AT_LEAST}]",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and say so.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to give.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the label maps of a segmentation task."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to write the answers.")] = "table",
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Ask the server at this address: see `piggyback serve --help`.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer for images or texts with one or more task files.

    Several task files share one network. Each answers for every image; with
    --infer-task only the surest one does. A segmentation task writes a label map
    for each image: a PNG of the image's size whose pixel values are the classes'
    numbers. An image that cannot be read is an error, unless --skip-bad is given.

    With --url a running server answers, and --task takes task names. With
    --infer-task and no name it chooses among all its tasks except segmentation.

    \b
    Examples:
      piggyback predict photo.jpg --task tasks/signs.safetensors
      piggyback predict photos/ "new/*.png" --task tasks/signs.safetensors --json
      piggyback predict photos/ --task a.safetensors --task b.safetensors
      piggyback predict photo.jpg --task signs.safetensors --top 1 --format csv
      piggyback predict streets/ --task camvid.safetensors --out maps
      piggyback predict photo.jpg --task signs --url http://127.0.0.1:8000
      piggyback predict a.jpg --task camvid --out maps --url http://127.0.0.1:8000
      piggyback predict photo.jpg --infer-task --url http://127.0.0.1:8000
      piggyback predict --text "a great film" --task mood.safetensors
      piggyback predict reviews.csv --column text=review --task mood.safetensors
      piggyback predict photos.csv --column image=file --task signs.safetensors
    """
    if json and format == "csv":
        raise InputError("--json and --format csv: expected one of the two")
    how: Format = "json" if json else format
    if at_least is not None and not infer_task:
        raise InputError("--at-least: it is for --infer-task; give that too, or leave it out")
    if url is not None:
        local: dict[str, object] = {"backbone": backbone, "checkpoint": checkpoint, "head": head}
        local |= {"threads": threads, "device": device}
        for name, value in local.items():
            if value is not None:
                raise InputError(
                    f"--{name}: of no use with --url, where the server has its own network; leave it out"
                )
        _check_names(task or [], infer_task)
        if out is not None and (text or len(task or ()) != 1):
            raise InputError(
                "--out is for the label maps of one segmentation task: give one --task, and images"
            )
        token = read_token(token_file)
        asked: Sequence[Path | Text] = (
            _texts(images or [], text or [], column)
            if text or "text" in columns_of(column)
            else _files(images, column, skip_bad)
        )
        once = list(dict.fromkeys(asked))
        places = {} if out is None else _map_places([f for f in once if isinstance(f, Path)], out)
        bad = Bad(skip_bad, len(once))
        found = _ask_server(
            url, token, once, task or [], infer_task, top, batch_size, at_least, bad, bool(places)
        )
        told = bad.told(found, asked)
        if places:
            show_maps(_save_maps(found, places), how, top)
        else:
            show(told, how)
        return
    compute_with(threads, device)
    paths = _task_files(task or [], token_file)
    # Before the network is loaded: a wrong path is reported at once.
    from piggyback.cli.loading import load_tasks, read_answering

    headers = [read_answering(path) for path in paths]
    if isinstance(headers[0].info.preprocessing, TextPreprocessing):
        given: Sequence[Path | Text] = _texts(images or [], text or [], column)
    elif text:
        raise InputError(f"--text: task {headers[0].name!r} sees images; give image files")
    else:
        given = _files(images, column, skip_bad)
    once = list(dict.fromkeys(given))
    files = [file for file in once if isinstance(file, Path)]
    folder = _maps_folder(headers, infer_task, out)
    places = {} if folder is None else _map_places(files, folder)
    model = load_tasks(paths, backbone, checkpoint, head)
    bad = Bad(skip_bad, len(once))
    if places:
        written = _write_maps(model, places, batch_size, bad)
        bad.told([], files)
        show_maps(written, how, top)
        return
    answers = _answer(model, once, top, batch_size, bad)
    if infer_task:
        count = len(paths)
        groups = [answers[at : at + count] for at in range(0, len(answers), count)]
        answers = [_surest(group, AT_LEAST if at_least is None else at_least) for group in groups]
    show(bad.told(answers, given), how)


class Bad:
    """Images that cannot be read: the first is raised, or if ``skip`` all are told at the end."""

    def __init__(self, skip: bool, images: int) -> None:
        self._skip, self._images = skip, images
        self._found: dict[Path | Text, str] = {}

    def __call__(self, file: Path | Text, error: DataError) -> None:
        """Take in one; raises its error, with what to do, unless it is to be skipped."""
        if not self._skip:
            hint = "; --skip-bad leaves such images out" * (self._images > 1)
            raise type(error)(f"{error}{hint}") from error
        self._found.setdefault(file, str(error))

    def told(self, answers: Sequence[FileAnswer], files: Sequence[Path | Text]) -> list[FileAnswer]:
        """Return the answers for each of ``files``, an error in the place of a bad one's; DataError if all are bad.

        A table may name a file in many rows: ``answers`` has each once.
        """
        for line in self._found.values():
            notes().print(f"left out: {plain(line)}", soft_wrap=True)
        if len(self._found) == self._images:
            raise DataError(f"none of {self._images} images can be read")
        by_file: dict[str, list[FileAnswer]] = {}
        for one in answers:
            by_file.setdefault(one.file, []).append(one)
        for bad, why in self._found.items():
            by_file[str(bad)] = [no_answer(str(bad), "file", why)]
        return [one for file in files for one in by_file.get(str(file), ())]


def _surest(group: Sequence[FileAnswer], at_least: float) -> FileAnswer:
    best = max(group, key=lambda one: one.said.confidence)
    if best.said.confidence >= at_least:
        return best
    return no_answer(best.file, best.what, confidence=best.said.confidence)


def _what(given: Path | Text) -> str:
    return "text" if isinstance(given, Text) else "file"


def _files(inputs: Sequence[str] | None, column: Sequence[str] | None, missing: bool) -> list[Path]:
    """The image files that arguments name, each once, and those of a table's rows; raises BadParameter for none.

    With ``missing`` those that are not there are among them, to be said when they are read.
    """
    if not inputs:
        raise typer.BadParameter("expected images, or --text", param_hint="'INPUTS...'")
    columns = columns_of(column)
    if columns.keys() - {"image"}:
        raise InputError(f"--column {' '.join(column or ())}: expected image=NAME alone")
    images, found = [], list[Path]()
    for name in inputs:
        path = Path(name)
        if path.suffix.lower() in SUFFIXES or not path.is_file():
            images.append(name)
            continue
        from piggyback.train.data.columns import (  # with torch, for a table alone
            is_table,
            read_files,
        )

        if is_table(path):
            found += read_files(path, columns.get("image"), missing=missing)
        else:
            images.append(name)
    if columns and not found:
        raise InputError(f"--column {' '.join(column or ())}: it is for tables, such as photos.csv")
    return [*(find_images(images, missing=missing) if images else ()), *found]


def _texts(inputs: Sequence[str], texts: Sequence[str], column: Sequence[str] | None) -> list[Text]:
    """The texts that are given, and those of files; raises InputError for one that is empty."""
    columns = columns_of(column)
    if columns.keys() - {"text"}:
        raise InputError(f"--column {' '.join(column or ())}: expected text=NAME alone")
    if not inputs and not texts:
        raise typer.BadParameter("expected files of texts, or --text", param_hint="'INPUTS...'")
    if any(not text.strip() for text in texts):
        raise InputError("--text '': expected a text with a letter in it")
    found = [Text(text) for text in texts]
    for name in inputs:
        from piggyback.train.data.columns import read_texts  # with torch, for files alone

        found += [Text(text) for text in read_texts(Path(name), columns.get("text"))]
    return found


# -- from a server ---------------------------------------------------------------------------------


def _ask_server(
    url: str,
    token: str | None,
    files: Sequence[Path | Text],
    tasks: Sequence[str],
    infer: bool,
    top: int,
    at_once: int,
    at_least: float | None,
    bad: Bad,
    maps: bool,
) -> list[FileAnswer]:
    """Each file's answers of every one of ``tasks``, or if ``infer``, of the surest only; of all the server's tasks,
    where none is named. Raises InputError unless they are label maps where ``maps`` says so, and only there."""
    from piggyback.client import Client

    found: list[FileAnswer] = []
    least = AT_LEAST if at_least is None else at_least
    with Client(url, token) as client:
        for start in range(0, len(files), at_once):
            part = list(files[start : start + at_once])
            groups: list[list[Any]]
            if tasks and infer:
                groups = [_infer(client, file, tasks, top, least) for file in part]
            else:
                by_task = [
                    client.predict(part, name, top, at_least, return_errors=True)
                    for name in tasks or (None,)
                ]
                groups = [list(group) for group in zip(*by_task, strict=True)]
            for file, group in zip(part, groups, strict=True):
                broken = next((one for one in group if isinstance(one, DataError)), None)
                if broken is not None:
                    bad(file, _named(broken, file))
                    continue
                found += [_of_server(file, one, maps) for one in group]
    return found


def _infer(
    client: Client, file: Path | Text, tasks: Sequence[str], top: int, at_least: float
) -> list[Answer | DataError | None]:
    try:
        best = client.infer(file, list(tasks), top)[0]
    except DataError as error:
        return [error]
    return [best if best.confidence >= at_least else None]


def _of_server(file: Path | Text, one: Answer | None, maps: bool) -> FileAnswer:
    if one is None:
        return no_answer(str(file), _what(file))
    if maps != (one.label_map is not None):
        raise InputError(NO_MAPS if maps else f"task {one.task!r} {NO_FOLDER}")
    return FileAnswer(str(file), one.task, one, _what(file))


def _named(error: DataError, file: Path | Text) -> DataError:
    """The error of one image of a request, by its path: the server knows its name at most."""
    text = str(error)
    return error if str(file) in text else type(error)(f"{file}: {text}")


def _check_names(tasks: Sequence[str], infer: bool) -> None:
    """Raise InputError for a task file in place of a name, and where nobody chooses a task."""
    for name in tasks:
        if not _is_name(name):
            given = Path(name).name.removesuffix(SUFFIX)
            hint = f", such as {given}" if _is_name(given) else ""
            raise InputError(
                f"task {name!r}: with --url expected a task's name on the server{hint}"
            )
    if not tasks and not infer:
        raise InputError(
            "with --url expected --task NAME, or --infer-task to let the server choose"
        )


def _task_files(tasks: Sequence[str], token_file: Path | None) -> list[Path]:
    """The paths of task files; raises BadParameter for none, InputError for what only a server knows."""
    if not tasks:
        raise typer.BadParameter("expected a task file, found none", param_hint="'--task'")
    if token_file is not None:
        raise InputError("--token-file: it is for a server; give --url, or leave it out")
    for name in tasks:
        if _is_name(name) and not Path(name).exists():
            raise InputError(
                f"task {name!r}: expected a task file, such as {name}{SUFFIX}; the name of a task on "
                "a server needs --url"
            )
    return [Path(name) for name in tasks]


def _is_name(text: str) -> bool:
    """Whether ``text`` reads as a task's name rather than a file's."""
    try:
        return not check_name(text).endswith(SUFFIX)
    except TaskNameError:
        return False


# -- from task files -------------------------------------------------------------------------------


def _answer(
    model: MultiTaskModel, files: Sequence[Path | Text], top: int, batch_size: int, bad: Bad
) -> list[FileAnswer]:
    """Every task's answer for every image or text, one by one."""
    from piggyback.train.evaluation import predict

    what = _what(files[0])
    by_task = []
    for name in model.task_names:
        found = predict(model, name, files, top=top, batch_size=batch_size, on_bad=bad)
        read = {one.file for one in found}
        files = [file for file in files if str(file) in read]  # a bad one is asked of one task only
        by_task.append([FileAnswer(one.file, name, one.said, what) for one in found])
    return [one for group in zip(*by_task, strict=True) for one in group]


def _maps_folder(headers: Sequence[TaskHeader], infer: bool, out: Path | None) -> Path | None:
    """``out`` where the task labels every pixel, else None; raises InputError for such a task beside others or without
    a folder, and for a folder that nothing goes into."""
    found = [header.name for header in headers if header.info.kind == "segmentation"]
    if not found:
        if out is not None:
            raise InputError(NO_MAPS)
        return None
    if len(headers) > 1 or infer:
        raise InputError(
            f"task {found[0]!r} labels every pixel: expected one task, without --infer-task; run predict for each"
        )
    if out is None:
        raise InputError(f"task {found[0]!r} {NO_FOLDER}")
    return out


def _write_maps(
    model: MultiTaskModel, places: Mapping[Path, Path], batch_size: int, bad: Bad
) -> list[Mapped]:
    """Write a label map for each image; return where, and what was found, in the files' order."""
    from piggyback.images.map_pictures import as_png, colours_of
    from piggyback.train.evaluation import segment

    (name,) = model.task_names
    colours = colours_of(model.get_task(name).info.classes)
    made = []
    files = list(places)
    for one in segment(model, name, files, batch_size=batch_size, on_bad=bad):
        place = places[one.file]
        write_file(place, as_png(one.labels, colours))
        made.append(Mapped(one.file, place, one.shares))
    return made


# -- label maps ------------------------------------------------------------------------------------


def _map_places(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where each image's label map goes; InputError for two of one name, for one in its image's place, and a folder
    that cannot be written."""
    check_output(out, "--out", folder=True)
    places: dict[Path, Path] = {}
    for file in files:
        place = out / f"{file.stem}.png"
        if place in places:
            raise InputError(
                f"images {str(places[place])!r} and {str(file)!r} have one label map's name, "
                f"{place.name!r}: predict them into separate folders"
            )
        if place.resolve() == file.resolve():
            raise InputError(
                f"image {str(file)!r} lies where its label map goes: choose another --out"
            )
        places[place] = file
    return {file: place for place, file in places.items()}


def _save_maps(found: Sequence[FileAnswer], places: Mapping[Path, Path]) -> list[Mapped]:
    """Write the label maps in a server's answers; return where, and what was found."""
    made = []
    for one in found:
        if label_map := one.said.label_map:
            file = Path(one.file)
            write_file(places[file], label_map.png)
            by_class = {share.name: share.percent for share in label_map.shares}
            made.append(Mapped(file, places[file], by_class))
    return made
