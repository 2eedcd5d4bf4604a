"""Metrics of gradients and updates for `train.diagnostics`: norms, cosine of successive updates, gradient noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smallbatch import optim
from smallbatch.model.decoder import Params

Metrics = dict[str, Any]  # float32 scalars of an update; NaN where undefined


class DiagnosticsState(NamedTuple):
    """The previous update and, for noise from successive gradients, the previous gradient; both float32."""

    update: Params
    grads: Params | None


def init(source: str, params: Params) -> DiagnosticsState | None:
    """Return the state before the first update. source: see `OptimizerSpec.diagnostics`."""
    if source == "off":
        return None
    return DiagnosticsState(optim.zeros(params), optim.zeros(params) if source == "successive" else None)


def gradient_metrics(
    previous: DiagnosticsState,
    step: jax.Array,
    grads: Params,
    square_norm: jax.Array,
    part_square_norm: jax.Array,
    parts: int,
    batch_seqs: int,
) -> Metrics:
    """Return the norm of the gradient and both terms of the gradient noise scale.

    Args:
        step: number of finished updates before this one.
        square_norm: squared norm of the gradient of the batch.
        part_square_norm: mean squared norm of the gradients of its `parts`, each of batch_seqs / parts sequences.
    """
    if previous.grads is None:
        signal, noise = optim.noise_from_parts(part_square_norm, square_norm, batch_seqs / parts, batch_seqs)
    else:
        inner = jnp.where(step == 0, jnp.nan, optim.dot(grads, previous.grads))  # the first has no predecessor
        signal, noise = optim.noise_from_successive(square_norm, inner, batch_seqs)
    return {"grad_norm": jnp.sqrt(square_norm), "grad_signal_sq": signal, "grad_noise_sq": noise}


def update_metrics(previous: DiagnosticsState, updates: Params) -> Metrics:
    """Return the norm and root mean square of an update, and its cosine with the previous one."""
    norm = jnp.sqrt(optim.squared_norm(updates))
    size = sum(u.size for u in jax.tree.leaves(updates))
    cosine = optim.cosine(updates, previous.update)
    return {"update_norm": norm, "update_rms": norm / size**0.5, "update_cosine": cosine}


def advance(previous: DiagnosticsState, updates: Params, grads: Params) -> DiagnosticsState:
    """Return the state for the next update."""
    as_float32 = None if previous.grads is None else jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    return DiagnosticsState(updates, as_float32)
