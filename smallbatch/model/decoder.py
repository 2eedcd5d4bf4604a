"""The decoder of Marek et al. 2025 (arXiv 2507.07101, A.1): Flax NNX modules, and their parameters as a flat dict.

Pre-norm RMSNorm and QK-norm without scale, RoPE, GELU MLP, no biases, untied embeddings, no dropout: every parameter
is a matrix. The code is plain `jnp`. On a CPU, functions marked `on_cpu` run their faster version from `cpu_ops`.

Axis letters in array names, used throughout the project:
    B sequences   T positions   D width   N heads   H head width   F MLP width   V vocabulary   L layers
    A accumulation steps   M sequences of a micro-batch   K steps per dispatch   R runs   S targets in a slice
    Q queries   P padded prompt
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smallbatch.model import cpu_ops
from smallbatch.model.attention import causal_attention
from smallbatch.model.cpu_ops import on_cpu
from smallbatch.model.sharding_rules import Axes, axis_size, constrain
from smallbatch.specs import ModelSpec

Params = dict[str, jax.Array]  # "blocks.0.up_DxF" -> array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
NORM_EPS = 1e-6
FLOAT32_POSITIONS = 8192  # longest context with float32 angles; the error at its end, 2^-24 x 8192, is 5e-4 radians
POSITIONS_BLOCK = 1024


class GPT(nnx.Module):
    """Maps tokens to the hidden states that `unembed_DxV` turns into logits (see `loss` and `sampling`)."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        self.spec = spec
        self.embed_VxD = _embedding(rngs, (spec.vocab_size, spec.width), ("vocab", "embed"), spec)
        self.blocks = nnx.List([Block(spec, rngs) for _ in range(spec.layers)])
        self.unembed_DxV = _embedding(rngs, (spec.width, spec.vocab_size), ("embed", "vocab"), spec)

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """Return the normed hidden states after the last block, BxTxD."""
        x_BxTxD = constrain(self.embed(tokens_BxT), "batch", "position", None)
        for block in self.blocks:
            run = block.__call__
            if self.spec.remat != "none":
                run = jax.checkpoint(run, policy=REMAT_POLICIES[self.spec.remat])
            x_BxTxD = run(x_BxTxD)
        return rms_norm(x_BxTxD)

    def embed(self, tokens_BxT: jax.Array) -> jax.Array:
        """Return the embeddings of tokens, BxTxD in the compute dtype."""
        return embed(self.embed_VxD[...], tokens_BxT, self.spec.compute_dtype)


class Block(nnx.Module):
    """Attention and MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        d, n, h, f = spec.width, spec.heads, spec.head_width, spec.ffn_width
        self.spec = spec
        self.qkv_Dx3xNxH = _matrix(rngs, (d, 3, n, h), (d, d), ("embed", "qkv", "heads", "head"), spec)
        self.out_NxHxD = _matrix(rngs, (n, h, d), (d, d), ("heads", "head", "embed"), spec)
        self.up_DxF = _matrix(rngs, (d, f), (d, f), ("embed", "ffn"), spec)
        self.down_FxD = _matrix(rngs, (f, d), (f, d), ("ffn", "embed"), spec)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        q, k, v = self.qkv(rms_norm(x_BxTxD), jnp.arange(x_BxTxD.shape[1]))
        x_BxTxD = x_BxTxD + self.out(causal_attention(q, k, v, self.spec.attention))
        x_BxTxD = x_BxTxD + self.mlp(rms_norm(x_BxTxD))
        return constrain(x_BxTxD, "batch", "position", None)

    def qkv(self, x_BxTxD: jax.Array, position_T: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q and k (normed, rotated) and v, each BxTxNxH."""
        qkv_BxTx3xNxH = self._linear(x_BxTxD, self.qkv_Dx3xNxH)
        q, k, v = (qkv_BxTx3xNxH[:, :, i] for i in range(3))
        base, context = self.spec.rope_base, self.spec.context_tokens
        return rope(rms_norm(q), position_T, base, context), rope(rms_norm(k), position_T, base, context), v

    def out(self, attended_BxTxNxH: jax.Array) -> jax.Array:
        """Return the projection of the attention output, BxTxD."""
        return self._linear(attended_BxTxNxH, self.out_NxHxD)

    def mlp(self, x_BxTxD: jax.Array) -> jax.Array:
        """Return down(gelu(up(x))), BxTxD."""
        return self._linear(gelu(self._linear(x_BxTxD, self.up_DxF)), self.down_FxD)

    def _linear(self, x: jax.Array, weight: nnx.Param) -> jax.Array:
        return linear(x, weight[...].astype(self.spec.compute_dtype), weight.get_metadata()["axes"])


def linear(x: jax.Array, w: jax.Array, axes: Axes, out_dtype=None) -> jax.Array:
    """Return the product of activations and a weight in the dtype of x or in `out_dtype` (see `multiply`).

    axes: logical axes of w. If `fsdp` shards w, it is gathered for the forward pass and again for the backward pass.
    """
    whole = [None if axis == "embed" else axis for axis in axes]
    gather_and_multiply = lambda x, w: multiply(x, constrain(w, *whole), out_dtype)
    if axis_size("embed") > 1:
        gather_and_multiply = jax.checkpoint(gather_and_multiply)
    return gather_and_multiply(x, constrain(w, *axes))


