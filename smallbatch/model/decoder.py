"""The decoder of Marek et al. 2025 (arXiv 2507.07101, A.1) as Flax NNX modules, and its parameters as a flat dict.

Pre-norm RMSNorm and QK-norm without scale, RoPE, GELU MLP, no biases, untied embeddings, no dropout: every parameter
is a matrix. Modules hold parameters and name each axis; outside this file parameters are a dict from dotted path to
array.

Letters in array names, everywhere in this project:
    B sequences   T positions   D width   N heads   H head width   F MLP width   V vocabulary   L layers
    A accumulation steps   M sequences of a micro-batch   K steps per dispatch   R runs (lanes)   S targets in a slice
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smallbatch.model.attention import causal_attention
from smallbatch.model.cpu_ops import embed, gelu, linear, split_heads
from smallbatch.model.norm import rms_norm
from smallbatch.model.sharding_rules import placed, shards
from smallbatch.specs import ModelSpec

Params = dict[str, jax.Array]  # "blocks.0.up_DxF" -> array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


FLOAT32_POSITIONS = 8192  # beyond it float32 angles are too inaccurate: the relative error 2^-24 is 5e-4 radians
POSITIONS_BLOCK = 1024


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


def rope(x_BxNxTxH: jax.Array, position_T: jax.Array, base: float, context: int) -> jax.Array:
    """Rotate pairs (h, h + H/2) of every head by position * base^(-2h/H) (Su et al. 2021, arXiv 2104.09864).

    context: upper bound of the positions.
    """
    half = x_BxNxTxH.shape[-1] // 2
    cos_sin = rope_cos_sin(position_T, half, base, context)
    cos_Txh, sin_Txh = (f_Txh.astype(x_BxNxTxH.dtype)[None, None] for f_Txh in cos_sin)
    a, b = x_BxNxTxH[..., :half], x_BxNxTxH[..., half:]
    return jnp.concatenate([a * cos_Txh - b * sin_Txh, b * cos_Txh + a * sin_Txh], axis=-1)


def _xavier(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, fan_out: int, dtype) -> jax.Array:
    # The fans are those of the matrix product, whatever shape it is stored in. jax's own initializer takes the extra
    # axes of a fused qkv for a receptive field, which makes v and the output 1.4 to 3.2 times too small.
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit).astype(dtype)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype) -> jax.Array:
    return (std * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        d, n, h, f = spec.width, spec.heads, spec.head_width, spec.ffn_width
        dtype = jnp.dtype(spec.param_dtype)
        self.spec = spec
        self.qkv_Dx3xNxH = nnx.Param(_xavier(rngs, (d, 3, n, h), d, d, dtype), axes=("embed", "qkv", "heads", "head"))
        self.out_NxHxD = nnx.Param(_xavier(rngs, (n, h, d), d, d, dtype), axes=("heads", "head", "embed"))
        self.up_DxF = nnx.Param(_xavier(rngs, (d, f), d, f, dtype), axes=("embed", "ffn"))
        self.down_FxD = nnx.Param(_xavier(rngs, (f, d), f, d, dtype), axes=("ffn", "embed"))

    def qkv(self, x_BxTxD: jax.Array, position_T: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q, k (normed, rotated) and v, each BxNxTxH."""
        w, axis = self._weight(self.qkv_Dx3xNxH), 2
        if shards("heads") > 1:  # a device's heads lie together, so that its share of the product is in one piece
            w, axis = jnp.swapaxes(w, 1, 2), 3
        w_DxE = w.reshape(x_BxTxD.shape[2], -1)
        q, k, v = split_heads(linear(rms_norm(x_BxTxD), w_DxE, axes=("embed", "heads")), self.spec.heads, axis)
        base, context = self.spec.rope_base, self.spec.context_tokens
        return rope(rms_norm(q), position_T, base, context), rope(rms_norm(k), position_T, base, context), v

    def finish(self, x_BxTxD: jax.Array, attended_BxNxTxH: jax.Array) -> jax.Array:
        """Return the block's output from its input and the attention's result, BxTxD."""
        batch, context, width = x_BxTxD.shape
        attended_BxTxNH = jnp.swapaxes(attended_BxNxTxH, 1, 2).reshape(batch, context, -1)
        x_BxTxD = x_BxTxD + linear(
            attended_BxTxNH, self._weight(self.out_NxHxD).reshape(-1, width), axes=("heads", "embed")
        )
        hidden_BxTxF = gelu(linear(rms_norm(x_BxTxD), self._weight(self.up_DxF), axes=("embed", "ffn")))
        x_BxTxD = x_BxTxD + linear(hidden_BxTxF, self._weight(self.down_FxD), axes=("ffn", "embed"))
        return placed(x_BxTxD, "batch", "position", None)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        q, k, v = self.qkv(x_BxTxD, jnp.arange(x_BxTxD.shape[1]))
        return self.finish(x_BxTxD, causal_attention(q, k, v, self.spec.attention))

    def _weight(self, param: nnx.Param) -> jax.Array:
        return jnp.asarray(param[...], dtype=self.spec.compute_dtype)


