"""Label Studio's ML backend API: what it really sent is answered, and images come from its server only."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Connect, encoded, image
from wildcat.cli import main
from wildcat.errors import ConfigError
from wildcat.export.label_studio import annotate, read_controls
from wildcat.predictor import Predictor
from wildcat.serve import Limits, label_studio
from wildcat.serve.task_images import TOKEN, LabelStudio, TokenRefused
from wildcat.serve.task_images import connect as connect_label_studio

EXCHANGE = json.loads((Path(__file__).parent / "label_studio_1.23.2.json").read_text(encoding="utf-8"))

LEGACY, PERSONAL = "3f2c9a", "eyJhbGci.eyJzdWIi.c2lnbmVk"
BOXES = '<RectangleLabels name="box" toName="image"><Label value="red"/><Label value="green"/></RectangleLabels>'
CONFIG = f'<View><Image name="image" value="$image"/>{BOXES}</View>'
CONTENT = encoded(image())


@dataclass
class Server:
    """Stands in for Label Studio: `answers` by path; `log`: method, path and header Authorization of each request."""

    address: str
    answers: dict[str, tuple[int, dict[str, str], bytes]]
    log: list[tuple[str, str, str]] = field(default_factory=list)
    access: str = "access-1"  # for personal tokens; changed when it expires

    def allows(self, authorisation: str) -> bool:
        return authorisation in (f"Token {LEGACY}", f"Bearer {self.access}")


@contextmanager
def serving(**answers: tuple[int, dict[str, str], bytes]) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorisation = self.headers.get("Authorization", "")
            state.log.append(("GET", self.path, authorisation))
            answer = state.answers.get(self.path, (404, {}, b"{}"))
            self.respond(*answer if state.allows(authorisation) else (401, {}, b"{}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.log.append(("POST", self.path, self.headers.get("Authorization", "")))
            accepted = self.path == "/api/token/refresh/" and body == {"refresh": PERSONAL}
            self.respond(200 if accepted else 401, {}, json.dumps({"access": state.access}).encode())

        def respond(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{server.server_port}", {"/api/current-user/whoami": (200, {}, b"{}"), **answers})
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.answers["/data/upload/1/a.png"] = (200, {}, CONTENT)
        yield state


def send(
    connect: Connect, client: LabelStudio, requests: Sequence[tuple[str, str, Any]], model: Predictor | None = None
) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with connect(client.limits, label_studio=client, **({"model": model} if model else {})) as service:
            kind = {"content-type": "application/json"}  # httpx encodes no lone surrogates, which JSON can escape
            return [
                await service.request(method, path, content=json.dumps(body), headers=kind)
                for method, path, body in requests
            ]

    return asyncio.run(run())


def predict(
    connect: Connect, server: Server, *addresses: Any, token: str = LEGACY, limits: Limits | None = None, **more: Any
) -> httpx.Response:
    tasks = [{"id": 7 + i, "data": {"image": address}} for i, address in enumerate(addresses)]
    client = LabelStudio(server.address, token, limits or Limits())
    return send(connect, client, [("POST", "/predict", {"tasks": tasks, "label_config": CONFIG, **more})])[0]


# --- the exchange that was recorded from Label Studio 1.23.2 ----------------------------------------------------------


def test_the_recorded_exchange(connect: Connect, server: Server, predictor: Predictor) -> None:
    model = copy(predictor)
    model.classes = ("person", "horse", "bird")
    (tasks,) = [entry["body"]["tasks"] for entry in EXCHANGE if entry["path"] == "/predict" and entry["status"] == 200]
    for number, task in enumerate(tasks):
        server.answers[task["data"]["image"]] = (200, {}, encoded(image(number)))
    client = LabelStudio(server.address, PERSONAL, Limits())
    requests = [(entry["method"], entry["path"], entry["body"]) for entry in EXCHANGE]
    responses = send(connect, client, requests, model)
    assert [response.status_code for response in responses] == [entry["status"] for entry in EXCHANGE]
    setup, predicted = responses[1].json(), responses[3].json()
    assert setup == {"model_version": "colours"}
    assert predicted["model_version"] == "colours" and len(predicted["results"]) == len(tasks) == 2
    config = EXCHANGE[1]["body"]["schema"]
    for number, result in enumerate(predicted["results"]):
        expected = annotate(model.predict(image(number)), read_controls(config, model.classes))
        assert result["model_version"] == "colours"
        assert result["result"] == json.loads(json.dumps(expected))
        assert result["score"] == min(region["score"] for region in expected)
        types = {region["type"] for region in expected}
        assert types == {"choices", "rectanglelabels", "keypointlabels", "polygonlabels", "brushlabels"}
        labels = {region["value"][region["type"]][0] for region in expected if region["type"] != "choices"}
        assert labels == {"Person", "Pferd"}
    assert server.log[0][:2] == ("POST", "/api/token/refresh/") and server.log[0][2] == ""
    fetched = {(task["data"]["image"], "Bearer access-1") for task in tasks}
    assert len(server.log) == 3 and {entry[1:] for entry in server.log[1:]} == fetched
    assert "wildcat train" in responses[5].json()["hint"]
    assert "interactive" in responses[6].json()["hint"]


def test_uploads_by_form_still_work(connect: Connect, server: Server, predictor: Predictor) -> None:
    async def run(**options: Any) -> tuple[httpx.Response, httpx.Response]:
        async with connect(**options) as service:
            form = await service.post("/predict", files={"image": ("a.png", CONTENT)})
            return form, await service.post("/predict", json={"tasks": []})

    form, _ = asyncio.run(run(label_studio=LabelStudio(server.address, LEGACY, Limits())))
    assert form.status_code == 200 and form.json()["labels"] == list(predictor.predict(image()).labels)
    form, tasks = asyncio.run(run())
    assert form.status_code == 200 and tasks.status_code == 415


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/data/upload/1/a.png",  # another port
        "http://localhost/data/upload/1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "//169.254.169.254/latest/meta-data",
        "https:{host}/data/upload/1/a.png",  # another scheme
        "http:{host}@169.254.169.254/a.png",
        "http://user:secret@169.254.169.254/a.png?token=secret",
        "http://user:secret@{netloc}/data/upload/1/a.png",
        "http://[::1/a.png",
        "file:///etc/passwd",
        "ftp:{host}/a.png",
        "data:image/png;base64,AAAA",
        "C:\\images\\a.png",
    ],
)
def test_other_servers_are_refused(connect: Connect, server: Server, address: str) -> None:
    netloc = server.address.removeprefix("http://")
    response = predict(connect, server, address.format(host=f"//{netloc}", netloc=netloc))
    if address.startswith("http://[::1/"):  # no URL at all: the root of the server, which is no image
        assert response.status_code == 502
        return
    assert response.status_code == 422
    assert response.json()["detail"].startswith("task 7: the image is at ")
    assert f"images are fetched from {server.address} only" in response.json()["detail"]
    assert "secret" not in response.text
    assert server.log == []


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/data/upload/1/a b\u00fc.png", "/data/upload/1/a%20b%C3%BC.png"),
        ("{server}/data/upload/1/a.png", "/data/upload/1/a.png"),
        ("/data/local-files/?d=images/a%20b.png", "/data/local-files/?d=images/a%20b.png"),
        ("s3://bucket/a.png", "/tasks/7/presign/?fileuri=czM6Ly9idWNrZXQvYS5wbmc="),
        ("///169.254.169.254/a.png", "/169.254.169.254/a.png"),  # a path on the server
        ("/\\169.254.169.254/a.png", "/%5C169.254.169.254/a.png"),
    ],
)
def test_addresses_on_the_server(connect: Connect, server: Server, address: str, path: str) -> None:
    server.answers[path] = (200, {}, CONTENT)
    response = predict(connect, server, address.format(server=server.address))
    assert response.status_code == 200, response.text
    assert server.log == [("GET", path, f"Token {LEGACY}")]
    assert {region["value"]["rectanglelabels"][0] for region in response.json()["results"][0]["result"]} == {
        "red",
        "green",
    }


def test_redirects(connect: Connect, server: Server) -> None:
    with serving() as other:
        other.answers["/a.png"] = (200, {}, CONTENT)
        moved = {
            "/inside": "/data/upload/1/a.png",
            "/elsewhere": f"{other.address}/a.png?signature=secret",
            "/twice": "/elsewhere",
            "/loop": "/loop",
        }
        server.answers |= {path: (302, {"Location": target}, b"") for path, target in moved.items()}
        assert predict(connect, server, "/inside").status_code == 200
        for path in ("/elsewhere", "/twice"):
            response = predict(connect, server, path)
            assert response.status_code == 422
            assert "redirects to the image at http://127.0.0.1" in response.json()["detail"]
            assert "pre-signed" in response.json()["hint"] and "secret" not in response.text
        assert other.log == []
        assert predict(connect, server, "/loop").status_code == 502


@pytest.mark.parametrize("token", ["f00", "eyJhbGci.eyJzdWIi.d3Jvbmc"])
def test_a_refused_token(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    response = predict(connect, server, "/data/upload/1/a.png", token=token)
    assert response.status_code == 502
    assert f"Label Studio at {server.address} refuses the token in {TOKEN}" in response.json()["detail"]
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(TokenRefused, match="refuses the token"):
        connect_label_studio(server.address, Limits())
    assert "refuses the token" in caplog.text
    assert token not in caplog.text + response.text


def test_an_access_token_is_renewed_when_it_expires(server: Server) -> None:
    client = LabelStudio(server.address, PERSONAL, Limits())
    for access in ("access-1", "access-1", "access-2"):
        server.access = access
        assert client.fetch("/data/upload/1/a.png", 7) == CONTENT
    assert [entry[0] for entry in server.log] == ["POST", "GET", "GET", "GET", "POST", "GET"]


def test_a_netrc_file_does_not_replace_the_token(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(path))
    LabelStudio(server.address, LEGACY, Limits()).check()


@contextmanager
def silent(first: bytes = b"", every: bytes = b"") -> Iterator[Server]:
    """A server that accepts connections, sends `first`, then `every` 50 ms."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        end = threading.Event()
        stack.callback(end.set)

        def answer() -> None:
            try:
                while not end.is_set():
                    connection, _ = listener.accept()
                    threading.Thread(target=drip, args=(connection,), daemon=True).start()
            except OSError:
                pass

        def drip(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65_536)
                    connection.sendall(first)
                    while not end.wait(0.05):
                        connection.sendall(every)
                except OSError:
                    pass

        threading.Thread(target=answer, daemon=True).start()
        yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", {})


