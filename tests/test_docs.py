"""The documentation is true: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from piggyback.cli.app import COMMANDS, load
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import save_file
from piggyback.zoo.load import load_backbone

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = [ROOT / "README.md", ROOT / "docs" / "GUIDE.md"]
SERVING = ROOT / "docs" / "SERVING.md"
SERVER = "http://127.0.0.1:8000"
SHELL = ("bash", "sh", "console")
MACHINE_PATH = re.compile(
    r"(?<![\w.$}/:~-])/(?:home|root|work|Users|mnt|tmp|data|srv|opt|usr|var|etc)\b|\b[A-Z]:\\"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    heading, opened, language, held = "", 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened and line.strip() == "```":
            yield Block(page, opened, language, heading, "\n".join(held) + "\n")
            opened = 0
        elif opened:
            held.append(line)
        elif line.startswith("```"):
            opened, language, held = number, line[3:].strip(), []
        elif line.startswith("## "):
            heading = line[3:].strip()
    assert not opened, f"{page.name}: the block opened in line {opened} is not closed"


def sections() -> list[Any]:
    """The Python blocks of the executed pages, by heading."""
    found: dict[tuple[str, str], list[Block]] = {}
    for page in EXECUTED:
        for block in blocks(page):
            if block.language == "python":
                found.setdefault((page.stem, block.heading), []).append(block)
    return [pytest.param(held, id=f"{page}-{name}") for (page, name), held in found.items()]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory but for a folder of images; global state as it was, afterwards."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for kind, shade in (("stop", 40), ("yield", 160)):
        folder = tmp_path / "signs" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(12):
            noise = torch.randint(0, 80, (24, 24, 3), generator=generator) + shade
            Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("held", sections())
def test_python_blocks_run(held, elsewhere, monkeypatch):
    module = ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look themselves up
    for block in held:
        if block.page.name == "README.md":  # pasted one by one, into a Python of their own
            module = ModuleType("docs_page")
        # Line numbers of a traceback are the page's own.
        code = compile("\n" * block.line + block.text, str(block.page), "exec")
        exec(code, module.__dict__)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "GUIDE.md"], ids=lambda p: p.name)
def test_a_block_brings_its_names(page):
    for block in blocks(page):
        if block.language == "python":
            nodes = list(ast.walk(ast.parse(block.text)))
            names = [node for node in nodes if isinstance(node, ast.Name)]
            known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {
                *dir(builtins)
            }
            known |= {n.asname or n.name.split(".")[0] for n in nodes if isinstance(n, ast.alias)}
            known |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            assert {node.id for node in names} <= known, block


@pytest.fixture
def photos(elsewhere):
    """Photographs of a size that real ones have, under the names that the page uses."""
    pixels = torch.randint(0, 256, (480, 480, 3), dtype=torch.uint8).numpy()
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(name, quality=95)
        assert Path(name).stat().st_size > 200_000


@pytest.fixture
def address(photos, tmp_path):
    """Of a server with the quick start's tasks by name, on a network that is small."""
    for module in ("fastapi", "uvicorn", "multipart", "prometheus_client"):
        pytest.importorskip(module, reason="needs the extra 'serve'")
    from piggyback.serve.engine import Engine
    from support.colour_tasks import Colours, task_file
    from support.fake_engine import served

    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("digits", "letters"):
        (folder / f"{name}.safetensors").write_bytes(task_file(name))
    with Engine(Colours(), folder, "64MiB") as engine, served(engine) as server:
        yield server.address


def of_serving(heading: str, language: str) -> Block:
    (block,) = [b for b in blocks(SERVING) if (b.heading, b.language) == (heading, language)]
    return block


def executed(block: Block, text: str) -> dict[str, Any]:
    """Run a page's Python; return its names."""
    names: dict[str, Any] = {}
    exec(compile("\n" * block.line + text, str(block.page), "exec"), names)
    return names


def test_the_client_s_block_runs(address):
    block = of_serving("Client", "python")
    assert SERVER in block.text
    names = executed(block, block.text.replace(SERVER, address))
    assert names["answer"].task == "digits"
    assert names["names"] == ["digits", "letters"]


