"""Trackers: the points in TensorBoard's files, and missing packages."""

import struct
import sys

import pytest

from smallbatch.errors import UserError
from smallbatch.runs.trackers import open_trackers

OFF = {"tensorboard": False, "wandb": "off", "wandb_project": "p", "run_id": "r", "config": {}}


def events(directory):
    """Parse event files by their format: length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(directory.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def points(directory):
    """Return {name: {step: value}} as TensorBoard shows it: a session that starts drops what follows."""
    shown = {}
    for event in events(directory):
        if event.session_log.status == 1:  # START
            shown = {name: {s: v for s, v in steps.items() if s < event.step} for name, steps in shown.items()}
        for value in event.summary.value:
            steps = shown.setdefault(value.tag, {})
            assert event.step not in steps, "a point was drawn twice"
            steps[event.step] = value.simple_value
    return shown


def train(step, loss_nats=3.25):
    return {
        "kind": "train", "step": step, "tokens": 64 * step, "flops": 1e6 * step, "loss_nats": loss_nats,
        "learning_rate": 0.5, "secs": 1.5, "tokens_per_sec": 640.0,
    }  # fmt: skip


def open_tensorboard(workdir, resumed_tokens=0):
    (tracker,) = open_trackers(workdir, **{**OFF, "tensorboard": True}, resumed_tokens=resumed_tokens)
    return tracker


def test_no_tracker_is_opened_by_default(tmp_path):
    assert open_trackers(tmp_path, **OFF) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_plots_records_against_tokens(tmp_path):
    tracker = open_tensorboard(tmp_path)
    tracker.write(train(1))
    tracker.write(train(2, float("nan")))
    tracker.write({"kind": "validation", "step": 2, "tokens": 128, "flops": 2e6, "loss_nats": 3.5,
                   "bits_per_byte": None, "secs": 1.0})  # fmt: skip
    tracker.close()
    shown = points(tmp_path / "tensorboard")
    assert shown["train/loss_nats"] == {64: 3.25}  # NaN is left out
    assert shown["train/learning_rate"] == {64: 0.5, 128: 0.5}
    assert shown["validation/loss_nats"] == {128: 3.5}
    assert "validation/bits_per_byte" not in shown


@pytest.mark.parametrize("resumed_step", [0, 2])
def test_resumed_run_replaces_later_points(tmp_path, resumed_step):
    tracker = open_tensorboard(tmp_path)
    for step in (1, 2, 3, 4):  # 3 and 4 come after the checkpoint and are lost
        tracker.write(train(step, 9.0))
    tracker.close()
    tracker = open_tensorboard(tmp_path, resumed_tokens=64 * resumed_step)
    for step in range(resumed_step + 1, 6):
        tracker.write(train(step, 1.0))
    tracker.close()
    losses = points(tmp_path / "tensorboard")["train/loss_nats"]
    assert losses == {64 * step: 9.0 if step <= resumed_step else 1.0 for step in range(1, 6)}


@pytest.mark.parametrize(
    ("package", "switch", "extra"),
    [("tensorboardX", {"tensorboard": True}, "tensorboard"), ("wandb", {"wandb": "offline"}, "wandb")],
)
def test_missing_package_is_an_error_with_its_extra(tmp_path, monkeypatch, package, switch, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"{package} is not installed; pip install 'smallbatch\[{extra}\]', or set --"):
        open_trackers(tmp_path, **{**OFF, **switch})


def test_wandb_writes_an_offline_run(tmp_path):
    pytest.importorskip("wandb")
    (tracker,) = open_trackers(tmp_path, **{**OFF, "wandb": "offline"})
    tracker.write(train(1))
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*-r/run-r.wandb"))
