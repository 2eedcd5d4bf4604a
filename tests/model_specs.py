"""The small models and optimizers that the tests of model, optim and training share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch import optim
from smallbatch.model import decoder
from smallbatch.specs import ModelSpec

TINY = ModelSpec(
    width=32,
    layers=2,
    head_width=8,
    ffn_width=48,
    context_tokens=16,
    vocab_size=64,
    rope_base=10_000.0,
    param_dtype="float32",
    compute_dtype="float32",
    matmul_precision="highest",
    remat="none",
    attention="xla",
    max_logits=2**26,
)


def tiny(**changes) -> ModelSpec:
    return dataclasses.replace(TINY, **changes)


def params_of(spec: ModelSpec, seed: int = 0) -> decoder.Params:
    """Return parameters of the right size, drawn by numpy: compiling the initializer takes seconds."""
    return {
        name: jnp.asarray(normal(*x.shape, seed=100 * seed + i) * np.float32(spec.width**-0.5), x.dtype)
        for i, (name, x) in enumerate(decoder.abstract_params(spec).items())
    }


def tokens(shape: tuple[int, ...], vocab_size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, shape, np.int32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def output_and_gradients(f, dy, *inputs):
    """Return f(*inputs) and its gradients for the output gradient dy, with jit, which is three times as fast."""

    @jax.jit
    def both(dy, *inputs):
        y, vjp = jax.vjp(f, *inputs)
        return y, vjp(dy)

    return both(dy, *inputs)


def hyperparams(seed: int = 0, **changes: float) -> optim.HyperParams:
    values = {
        "peak_lr": 0.1,
        "final_lr_frac": 0.0,
        "warmup_steps": 0.0,
        "total_steps": 100.0,
        "decay_steps": 20.0,
        "one_minus_b1": 0.1,
        "one_minus_b2": 0.05,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decay_exponent": 0.8,
        "embed_lr_ratio": 0.3,
        "interpolation": 0.9,
        "clip_norm": 1.0,
        "one_minus_weight_average_b": 0.1,
        "step_offset": 0.0,
        "b1_step_offset": 0.0,
    }
    return optim.HyperParams.from_floats(seed=seed, **(values | changes))
