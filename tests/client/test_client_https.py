"""A server behind https."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from piggyback.client import Client
from piggyback.errors import ServerError
from support.fake_server import FakeServer, Told, answer, as_a_server, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate for 127.0.0.1, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", folder / "key.pem", "-out", folder / "certificate.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both = (folder / "certificate.pem").read_text() + (folder / "key.pem").read_text()
    (folder / "both.pem").write_text(both)
    return folder / "both.pem"


def test_only_a_server_with_a_trusted_certificate_is_asked(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serving(FakeServer(as_a_server), tls) as server:
        with Client(server.url, token="s3cret", timeout=20) as client:
            with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED") as told:
                client.tasks()
            assert "\n" not in str(told.value)
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Client(server.url, token="s3cret", timeout=20) as client:
            for _ in range(2):
                assert client.predict(b"BM x", "signs") == answer("signs", "BM x")
            assert {asked.connection for asked in server.asked} == {server.asked[0].connection}
            server.script = [Told(200, {"tasks": []}, close_after=True)]
            assert client.tasks() == []
            assert len(client.tasks()) == 1  # on a new connection
