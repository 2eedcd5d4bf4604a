"""Read JSON files that may be damaged: return a value of the expected shape, or raise a one-line error.

A shape is a type (`int`, `float | None`, `dict`), a list with one shape for all elements, or a dict of shapes by key,
which allows other keys. A bool is not a number; an int is accepted as a float.
"""

import json
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smallbatch.errors import UserError

MAX_INTEGER = 2**64  # larger values overflow floats or fixed-width integers
NAMES = {
    **{int: "an integer", float: "a number", str: "text", bool: "true or false"},
    **{dict: "an object", list: "a list", type(None): "null"},
}


def parse(text: str | bytes) -> Any:
    """Parse JSON text that smallbatch wrote.

    Raises ValueError for invalid JSON, NaN, infinities, integers beyond 64 bits, a repeated key, text that is not
    UTF-8, and nesting that is too deep.
    """
    return parse_any(
        text, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite, object_pairs_hook=_dict
    )


def parse_any(text: str | bytes, **options: Any) -> Any:
    """Parse JSON text that another program wrote. Raises ValueError, and no other exception, if it is invalid."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: str | Path, fix: str = "delete it, or restore it from a copy") -> Any:
    """Return the value in a JSON file. Raises UserError if the file is missing or is not JSON."""
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {fix}") from error


def read_object(
    path: str | Path, shape: dict[str, Any], what: str, fix: str = "restore it from a copy"
) -> dict[str, Any]:
    """Return the object in a JSON file. Raises UserError, with the problem and `fix`, if the file holds anything else.

    shape: {required key: shape of its value}.
    what: description of the file, such as "the plan of a run".
    """
    value = read(path, fix)
    if problem := mismatch(value, shape):
        raise UserError(f"{path} is damaged, or is not {what} ({problem}); {fix}")
    return value


def read_config(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the sections of a config.json. Raises UserError unless it is an object of sections of keys."""
    fix = "restore it from a copy, or delete it and rerun the command that wrote it"
    config = read_object(path, {}, "the config of a run", fix)
    if problem := mismatch(config, {section: {} for section in config}):
        raise UserError(f"{path} is damaged, or is not the config of a run ({problem}); {fix}")
    return config


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """Return how a value differs from a shape, or "" if it matches. `where` is the dotted path of the value."""
    kinds = typing.get_args(shape) if isinstance(shape, types.UnionType) else (shape,)
    if isinstance(shape, dict | list):
        kinds = (type(shape),)
    if not any(_is_a(value, kind) for kind in kinds):
        shown = f"{value!r:.40}" + "..." * (len(repr(value)) > 40)
        return f"{where.rstrip('.') or 'it'} is {shown}, not {' or '.join(NAMES[kind] for kind in kinds)}"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(shape, dict):
        if missing := next((key for key in shape if key not in value), None):
            return f"the key {where}{missing} is missing"
        parts = shape.items()
    elif isinstance(shape, list):
        parts = ((i, shape[0]) for i in range(len(value)))
    return next((problem for key, part in parts if (problem := mismatch(value[key], part, f"{where}{key}."))), "")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -MAX_INTEGER < int(digits) < MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... does not fit 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return number


def _dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found