class GPT(nnx.Module):
    """Tokens to the hidden states that `loss` and `decode` turn into logits with `unembed_DxV`."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        dtype = jnp.dtype(spec.param_dtype)
        std = spec.width**-0.5
        self.spec = spec
        self.embed_VxD = nnx.Param(_normal(rngs, (spec.vocab_size, spec.width), std, dtype), axes=("vocab", "embed"))
        self.blocks = nnx.List([Block(spec, rngs) for _ in range(spec.layers)])
        self.unembed_DxV = nnx.Param(_normal(rngs, (spec.width, spec.vocab_size), std, dtype), axes=("embed", "vocab"))

    def embed(self, tokens_BxT: jax.Array) -> jax.Array:
        """Look the tokens up, BxTxD in the compute dtype."""
        return embed(jnp.asarray(self.embed_VxD[...], dtype=self.spec.compute_dtype), tokens_BxT)

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """Return the normed hidden states after the last block, BxTxD."""
        x_BxTxD = placed(self.embed(tokens_BxT), "batch", "position", None)
        for block in self.blocks:
            run = block.__call__
            if self.spec.remat != "none":
                run = jax.checkpoint(run, policy=REMAT_POLICIES[self.spec.remat])
            x_BxTxD = run(x_BxTxD)
        return rms_norm(x_BxTxD)


@functools.cache
def _structure(spec: ModelSpec):
    graph, state = nnx.split(nnx.eval_shape(lambda: GPT(spec, nnx.Rngs(0))), nnx.Param)
    return graph, {".".join(map(str, path)): (path, param) for path, param in nnx.to_flat_state(state)}


def abstract_params(spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Return each parameter's shape and dtype, without allocating any."""
    return {name: jax.ShapeDtypeStruct(param.shape, param.dtype) for name, (_, param) in _structure(spec)[1].items()}


def param_axes(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Return the logical name of each axis of each parameter: embed, qkv, heads, head, ffn or vocab."""
    return {name: param.get_metadata()["axes"] for name, (_, param) in _structure(spec)[1].items()}


def init_params(spec: ModelSpec, key: jax.Array) -> Params:
    """Draw the initial parameters: matrices Xavier-uniform, embeddings normal with standard deviation 1/sqrt(D)."""
    _, state = nnx.split(GPT(spec, nnx.Rngs(key)), nnx.Param)
    return {".".join(map(str, path)): param[...] for path, param in nnx.to_flat_state(state)}


def with_params(spec: ModelSpec, params: Params) -> GPT:
    """Return the module that computes with these parameters."""
    graph, structure = _structure(spec)
    state = nnx.from_flat_state([(path, param.replace(params[name])) for name, (path, param) in structure.items()])
    return nnx.merge(graph, state)
