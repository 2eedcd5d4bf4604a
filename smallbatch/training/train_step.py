"""Compute one optimizer update, and a compiled loop of up to K updates. All functions are pure.

At batch size 1 an update is shorter than the overhead of a dispatch, so one dispatch runs a chunk of up to K updates.
The number of updates is a traced argument, so a shorter chunk runs the same program.
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
from smallbatch.training import diagnostics as diagnose
from smallbatch.training.diagnostics import DiagnosticsState, Metrics

Average = Callable[[Callable], Callable]


class TrainState(NamedTuple):
    """The state of training, which each update replaces."""

    step: jax.Array  # shape=(), int32: number of finished updates
    params: decoder.Params
    opt_state: Any
    weight_average: decoder.Params | None = None  # float32, before bias correction
    diagnostics: DiagnosticsState | None = None


def init_state(model: ModelSpec, optimizer: OptimizerSpec, hyperparams: optim.HyperParams) -> TrainState:
    """Return the state before the first update; the weights depend on `hyperparams.seed`."""
    params = decoder.init_params(model, jax.random.key(hyperparams.seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optim.build(optimizer, hyperparams).init(params),
        weight_average=optim.zeros(params) if optimizer.weight_average else None,
        diagnostics=diagnose.init(optimizer.diagnostics, params),
    )


def summed_loss(
    model: ModelSpec, params: decoder.Params, tokens_BxT1: jax.Array, weights_BxT: jax.Array, per_sequence: bool = False
) -> jax.Array:
    """Return the weighted sum of next-token losses in nats, float32: a scalar, or one sum for each sequence."""
    module = decoder.with_params(model, params)
    hidden_BxTxD = module(tokens_BxT1[:, :-1])
    unembed_DxV = module.unembed_DxV[...]
    return loss_sum(hidden_BxTxD, unembed_DxV, tokens_BxT1[:, 1:], weights_BxT, model.max_logits, per_sequence)


def mean_loss_and_grads(model: ModelSpec, with_norms: bool, params: decoder.Params, tokens_AxMxT1: jax.Array):
    """Return ((mean loss per token, mean squared norm of the micro-batches' gradients), gradients).

    With one micro-batch, each gradient can be freed as soon as it is used. With more, a float32 sum is kept.

    Args:
        with_norms: whether to compute the squared norm; otherwise it is 0.
    """
    accumulation, sequences, length = tokens_AxMxT1.shape
    ones_MxT = jnp.ones((sequences, length - 1), jnp.float32)

    def mean_loss(params, tokens_MxT1):
        return summed_loss(model, params, tokens_MxT1, ones_MxT) / ones_MxT.size

    def microbatch(tokens_MxT1):
        loss, grads = jax.value_and_grad(mean_loss)(params, tokens_MxT1)
        return (loss, optim.squared_norm(grads) if with_norms else jnp.float32(0)), grads

    def add_microbatch(sums, tokens_MxT1):
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, microbatch(tokens_MxT1)), None

    if accumulation == 1:
        return microbatch(tokens_AxMxT1[0])
    zeros = (jnp.float32(0), jnp.float32(0)), optim.zeros(params)
    sums, _ = jax.lax.scan(add_microbatch, zeros, tokens_AxMxT1)
    return jax.tree.map(lambda total: total / accumulation, sums)


def clip(grads: decoder.Params, square_norm: jax.Array, max_norm: jax.Array) -> tuple[decoder.Params, jax.Array]:
    """Return the gradients scaled down to a global norm of at most `max_norm`, and 1.0 if clipped, else 0.0."""
    norm = jnp.sqrt(square_norm)
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, max_norm))
    return jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads), (norm > max_norm).astype(jnp.float32)


def train_step(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    state: TrainState,
    hyperparams: optim.HyperParams,
    tokens_AxMxT1: jax.Array,
    average: Average = lambda loss_and_grads: loss_and_grads,
    data_groups: int = 1,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update on A micro-batches of M sequences, and the metrics of the update.

    Args:
        average: averages the loss and gradients over the device groups, each of which computes its share of the batch
            (see `sharding.average_over_data`).
        data_groups: number of device groups.
    """
    diagnosed = optimizer.diagnostics != "off"
    loss_and_grads = average(partial(mean_loss_and_grads, model, diagnosed))
    (loss, part_square_norm), grads = loss_and_grads(state.params, tokens_AxMxT1)
    metrics = {"loss": loss}
    square_norm = optim.squared_norm(grads) if optimizer.clip or diagnosed else jnp.float32(0)
    used_grads = grads
    if optimizer.clip:
        used_grads, metrics["clipped"] = clip(grads, square_norm, hyperparams.clip_norm)
    tx: Any = optim.build(optimizer, hyperparams)
    updates, opt_state = tx.update(used_grads, state.opt_state, state.params)
    step = state.step + 1
    rounding_key = jax.random.fold_in(jax.random.key(hyperparams.seed), step) if optimizer.stochastic_rounding else None
    params = optim.apply_updates(state.params, updates, rounding_key)
    weight_average = state.weight_average
    if weight_average is not None:
        weights = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        weight_average = optim.average(weight_average, weights, hyperparams.one_minus_weight_average_b)
    diagnostics = state.diagnostics
    if diagnostics is not None:
        accumulation, microbatch_seqs, _ = tokens_AxMxT1.shape
        parts, batch_seqs = accumulation * data_groups, accumulation * microbatch_seqs
        metrics |= diagnose.gradient_metrics(
            diagnostics, state.step, grads, square_norm, part_square_norm, parts, batch_seqs
        )
        metrics |= diagnose.update_metrics(diagnostics, updates)
        diagnostics = diagnose.advance(diagnostics, updates, grads)
    return TrainState(step, params, opt_state, weight_average, diagnostics), metrics


def train_chunk(
    step_fn: Callable, state: TrainState, hyperparams: optim.HyperParams, tokens_KxAxMxT1: jax.Array, count: jax.Array
) -> tuple[TrainState, Metrics]:
    """Return the state after the first `count` of K updates, and their metrics, float32 [K], padded with 0."""

    def body(k, carry):
        state, metrics_K = carry
        tokens_AxMxT1 = jax.lax.dynamic_index_in_dim(tokens_KxAxMxT1, k, keepdims=False)
        state, metrics = step_fn(state, hyperparams, tokens_AxMxT1)
        return state, jax.tree.map(lambda values_K, value: values_K.at[k].set(value), metrics_K, metrics)

    _, metrics = jax.eval_shape(step_fn, state, hyperparams, tokens_KxAxMxT1[0])
    metrics_K = jax.tree.map(lambda _: jnp.zeros(tokens_KxAxMxT1.shape[:1], jnp.float32), metrics)
    return jax.lax.fori_loop(0, count, body, (state, metrics_K))
