"""Where a token comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from piggyback.errors import InputError
from piggyback.names import read_token


def test_a_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIGGYBACK_TOKEN", raising=False)
    assert read_token() is None
    monkeypatch.setenv("PIGGYBACK_TOKEN", "second")
    assert read_token() == "second"
    (tmp_path / "token").write_text(" first \n")
    assert read_token(tmp_path / "token") == "first"


@pytest.mark.parametrize("text", ["", " \n", "two words", "naïve", "a\nb", "x" * 5000])
def test_what_is_no_token_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PIGGYBACK_TOKEN", text)
    for place, name in ((tmp_path / "token", "token file"), (None, r"\$PIGGYBACK_TOKEN")):
        with pytest.raises(InputError, match=name) as told:
            read_token(place)
        assert not text.strip() or text.strip() not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_token(tmp_path / "none")
