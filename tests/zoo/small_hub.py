"""A hub of models on this machine, as much of it as huggingface_hub asks for to read one.

The answers are those of the hub's public API: what a repository is, a page of its tree, the files
of some paths, and their content with the headers that a download is checked by.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

DATE = "2024-05-06T07:08:09.000Z"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each of files by path; and what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, str] = {}
        self.asked: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        return [line for line in self.asked if "/resolve/" in line and line.startswith("GET")]


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve until the end of the block."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parsed = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parsed.path)
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.broken:
            self._send(503, {"error": "down for maintenance"})
            return
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        files = self.server.repositories.get(name)
        token = self.server.private.get(name)
        if files is None or (
            token is not None and self.headers.get("Authorization") != f"Bearer {token}"
        ):
            self._send(
                401 if token is not None else 404,
                {"error": "Repository not found"},
                {"X-Error-Code": "RepoNotFound"},
            )
        elif api and (not rest or rest[0] == "revision"):
            self._send(200, {"id": name, "sha": COMMIT, "siblings": [], "tags": []})
        elif api and rest[0] == "commits":  # asked by versions before 1.0
            self._send(
                200,
                [{"id": COMMIT, "title": "all", "message": "", "date": DATE, "authors": []}],
            )
        elif api and rest[0] == "tree":
            query = urllib.parse.parse_qs(parsed.query)
            deep = query.get("recursive", ["false"])[0].lower() in {"true", "1"}
            self._tree(files, "/".join(rest[2:]), deep)
        elif api and rest[0] == "paths-info":
            asked = urllib.parse.parse_qs(body.decode())
            self._send(200, [_file(n, files[n]) for n in asked.get("paths", []) if n in files])
        elif rest[:1] == ["resolve"]:
            self._file(files, "/".join(rest[2:]))
        else:
            self._send(404, {"error": self.path})

    def _tree(self, files: dict[str, bytes], folder: str, deep: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        found: dict[str, Any] = {}
        for name, data in files.items():
            if not name.startswith(prefix):
                continue
            head, slash, _ = name[len(prefix) :].partition("/")
            if slash:
                found[prefix + head] = {
                    "type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0,
                }  # fmt: skip
            if deep or not slash:
                found[name] = _file(name, data)
        if not found and folder:
            self._send(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, list(found.values()))

    def _file(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self._send(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
            return
        data, status = files[name], 200
        wanted = self.headers.get("Range", "")
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            data, status = data[int(first) : stop], 206
        self._bytes(status, data, headers)

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self._bytes(status, body, {"Content-Type": "application/json"} | (headers or {}))

    def _bytes(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _file(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "file", "path": name, "oid": _oid(data), "size": len(data),
    }  # fmt: skip
    if name.endswith((".safetensors", ".bin")):
        oid = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return found
