"""Bytes that devices send each other in one update, counted in the text of the compiled program.

Bytes are those that one of n devices sends with ring algorithms (Thakur, Rabenseifner & Gropp 2005): 2(n-1)/n of the
array for an all-reduce, (n-1)/n of the whole array for an all-gather, a reduce-scatter or an all-to-all, and the whole
array for a permutation.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# kind: (size of the whole array / size of the result, share of the whole array that a device sends), for n devices
KINDS = {
    "all-reduce": (lambda n: 1, lambda n: 2 * (n - 1) / n),
    "all-gather": (lambda n: 1, lambda n: (n - 1) / n),
    "reduce-scatter": (lambda n: n, lambda n: (n - 1) / n),
    "all-to-all": (lambda n: 1, lambda n: (n - 1) / n),
    "collective-permute": (lambda n: 1, lambda n: 1),
}
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in an update."""

    kind: str
    count: int
    sent_bytes: int  # by one device
    largest_bytes: int  # size of the largest whole array


def traffic(program: str) -> tuple[Traffic, ...]:
    """Return the collectives of an update, from the text of the compiled chunk (`compiled.as_text()`), largest first.

    A loop body counts once per iteration. The loop over updates has no fixed length, so it counts once. TPU's compiler
    repeats a collective in every fusion that overlaps it, so each channel counts once.
    """
    computations, entry = _computations(program)
    partitions = re.search(r"num_partitions=(\d+)", program)
    channels: set[str] = set()
    found: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for times, line in _lines(computations, entry, 1):
        if operation := OPERATION.search(line):
            result, kind, started = operation.groups()
            if channel := re.search(r"channel_id=\d+", line):
                if channel[0] in channels:
                    continue
                channels.add(channel[0])
            participants = _participants(line) or int(partitions[1] if partitions else 1)
            whole, sent = KINDS[kind]
            arrays = [_bytes(*array) for array in ARRAY.findall(result) if array[1]]  # scalars are counters
            if started and kind != "all-reduce":  # the operands come first
                arrays = arrays[len(arrays) // 2 :]
            size = sum(arrays) * whole(participants)
            found[kind].append((times, size, times * size * sent(participants)))
    rows = [
        Traffic(
            kind, sum(n for n, _, _ in own), round(sum(sent for _, _, sent in own)), max(size for _, size, _ in own)
        )
        for kind, own in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.sent_bytes))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Return {name: lines} of a program's computations, and the name of the entry computation."""
    computations, name, entry = {}, "", ""
    for line in program.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = []
        elif name:
            computations[name].append(line)
    return computations, entry


def _lines(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[int, str]]:
    """Yield (number of executions, line) for every line that runs."""
    for line in computations[name]:
        yield times, line
        trips = TRIPS.search(line)
        for called in CALLED.finditer(line):
            for inner in (called[1] and [called[1]]) or re.findall(r"[\w.-]+", called[2]):
                yield from _lines(computations, inner, times * int(trips[1] if trips else 1))


def _participants(line: str) -> int:
    """Return the number of participating devices; 0 means all."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(groups[1].split(","))
    return 0


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype) or 0)
    return bits * int(np.prod([int(n) for n in shape.split(",") if n])) // 8
