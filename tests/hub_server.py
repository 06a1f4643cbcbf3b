"""A stand-in for the Hugging Face Hub on this machine: repositories in memory behind the part of its API that is used.

Create, preupload, LFS upload, commit, model info, tree, resolve. Tokens: `hf_write` of user `ann`, who may write to
`ann/...`, and `hf_read`, which may only read. Anything else is refused as the hub refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_write": "write", "hf_read": "read"}


class Repository:
    """Commits, oldest first, each a dict of file contents; `main` and other names of commits."""

    def __init__(self, private: bool = False) -> None:
        self.private, self.commits, self.tags = private, [{}], {}  # type: ignore[var-annotated]

    def find(self, revision: str) -> int:
        """The index of a commit by branch, tag or hash; KeyError if there is none."""
        shas = {self.sha(i): i for i in range(len(self.commits))}
        return {**shas, **self.tags, "main": len(self.commits) - 1}[revision]

    def sha(self, index: int) -> str:
        files = {name: hashlib.sha1(data).hexdigest() for name, data in self.commits[index].items()}
        return hashlib.sha1(f"{index} {files}".encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server; `with Hub() as hub` runs it.

    Attributes:
        lfs: files of which the client is told to upload them by LFS, as a suffix.
        failing: paths, as regular expressions -> status to answer with.
        requests: method and path of each request, and its token.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.lfs, self.blobs = ".safetensors", {}  # type: ignore[var-annotated]
        self.failing: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        return dict(self.repositories[repo].commits[-1])


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.access = TOKENS.get(token, "")
        if failing := next((s for p, s in self.server.failing.items() if re.search(p, path)), None):
            return self.answer(failing, {"error": "the hub is out of order"})
        if token and not self.access:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        for pattern, respond in ROUTES:
            if found := re.fullmatch(pattern, path):
                return respond(self, *found.groups())
        return self.answer(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_POST = do_HEAD = do_PUT = handle_any

    def json(self) -> Any:
        return json.loads(self.body)

    def repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.access):
            self.refuse(404 if self.access else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def commit(self, name: str, revision: str) -> tuple[Repository, int] | None:
        if (repository := self.repository(name)) is None:
            return None
        try:
            return repository, repository.find(revision)
        except KeyError:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None

    def may_write(self, name: str) -> bool:
        if self.access == "write" and name.startswith("ann/"):
            return True
        self.refuse(403, "", f'You don\'t have the rights to create a model under the namespace "{name[:3]}"')
        return False

    # --- routes ---

    def create(self) -> None:
        request = self.json()
        name = f"{request.get('organization') or 'ann'}/{request['name']}"
        if not self.may_write(name):
            return
        if name in self.server.repositories:
            return self.answer(409, {"url": f"{self.server.url}/{name}"})
        self.server.repositories[name] = Repository(request.get("private") or request.get("visibility") == "private")
        self.server.repositories[name].commits[0][".gitattributes"] = b"*.safetensors filter=lfs\n"
        self.answer(200, {"url": f"{self.server.url}/{name}", "id": name})

    def validate_yaml(self) -> None:
        if "license: beer" in self.json()["content"]:
            return self.answer(400, {"errors": [{"message": '"license" must be one of apache-2.0, mit'}]})
        self.answer(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str = "main") -> None:
        if found := self.commit(name, revision):
            repository, index = found
            names = [{"rfilename": file} for file in repository.commits[index]]
            facts = {"id": name, "modelId": name, "sha": repository.sha(index), "private": repository.private}
            self.answer(200, {**facts, "siblings": names, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str) -> None:
        if found := self.commit(name, revision):
            repository, index = found
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in repository.commits[index].items()
            ]
            self.answer(200, rows)

    def preupload(self, name: str, revision: str) -> None:
        if self.may_write(name) and self.commit(name, revision):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(self.server.lfs) else "regular",
                    "shouldIgnore": False,
                }
                for file in self.json()["files"]
            ]
            self.answer(200, {"files": modes})

    def batch(self, name: str) -> None:
        if not self.may_write(name):
            return
        objects = []
        for one in self.json()["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}?X-Amz-Signature=s3cret"
            upload = {"actions": {"upload": {"href": href}}} if one["oid"] not in self.server.blobs else {}
            objects.append({"oid": one["oid"], "size": one["size"], **upload})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self.answer(200)

    def push(self, name: str, revision: str) -> None:
        if not self.may_write(name) or not (found := self.commit(name, revision)):
            return
        repository, index = found
        files = dict(repository.commits[index])
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        sha = repository.sha(len(repository.commits) - 1)
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.commit(name, revision)):
            return
        repository, index = found
        if path not in repository.commits[index]:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repository.commits[index][path]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        if (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")) and int(span[1]) > 0:
            return self.answer(206, data[int(span[1]) :], X_Repo_Commit=repository.sha(index), ETag=etag)
        self.answer(200, data, X_Repo_Commit=repository.sha(index), ETag=etag)


REPO = r"([^/]+/[^/]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate_yaml),
    (rf"/api/models/{REPO}", Handler.info),
    (rf"/api/models/{REPO}/revision/(.+)", Handler.info),
    (rf"/api/models/{REPO}/tree/(.+)", Handler.tree),
    (rf"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    (rf"/api/models/{REPO}/commit/(.+)", Handler.push),
    (rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/lfs/(\w+)", Handler.store),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]
