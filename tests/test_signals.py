"""A stop is granted at the next edge, wherever it was asked for."""

import os
import signal

import pytest

from smallbatch.training.signals import Stop


def test_a_stop_asked_for_before_the_loop_that_grants_it_starts_is_not_forgotten():
    with Stop() as outer:
        with Stop() as before:
            assert not before.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with Stop() as inner:
            assert outer.requested and inner.requested
    with Stop() as later:
        assert not later.requested


def test_a_second_ctrl_c_stops_at_once():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
