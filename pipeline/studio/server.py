"""The page's server: Streamlit on a socket that is open already, and nothing that calls outside."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.errors import UserError
from pipeline.sheet import DARK

SETTINGS = {
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "global.developmentMode": False,
    "logger.level": "error",
    "server.enableCORS": False,
    "server.enableXsrfProtection": False,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 50,
    "theme.primaryColor": DARK,
}
"""Streamlit's. Its own check of origins asks a server outside for its own address: `SameOrigin` stands in for it, and
for its tokens against forged requests."""
LOOPBACK = ("127.0.0.1", "localhost")


def listen(address: str, port: int) -> socket.socket:
    """A listening socket, at any free port where it is 0. Raises UserError where there cannot be one."""
    try:
        return socket.create_server((address, port))
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UserError(
            f"nothing can listen at {address}:{port} ({reason}): choose another --port (0: any that "
            "is free), or end what uses it"
        ) from None


def serve(script: Path, arguments: list[str], listening: socket.socket) -> None:
    """Run a script of Streamlit for everybody who opens the page, until Ctrl-C."""
    import streamlit as st
    import uvicorn
    from starlette.middleware import Middleware
    from streamlit.web.bootstrap import load_config_options

    load_config_options(SETTINGS)
    sys.argv = [str(script), *arguments]  # a script's way to its arguments
    ours = Middleware(SameOrigin, address=listening.getsockname()[0])
    app = st.App(script, middleware=[ours], on_script_error=_failed)
    settings = uvicorn.Config(app, access_log=False, log_level="error", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listening])


def _failed(error: Exception) -> bool:
    """What went wrong in the page's own code: a line there, the traceback here."""
    import streamlit as st

    traceback.print_exception(error)
    st.error(f"The page failed ({type(error).__name__}); the terminal of pairstream studio says where.")
    return True


class SameOrigin:
    """Refuses what somebody else's page makes a browser ask: requests from another origin, or to another name.

    A name is checked where the server is this machine's alone, whose every name is known.
    """

    def __init__(self, app: Any, address: str) -> None:
        self.app, self.alone = app, address in LOOPBACK

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        known = not self.alone or urlsplit(f"//{host}").hostname in LOOPBACK
        if scope["type"] == "lifespan" or (known and origin in ("", f"http://{host}", f"https://{host}")):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"asked by another page"})
