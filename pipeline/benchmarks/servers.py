"""MLflow's servers on loopback ports, of a store or of a model, and a slow way to one: for benchmarks and tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from infra.distributed import free_port
from infra.errors import UserError

START = 120.0
"""Seconds within which a server must answer."""


class Child:
    """A server as a process group, to be killed and started again at the same address."""

    def __init__(
        self, command: list[str], folder: Path, port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment` is added to this process's; the log goes to `folder`, which exists."""
        self.url = f"http://127.0.0.1:{port}"
        self._command, self._folder, self._environment = command, folder, os.environ | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers. Raises UserError where it does not."""
        with open(self._folder / "server.log", "ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, start_new_session=True, cwd=self._folder,
                env=self._environment,
            )  # fmt: skip
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if urllib.request.urlopen(self.url + "/health", timeout=10).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        self.end()
        raise UserError(f"no server: {(self._folder / 'server.log').read_text()[-2000:]}")

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it, with its workers, as a machine that goes down does."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait()

    close = end

    def __enter__(self) -> Child:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def mlflow_server(store: str, folder: Path, environment: Mapping[str, str] | None = None) -> Child:
    """MLflow's server on a database; artifacts and its log go to `folder`, which exists."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    return Child(
        [*command, "--workers=1", f"--artifacts-destination={folder / 'artifacts'}"], folder, port, environment
    )


def model_server(model: Path | str, folder: Path, **environment: str) -> Child:
    """`mlflow models serve` of a model's folder or URI, with one thread; its log goes to `folder`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow calls uvicorn by its name
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return Child([*command, "--port", str(port)], folder, port, paths | environment)


def slow_way(url: str, seconds: float, folder: Path) -> Child:
    """A proxy, in a process of its own, that answers each call so many seconds later than the server behind it."""
    port = free_port()
    return Child([sys.executable, "-m", "pipeline.benchmarks.servers", str(port), url, str(seconds)], folder, port)


class _Slow(BaseHTTPRequestHandler):
    behind, seconds = "", 0.0

    def _pass_on(self) -> None:
        if self.path != "/health":
            time.sleep(self.seconds)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.behind + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as refusal:
            status, kind, content = refusal.code, refusal.headers["Content-Type"], refusal.read()
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


if __name__ == "__main__":
    _Slow.behind, _Slow.seconds = sys.argv[2], float(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Slow).serve_forever()