@on_cpu(cpu_ops.multiply)
def multiply(x: jax.Array, w: jax.Array, out_dtype=None) -> jax.Array:
    """Contract all axes of x except B and T with the first axes of w."""
    # bfloat16 products are exact at every precision; DEFAULT makes products with float32 gradients fast.
    precision = jax.lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else None
    return jnp.tensordot(x, w, x.ndim - 2, precision=precision, preferred_element_type=out_dtype or x.dtype)


@on_cpu(cpu_ops.embed)
def embed(table_VxD: jax.Array, tokens_BxT: jax.Array, dtype) -> jax.Array:
    """Return the table's rows for the tokens, BxTxD. Gradients of repeated tokens are summed in float32."""
    return table_VxD.astype(jnp.float32)[tokens_BxT].astype(dtype)


@on_cpu(cpu_ops.rms_norm)
def rms_norm(x: jax.Array) -> jax.Array:
    """Return x / sqrt(mean(x^2) + 1e-6) over the last axis, in float32 (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + NORM_EPS)).astype(x.dtype)


@on_cpu(cpu_ops.gelu)
def gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x) in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def rope(x_BxTxNxH: jax.Array, position_T: jax.Array, base: float, context: int) -> jax.Array:
    """Rotate pairs (h, h + H/2) of every head by position * base^(-2h/H) (Su et al. 2021, arXiv 2104.09864).

    context: upper bound of the positions.
    """
    half = x_BxTxNxH.shape[-1] // 2
    cos_sin = rope_cos_sin(position_T, half, base, context)
    cos_Tx1xh, sin_Tx1xh = (f_Txh.astype(x_BxTxNxH.dtype)[None, :, None] for f_Txh in cos_sin)
    a, b = x_BxTxNxH[..., :half], x_BxTxNxH[..., half:]
    return jnp.concatenate([a * cos_Tx1xh - b * sin_Tx1xh, b * cos_Tx1xh + a * sin_Tx1xh], axis=-1)


def rope_cos_sin(position_T: jax.Array, half: int, base: float, context: int) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines of position * base^(-h/half), Txh, float32, for positions below `context`.

    A float32 angle has a relative error of 2^-24, which is 0.008 radians at position 131,072. In long contexts a
    position is therefore split into a multiple of POSITIONS_BLOCK and a remainder. Both rotations are computed in
    float64 as constants, and their product is taken in float32.
    """
    if context <= FLOAT32_POSITIONS:
        frequency_h = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_Txh = position_T.astype(jnp.float32)[:, None] * frequency_h[None, :]
        return jnp.cos(angle_Txh), jnp.sin(angle_Txh)
    frequency_h = float(base) ** (-np.arange(half) / half)
    blocks = -(-context // POSITIONS_BLOCK)
    starts = np.arange(blocks)[:, None] * POSITIONS_BLOCK * frequency_h
    rests = np.arange(POSITIONS_BLOCK)[:, None] * frequency_h
    cos_a, sin_a = (jnp.asarray(f(starts), jnp.float32)[position_T // POSITIONS_BLOCK] for f in (np.cos, np.sin))
    cos_b, sin_b = (jnp.asarray(f(rests), jnp.float32)[position_T % POSITIONS_BLOCK] for f in (np.cos, np.sin))
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


def _matrix(rngs: nnx.Rngs, shape: tuple[int, ...], fans: tuple[int, int], axes: Axes, spec: ModelSpec) -> nnx.Param:
    # `fans` is (fan_in, fan_out) of the matrix product. JAX's initializer would treat the extra axes of a fused qkv as
    # a receptive field and make v and the output 1.4 to 3.2 times too small.
    limit = math.sqrt(6.0 / sum(fans))
    return nnx.Param(
        jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit).astype(spec.param_dtype), axes=axes
    )


def _embedding(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, spec: ModelSpec) -> nnx.Param:
    normal = jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param((spec.width**-0.5 * normal).astype(spec.param_dtype), axes=axes)


def init_params(spec: ModelSpec, key: jax.Array) -> Params:
    """Draw the initial parameters: matrices Xavier-uniform, embeddings normal with standard deviation 1/sqrt(D)."""
    return {name: param[...] for name, param in _flat(nnx.state(GPT(spec, nnx.Rngs(key)), nnx.Param)).items()}


def abstract_params(spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of each parameter, without allocating memory."""
    return {name: jax.ShapeDtypeStruct(param.shape, param.dtype) for name, param in _flat(_abstract(spec)[1]).items()}


def param_axes(spec: ModelSpec) -> dict[str, Axes]:
    """Return the logical axes of each parameter (see `sharding_rules`)."""
    return {name: param.get_metadata()["axes"] for name, param in _flat(_abstract(spec)[1]).items()}


def with_params(spec: ModelSpec, params: Params) -> GPT:
    """Return the module with these parameters."""
    graph, state = _abstract(spec)
    return nnx.merge(graph, nnx.map_state(lambda path, param: param.replace(params[_name(path)]), state))


@functools.cache
def _abstract(spec: ModelSpec):
    return nnx.split(nnx.eval_shape(lambda: GPT(spec, nnx.Rngs(0))), nnx.Param)


def _flat(state: nnx.State) -> dict[str, nnx.Param]:
    return {_name(path): param for path, param in nnx.to_flat_state(state)}


def _name(path: tuple) -> str:
    return ".".join(map(str, path))
