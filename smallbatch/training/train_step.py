"""What is compiled: initial state, a chunk of updates, a scored batch. Pure functions of arrays; no disk, no log.

A chunk runs up to K updates in one call: at batch size 1 an update is short, and calls would cost more than they do.
The number of updates is data, so the last, shorter chunk runs the same program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smallbatch import optim
from smallbatch.model import decoder
from smallbatch.model.loss import loss_sum
from smallbatch.specs import ModelSpec, OptimizerSpec

Average = Callable[[Callable], Callable]
Metrics = dict[str, Any]  # float32, a number an update; NaN where there is none


class Previous(NamedTuple):
    """What diagnostics compare an update with."""

    update: decoder.Params
    grads: decoder.Params | None  # kept where the noise scale has to come from successive gradients


class TrainState(NamedTuple):
    """All that an update changes. The number of finished updates is `opt_state.count`."""

    params: decoder.Params
    opt_state: Any  # of the optimizer; has a `count`
    weight_average: decoder.Params | None = None  # float32, not yet bias-corrected
    previous: Previous | None = None


def init_state(
    model: ModelSpec, optimizer: OptimizerSpec, hyperparams: optim.HyperParams, key: jax.Array
) -> TrainState:
    """Return the state before the first update."""
    params = decoder.init_params(model, key)
    previous = None
    if optimizer.diagnostics != "off":
        grads = optim.zeros(params) if optimizer.diagnostics == "successive" else None
        previous = Previous(optim.zeros(params), grads)
    weight_average = optim.zeros(params) if optimizer.weight_average else None
    return TrainState(params, optim.build(optimizer, hyperparams).init(params), weight_average, previous)


def interpolated_params(hyperparams: optim.HyperParams, state: TrainState) -> decoder.Params:
    """Return the average that a schedule-free optimizer stands for."""
    return optim.evaluated(state.params, state.opt_state.z, hyperparams.interpolation)


def averaged_params(hyperparams: optim.HyperParams, state: TrainState) -> decoder.Params:
    """Return the bias-corrected average of the weights, in float32 whatever the dtype of the weights.

    It is evaluated with these float32 weights and with matrix products in the compute dtype. Rounding to bfloat16 would
    lose the differences that averaging makes below the last bit.
    """
    age = state.opt_state.count.astype(jnp.float32) + hyperparams.step_offset
    return optim.averaged_weights(state.weight_average, age, hyperparams.one_minus_weight_average_b)


def summed_nats(
    model: ModelSpec, params: decoder.Params, tokens_BxT1: jax.Array, weights_BxT: jax.Array, per_sequence: bool = False
) -> jax.Array:
    """Return the weighted sum of the losses of predicting tokens 1..T from the ones before, float32 nats."""
    module = decoder.with_params(model, params)
    hidden_BxTxD = module(tokens_BxT1[:, :-1])
    unembed_DxV = module.unembed_DxV[...]
    return loss_sum(hidden_BxTxD, unembed_DxV, tokens_BxT1[:, 1:], weights_BxT, model.max_logits, per_sequence)


def scored(model: ModelSpec, params: decoder.Params, tokens_AxMxT1: jax.Array, weights_AxMxT: jax.Array) -> jax.Array:
    """Return the sum for each sequence of A micro-batches, computed one micro-batch after another: [A, M]."""
    score = lambda _, part: (None, summed_nats(model, params, *part, per_sequence=True))
    return jax.lax.scan(score, None, (tokens_AxMxT1, weights_AxMxT))[1]


def mean_loss_and_grads(model: ModelSpec, measured: bool, params: decoder.Params, tokens_AxMxT1: jax.Array):
    """Return ((mean loss over A x M x T targets, mean squared norm of its parts' gradients), gradients).

    With A = 1 each gradient can be used up as soon as it is there. With A > 1 a float32 sum of all gradients is kept.

    Args:
        measured: whether the squared norm is wanted; else it is 0.
    """
    accumulation, sequences, length = tokens_AxMxT1.shape
    ones_MxT = jnp.ones((sequences, length - 1), jnp.float32)
    mean_loss = lambda params, tokens_MxT1: summed_nats(model, params, tokens_MxT1, ones_MxT) / ones_MxT.size

    def part(tokens_MxT1):
        loss, grads = jax.value_and_grad(mean_loss)(params, tokens_MxT1)
        return (loss, optim.squared_norm(grads) if measured else jnp.float32(0)), grads

    if accumulation == 1:
        return part(tokens_AxMxT1[0])

    def add(sums, tokens_MxT1):
        return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, part(tokens_MxT1)), None

    zeros = (jnp.float32(0), jnp.float32(0)), optim.zeros(params)
    sums, _ = jax.lax.scan(add, zeros, tokens_AxMxT1)
    return jax.tree.map(lambda s: s / accumulation, sums)


def update(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    state: TrainState,
    hyperparams: optim.HyperParams,
    tokens_AxMxT1: jax.Array,
    average: Average = lambda loss_and_grads: loss_and_grads,
    data_groups: int = 1,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update, and what is to be known of it: the loss, and more where it is asked for.

    `average` turns the function of a share of the batch into one of the batch (see `sharding.average_over_data`), and
    `data_groups` is how many shares there are. A part, whose gradient is there by itself, is a micro-batch's share.
    """
    diagnosed = optimizer.diagnostics != "off"
    measure = partial(mean_loss_and_grads, model, diagnosed)
    (loss, part_square), grads = average(measure)(state.params, tokens_AxMxT1)
    metrics = {"loss": loss}
    if optimizer.clip or diagnosed:
        square = optim.squared_norm(grads)
    if diagnosed:
        accumulation, microbatch_seqs, _ = tokens_AxMxT1.shape
        parts, batch_seqs = accumulation * data_groups, accumulation * microbatch_seqs
        metrics |= _gradient_metrics(grads, square, part_square, parts, batch_seqs, state)
    directed = grads
    if optimizer.clip:
        norm = jnp.sqrt(square)
        metrics["clipped"] = (norm > hyperparams.clip_norm).astype(jnp.float32)
        scale = jnp.minimum(1.0, hyperparams.clip_norm / jnp.maximum(norm, hyperparams.clip_norm))
        directed = jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads)
    deltas: Any
    opt_state: Any
    deltas, opt_state = optim.build(optimizer, hyperparams).update(directed, state.opt_state, state.params)
    key = (
        jax.random.fold_in(jax.random.key(hyperparams.seed), opt_state.count) if optimizer.stochastic_rounding else None
    )
    params = optim.rounded(state.params, deltas, key)
    weight_average, previous = state.weight_average, state.previous
    if weight_average is not None:
        weights = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        weight_average = optim.average(weight_average, weights, hyperparams.one_minus_weight_average_b)
    if previous is not None:
        metrics |= _update_metrics(deltas, previous.update)
        as_float32 = None if previous.grads is None else jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        previous = Previous(deltas, as_float32)
    return TrainState(params, opt_state, weight_average, previous), metrics


def _gradient_metrics(grads, square, part_square, parts: int, batch_seqs: int, state: TrainState) -> Metrics:
    assert state.previous is not None
    if state.previous.grads is None:
        signal, noise = optim.noise_from_parts(part_square, square, batch_seqs / parts, batch_seqs)
    else:
        first = state.opt_state.count == 0  # there is no predecessor
        inner = jnp.where(first, jnp.nan, optim.dot(grads, state.previous.grads))
        signal, noise = optim.noise_from_successive(square, inner, batch_seqs)
    return {"grad_norm": jnp.sqrt(square), "grad_signal_sq": signal, "grad_noise_sq": noise}


def _update_metrics(deltas, previous_deltas) -> Metrics:
    norm = jnp.sqrt(optim.squared_norm(deltas))
    size = sum(d.size for d in jax.tree.leaves(deltas))
    return {
        "update_norm": norm,
        "update_rms": norm / size**0.5,
        "update_cosine": optim.cosine(deltas, previous_deltas),
    }


def update_chunk(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    state: TrainState,
    hyperparams: optim.HyperParams,
    tokens_KxAxMxT1: jax.Array,
    updates: jax.Array,
    average: Average = lambda loss_and_grads: loss_and_grads,
    data_groups: int = 1,
) -> tuple[TrainState, Metrics]:
    """Return the state after the first `updates` of K updates and their metrics, each float32 K (0 where not run)."""
    one = partial(update, model, optimizer, average=average, data_groups=data_groups)
    at = lambda k: jax.lax.dynamic_index_in_dim(tokens_KxAxMxT1, k, keepdims=False)

    def body(k, carry):
        state, metrics_K = carry
        state, metrics = one(state, hyperparams, at(k))
        return state, jax.tree.map(lambda values_K, value: values_K.at[k].set(value), metrics_K, metrics)

    _, metrics = jax.eval_shape(one, state, hyperparams, tokens_KxAxMxT1[0])
    metrics_K = jax.tree.map(lambda _: jnp.zeros(tokens_KxAxMxT1.shape[:1], jnp.float32), metrics)
    return jax.lax.fori_loop(0, updates, body, (state, metrics_K))
