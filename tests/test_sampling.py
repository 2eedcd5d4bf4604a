"""Decoding with a cache against the model without a cache, and sampling against its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import TINY, params_of, tiny, tokens

from smallbatch.errors import UserError
from smallbatch.model import decoder
from smallbatch.model import sampling as decode
from smallbatch.model.sampling import generate

PARAMS = params_of(TINY)
PROMPT = [5, 3, 60, 7, 7]


@partial(jax.jit, static_argnums=0)
def uncached_logits(spec, params, ids_T):
    """Return the logits after every position, TxV, from the whole model."""
    module = decoder.with_params(spec, params)
    logits = module(ids_T[None])[0] @ module.unembed_DxV[...].astype(spec.compute_dtype)
    return logits.astype(jnp.float32)


def sample(prompt=PROMPT, new_tokens=8, **options) -> list[int]:
    settings = {"temperature": 0.8, "top_p": 0.95, "key": jax.random.key(0)} | options
    return generate(TINY, PARAMS, list(prompt), new_tokens, **settings)


@pytest.mark.parametrize(("compute_dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_logits_with_the_cache_equal_those_of_the_whole_model_at_every_position(compute_dtype, atol):
    spec = tiny(compute_dtype=compute_dtype)
    params = params_of(spec)
    ids = tokens((spec.context_tokens,))
    expected = np.asarray(uncached_logits(spec, params, ids))

    @jax.jit
    def run(params):
        module = decoder.with_params(spec, params)
        padded = jnp.zeros((1, 8), jnp.int32).at[0, :5].set(ids[:5])
        logits_V, cache = decode.prefill(module, padded, jnp.int32(5))
        step = lambda carry, x: decode.step(module, carry, *x)[::-1]
        _, rest = jax.lax.scan(step, cache, (ids[5:], jnp.arange(5, spec.context_tokens)))
        return jnp.concatenate([logits_V[None], rest])

    assert np.abs(expected[4] - expected[5]).max() > 0.5
    np.testing.assert_allclose(run(params), expected[4:], atol=atol)


def test_temperature_zero_takes_the_most_likely_token():
    ids = list(PROMPT)
    for _ in range(8):
        padded = np.array(ids + [0] * (TINY.context_tokens - len(ids)), np.int32)
        ids.append(int(uncached_logits(TINY, PARAMS, padded)[len(ids) - 1].argmax()))
    assert sample(temperature=0.0) == ids[len(PROMPT) :]
    assert sample(temperature=0.0, key=jax.random.key(1)) == ids[len(PROMPT) :]


def test_the_seed_determines_the_text():
    assert sample() == sample() != sample(key=jax.random.key(1))


def test_text_ends_at_the_context_length_or_the_end_token():
    assert len(sample(new_tokens=3)) == 3 and sample(new_tokens=0) == []
    full = sample(new_tokens=100)
    assert len(full) == TINY.context_tokens - len(PROMPT) and full[:8] == sample()
    end = full[4]
    assert sample(new_tokens=100, end_id=end) == full[: full.index(end)]
    assert sample(tokens((TINY.context_tokens,))) == []


def test_prompts_of_one_bucket_share_a_program():
    before = decode._generate._cache_size()
    for length in (1, 2, 15, 16):
        sample(tokens((length,)).tolist(), temperature=0.5 + length, top_p=1 / length, new_tokens=length)
    assert decode._generate._cache_size() <= before + 1


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.5, 0.85, 0.999, 1.0])
def test_the_nucleus_is_the_smallest_set_with_enough_mass(top_p):
    probs = np.random.default_rng(0).dirichlet(np.full(40, 0.3)).astype(np.float32)
    kept = np.asarray(jax.jit(decode.nucleus)(probs, np.float32(top_p)))
    mass = probs[kept].sum(dtype=np.float64)
    assert mass >= top_p - 1e-6
    assert kept.sum() == 1 or mass - probs[kept].min() < top_p
    assert kept.all() or probs[kept].min() >= probs[~kept].max()
    assert kept.all() == (top_p == 1)


def test_a_nucleus_with_exactly_the_mass_has_no_further_token():
    kept = decode.nucleus(jnp.array([0.25, 0.5, 0.25]), jnp.float32(0.5))
    assert kept.tolist() == [False, True, False]
    tie = decode.nucleus(jnp.array([0.25, 0.5, 0.25]), jnp.float32(0.75))
    assert tie.tolist() == [True, True, False]


def test_draws_have_the_probabilities_of_the_tempered_nucleus():
    logits, temperature = jnp.log(jnp.array([0.1, 0.6, 0.3])), 2.0
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: decode.choose(logits, jnp.float32(temperature), jnp.float32(0.7), key)))
    shares = np.bincount(draw(keys), minlength=3) / len(keys)
    expected = np.array([0, 0.6**0.5, 0.3**0.5])  # tempered: 0.19, 0.47, 0.33 of the mass
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)  # 4 standard deviations
    assert shares[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": []}, "0 tokens"),
        ({"prompt": [1] * 17}, "17 tokens; this model's context allows 1 to 16"),
        ({"top_p": 0.0}, r"top_p is 0.0; use a number in \(0, 1\]"),
        ({"top_p": 1.5}, "is 1.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"new_tokens": -1}, "is -1; use at least 0"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(options, words):
    with pytest.raises(UserError, match=words) as error:
        sample(**options)
    assert "\n" not in str(error.value)


def test_an_id_outside_the_vocabulary_raises_instead_of_being_clamped():
    with pytest.raises(ValueError, match="vocabulary of 64"):
        sample([1, 64])
