"""Whatever bytes come, they are understood or refused; nothing else happens."""

from __future__ import annotations

import importlib
import json
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

import piggyback.serve.http
from piggyback.errors import MissingExtraError
from piggyback.serve.http import forms
from piggyback.serve.http.calls import parse_query
from piggyback.serve.http.forms import Part, parse_form
from piggyback.serve.http.refusals import RefusedError
from piggyback.serve.http.strict import parse_object

FORM = "multipart/form-data; boundary=XX"
PIECES = [
    b"--XX", b"\r\n", b"--", b"\r", b"\n", b"Content-Disposition: form-data", b'; name="image"',
    b"; name=", b":", b"\r\n\r\n", b"--XX--", b"red", b"\x00\xff", b" ",
]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def refused_or(call):
    """What ``call`` returns, or None where it refuses in one line."""
    try:
        return call()
    except RefusedError as error:
        refusal = error
    assert 400 <= refusal.status < 500
    assert str(refusal)
    assert "\n" not in str(refusal)
    return None


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join) | st.binary(max_size=200))
def test_forms_of_any_bytes(body):
    parts = refused_or(lambda: parse_form(body, FORM, 4))
    assert parts is None or len(parts) <= 4


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["image", "top_k", "ä b"]), st.binary(max_size=50)), max_size=4
    )
)
@example([("image", b"\r\n--X\r\n--XY--\r\n")])
def test_forms_come_out_as_they_went_in(fields):
    sent = b"".join(
        f'--X-y.z\r\nContent-Disposition: form-data; name="{name}"; filename="a;b"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in fields
        if b"--X-y.z" not in data
    )
    kept = [Part(name, data) for name, data in fields if b"--X-y.z" not in data]
    body = sent + b"--X-y.z--\r\n"
    assert parse_form(body, 'multipart/form-data; boundary="X-y.z"', 10) == kept


@pytest.mark.parametrize("after", [b"y", b"\ry", b"-y", b" ", b" \r\n"])
def test_a_boundary_inside_a_part_is_refused_before_the_parser_sees_it(monkeypatch, after):
    monkeypatch.setattr(forms, "MultipartParser", None)
    start = b'--XX\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    body = start + b"\r\n--XX" + after + b"red\r\n--XX--\r\n"
    with pytest.raises(RefusedError, match="inside a part") as found:
        parse_form(body, FORM, 4)
    assert found.value.status == 400


@settings(max_examples=50)
@given(st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()))
def test_json_of_any_bytes(body):
    found = refused_or(lambda: parse_object(body, 10))
    if found is not None:
        assert found == json.loads(body)
        assert "NaN" not in json.dumps(found)


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_queries_of_any_bytes(query):
    pairs = refused_or(lambda: parse_query(query, ("task", "top_k")))
    assert pairs is None or {name for name, _ in pairs} <= {"task", "top_k"}


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"torch-piggyback\[serve\]"):
        importlib.reload(piggyback.serve.http)
