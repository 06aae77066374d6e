"""pairstream studio RUN [--port 8501] [--address 127.0.0.1] [--no-browser] [--json]

A page to look at a trained model: give any modalities, see all others, drag the latent dimensions. RUN is that of
`pairstream generate`, and so are the answers. Until Ctrl-C; nothing is written, and nothing leaves this machine. From
another machine's browser: ssh -L 8501:127.0.0.1:8501 HOST.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import NotInstalled
from jobs.arguments import closing_json, open_model, parse, split_name
from pipeline.settings import check

if TYPE_CHECKING:
    from pipeline.studio.page import Studio


def has_display() -> bool:
    """Whether a browser could be seen here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@dataclass(frozen=True)
class Options:
    port: int = 8501
    """Where the page is; 0: any port that is free."""
    address: str = "127.0.0.1"
    """For whom: 127.0.0.1 is this machine alone, 0.0.0.0 everybody who reaches it (there is no password)."""
    browser: bool = field(default_factory=has_display)
    """Open the page in a browser, which is done where there is a display."""
    json: bool = False
    """Print one JSON object with the page's URL."""

    def __post_init__(self) -> None:
        check(0 <= self.port < 2**16, f"--port {self.port}: choose 0 (any that is free) to {2**16 - 1}")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("studio RUN", Options, arguments, about=__doc__)
    name, rest = split_name("studio", "run", arguments, ["a directory", "a name under runs/", "RUN/model"])
    options = parse("studio RUN", Options, rest, about=__doc__)
    if find_spec("streamlit") is None:
        raise NotInstalled("the page needs Streamlit, which is not installed: pip install 'pairstream[studio]'")
    import streamlit as st

    from pipeline.studio import server

    st.cache_resource(opened, show_spinner=False)(name)  # what is wrong with the run is said before anything is served
    listening = server.listen(options.address, options.port)
    url = f"http://{options.address}:{listening.getsockname()[1]}"
    if options.json:
        closing_json({"url": url, "run": name})
    else:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
    if options.browser:
        webbrowser.open(url)
    server.serve(Path(__file__).with_name("studio_page.py"), [name], listening)
    return 0


def opened(name: str) -> Studio:
    """What the page is about. Raises UserError."""
    from pipeline.studio.examples import examples_of
    from pipeline.studio.page import Studio

    packaged = open_model(name)
    return Studio(packaged, examples_of(packaged))
