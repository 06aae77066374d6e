"""`pairstream studio` as a user runs it: what it refuses, what its page says, and how it looks in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from jobs import studio
from jobs.cli import main
from pipeline.studio import page, server
from pipeline.train import train
from tests.pipeline.training import a_run

pytestmark = pytest.mark.usefixtures("main_module")

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Path:
    """A working directory with a run that has learnt a little."""
    place = tmp_path_factory.mktemp("work")
    settings: dict[str, Any] = {"train.steps": 100, "train.validate_every": 100, "train.batch": 100}
    wide = {"modalities.top.hidden": [64], "modalities.bottom.hidden": [64], "optim.lr": 0.003}
    run = a_run(digits_dir, **settings, **wide, **{"pairing.fraction": 1.0, "tracking.enabled": False})
    train(run, place / "runs" / "a")
    return place


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def opened(monkeypatch: pytest.MonkeyPatch, name: str) -> AppTest:
    """The page of a run, as Streamlit runs it."""
    monkeypatch.setattr(sys, "argv", ["studio_page.py", name])
    return AppTest.from_file(ROOT / "jobs" / "studio_page.py", default_timeout=60).run()


@pytest.mark.parametrize("kind", ["mean", "sample"])
def test_the_page_says_what_generate_says(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    said: list[dict[str, np.ndarray]] = []
    answer = page.answer
    monkeypatch.setattr(page, "answer", lambda *both: said.append(answer(*both)) or said[-1])
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8))
    at = opened(monkeypatch, "a")
    for name in ("top", "label"):
        at.radio(key=f"way {name}").set_value("given")
    at.run()
    at.selectbox(key="value label").set_value(3)
    at.file_uploader(key="value top").upload("photo.png", photo.read_bytes())
    at.slider(key="number").set_value(5)
    at.number_input(key="temperature").set_value(0.7)
    at.number_input(key="seed").set_value(4)
    at.radio(key="kind").set_value(kind).run()
    assert not at.exception
    assert not at.error
    command = ["generate", "a", "--given", f"top={photo}", "label=3", "-n", "5", "--temperature", "0.7", "--seed", "4"]
    assert main([*command, "--out", str(tmp_path / "out"), *(["--sample"] if kind == "sample" else [])]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    form = studio.opened("a").packaged.forms["bottom"]
    assert rows == [{"bottom": form.write(value)} for value in said[-1]["bottom"]]


def test_a_model_is_loaded_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import streamlit as st

    st.cache_resource.clear()
    loads: list[str] = []
    load = studio.open_model
    monkeypatch.setattr(studio, "open_model", lambda name: loads.append(name) or load(name))
    monkeypatch.setattr(server, "serve", lambda *_: None)
    assert main(["studio", "a", "--port", "0", "--no-browser"]) == 0
    at = opened(monkeypatch, "a")
    at.slider(key="number").set_value(2).run()
    opened(monkeypatch, "a")
    assert not at.exception
    assert loads == ["a"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("studio", "needs a run first"),
        ("studio b", "no run 'b'"),
        ("studio begun", "has no checkpoint yet"),
        ("studio a --port 99999", "--port 99999: choose 0 (any that is free) to 65535"),
        ("studio a --port -1", "--port -1: choose"),
        (
            "studio a --port TAKEN",
            "nothing can listen at 127.0.0.1:TAKEN (Address already in use): choose another --port",
        ),
        ("studio a --port 0 --address no.such.host.example", "nothing can listen at no.such.host.example:0"),
    ],
)
def test_bad_input_is_answered_with_a_sentence_before_anything_is_served(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, sentence: str
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *given: served.append(given))
    Path("runs/begun").mkdir(exist_ok=True)
    Path("runs/begun/run.json").write_text(Path("runs/a/run.json").read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([*command.replace("TAKEN", port).split(), *(["--json"] if command != "studio" else [])]) == 2
    told = capsys.readouterr()
    assert sentence.replace("TAKEN", port) in told.err
    assert "Traceback" not in told.err
    assert not served
    if command != "studio":
        assert json.loads(told.out.splitlines()[-1])["job"] == "studio"


def test_without_streamlit_there_is_a_sentence(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studio, "find_spec", lambda _: None)
    assert main(["studio", "a"]) == 2
    assert "pip install 'pairstream[studio]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("display", "more", "opens"), [("", [], 0), (":0", [], 1), (":0", ["--no-browser"], 0), ("", ["--browser"], 1)]
)
def test_a_browser_is_opened_where_there_is_a_display(
    here: Path, monkeypatch: pytest.MonkeyPatch, display: str, more: list[str], opens: int
) -> None:
    urls: list[str] = []
    monkeypatch.setattr(studio.webbrowser, "open", urls.append)
    monkeypatch.setattr(server, "serve", lambda *_: None)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["studio", "a", "--port", "0", *more]) == 0
    assert len(urls) == opens


@contextmanager
def served(place: Path) -> Iterator[str]:
    """The page of a run in a process of its own; ended by Ctrl-C, it ends well and has nothing to complain about."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "studio", "a", "--port", "0", "--json", "--no-browser"],
        cwd=place, env={**os.environ, "PYTHONPATH": path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_page_is_served_until_ctrl_c_and_to_nobody_else_s_page(runs: Path) -> None:
    with served(runs) as url:
        with urllib.request.urlopen(url, timeout=60) as answered:
            assert b"<title>Streamlit</title>" in answered.read()
        foreign = urllib.request.Request(url, headers={"Origin": "http://evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_a_label_is_given_and_a_slider_is_dragged_in_a_browser(runs: Path, tmp_path: Path) -> None:
    """Nothing but the page itself is asked for anything."""
    api = pytest.importorskip("playwright.sync_api")
    shots = Path(os.environ.get("PAIRSTREAM_SHOTS", tmp_path))
    asked: list[str] = []
    with served(runs) as url, api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        tab = browser.new_page(viewport={"width": 1500, "height": 1300})
        tab.set_default_timeout(60_000)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        pictures = tab.get_by_test_id("stImage").locator("img")
        tab.get_by_text("Made of nothing").wait_for()
        tab.locator(".st-key-way-label").get_by_text("given", exact=True).click()
        tab.get_by_text("Made of label").wait_for()
        tab.locator("[class*=st-key-z] input[type=range]").first.wait_for(state="attached")
        mean, moved = pictures.nth(-2), pictures.nth(-1)
        before = moved.screenshot()
        assert before == mean.screenshot()
        tab.screenshot(path=shots / "label.png")
        for thumb in tab.locator("[class*=st-key-z] [data-testid=stSliderThumbValue]").all():
            box = thumb.bounding_box()
            assert box
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] + 6  # the thumb is below its number
            tab.mouse.move(x, y)
            tab.mouse.down()
            tab.mouse.move(x + 60, y, steps=5)
            tab.mouse.up()
        tab.wait_for_timeout(1500)
        tab.screenshot(path=shots / "moved.png")
        assert moved.screenshot() != before
        assert mean.screenshot() == before
        tab.get_by_text("set them back").click()
        tab.wait_for_timeout(1500)
        assert moved.screenshot() == before
        browser.close()
    assert asked
    assert all(one.startswith((url, url.replace("http", "ws"), "data:", "blob:")) for one in asked)
