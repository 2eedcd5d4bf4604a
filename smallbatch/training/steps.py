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
from smallbatch.model import gpt
from smallbatch.model.loss import loss_sum
from smallbatch.specs import ModelSpec, OptimizerSpec

Average = Callable[[Callable], Callable]


class TrainState(NamedTuple):
    """All that an update changes. The number of finished updates is `opt_state.count`."""

    params: gpt.Params
    opt_state: Any  # of the optimizer; has a `count`


def init_state(model: ModelSpec, optimizer: OptimizerSpec, hypers: optim.Hypers, key: jax.Array) -> TrainState:
    """Return the state before the first update."""
    params = gpt.init_params(model, key)
    return TrainState(params, optim.build(optimizer, hypers).init(params))


def summed_nats(model: ModelSpec, params: gpt.Params, tokens_BxT1: jax.Array, weights_BxT: jax.Array) -> jax.Array:
    """Return the weighted sum of the losses of predicting tokens 1..T from the ones before, float32 nats."""
    module = gpt.with_params(model, params)
    hidden_BxTxD = module(tokens_BxT1[:, :-1])
    return loss_sum(hidden_BxTxD, module.unembed_DxV[...], tokens_BxT1[:, 1:], weights_BxT, model.max_logits)


def scored(model: ModelSpec, params: gpt.Params, tokens_AxMxT1: jax.Array, weights_AxMxT: jax.Array) -> jax.Array:
    """Return the same sum over A micro-batches, one after another."""
    add = lambda nats, part: (nats + summed_nats(model, params, *part), None)
    return jax.lax.scan(add, jnp.float32(0), (tokens_AxMxT1, weights_AxMxT))[0]


def mean_loss_and_grads(model: ModelSpec, params: gpt.Params, tokens_AxMxT1: jax.Array):
    """Return the mean loss over A x M x T targets and its gradients.

    With A = 1 each gradient can be used up as soon as it is there. With A > 1 a float32 sum of all gradients is kept.
    """
    accumulation, sequences, length = tokens_AxMxT1.shape
    targets = accumulation * sequences * (length - 1)
    ones_MxT = jnp.ones((sequences, length - 1), jnp.float32)
    mean_loss = lambda params, tokens_MxT1: summed_nats(model, params, tokens_MxT1, ones_MxT) / targets
    if accumulation == 1:
        return jax.value_and_grad(mean_loss)(params, tokens_AxMxT1[0])

    def add(sums, tokens_MxT1):
        loss, grads = jax.value_and_grad(mean_loss)(params, tokens_MxT1)
        return (sums[0] + loss, jax.tree.map(lambda s, g: s + g.astype(jnp.float32), sums[1], grads)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    sums, _ = jax.lax.scan(add, (jnp.float32(0), zeros), tokens_AxMxT1)
    return sums


def update(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    state: TrainState,
    hypers: optim.Hypers,
    tokens_AxMxT1: jax.Array,
    average: Average = lambda loss_and_grads: loss_and_grads,
) -> tuple[TrainState, jax.Array]:
    """Return the state after one optimizer update and the mean loss before it.

    `average` turns a function of a share of the batch into one of the batch (see `sharding.average_over_data`).
    """
    loss, grads = average(partial(mean_loss_and_grads, model))(state.params, tokens_AxMxT1)
    deltas, opt_state = optim.build(optimizer, hypers).update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: (p.astype(jnp.float32) + d).astype(p.dtype), state.params, deltas)
    return TrainState(params, opt_state), loss


def update_chunk(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    state: TrainState,
    hypers: optim.Hypers,
    tokens_KxAxMxT1: jax.Array,
    updates: jax.Array,
    average: Average = lambda loss_and_grads: loss_and_grads,
) -> tuple[TrainState, jax.Array]:
    """Return the state after the first `updates` of K updates and their losses, float32 K (0 where not run)."""

    def body(k, carry):
        state, losses_K = carry
        tokens_AxMxT1 = jax.lax.dynamic_index_in_dim(tokens_KxAxMxT1, k, keepdims=False)
        state, loss = update(model, optimizer, state, hypers, tokens_AxMxT1, average)
        return state, losses_K.at[k].set(loss)

    losses_K = jnp.zeros((tokens_KxAxMxT1.shape[0],), jnp.float32)
    return jax.lax.fori_loop(0, updates, body, (state, losses_K))
