"""A Ray cluster on one machine, in its own process, because Ray forks and JAX runs in the process of the tests.

The head node runs no cells. Each line of stdin is a number of cores: a node with that many cores is added, and its
process id is printed. The children of that process are the workers. The cluster ends when stdin closes.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Write no token to the home directory, and send no usage statistics.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class Cluster:
    process: subprocess.Popen
    address: str
    nodes: list[int]

    def add_node(self, cores: int = 1) -> int:
        assert self.process.stdin and self.process.stdout
        print(cores, file=self.process.stdin, flush=True)
        self.nodes.append(int(self.process.stdout.readline()))
        return self.nodes[-1]

    def lose_node(self, node: int) -> None:
        """Kill all processes of a node at once, as in a power failure."""
        self.nodes.remove(node)
        for pid in (node, *children(node)):
            with contextlib.suppress(ProcessLookupError):  # some exit after the first is killed
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    assert process.stdout
    try:
        yield Cluster(process, process.stdout.readline().strip(), [])
    finally:
        process.communicate(timeout=300)
    assert process.returncode == 0


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(entry.name))
    return found


def main() -> None:
    from ray import cluster_utils

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # all output of Ray
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    print(cluster.address, file=answers)
    for line in sys.stdin:
        node = cluster.add_node(num_cpus=int(line))
        print(node.all_processes["raylet"][0].process.pid, file=answers)
    cluster.shutdown()


if __name__ == "__main__":
    main()
