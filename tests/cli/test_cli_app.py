"""The command line as a whole: help, version, exit codes, errors."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from piggyback.cli.app import COMMANDS
from piggyback.errors import PiggybackError
from support.cli_toys import FAST

COMMAND = [
    *(sys.executable, "-c"),
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from piggyback.cli import main; main()",
]
"""The command line, by Ctrl-C too where the tests themselves run in the background and ignore it."""


def test_help_lists_every_command(piggyback):
    ran = piggyback("--help")
    assert ran.code == 0
    for name, summary in COMMANDS.items():
        assert f"{name} " in ran.out
        assert summary in " ".join(ran.out.split())


@pytest.mark.parametrize("command", ["", *COMMANDS, "experiment list", "experiment run"])
def test_help_fits_80_columns_and_is_for_people(piggyback, command):
    ran = piggyback(*command.split(), "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    python_or_cut_off = r"<(?:list|str|int|float|path)\b|[{}]|[a-z]\.\.\.$"
    assert re.findall(python_or_cut_off, ran.out, re.MULTILINE) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_examples_and_its_summary(piggyback, command):
    ran = piggyback(command, "-h")
    assert f"Examples:\n    piggyback {command}" in ran.out
    described = importlib.import_module(f"piggyback.cli.{command.replace('-', '_')}").run.__doc__
    assert described.splitlines()[0] == COMMANDS[command]


LIGHT = """
import json, sys
from piggyback.cli import main
found = {}
for line in json.loads(sys.argv[1]):
    before = set(sys.modules)
    try:
        main(line)
    except SystemExit:
        found[" ".join(line)] = sorted(set(sys.modules) - before)
print(json.dumps(found), file=sys.stderr)
"""


def test_what_needs_no_network_needs_no_torch(trained, colours):
    lines = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    lines += [["experiment", verb, "--help"] for verb in ("list", "run", "show")]
    lines += [["inspect", str(trained)], ["inspect", str(trained), "--json"]]
    lines += [["predict", str(colours), "--task", "a", "--url", "http://127.0.0.1:1"]]
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(lines)], capture_output=True, text=True, timeout=60
    )
    loaded = json.loads(ran.stderr.splitlines()[-1])
    assert len(loaded) == len(lines)
    heavy = {"torch", "torchvision", "timm", "accelerate", "transformers", "matplotlib", "numpy"}
    for line, modules in loaded.items():
        assert not heavy & set(modules), line


def test_version(piggyback):
    assert piggyback("--version").out == f"piggyback {version('torch-piggyback')}\n"


def test_wrong_usage_exits_with_2(piggyback):
    for arguments in (["trian"], ["train"], ["train", "--epochs", "many"], ["predict", "x.png"]):
        ran = piggyback(*arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert "Usage:" in ran.err


def test_an_error_is_one_line_on_standard_error(piggyback):
    ran = piggyback("inspect", "missing.safetensors")
    ran.refuses("error: missing.safetensors: cannot be read", "No such file")


def test_debug_shows_the_trace(piggyback):
    for arguments in (["--debug", "inspect", "missing"], ["inspect", "missing", "--debug"]):
        with pytest.raises(PiggybackError, match="cannot be read"):
            piggyback(*arguments)


def test_completion_can_be_shown(piggyback, monkeypatch):
    monkeypatch.setenv("_PIGGYBACK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "piggyback qui")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert "quickstart" in piggyback().out


def test_completion_knows_a_commands_options(piggyback, monkeypatch):
    monkeypatch.setenv("_PIGGYBACK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "piggyback train --lab")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert "--label-smoothing" in piggyback().out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_modules_are_loaded_shows_no_traceback(piggyback, monkeypatch):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("piggyback.cli.app.load", stopped)
    ran = piggyback("check", "pictures")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_ctrl_c_exits_with_130_and_resume_goes_on(toy, colours, tmp_path):
    command = [
        *(*COMMAND, "train", "--data", str(colours), "--backbone", f"{toy}:build"),
        *("--out", str(tmp_path / "run"), *FAST, "--epochs", "3000"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not place.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert place.exists()
    assert err.splitlines()[-1].endswith("--resume"), err
