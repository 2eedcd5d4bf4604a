"""Read JSON files that may be damaged: return a value of the expected shape, or raise a one-line error.

A shape is a type (`int`, `float | None`, `dict`), a list with one shape for all elements, or a dict of shapes by key.
Keys that are not in a dict of shapes are allowed. A bool is not a number; an int is accepted as a float.
"""

import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smallbatch.errors import UserError

MAX_INTEGER = 2**64  # larger ones overflow where they become floats or fixed-width integers
NAMES = {
    **{int: "a whole number", float: "a number", str: "text"},
    **{bool: "true or false", dict: "an object", list: "a list"},
}


def parse(text: str | bytes) -> Any:
    """Parse JSON text that smallbatch wrote.

    Raises ValueError for invalid JSON, NaN, infinities, integers beyond 64 bits, a repeated key, text that is not
    UTF-8, and nesting that is too deep.
    """
    return parse_any(
        text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_finite, object_pairs_hook=_object
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
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {fix}") from error


def read_object(
    path: str | Path, shape: dict[str, Any], what: str, fix: str = "restore it from a copy"
) -> dict[str, Any]:
    """Return the object in a JSON file.

    shape: {required key: shape of its value}.
    what: description of the file for the error: "the plan of a run".
    fix: suggested fix for the error.

    Raises UserError, with the file, the problem and the fix, if the file holds anything else.
    """
    value = read(path, fix)
    if problem := mismatch(value, shape):
        raise UserError(f"{path} is damaged, or is not {what} ({problem}); {fix}")
    return value


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """Return how a value differs from a shape, in words; "" if it matches. `where` is the dotted path of the value."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _other_type(value, dict, where)
        for key, part in shape.items():
            if key not in value:
                return f"the key {where}{key} is missing"
            if problem := mismatch(value[key], part, f"{where}{key}."):
                return problem
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _other_type(value, list, where)
        return next(filter(None, (mismatch(part, shape[0], f"{where}{i}.") for i, part in enumerate(value))), "")
    return "" if any(_is_a(value, kind) for kind in _kinds(shape)) else _other_type(value, shape, where)


def cannot_read(path: str | Path, error: OSError) -> UserError:
    """Return the UserError for a file that cannot be read."""
    return UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions")


def _kinds(shape: Any) -> tuple[type, ...]:
    return typing.get_args(shape) if isinstance(shape, types.UnionType) else (shape,)


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _other_type(value: Any, shape: Any, where: str) -> str:
    wanted = " or ".join("null" if kind is type(None) else NAMES[kind] for kind in _kinds(shape))
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return f"{where.rstrip('.') or 'it'} is {shown}, not {wanted}"


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -MAX_INTEGER < int(digits) < MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... does not fit 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return number


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def read_config(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the sections of a config.json. Raises UserError unless it is an object of sections of keys."""
    fix = "restore it from a copy, or delete it and rerun the command that wrote it"
    config = read_object(path, {}, "the config of a run", fix)
    for section, keys in config.items():
        if problem := mismatch(keys, {}, f"{section}."):
            raise UserError(f"{path} is not the config of a run ({problem}); {fix}")
    return config
