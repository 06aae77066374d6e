"""The watch over a Ray cluster's head."""

from __future__ import annotations

import socket
import threading

import pytest

from jobs.tuning import pulse


def test_a_head_that_answers_no_longer_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.02)
    told = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pulse.watched(address, told.release):
            assert not told.acquire(timeout=20 * pulse.EVERY), "it answers"
            head.close()
            assert told.acquire(timeout=30)
            assert not told.acquire(timeout=20 * pulse.EVERY), "once is enough"
    with pulse.watched(address, told.release):
        pass
    assert not told.acquire(timeout=20 * pulse.EVERY), "nobody watches any longer"
