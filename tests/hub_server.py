"""A Hugging Face Hub on the loopback interface, as much of it as huggingface_hub's client asks for.

Repositories of models live in memory. Every commit has an id of its own and stays readable; branches
and tags name commits. Files that git would keep in LFS have their sha256 as ETag, the others the sha1
of their git blob, as on the Hub. Faults can be set: an error status, a body that ends early, a body
that is not the file's.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".npz")
LFS_SIZE = 1_000_000


@dataclass
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case


@dataclass
class Repo:
    """Commits, oldest first, each a mapping of file names to contents; and the names of some."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` whose path contains ``match``."""

    kind: str
    value: int
    match: str
    method: str
    times: float
    code: str = ""


class Hub:
    """The server and what it holds.

    Attributes:
        url: what HF_ENDPOINT must be.
        token: the one token that may write, and read private repositories.
        requests: all since the last ``reset``, in order.
    """

    token = "hf_loopback"

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()
        self.port = 0
        self._start()
        self.url = f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Forget repositories, faults and requests."""
        with self.lock:
            self.repos: dict[str, Repo] = {}
            self.lfs: dict[str, bytes] = {}
            self.faults: list[Fault] = []
            self.requests: list[Request] = []

    def add(self, repo_id: str, files: Mapping[str, bytes | str | Path], private: bool = False) -> str:
        """Commit files, given as content or as a path, on top of what the repository has.

        Returns:
            The id of the commit.
        """
        contents = {}
        for name, content in files.items():
            content = content.read_bytes() if isinstance(content, Path) else content
            contents[name] = content.encode() if isinstance(content, str) else content
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            repo.private = private
            return repo.commit({**repo.commits.get(repo.refs.get("main", ""), {}), **contents})

    def tag(self, repo_id: str, name: str, revision: str = "main") -> None:
        """Name a commit."""
        repo = self.repos[repo_id]
        repo.refs[name] = repo.find(revision) or revision

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Names and contents of a repository's files."""
        repo = self.repos[repo_id]
        return dict(repo.commits[repo.find(revision) or revision])

    def fail(
        self, status: int = 500, match: str = "", method: str = "", times: float = float("inf"), code: str = ""
    ) -> None:
        """Answer with an error status, and a code in X-Error-Code."""
        self.faults.append(Fault("fail", status, match, method, times, code))

    def cut(self, after: int, match: str = "/resolve/", times: float = float("inf")) -> None:
        """Close the connection after so many bytes of a body, counted in each answer."""
        self.faults.append(Fault("cut", after, match, "GET", times))

    def corrupt(self, match: str = "/resolve/", times: float = float("inf")) -> None:
        """Send another body of the same length."""
        self.faults.append(Fault("corrupt", 0, match, "GET", times))

    def mend(self) -> None:
        """End all faults."""
        self.faults.clear()

    def asked(self, method: str, match: str = "") -> list[Request]:
        """The requests of a method whose path contains ``match``."""
        return [request for request in self.requests if request.method == method and match in request.path]

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Refuse connections meanwhile."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def close(self) -> None:
        """End the server."""
        self._stop()

    def _start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.match in path and fault.method in ("", method):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        self.hub = hub
        super().__init__(address, _Handler)


class _Refused(Exception):
    """An answer that is an error: status, X-Error-Code, message, further headers."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if _is_lfs(path, len(content)):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        self.hub = self.server.hub
        self.close_connection = True  # so that a server that is gone is gone
        self.body = self._read()
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, headers))
        self.fault = self.hub._fault(self.command, path)
        try:
            if self.fault is not None and self.fault.kind == "fail":
                raise _Refused(self.fault.value, self.fault.code)
            for method, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == ("GET" if self.command == "HEAD" else self.command):
                    groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    getattr(self, f"_{name}")(**groups)
                    return
            raise _Refused(404, message=f"no route {self.command} {path}")
        except _Refused as refused:
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), refused.headers)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.kind == "cut":
            body = body[: self.fault.value]
        if self.fault is not None and self.fault.kind == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        with suppress(ConnectionError):  # the client may have hung up
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _authorised(self) -> bool:
        """Whether a token was sent.

        Raises:
            _Refused: it is not the right one.
        """
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {self.hub.token}":
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return sent is not None

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        authorised = self._authorised()
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not authorised):
            raise _Refused(404 if authorised else 401, "RepoNotFound", "Repository not found")
        if write and not authorised:
            raise _Refused(401, message="Invalid username or password.")
        return repo

    def _files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.find(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        commit, files = self._files(self._repo(repo), revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        content = files[path]
        lfs = _entry(path, content).get("lfs")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{lfs["oid"] if lfs else _git_oid(content)}"'}
        if lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        range_ = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if range_ is None:
            self._send(200, content, headers)
            return
        start = int(range_[1])
        if start >= len(content):
            raise _Refused(416, Content_Range=f"bytes */{len(content)}")
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, content[start:], headers)

    def _info(self, repo: str, revision: str = "main") -> None:
        held = self._repo(repo)
        commit, files = self._files(held, revision)
        info: dict[str, Any] = {"id": repo, "modelId": repo, "sha": commit, "private": held.private, "tags": []}
        info["siblings"] = [{"rfilename": path} for path in files]
        front = re.match(r"---\n(.*?)\n---\n", files.get("README.md", b"").decode(), re.DOTALL)
        if front:
            info["cardData"] = yaml.safe_load(front[1])
        self._json(info)

    def _tree(self, repo: str, revision: str) -> None:
        _, files = self._files(self._repo(repo), revision)
        self._json([_entry(path, content) for path, content in files.items()])

    def _whoami(self) -> None:
        if not self._authorised():
            raise _Refused(401, message="Invalid username or password.")
        self._json({"type": "user", "name": "loopback", "orgs": [], "auth": {"type": "access_token"}})

    def _create(self) -> None:
        if not self._authorised():
            raise _Refused(401, message="Invalid username or password.")
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'loopback'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.repos:
                self._send(409, json.dumps(url | {"error": "You already created this model repo"}).encode())
                return
            repo = Repo(private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
            repo.commit({})
            self.hub.repos[repo_id] = repo
        self._json(url)

    def _validate(self) -> None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(front[1] if front else "")
        except yaml.YAMLError:
            self._send(400, json.dumps({"errors": [{"message": "invalid YAML"}], "warnings": []}).encode())
            return
        self._json({"errors": [], "warnings": []})

    def _preupload(self, repo: str, revision: str) -> None:
        _, files = self._files(self._repo(repo, write=True), revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            path, size = file["path"], file["size"]
            entry = _entry(path, files[path]) if path in files else {}
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if _is_lfs(path, size) else "regular",
                    "shouldIgnore": False,
                    "oid": entry.get("lfs", entry).get("oid"),
                }
            )
        self._json({"files": answers})

    def _lfs_batch(self, repo: str) -> None:
        self._repo(repo, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, message="the body does not have this digest")
        self.hub.lfs[oid] = self.body
        self._send(200, b"")

    def _commit(self, repo: str, revision: str) -> None:
        held = self._repo(repo, write=True)
        _, files = self._files(held, revision)
        files = dict(files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refused(400, message=f"{value['path']}: no LFS object {value['oid']}")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif operation["key"] != "header":
                raise _Refused(400, message=f"no operation {operation['key']}")
        with self.hub.lock:
            oid = held.commit(files, revision)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})
