"""A signal reaches all that is within one another, and what is entered after it."""

from __future__ import annotations

import os
import signal

import pytest

from infra.preemption import REQUEUE, StopAtOnce, StopRequest


def test_a_signal_reaches_all_that_is_within_one_another() -> None:
    with StopAtOnce() as first, StopRequest() as second, StopRequest() as third:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (first.asked, second.asked, third.asked) == (True, True, True)


def test_what_is_entered_after_a_signal_is_asked_too() -> None:
    """Or a training that was being set up would run to its end before it is heard."""
    with StopRequest() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as inner:
            assert inner.asked
    assert outer.asked
    with StopRequest() as another:
        assert not another.asked


def test_at_once_ends_the_process_but_for_what_is_within_it() -> None:
    with pytest.raises(SystemExit) as ended, StopAtOnce():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == REQUEUE
