"""Decay rates of running averages: per step, or as half-lives in tokens."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from smallbatch import units

Scalar: TypeAlias = jax.Array | float
Tokens: TypeAlias = Scalar | None


def bias_correction(step: Scalar, one_minus_b: Scalar) -> jax.Array:
    """Return 1 - b^step, computed as -expm1(step log1p(-(1 - b))) without rounding b."""
    return -jnp.expm1(jnp.asarray(step, jnp.float32) * jnp.log1p(-jnp.asarray(one_minus_b, jnp.float32)))


class Decay(NamedTuple):
    """A decay rate b given as 1 - b, which float32 represents accurately for b near 1. A pytree, so it can be traced.

    A Decay can be passed to every optimizer in place of b1 or b2.
    """

    one_minus_b: Scalar  # computed in float64, for example by `smallbatch.units.one_minus_b_from_half_life`
    step_offset: Scalar = 0.0  # effective step minus count; nonzero after the batch size has changed in a run

    def bias_correction(self, count: jax.Array) -> jax.Array:
        """Return 1 - b^t for the effective step t = count + step_offset."""
        return bias_correction(count.astype(jnp.float32) + self.step_offset, self.one_minus_b)


DecayRate: TypeAlias = Scalar | Decay | None


def decay(name: str, b: DecayRate, half_life_tokens: Tokens, tokens_per_step: Tokens) -> Decay:
    """Return the decay of the average `name`, from exactly one of b and a half-life in tokens.

    Python floats are converted in float64. A traced half-life is accurate in float32, but a traced b close to 1 is not:
    pass a half-life or a `Decay` instead.
    """
    tokens_name = f"t{name[1:]}_tokens"
    if (b is None) == (half_life_tokens is None):
        raise ValueError(
            f"{name} is {b} and {tokens_name} is {half_life_tokens}. Exactly one of them must be set. Pass {name}, the "
            f"decay per step, or {tokens_name} with tokens_per_step, the half-life in tokens."
        )
    if isinstance(b, Decay):
        return b
    if b is not None:
        if isinstance(b, int | float) and not 0 <= b < 1:
            raise ValueError(f"{name} is {b}. It must be at least 0 and below 1. Pass {tokens_name} for a half-life.")
        return Decay(1 - b)
    assert half_life_tokens is not None
    if tokens_per_step is None:
        raise ValueError(
            f"{tokens_name} is {half_life_tokens} and tokens_per_step is None. A half-life needs the number of tokens "
            f"per update. Pass tokens_per_step, batch size x context, or set {name} instead of {tokens_name}."
        )
    if isinstance(half_life_tokens, int | float) and isinstance(tokens_per_step, int | float):
        return Decay(units.one_minus_b_from_half_life(half_life_tokens, tokens_per_step))
    half_lives = jnp.asarray(tokens_per_step, jnp.float32) / jnp.asarray(half_life_tokens, jnp.float32)
    return Decay(-jnp.expm1(-units.LN2 * half_lives))
