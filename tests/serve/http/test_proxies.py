"""``deploy/``: the configurations as they are, but for names, ports and shorter times, in the real proxies."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from support.fake_engine import FakeEngine, received, served, wait_until

DEPLOY = Path(__file__).parents[3] / "deploy"
PREDICT = "/v1/tasks/colours/predict"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def shortened(text, server, changes):
    text = re.sub(r"127\.0\.0\.1:8000", server, text)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def nginx(folder, server, port):
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=models.example",
         "-keyout", key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    text = (DEPLOY / "nginx.conf").read_text()
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/models.example.pem": str(certificate),
        "/etc/ssl/models.example.key": str(key),
        "client_header_timeout 10s": "client_header_timeout 1s",
    }
    own = f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
    (folder / "nginx.conf").write_text(own + shortened(text, server, changes))
    return ["nginx", "-c", folder / "nginx.conf", "-p", folder]


def caddy(folder, server, port):
    changes = {
        "{\n\tservers": f"{{\n\tadmin off\n\tauto_https disable_redirects\n\thttps_port {port}\n\tservers",
        "models.example {": f"127.0.0.1:{port} {{\n\ttls internal",
        "read_header 10s": "read_header 1s",
    }
    text = (DEPLOY / "Caddyfile").read_text()
    (folder / "Caddyfile").write_text(shortened(text, server, changes))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy])
def proxy(request, tmp_path_factory):
    """Port of a proxy before a server."""
    name = request.param.__name__
    if shutil.which(name) is None:
        pytest.skip(f"needs Debian's {name}")
    folder, port = tmp_path_factory.mktemp(name), free_port()
    with served(FakeEngine(), token="s3cret") as server:
        command = request.param(folder, server.address.removeprefix("http://"), port)
        environment = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            wait_until(lambda: process.poll() is not None or answers(port))
            assert process.poll() is None, process.stderr.read().decode()
            yield port
        finally:
            process.terminate()
            process.wait(20)


def answers(port):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"https://127.0.0.1:{port}/health", verify=False).status_code == 200
    return False


@contextlib.contextmanager
def connected(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=15) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        yield line


def ask(port, **options):
    headers = {"Authorization": "Bearer s3cret"} | options.pop("headers", {})
    url = f"https://127.0.0.1:{port}" + options.pop("path", PREDICT)
    return httpx.request("POST", url, headers=headers, verify=False, timeout=30, **options)


def test_answers_and_refusals_pass_through(proxy):
    done = ask(proxy, files={"image": b"red"})
    assert done.json()["answers"][0]["classes"][0]["class"] == "red"
    assert done.headers["x-request-id"]
    done = ask(proxy, files={"image": b"no image"})
    assert (done.status_code, done.json()["error"]["code"]) == (400, "bad_image")
    assert ask(proxy, headers={"Authorization": "Bearer no"}).status_code == 401
    done = ask(proxy, content=b"r" * (17 << 20), headers={"Content-Type": "image/png"})
    assert (done.status_code, done.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow"])
def test_silent_connections_and_slow_headers_are_ended(proxy, sent):
    with connected(proxy) as line:
        line.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            received(line)
        assert 0.5 < time.monotonic() - began < 10


def test_what_is_too_large_is_refused(proxy):
    done = ask(proxy, content=b"r" * (65 << 20), headers={"Content-Type": "image/png"})
    assert (done.status_code, "code" in done.json()["error"]) == (413, True)
    headers = {f"X-{number}": "a" * 8000 for number in range(12)}
    assert ask(proxy, files={"image": b"red"}, headers=headers).status_code in (400, 431)
