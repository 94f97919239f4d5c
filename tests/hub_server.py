"""A hub on loopback: the few requests with which `huggingface_hub.snapshot_download` gets a model repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

Server = TypeVar("Server", bound="Loopback")


class Loopback(ThreadingHTTPServer):
    """A server on a free port of this machine alone."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self: Server) -> Iterator[Server]:
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Hub(Loopback):
    """One repository, with one commit on its branch main.

    Attributes
    ----------
    files
        Content by path.
    asked
        Method and path of every request.
    """

    def __init__(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        super().__init__(Handler)
        self.repository, self.commit, self.files = repository, commit, files
        self.asked: list[tuple[str, str]] = []

    @property
    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        start = f"/{self.repository}/resolve/{self.commit}/"
        return {path.removeprefix(start) for method, path in self.asked if method == "GET" and path.startswith(start)}

    @classmethod
    def of(cls, repository: str, commit: str, folder: Path) -> Hub:
        """A hub with the files of a folder."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return cls(repository, commit, files)


class Handler(BaseHTTPRequestHandler):
    """Answers like the Hub, as far as it is asked here."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path))
        api = f"/api/models/{hub.repository}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{hub.commit}"):
            self.send_json({"id": hub.repository, "sha": hub.commit, "siblings": []}, body)
        elif path == f"{api}/tree/{hub.commit}":
            self.send_json([self.entry(name) for name in sorted(hub.files)], body)
        elif path.startswith(f"/{hub.repository}/resolve/{hub.commit}/"):
            name = path.removeprefix(f"/{hub.repository}/resolve/{hub.commit}/")
            if name in hub.files:
                self.send(200, hub.files[name], body, ETag=f'"{blob(hub.files[name])}"')
            else:
                self.send(404, b"", body, **{"X-Error-Code": "EntryNotFound"})
        elif f"{api}/revision/" in path:
            self.send(404, b"", body, **{"X-Error-Code": "RevisionNotFound"})
        else:
            self.send(404, b"", body, **{"X-Error-Code": "RepoNotFound"})

    def entry(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": blob(content)}

    def send_json(self, value: Any, body: bool) -> None:
        self.send(200, json.dumps(value).encode(), body, **{"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def blob(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def cache(folder: Path, repository: str, commit: str, files: dict[str, bytes], branch: str = "main") -> Path:
    """Lay a repository down as the hub's library keeps what it has fetched; returns the snapshot's folder."""
    place = folder / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for name, content in files.items():
        kept = place / "blobs" / blob(content)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / branch).write_text(commit)
    return snapshot


class DatasetHub(Loopback):
    """A hub that takes data sets, as `lm_eval --hf_hub_log_args` pushes them, and gives their files back.

    Attributes
    ----------
    repositories
        Content by path of every repository that was made.
    private
        Whether each of them was made private.
    tokens
        What requests had as their authorization.
    """

    def __init__(self) -> None:
        super().__init__(DatasetHandler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.refused: list[tuple[str, str]] = []


class DatasetHandler(BaseHTTPRequestHandler):
    """Answers like the Hub, as far as a push and a look at what was pushed ask it."""

    server: DatasetHub
    protocol_version = "HTTP/1.1"
    commit = "c" * 40

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.tokens.add(self.headers.get("Authorization", ""))
        what, repository = self.parse(path)
        if path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            self.send_json({"url": f"{self.server.address}/datasets/{name}"})
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif what == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(raw)["files"]]
            self.send_json({"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        elif what == "commit":
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[repository][line["value"]["path"]] = content
            url = f"{self.server.address}/datasets/{repository}/commit/{self.commit}"
            self.send_json({"commitUrl": url, "commitOid": self.commit, "success": True})
        elif what == "paths-info":
            files = self.server.repositories[repository]
            asked = parse_qs(raw.decode()).get("paths", [])
            self.send_json([self.entry(repository, one) for one in asked if one in files])
        else:
            self.refuse()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        what, repository = self.parse(path)
        start = f"/datasets/{repository}/resolve/"
        if what in ("revision", ""):
            self.send_json({"id": repository, "sha": self.commit, "siblings": []})
        elif what == "tree":
            self.send_json([self.entry(repository, name) for name in sorted(self.server.repositories[repository])])
        elif path.startswith(start):
            name = path.removeprefix(start).partition("/")[2]
            content = self.server.repositories[repository].get(name)
            self.refuse() if content is None else self.send_file(content)
        else:
            self.refuse()

    do_HEAD = do_GET

    def send_file(self, content: bytes) -> None:
        """A file's content, or the part of it that is asked for."""
        tag = f'"{blob(content)}"'
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            return self.send_bytes(content, ETag=tag)
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self.send_bytes(content[start : end + 1], 206, ETag=tag, **part)

    def parse(self, path: str) -> tuple[str | None, str]:
        """What is asked of a repository ("" for itself, None for anything else), and the repository's id."""
        for name in self.server.repositories:
            if path.startswith(f"/api/datasets/{name}"):
                return path.removeprefix(f"/api/datasets/{name}").strip("/").partition("/")[0], name
            if path.startswith(f"/datasets/{name}/"):
                return None, name
        return None, ""

    def entry(self, repository: str, name: str) -> dict[str, Any]:
        content = self.server.repositories[repository][name]
        return {"type": "file", "path": name, "size": len(content), "oid": blob(content)}

    def refuse(self) -> None:
        self.server.refused.append((self.command, self.path))
        self.send_bytes(b"{}", 404)

    def send_json(self, value: Any) -> None:
        self.send_bytes(json.dumps(value).encode())

    def send_bytes(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self.commit, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