@pytest.mark.parametrize(
    ("first", "every"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x" * 2000),
    ],
    ids=["silent", "header drips", "body drips", "body is slow"],
)
def test_a_server_that_hangs(connect: Connect, first: bytes, every: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio, "GRACE_SECONDS", 0.2)
    with silent(first, every) as server:
        start = time.monotonic()
        response = predict(connect, server, "/a.png", limits=Limits(timeout=0.3))
        assert response.status_code == 504
        assert f"Label Studio at {server.address} did not answer within 0.3 seconds" in response.json()["detail"]
        assert time.monotonic() - start < 20


def test_a_server_that_is_not_there(
    connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    response = predict(connect, Server(address, {}), "/a.png")
    assert response.status_code == 502
    assert f"Label Studio at {address} cannot be reached" in response.json()["detail"]
    caplog.clear()
    monkeypatch.setenv(TOKEN, LEGACY)
    assert connect_label_studio(f"{address}/", Limits()).url == address, "it may start later"
    assert [record.message.count(address) for record in caplog.records] == [1]


def test_images_that_are_none(connect: Connect, server: Server) -> None:
    server.answers |= {
        "/text": (200, {}, b"<html>log in</html>"),
        "/empty": (200, {}, b""),
        "/cut": (200, {}, CONTENT[: len(CONTENT) // 2]),
        "/large": (200, {}, bytes(1_100_000)),
        "/endless": (200, {"Content-Length": "9000000000"}, bytes(1_100_000)),
        "/error": (500, {}, b"oops"),
    }
    expected = {"/text": 415, "/empty": 422, "/cut": 422, "/large": 413, "/endless": 413, "/error": 502, "/none": 502}
    for address, status in expected.items():
        response = predict(connect, server, address, limits=Limits(max_mb=1))
        assert response.status_code == status, address
        assert response.json()["detail"].startswith("task 7: ")
    for value in (None, 5, "", ["a"]):
        response = predict(connect, server, value)
        assert (response.status_code, response.json()["detail"]) == (422, "task 7: it has no image 'image'.")


def test_a_task_that_fails_does_not_fail_the_others(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    good = "/data/upload/1/a.png"
    response = predict(connect, server, good, "http://example.com/a.png?key=secret", good, "/none")
    assert response.status_code == 200
    first, *others = response.json()["results"]
    assert others == [[], first, []] and first["result"]
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2 and lines[0].startswith("Label Studio: task 8: the image is at http://example.com, but")
    assert lines[1].startswith("Label Studio: task 10: ") and "secret" not in caplog.text


@pytest.mark.parametrize(
    ("address", "status"),
    [("/moved", 502), ("s3://bucket/\udcff.png", 502), ("/data/\udcff.png", 502), ("/crash", 500)],
    ids=["moved", "bucket", "data", "crash"],  # processes of tests send each other names in UTF-8
)
def test_a_task_that_cannot_be_foreseen_does_not_fail_the_others(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch, address: str, status: int
) -> None:
    server.answers["/moved"] = (302, {"Location": "http://[bad/x"}, b"")
    fetch = LabelStudio.fetch
    monkeypatch.setattr(
        LabelStudio, "fetch", lambda self, url, task: {}[url] if url == "/crash" else fetch(self, url, task)
    )
    first, second = predict(connect, server, "/data/upload/1/a.png", address).json()["results"]
    assert first["result"] and second == []
    response = predict(connect, server, address)
    assert response.status_code == status and response.json()["detail"].startswith("task 7: ")


def test_a_request_of_more_tasks_than_the_queue_is_predicted(connect: Connect, server: Server) -> None:
    response = predict(connect, server, *["/data/upload/1/a.png"] * 16, limits=Limits(queue=2))
    assert all(response.json()["results"])


def test_a_batch_is_bounded_and_stops_with_its_client(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `MOST_IMAGES` are fetched at the same time, and none after the client is gone."""
    monkeypatch.setattr(label_studio, "MOST_IMAGES", 2)
    running, most, fetched = 0, 0, 0
    lock = threading.Lock()

    def fetch(*_: Any) -> bytes:
        nonlocal running, most, fetched
        with lock:
            running, fetched = running + 1, fetched + 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return CONTENT

    client = LabelStudio(server.address, LEGACY, Limits())
    monkeypatch.setattr(client, "fetch", fetch)
    tasks = [{"id": i, "data": {"image": "/a.png"}} for i in range(20)]
    body = {"tasks": tasks, "label_config": CONFIG}
    (response,) = send(connect, client, [("POST", "/predict", body)])
    assert response.status_code == 200 and len(response.json()["results"]) == fetched == 20 and most == 2
    fetched = 0

    async def leave() -> None:
        async with connect(label_studio=client) as service:
            messages = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "query_string": b"",
                "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
            }

            async def receive() -> dict[str, Any]:
                await asyncio.sleep(0 if len(messages) == 2 else 0.05)
                return messages.pop(0) if messages else {"type": "http.disconnect"}

            async def ignore(_: Any) -> None:
                pass

            await service.app(scope, receive, ignore)  # type: ignore[attr-defined]
            assert service.app.state.service.requests <= 2  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert 0 < fetched < 20


# --- labelling interfaces ---------------------------------------------------------------------------------------------


def interface(tags: str) -> str:
    return f'<View><Image name="image" value="$image"/>{tags}</View>'


def labelled(*labels: str) -> str:
    return interface(f'<RectangleLabels name="box" toName="image">{"".join(labels)}</RectangleLabels>')


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (labelled('<Label value="apple"/>', '<Label value="pear"/>'), "(apple, pear) is a class of the model (red,"),
        (labelled(), "no label of the labelling interface () is a class"),
        (interface(""), "has none of Choices, KeyPointLabels, RectangleLabels"),
        (f"<View>{BOXES}</View>", "has none of Choices"),
        (f'<View><Text name="image" value="$image"/>{BOXES}</View>', "has none of Choices"),
        ("<View><Image></View>", "is not valid XML"),
        ("", "is not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "has a declaration"),
        (None, "is missing"),
        (5, "is missing"),
    ],
)
def test_interfaces_that_do_not_fit(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture, config: Any, words: str
) -> None:
    client = LabelStudio(server.address, LEGACY, Limits())
    bodies = [("POST", "/setup", {"schema": config, "access_token": "secret"})]
    bodies.append(("POST", "/predict", {"label_config": config, "tasks": [{"data": {"image": "/a.png"}}]}))
    for response in send(connect, client, bodies):
        assert response.status_code == 422
        assert words in response.json()["detail"] and response.json()["hint"]
    assert [words in record.message for record in caplog.records] == [True, True]
    assert "secret" not in caplog.text and server.log == []


def test_labels_without_a_class_are_logged_once(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    config = labelled('<Label value="red"/>', '<Label value="apple"/>')
    client = LabelStudio(server.address, LEGACY, Limits())
    responses = send(connect, client, [("POST", "/setup", {"schema": config})] * 3)
    assert [response.status_code for response in responses] == [200] * 3
    assert [record.message for record in caplog.records] == [
        "Label Studio: the model has no class for apple; it predicts the other labels."
    ]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/setup", b"{", 400),
        ("/setup", b"[" * 100_000, 400),
        ("/setup", b"[]", 400),
        ("/setup", b"\xff", 400),
        ("/predict", b'{"tasks": 5, "label_config": ' + json.dumps(CONFIG).encode() + b"}", 422),
        ("/predict", b'{"tasks": [5], "label_config": ' + json.dumps(CONFIG).encode() + b"}", 422),
        ("/predict", b'{"tasks": [{}], "label_config": ' + json.dumps(CONFIG).encode() + b"}", 422),
        ("/webhook", b"null", 400),
    ],
)
def test_malformed_requests(connect: Connect, server: Server, path: str, content: bytes, status: int) -> None:
    async def run() -> httpx.Response:
        async with connect(label_studio=LabelStudio(server.address, LEGACY, Limits())) as service:
            return await service.post(path, content=content, headers={"content-type": "application/json"})

    response = asyncio.run(run())
    assert response.status_code == status
    assert response.json()["detail"]


def test_no_tasks_are_no_results(connect: Connect, server: Server) -> None:
    assert predict(connect, server).json() == {"results": [], "model_version": "colours"}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "token", "words"),
    [
        ("localhost:8080", LEGACY, "--label-studio localhost:8080 is no address"),
        ("ftp://localhost", LEGACY, "is no address"),
        ("http://me:secret@localhost", LEGACY, "--label-studio http://localhost is no address"),
        ("http://localhost:port", LEGACY, "is no address"),
        ("http://localhost/?token=secret", LEGACY, "--label-studio http://localhost/ is no address"),
        ("http://localhost:8080", "", f"the environment variable {TOKEN} is not set"),
        ("http://localhost:8080", "a b\nsecret", "holds characters that no token has"),
    ],
)
def test_wrong_settings(
    url: str, token: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, token)
    assert main(["serve", "imagenet-lite0", "--label-studio", url]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(ConfigError) as error:
        connect_label_studio(url, Limits())
    assert "secret" not in error.value.one_line


def test_a_refused_token_stops_the_command_before_the_model_is_loaded(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, "f00")
    assert main(["serve", "imagenet-lite0", "--label-studio", server.address]) == 1
    output = capsys.readouterr().err
    assert output.startswith(f"wildcat: Label Studio at {server.address} refuses the token in {TOKEN}")
    assert "f00" not in output and output.count("\n") == 2
