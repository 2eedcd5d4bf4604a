"""Where arrays lie: the model names the axes of what it computes, and whoever traces it says which devices hold what.

Unless somebody does, nothing is placed: the model by itself knows of no devices.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol

import jax

# Of each axis of an array: batch, position, embed (the width of a stored weight), heads, ffn or vocab. None: whole.
Axes = tuple[str | None, ...]


class Places(Protocol):
    """What places arrays."""

    def shards(self, axis: str | None) -> int:
        """Return over how many devices an axis is split, of the array as it is seen."""
        ...

    def place(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Return x laid out over the devices by the names of its axes."""
        ...

    def spread(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Return x laid out so, filled up with zeros at the end of axes that their devices do not divide."""
        ...

    def on_shards(self, f: Callable[..., jax.Array], axes: Axes) -> Callable[..., jax.Array]:
        """Return f of arrays with these axes, as it works on each device's own part of them."""
        ...


_places: ContextVar[Places | None] = ContextVar("places", default=None)


@contextlib.contextmanager
def by(places: Places | None) -> Iterator[None]:
    """Place arrays so in what is traced inside."""
    token = _places.set(places)
    try:
        yield
    finally:
        _places.reset(token)


def placed(x: jax.Array, *axes: str | None) -> jax.Array:
    """Return x, laid out by the names of its axes where somebody places arrays."""
    places = _places.get()
    return x if places is None else places.place(x, axes)


def spread(x: jax.Array, *axes: str | None) -> jax.Array:
    """Return x laid out so, filled up with zeros at the end of axes that their devices do not divide."""
    places = _places.get()
    return x if places is None else places.spread(x, axes)


def on_shards(f: Callable[..., jax.Array], *axes: str | None) -> Callable[..., jax.Array]:
    """Return f as it works on each device's own part of arrays with these axes."""
    places = _places.get()
    return f if places is None else places.on_shards(f, axes)


def shards(axis: str) -> int:
    """Return over how many devices an axis of the arrays here is split: 1 where nobody places anything."""
    places = _places.get()
    return 1 if places is None else places.shards(axis)
