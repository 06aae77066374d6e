"""Servers on loopback ports for the tests of remote data: a real one, one with faults to order, an emulator of S3."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from infra.distributed import free_port

AIOHTTP = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)
"""
NGINX = """
daemon off; worker_processes 1; pid {run}/pid; error_log {run}/error; user root;
events {{}}
http {{ access_log off; client_body_temp_path {run}; proxy_temp_path {run}; fastcgi_temp_path {run};
uwsgi_temp_path {run}; scgi_temp_path {run}; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


class FileServer:
    """nginx where it is installed, aiohttp's static files elsewhere; to be killed and started again."""

    def __init__(self, root: Path, run: Path) -> None:
        self.port, self._process = free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"
        nginx = shutil.which("nginx")
        if nginx:
            settings = run / "nginx.conf"
            settings.write_text(NGINX.format(run=run, root=root, port=self.port))
            self._command = [nginx, "-p", str(run), "-c", str(settings)]
        else:
            self._command = [sys.executable, "-c", AIOHTTP, str(root), str(self.port)]

    _process: subprocess.Popen[bytes] | None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, start_new_session=True, stderr=subprocess.DEVNULL)
        until(lambda: _answers(self.port))

    def kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):  # with the workers that nginx starts
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Faulty(ThreadingHTTPServer):
    """Serves `files` from memory, counts the requests and commits the faults that `fault` orders.

    `broken` counts the answers that nobody read to their end.
    `fault` gets the number of a request and a name, and returns "" (none), a status ("503"), or one for a GET: "cut"
    (the connection ends in the middle), "short" (fewer bytes, declared as such), "hang", "whole" (no range, all of it).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.headers = files, {"ETag": '"1"'}
        self.fault: Callable[[int, str], str] = lambda number, name: ""
        self.gets: Counter[tuple[str, str]] = Counter()
        self.heads: Counter[tuple[str, str]] = Counter()
        self.pause, self.broken = 0.0, 0
        self.lock, self.freed = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/data"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.freed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no matter."""


class Handler(BaseHTTPRequestHandler):
    server: Faulty
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet: acknowledging the first of two takes 40 ms

    def do_HEAD(self) -> None:
        name, fault = self._arrive(self.server.heads)
        found = self.server.files.get(name)
        self._answer(int(fault) if fault.isdecimal() else 404 if found is None else 200, len(found or b""))

    def do_GET(self) -> None:
        name, fault = self._arrive(self.server.gets)
        found, asked = self.server.files.get(name), self.headers.get("Range", "")
        if found is None or fault.isdecimal():
            self._answer(int(fault) if fault else 404, 0)
            return
        time.sleep(self.server.pause)
        if fault == "hang":
            self.server.freed.wait()
            self.close_connection = True
            return
        status = 200
        if asked and fault != "whole":
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            found, status = found[first : last + 1], 206
        if fault == "short":
            found = found[:-1]
        self._answer(status, len(found))
        try:
            self.wfile.write(found[: len(found) // 2] if fault == "cut" else found)
            self.wfile.flush()
        except ConnectionError:
            self.server.broken += 1
            fault = "cut"
        self.close_connection = fault == "cut"

    def _arrive(self, counted: Counter[tuple[str, str]]) -> tuple[str, str]:
        name = unquote(self.path.removeprefix("/data/"))
        with self.server.lock:
            counted[name, self.headers.get("Range", "")] += 1
            return name, self.server.fault(self.server.gets.total() + self.server.heads.total(), name)

    def _answer(self, status: int, length: int) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | self.server.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Emulator:
    """moto's S3: an emulator, not the service. Every `every`-th GET or HEAD of an object is answered with SlowDown."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.every, self.asked, self.refused = 0, 0, 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and self.every:
            self.asked += 1
            if self.asked % self.every == 0:
                self.refused += 1
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        return self._app(environ, start_response)

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        import boto3

        client = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        for name, content in files.items():
            client.put_object(Bucket=bucket, Key=name, Body=content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The tracking URI of an empty database of a PostgreSQL of the test's own; skips the test where none is installed.

    It refuses to run as root: then as the user that Debian's package makes, in a directory that this one may enter.
    """
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    place = os.pathsep.join([*map(str, homes), os.environ.get("PATH", "")])
    initdb, server, createdb = (shutil.which(name, path=place) for name in ("initdb", "postgres", "createdb"))
    user = "postgres" if os.geteuid() == 0 else None
    if not (initdb and server and createdb):
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed (pip install psycopg2-binary)")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        common: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
        subprocess.run([initdb, "-D", "data", "-A", "trust", "-U", "us", "-E", "UTF8", "-N"], check=True, **common)
        port = free_port()
        command = [server, "-D", "data", "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **common)
        make = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", "us", "mlflow"]
        try:
            until(lambda: subprocess.run(make, stderr=subprocess.DEVNULL, **common).returncode == 0, 60)
            yield f"postgresql+psycopg2://us@127.0.0.1:{port}/mlflow"
        finally:
            process.send_signal(signal.SIGINT)  # of PostgreSQL: end sessions, and stop
            process.wait()


@contextlib.contextmanager
def small_disk(size: int, place: Path) -> Iterator[Path]:
    """A file system of `size` bytes; skips the test where nothing may be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def failing(code: int) -> Callable[..., Any]:
    """A stand-in for a call of the system that fails."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def until(done: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
