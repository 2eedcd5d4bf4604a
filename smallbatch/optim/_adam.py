"""Adam and AdamW."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import DecayRate, Scalar, Tokens, decay
from smallbatch.optim.transform import LearningRate, as_float32, average, with_learning_rate, zeros


class AdamState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates
    nu: optax.Updates


def scale_by_adam(
    b1: DecayRate = None,
    b2: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformation:
    """Rescale gradients by their first and second moments (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).

    mu <- b1 mu + (1-b1) g; nu <- b2 nu + (1-b2) g^2; u = mu/(1-b1^t) / (sqrt(nu/(1-b2^t)) + eps).

    Args:
        b1, b2: decay rates per step.
        t1_tokens, t2_tokens: half-lives in tokens. Set exactly one of b1 and t1_tokens, and one of b2 and t2_tokens.
        tokens_per_step: batch size x context; required with a half-life.
    """
    mu_decay = decay("b1", b1, t1_tokens, tokens_per_step)
    nu_decay = decay("b2", b2, t2_tokens, tokens_per_step)

    def init(params):
        return AdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(updates, state, params=None):
        del params
        grads, count = as_float32(updates), state.count + 1
        mu = average(state.mu, grads, mu_decay.one_minus_b)
        nu = average(state.nu, jax.tree.map(jnp.square, grads), nu_decay.one_minus_b)
        mu_scale = 1 / mu_decay.bias_correction(count)
        nu_scale = 1 / nu_decay.bias_correction(count)
        updates = jax.tree.map(lambda m, n: m * mu_scale / (jnp.sqrt(n * nu_scale) + eps), mu, nu)
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def adam(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    b2: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return AdamW: p -= lr (u + wd p), u from `scale_by_adam` (Loshchilov & Hutter 2019, arXiv 1711.05101).

    mu <- b1 mu + (1-b1) g; nu <- b2 nu + (1-b2) g^2; u = mu/(1-b1^t) / (sqrt(nu/(1-b2^t)) + eps).

    Args:
        learning_rate: a number, a traced scalar, or an optax schedule.
        b1, b2, t1_tokens, t2_tokens, tokens_per_step: see `scale_by_adam`.
        weight_decay: decoupled weight decay, multiplied by the learning rate; 0 gives Adam.
    """
    scale = scale_by_adam(b1, b2, t1_tokens=t1_tokens, t2_tokens=t2_tokens, tokens_per_step=tokens_per_step, eps=eps)
    return with_learning_rate(scale, learning_rate, weight_decay)
