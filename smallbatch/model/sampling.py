"""Generate text with a key-value cache: a forward pass over the prompt, then one token at a time.

Generation is one compiled call. Its shapes depend on the model and on the prompt's length rounded up to a power of two.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch.errors import UserError
from smallbatch.model import decoder
from smallbatch.model.attention import attention, causal_attention
from smallbatch.model.decoder import multiply, rms_norm
from smallbatch.specs import ModelSpec

Cache = list[tuple[jax.Array, jax.Array]]  # keys and values of each block, 1xTxNxH
SMALLEST_BUCKET = 16  # prompts up to this length share a program


def generate(
    spec: ModelSpec,
    params: decoder.Params,
    prompt_ids: list[int],
    new_tokens: int,
    *,
    temperature: float,
    top_p: float,
    key: jax.Array,
    end_id: int | None = None,
) -> list[int]:
    """Return up to `new_tokens` ids that follow the prompt; fewer if the context is full or `end_id` is drawn.

    Args:
        temperature: divides the logits; 0 selects the most likely token.
        top_p: draw from the smallest set of tokens whose probabilities sum to at least this, in (0, 1].
        end_id: ends the text and is not returned.

    Raises:
        UserError: the prompt is empty or longer than the context, or a number is out of range.
    """
    length = len(prompt_ids)
    if not 0 < length <= spec.context_tokens:
        raise UserError(
            f"the prompt has {length} tokens; this model's context allows 1 to {spec.context_tokens}. Use a shorter, "
            "non-empty prompt: prompt and new text share the context"
        )
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"temperature is {temperature!r}; use a finite number of at least 0")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p!r}; use a number in (0, 1]. 1 draws from all tokens")
    if new_tokens < 0:
        raise UserError(f"the number of new tokens is {new_tokens}; use at least 0")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < spec.vocab_size:
        raise ValueError(f"the prompt has ids outside the vocabulary of {spec.vocab_size}: {prompt_ids}")
    bucket = min(max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()), spec.context_tokens)
    prompt_1xP = np.zeros((1, bucket), np.int32)
    prompt_1xP[0, :length] = prompt_ids
    ids_T, count = _generate(
        spec,
        params,
        prompt_1xP,
        np.int32(length),
        np.int32(min(new_tokens, spec.context_tokens - length)),
        np.float32(temperature),
        np.float32(top_p),
        key,
        np.int32(-1 if end_id is None else end_id),
    )
    return np.asarray(ids_T)[: int(count)].tolist()


@partial(jax.jit, static_argnums=0)
def _generate(spec: ModelSpec, params, prompt_1xP, length, limit, temperature, top_p, key, end_id):
    """Return (new ids padded to T, number of new ids)."""
    module = decoder.with_params(spec, params)

    def draw(logits_V, count):
        return choose(logits_V, temperature, top_p, jax.random.fold_in(key, count))

    def unfinished(carry):
        _, _, token, count = carry
        return (count < limit) & (token != end_id)

    def body(carry):
        ids_T, cache, token, count = carry
        logits_V, cache = step(module, cache, token, length + count)
        return ids_T.at[count].set(token), cache, draw(logits_V, count + 1), count + 1

    with jax.default_matmul_precision(spec.matmul_precision):
        logits_V, cache = prefill(module, prompt_1xP, length)
        start = (jnp.zeros((spec.context_tokens,), jnp.int32), cache, draw(logits_V, jnp.int32(0)), jnp.int32(0))
        ids_T, _, _, count = jax.lax.while_loop(unfinished, body, start)
    return ids_T, count


def prefill(module: decoder.GPT, prompt_1xP: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    """Return the logits after the first `length` tokens of a padded prompt, and the cache.

    The cache also holds the padding's keys. `step` overwrites each before a query attends to it.
    """
    padded, context = prompt_1xP.shape[1], module.spec.context_tokens
    padding = ((0, 0), (0, context - padded), (0, 0), (0, 0))
    x_1xPxD = module.embed(prompt_1xP)
    cache = []
    for block in module.blocks:
        q, k, v = block.qkv(rms_norm(x_1xPxD), jnp.arange(padded))
        x_1xPxD = x_1xPxD + block.out(causal_attention(q, k, v, "xla"))
        x_1xPxD = x_1xPxD + block.mlp(rms_norm(x_1xPxD))
        cache.append((jnp.pad(k, padding), jnp.pad(v, padding)))
    return _logits(module, jax.lax.dynamic_slice_in_dim(x_1xPxD, length - 1, 1, axis=1)), cache


def step(module: decoder.GPT, cache: Cache, token: jax.Array, position: jax.Array) -> tuple[jax.Array, Cache]:
    """Return the logits after one more token, at `position`, and the cache with its keys and values."""
    x_1x1xD = module.embed(token[None, None])
    filled_1xT = (jnp.arange(module.spec.context_tokens) <= position)[None]
    new_cache = []
    for block, (k_1xTxNxH, v_1xTxNxH) in zip(module.blocks, cache, strict=True):
        q, k, v = block.qkv(rms_norm(x_1x1xD), position[None])
        k_1xTxNxH = jax.lax.dynamic_update_slice_in_dim(k_1xTxNxH, k, position, axis=1)
        v_1xTxNxH = jax.lax.dynamic_update_slice_in_dim(v_1xTxNxH, v, position, axis=1)
        x_1x1xD = x_1x1xD + block.out(attention(q, k_1xTxNxH, v_1xTxNxH, filled_1xT))
        x_1x1xD = x_1x1xD + block.mlp(rms_norm(x_1x1xD))
        new_cache.append((k_1xTxNxH, v_1xTxNxH))
    return _logits(module, x_1x1xD), new_cache


def _logits(module: decoder.GPT, x_1x1xD: jax.Array) -> jax.Array:
    unembed_DxV = module.unembed_DxV[...].astype(module.spec.compute_dtype)
    return multiply(rms_norm(x_1x1xD), unembed_DxV, jnp.float32)[0, 0]


def choose(logits_V: jax.Array, temperature: jax.Array, top_p: jax.Array, key: jax.Array) -> jax.Array:
    """Return the most likely token at temperature 0, else one drawn from the nucleus (Holtzman et al. 2020)."""
    scaled_V = logits_V / jnp.where(temperature > 0, temperature, 1.0)
    kept_V = jnp.where(nucleus(jax.nn.softmax(scaled_V), top_p), scaled_V, -jnp.inf)
    drawn = jax.random.categorical(key, kept_V)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_V)).astype(jnp.int32)


def nucleus(probs_V: jax.Array, top_p: jax.Array) -> jax.Array:
    """Return a mask of the smallest set of tokens with probability of at least `top_p`; ties prefer lower ids."""
    order_V = jnp.argsort(probs_V, descending=True, stable=True)
    sorted_V = probs_V[order_V]
    mass_before_V = jnp.concatenate([jnp.zeros(1, probs_V.dtype), jnp.cumsum(sorted_V)[:-1]])
    # top_p = 1 keeps all tokens, even if the float32 sum reaches 1 before the last.
    return jnp.zeros(probs_V.shape, bool).at[order_V].set((mass_before_V < top_p) | (top_p >= 1))