def test_the_engine_s_block_runs(photos):
    folder = Path("piggyback-quickstart", "tasks")
    folder.mkdir(parents=True)
    backbone = load_backbone("efficientnet_lite0", image_size=64)
    model = MultiTaskModel(backbone)
    for name in ("digits", "letters"):
        model.start_task(
            name,
            classes=[f"{name} {number}" for number in range(10)],
            preprocessing=backbone.preprocessing,
        )
        save_file(model.finish_task(), folder / f"{name}.safetensors")
    block = of_serving("The engine in Python", "python")
    names = executed(block, block.text)
    assert names["answer"].classes[0].startswith("digits")
    assert {answer.task for answer in names["ranking"]} == {"digits", "letters"}


def test_the_application_s_block_runs():
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    block = of_serving("Your own application", "python")
    app = executed(block, block.text)["app"]
    assert "/version" in app.openapi()["paths"]


@pytest.mark.skipif(None in map(shutil.which, ("bash", "curl", "base64")), reason="needs curl")
def test_the_lines_with_curl_are_answered(address, monkeypatch):
    block = of_serving("HTTP", "bash")
    assert SERVER in block.text
    monkeypatch.setenv("IMAGE", "photo.jpg")
    monkeypatch.setenv("no_proxy", "*")
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block.text.replace(SERVER, address)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told, rest = [], done.stdout.strip()
    while rest:  # one answer after the other
        one, end = json.JSONDecoder().raw_decode(rest)
        told.append(one)
        rest = rest[end:].lstrip()
    assert len(told) == block.text.count("curl ")
    counts = [len(one.get("answers", one.get("images", one.get("tasks", ())))) for one in told]
    assert counts == [1, 2, 1, 1, 1, 2], told


def command_lines() -> list[Any]:
    """Every ``piggyback`` call in a shell block."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in SHELL:
                text = block.text.replace("\\\n", " ")
                for line in text.splitlines():
                    found += [
                        pytest.param(words, id=f"{block}-{words[0]}") for words in calls(line)
                    ]
    return found


def calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;<>"):
            if words and Path(words[0]).name == "piggyback" and words[1:]:
                yield words[1:]
            words = []
        else:
            words.append(word)


@pytest.mark.parametrize("words", command_lines())
def test_command_lines_parse(words, monkeypatch):
    # Files that a line names need not exist here.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    words = [word for word in words if word != "--debug"]
    if words[0] in ("--help", "--version", "--install-completion"):
        return
    assert words[0] in COMMANDS
    load(words[0]).make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_running_text_exist(page):
    for code in re.findall(r"`piggyback ([^`\n]+)`", page.read_text(encoding="utf-8")):
        name, *rest = code.split()
        if name.startswith("-"):
            continue
        assert name in COMMANDS, f"{page.name}: `piggyback {code}`"
        command = load(name)
        if rest and (verbs := getattr(command, "commands", None)):  # a group
            assert rest[0] in verbs, f"{page.name}: `piggyback {code}`"
            command = verbs[rest[0]]
        known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{page.name}: `piggyback {code}`"


def anchors(page: Path) -> set[str]:
    """The anchors that a code host makes of a page's headings."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    titles = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page if not path else page.parent / path
        assert place.exists(), f"{page.name}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {target}"


def test_the_modules_that_architecture_names_exist():
    source = ROOT / "src" / "piggyback"
    for paragraph in (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n\n"):
        folder = re.match(r"\*\*`(\w+)/`\*\*", paragraph)
        for name in re.findall(r"`([\w/]+(?:/|\.py))`", paragraph):
            places = (ROOT, source, source / folder[1]) if folder else (ROOT, source)
            assert any((place / name).exists() for place in places), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_names_a_path_of_some_machine(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_named_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["optional-dependencies"])
    named = re.findall(r"(?:torch-piggyback|\.)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for group in named for extra in group.split(",")} <= known


def test_the_readmes_two_commands_are_one_line_each():
    readme = ROOT / "README.md"
    single = [
        b.text for b in blocks(readme) if b.language == "bash" and "python3 -m venv" in b.text
    ]
    assert len(single) == 2
    for text, end in zip(single, ("piggyback quickstart\n", "-m pytest\n"), strict=True):
        assert text.count("\n") == 1
        assert text.endswith(end)
    assert f"<!-- test command -->\n```bash\n{single[1]}```" in readme.read_text(encoding="utf-8")
