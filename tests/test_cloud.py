"""Preemption notices from a stand-in for Google Cloud's metadata server."""

import http.server
import signal
import threading

import pytest
import runs

from smallbatch.runs import records
from smallbatch.training import cloud

home = runs.home
CALM = {"preempted": "FALSE", "maintenance-event": "NONE"}


class Metadata(http.server.ThreadingHTTPServer):
    """A metadata server: returns values by key, to requests with the Metadata-Flavor header."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.values, self.asked = dict(CALM), threading.Semaphore(0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def wait(self, looks: int) -> None:
        for _ in range(looks * len(CALM)):
            assert self.asked.acquire(timeout=120)


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self):
        value = self.server.values.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
        meant = self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if value and meant else 404)
        self.end_headers()
        self.wfile.write((value or "").encode())
        self.server.asked.release()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def metadata(monkeypatch):
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        monkeypatch.setattr(cloud, "POLL_SECS", 0.01)
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("key", "value"), [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_new_notice_is_reported_once(metadata, key, value):
    told, came = [], threading.Semaphore(0)

    def on_notice(words):
        told.append(words)
        came.release()

    with cloud.PreemptionWatcher(on_notice):
        metadata.wait(3)
        metadata.values["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"  # live migration does not stop the machine
        metadata.wait(2)
        assert not told
        metadata.values[key] = value
        assert came.acquire(timeout=20) and not came.acquire(timeout=0.1)
    assert told == [f"{key} {value}"]


def test_notice_from_before_the_start_is_ignored_and_failed_queries_are_repeated(metadata):
    told = threading.Event()
    metadata.values["preempted"] = "TRUE"
    with cloud.PreemptionWatcher(lambda words: told.set()):
        metadata.wait(3)
        del metadata.values["maintenance-event"]  # 404 for a while
        metadata.wait(3)
        assert not told.is_set()
        metadata.values["maintenance-event"] = "NONE"
        metadata.wait(2)
        metadata.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
        assert told.wait(20)


def test_watcher_ends_outside_google_cloud(metadata, monkeypatch):
    metadata.shutdown()
    metadata.server_close()
    before = threading.active_count()
    with cloud.PreemptionWatcher(lambda words: pytest.fail(words)):
        for thread in threading.enumerate()[before:]:
            thread.join(10)
            assert not thread.is_alive()


def test_notice_stops_a_run_and_the_restart_resumes(home, tmp_path, metadata):
    changes = {"train.budget_tokens": 32 * 2 * 200_000, "train.log_every_tokens": 640}
    process = runs.start(home, changes, tmp_path / "run")
    metadata.wait(1)
    assert runs.wait_until(process, lambda: runs.record_count(tmp_path / "run") > 0)
    metadata.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75 and "about to be preempted (maintenance-event TERMINATE" in err
    stopped = records.read_result(tmp_path / "run" / "result.json")
    assert stopped.status == "stopped" and stopped.optimizer_steps > 0
    again = runs.start(home, changes, tmp_path / "run")
    metadata.wait(3)  # the notice still stands, and is ignored
    before = runs.record_count(tmp_path / "run")
    assert runs.wait_until(again, lambda: runs.record_count(tmp_path / "run") > before)
    again.send_signal(signal.SIGTERM)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0 and "resuming after update" in err
    assert records.read_result(tmp_path / "run" / "result.json").optimizer_steps > stopped.optimizer_steps
