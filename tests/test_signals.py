"""Requests to stop: nesting, and a second Ctrl-C."""

import os
import signal

import pytest

from smallbatch.training.signals import Stop


def test_a_request_in_an_enclosing_stop_also_stops_the_nested_one():
    with Stop() as outer:
        with Stop() as before:
            assert not before.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with Stop() as inner:
            assert outer.requested and inner.requested
    with Stop() as later:
        assert not later.requested


def test_second_ctrl_c_raises_at_once():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
