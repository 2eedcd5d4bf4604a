"""Functions that are compiled for evaluation: the scores of a batch, and the averaged weights. All are pure."""

import jax
import jax.numpy as jnp

from smallbatch import optim
from smallbatch.model.decoder import Params
from smallbatch.specs import ModelSpec
from smallbatch.training.train_step import TrainState, summed_loss


def score(model: ModelSpec, params: Params, tokens_AxMxT1: jax.Array, weights_AxMxT: jax.Array) -> jax.Array:
    """Return the weighted sum of losses in nats of each sequence, [A, M]; one micro-batch is computed at a time."""

    def microbatch(carry, part):
        return carry, summed_loss(model, params, *part, per_sequence=True)

    return jax.lax.scan(microbatch, None, (tokens_AxMxT1, weights_AxMxT))[1]


def interpolated_params(hyperparams: optim.HyperParams, state: TrainState) -> Params:
    """Return the average of the iterates with which a schedule-free optimizer is evaluated."""
    return optim.evaluated(state.params, state.opt_state.z, hyperparams.interpolation)


def averaged_params(hyperparams: optim.HyperParams, state: TrainState) -> Params:
    """Return the bias-corrected average of the weights, in float32 whatever the dtype of the weights.

    Averaging produces differences below the last bit of bfloat16, which rounding would discard. The matrix products
    of the evaluation still use the compute dtype.
    """
    effective_step = state.step.astype(jnp.float32) + hyperparams.step_offset
    return optim.averaged_weights(state.weight_average, effective_step, hyperparams.one_minus_weight_average_b)
