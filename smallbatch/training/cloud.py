"""Query Google Cloud's metadata server for the hosts of a TPU slice and for preemption notices.

Only Compute Engine machines, which include TPU hosts, can query the server.
"""

import contextlib
import http.client
import os
import threading
import urllib.request
from collections.abc import Callable

POLL_SECS = 2.0
FIRST_ATTEMPTS = 3  # failed queries before the machine is taken to be outside Google Cloud
# {metadata key: value that announces the end of this machine}, for spot machines and for all others.
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}


def read_metadata(key: str) -> str:
    """Return a metadata value of this machine. Raises OSError outside Google Cloud and for an unknown key."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")  # as in Google's libraries
    url = f"http://{host}/computeMetadata/v1/instance/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is local to the machine
    try:
        with without_proxy.open(request, timeout=5) as response:
            return response.read().decode().strip()
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from error


class PreemptionWatcher:
    """Call `on_notice(notice)` once, from a background thread, when Google Cloud announces the end of this machine.

    A notice that is already set on entry is ignored, because it was handled before this restart.
    """

    def __init__(self, on_notice: Callable[[str], None]):
        self._on_notice, self._end = on_notice, threading.Event()

    def __enter__(self) -> "PreemptionWatcher":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()  # the thread is not joined: a query may take seconds

    def _watch(self) -> None:
        last: dict[str, str] = {}
        for _ in range(FIRST_ATTEMPTS):
            with contextlib.suppress(OSError):
                last = {key: read_metadata(key) for key in NOTICES}
                break
            if self._end.wait(POLL_SECS):
                return
        while last and not self._end.wait(POLL_SECS):
            for key, notice in NOTICES.items():
                with contextlib.suppress(OSError):  # the server may be busy
                    before, last[key] = last[key], read_metadata(key)
                    if last[key] == notice != before:
                        return self._on_notice(f"{key} {notice}")
