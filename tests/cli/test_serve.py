"""The command `wildcat serve`: a real process on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from wildcat.cli import main
from wildcat.cli.serve import listen, url_of
from wildcat.errors import MissingExtra

SECONDS = 180.0  # for a process to start on a busy machine


@dataclass
class Running:
    process: subprocess.Popen[str]
    address: str

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        return host, int(port)


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "wildcat", "serve", "imagenet-lite0", "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a terminal's Ctrl-C reaches all processes of a session
    )
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            assert ready.select(SECONDS), "no output"
        yield Running(process, process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving("--max-mb", "1", "--max-pixels", "1000000") as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 200)).save(path)
    return path


def post(service: Running, content: bytes, name: str = "noise.png", path: str = "/predict") -> httpx.Response:
    return httpx.post(service.address + path, files={"image": (name, content)}, timeout=SECONDS)


def test_the_first_line_is_the_url_and_responses_equal_predict(service: Running, image: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.address)
    assert main(["predict", "imagenet-lite0", str(image), "--out", str(tmp_path / "p"), "--save", "none"]) == 0
    row = json.loads((tmp_path / "p" / "predictions.jsonl").read_text(encoding="utf-8"))
    response = post(service, image.read_bytes()).json()
    assert response["image"] == "noise.png"
    assert Path(row["image"]).name == "noise.png"
    for key in ("width", "height", "labels", "files"):
        assert response[key] == row[key]
    for key in ("scores", "probabilities"):  # another number of threads sums in another order
        assert response[key] == pytest.approx(row[key], rel=1e-3, abs=1e-4)
    assert set(response) == set(row)
    assert httpx.get(service.address).text.startswith("<!DOCTYPE html>")


def raw(service: Running, request: bytes) -> bytes:
    """The response to these bytes until the service closes the connection, perhaps while they are sent."""
    response = b""
    with (
        socket.create_connection(service.host_and_port, timeout=SECONDS) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(request)
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the service has reset it already
                raise
        while part := connection.recv(65_536):
            response += part
    return response


def test_the_service_survives_malformed_http(service: Running, image: Path) -> None:
    host = b"Host: 127.0.0.1\r\n"
    for request in (
        b"\x00\xff\x16\x03\x01 TLS?\r\n\r\n",
        b"GET / WTTP/1.1\r\n" + host + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /predict HTTP/1.1\r\n" + host + b"Content-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n" + host + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /predict HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /predict HTTP/1.1\r\n" + host + b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 100\r\n\r\n--x\r\n",  # then the client disconnects
    ):
        response = raw(service, request)
        assert not response or re.match(rb"HTTP/1\.1 4\d\d ", response), (request[:60], response[:100])
    with socket.create_connection(service.host_and_port) as connection:  # disconnects within the body
        connection.sendall(b"POST /predict HTTP/1.1\r\n" + host + b"Content-Length: 900000\r\n\r\nabc")
    content = image.read_bytes()
    rng = np.random.default_rng(3)
    for status, bad in [
        (415, rng.bytes(500)),
        (422, content[: len(content) // 2]),
        (422, b""),
        (413, bytes(1_100_000)),
    ]:
        response = post(service, bad)
        assert response.status_code == status
        assert response.json()["detail"]
    assert post(service, content, path="/map").content.startswith(b"\x89PNG")
    assert service.process.poll() is None


def test_a_client_that_still_sends_receives_the_error(service: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    address = f"{service.address}/predict"
    assert httpx.post(address, content=chunks(), headers=headers, timeout=SECONDS).status_code in (400, 413)
    assert httpx.post(address, content=bytes(3_000_000), headers=headers, timeout=SECONDS).status_code == 413
    assert httpx.post(f"{address}?crf=perhaps", content=chunks(), headers=headers, timeout=SECONDS).status_code == 422
    assert httpx.get(service.address, headers={"host": "evil.example"}, timeout=SECONDS).status_code == 400


def test_health_responds_during_predictions(service: Running, image: Path) -> None:
    content = image.read_bytes()

    async def send() -> None:
        async with httpx.AsyncClient(base_url=service.address, timeout=SECONDS) as client:
            files = {"image": ("a.png", content)}
            predictions = [asyncio.create_task(client.post("/predict", files=files)) for _ in range(6)]
            while not all(task.done() for task in predictions):
                assert (await client.get("/health")).json()["status"] == "ok"
            responses = [task.result().json() for task in predictions]
            assert all(response["labels"] == responses[0]["labels"] for response in responses)
            for response in responses:  # whichever batches they were in
                assert response["scores"] == pytest.approx(responses[0]["scores"], rel=1e-3, abs=1e-4)

    asyncio.run(send())


def test_64_clients_at_once_are_all_answered(service: Running, image: Path) -> None:
    content = image.read_bytes()

    async def send() -> list[httpx.Response]:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(httpx.AsyncClient(timeout=SECONDS)) for _ in range(64)]
            files = {"image": ("a.png", content)}
            return await asyncio.gather(*(client.post(f"{service.address}/predict", files=files) for client in clients))

    assert [response.status_code for response in asyncio.run(send())] == [200] * 64


def test_a_port_in_use_is_one_sentence(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    port = service.host_and_port[1]
    assert main(["serve", "imagenet-lite0", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"wildcat: port {port} of 127.0.0.1 is in use.\n")
    assert output.out == "" and output.err.count("\n") == 2


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--port", "70000"), 2, "--port 70000"),
        (("--queue", "0"), 2, "--queue 0"),
        (("--max-mb", "-1"), 2, "--max-mb -1"),
        (("--worker-timeout", "0"), 2, "--worker-timeout 0"),
        (("--host", "203.0.113.7", "--port", "0"), 1, "203.0.113.7"),
    ],
)
def test_invalid_flags(flags: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "imagenet-lite0", *flags]) == code
    assert words in capsys.readouterr().err


def test_a_model_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "imagenet-lite9", "--port", "0"]) == 1
    assert "imagenet-lite9" in capsys.readouterr().err


def test_the_url_is_one_for_browsers() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}"
        assert url_of("0.0.0.0", listener) == f"http://127.0.0.1:{port}"
        assert url_of("::1", listener) == f"http://[::1]:{port}"


@pytest.mark.parametrize(("module", "package"), [("fastapi", "fastapi"), ("python_multipart", "python-multipart")])
def test_without_the_extra_the_error_has_the_pip_command(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == "wildcat.serve" or n.startswith("wildcat.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{package} is needed here[^\0]*pip install 'wildcat-vision\[serve\]'"):
        importlib.import_module("wildcat.serve")


def test_ctrl_c_stops_cleanly(service: Running) -> None:  # last: it stops the service of this module
    start = time.monotonic()
    service.process.send_signal(signal.SIGINT)
    out, err = service.process.communicate(timeout=SECONDS)
    assert service.process.returncode == 0
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("imagenet-lite0: 1000 classes; device cpu") and lines[-1] == "stopped"
    assert "Traceback" not in err
    assert time.monotonic() - start < 60


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("ending", ["ctrl-c", "kill"])
def test_worker_processes_end_with_the_service(ending: str, image: Path) -> None:
    with serving("--processes", "1") as service:
        assert post(service, image.read_bytes()).status_code == 200
        pid = service.process.pid
        descendants = [str(pid)]
        for each in descendants:
            descendants += Path(f"/proc/{each}/task/{each}/children").read_text().split()
        children = descendants[1:]
        assert len(children) >= 2, "the fork server and the worker"
        if ending == "kill":
            service.process.kill()
        else:
            os.killpg(pid, signal.SIGINT)
        _, err = service.process.communicate(timeout=SECONDS)
        if ending == "ctrl-c":
            assert service.process.returncode == 0
            assert err.splitlines()[-1] == "stopped" and "Traceback" not in err and "worker" not in err
        until = time.monotonic() + SECONDS
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < until, "a worker process still runs"
            time.sleep(0.05)
