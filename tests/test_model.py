"""The decoder against float64 numpy, the CPU operations against the plain ones, and the initial parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import TINY, normal, output_and_gradients, params_of, tiny, tokens

from smallbatch.model import decoder
from smallbatch.model.cpu_ops import ONE_HOT_VOCABULARY, use_cpu_ops
from smallbatch.model.decoder import NORM_EPS, embed, gelu, multiply, rms_norm
from smallbatch.model.loss import cross_entropy, loss_sum
from smallbatch.specs import MeshSpec
from smallbatch.training.sharding import make_mesh, param_shardings


def numpy_hidden(spec, params, tokens_BxT) -> np.ndarray:
    """The decoder of the paper in float64, written from its description."""
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    norm = lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPS)
    context, half = tokens_BxT.shape[1], spec.head_width // 2
    turn = np.exp(1j * np.arange(context)[:, None] * spec.rope_base ** (-np.arange(half) / half))

    def rotate(x):  # BxTxNxH; (h, h + H/2) as one complex number
        z = (x[..., :half] + 1j * x[..., half:]) * turn[:, None]
        return np.concatenate([z.real, z.imag], -1)

    x = p["embed_VxD"][np.asarray(tokens_BxT)]
    for i in range(spec.layers):
        w = {name.split(".")[-1]: a for name, a in p.items() if name.startswith(f"blocks.{i}.")}
        q, k, v = np.einsum("btd,dcnh->cbtnh", norm(x), w["qkv_Dx3xNxH"])
        scores = np.einsum("bqnh,bknh->bnqk", rotate(norm(q)), rotate(norm(k))) / np.sqrt(spec.head_width)
        probs = np.exp(np.where(np.tri(context, dtype=bool), scores, -np.inf))
        probs /= probs.sum(-1, keepdims=True)
        x = x + np.einsum("bnqk,bknh,nhd->bqd", probs, v, w["out_NxHxD"])
        up = norm(x) @ w["up_DxF"]
        x = x + (0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))) @ w["down_FxD"]
    return norm(x)


def nats(spec, params, tokens_BxT1) -> jax.Array:
    module = decoder.with_params(spec, params)
    targets = tokens_BxT1[:, 1:]
    weights = jnp.ones(targets.shape, jnp.float32)
    return loss_sum(module(tokens_BxT1[:, :-1]), module.unembed_DxV[...], targets, weights, spec.max_logits)


def test_hidden_states_equal_a_float64_decoder_in_numpy():
    params, batch = params_of(TINY), tokens((2, 16))
    hidden = jax.jit(lambda p, x: decoder.with_params(TINY, p)(x))(params, batch)
    np.testing.assert_allclose(hidden, numpy_hidden(TINY, params, batch), atol=2e-5)


def test_changing_a_token_changes_no_earlier_hidden_state():
    params, batch = params_of(TINY), tokens((1, 16))
    changed = batch.copy()
    changed[0, 9] += 1
    run = jax.jit(lambda x: decoder.with_params(TINY, params)(x))
    before, after = np.asarray(run(batch)), np.asarray(run(changed))
    np.testing.assert_array_equal(before[0, :9], after[0, :9])
    assert (before[0, 9:] != after[0, 9:]).any(axis=1).all()


def on_cpu(f):
    def traced(*inputs):
        with use_cpu_ops(True):
            return f(*inputs)

    return traced


def check_cpu_form(f, *inputs):
    """Assert that f with CPU operations has the output and gradients of plain f."""
    dy = normal(*jax.eval_shape(f, *inputs).shape, seed=9)
    plain, cpu = (output_and_gradients(form, dy, *inputs) for form in (f, on_cpu(f)))
    for a, b in zip(jax.tree.leaves(cpu), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (8, 3, 2, 4)])
def test_cpu_products_have_the_gradients_of_plain_ones(shape):
    check_cpu_form(multiply, normal(2, 5, shape[0]), normal(*shape, seed=1))


def test_cpu_operations_have_the_gradients_of_plain_ones():
    targets = tokens((2, 5), 8)
    check_cpu_form(multiply, normal(2, 5, 2, 4), normal(2, 4, 6, seed=1))
    check_cpu_form(rms_norm, normal(2, 5, 8))
    check_cpu_form(gelu, normal(2, 5, 8))
    check_cpu_form(lambda logits: cross_entropy(logits, targets), normal(2, 5, 8))


@pytest.mark.parametrize("vocab_size", [7, ONE_HOT_VOCABULARY + 1])
def test_cpu_embedding_sums_gradients_of_repeated_tokens(vocab_size):
    ids = jnp.array([[1, 1, 6], [0, 1, 6]])
    check_cpu_form(lambda table: embed(table, ids, "float32"), normal(vocab_size, 4))


def test_plain_loss_has_the_gradients_of_cpu_operations():
    params, batch = params_of(TINY), tokens((2, 17))
    grad = jax.value_and_grad(lambda params: nats(TINY, params, batch))
    plain, cpu = jax.jit(grad)(params), jax.jit(on_cpu(grad))(params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(cpu), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_plain_loss_has_a_jvp_and_a_hessian_vector_product(remat):
    """Both are compared with finite differences."""
    spec, batch = tiny(remat=remat, max_logits=2**9), tokens((2, 17))
    params, direction = params_of(spec), params_of(spec, seed=1)
    loss = jax.jit(lambda params: nats(spec, params, batch))
    grad = jax.jit(jax.grad(loss))
    value, slope = jax.jvp(loss, (params,), (direction,))
    _, curvature = jax.jvp(grad, (params,), (direction,))

    def moved(step: float):
        return {name: x + step * direction[name] for name, x in params.items()}

    def dot(a, b) -> float:
        return float(sum(jnp.vdot(a[name], b[name]) for name in a))

    assert float(value) == pytest.approx(float(loss(params)))
    assert float(slope) == pytest.approx(dot(grad(params), direction), rel=1e-4)
    assert float(slope) == pytest.approx(float(loss(moved(0.01)) - loss(moved(-0.01))) / 0.02, rel=1e-2)
    change = dot(grad(moved(0.003)), direction) - dot(grad(moved(-0.003)), direction)
    assert dot(curvature, direction) == pytest.approx(change / 0.006, rel=1e-2)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rope_is_exact_in_long_contexts(base):
    context, half = 131_072, 32
    positions = np.r_[0:64, 8191:8193, context - 2048 : context]
    angles = positions[:, None] * base ** (-np.arange(half) / half)
    x = jnp.concatenate([jnp.ones((1, len(positions), 1, half)), jnp.zeros((1, len(positions), 1, half))], axis=-1)
    rotated = np.asarray(jax.jit(lambda x, at: decoder.rope(x, at, base, context))(x, positions.astype(np.int32)))[
        0, :, 0
    ]
    np.testing.assert_allclose(rotated, np.concatenate([np.cos(angles), np.sin(angles)], -1), atol=3e-7)


def test_rope_makes_scores_depend_on_the_distance_alone():
    q, k = normal(2, 1, 1, 1, 8)
    rotate = jax.jit(lambda x, at: decoder.rope(x, at[None], 10_000.0, 16))
    score = lambda at_q, at_k: np.sum(rotate(q, np.int32(at_q)) * rotate(k, np.int32(at_k)))

    assert abs(score(7, 3) - score(7, 4)) > 0.01
    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    np.testing.assert_allclose(score(5, 5), np.sum(q * k), rtol=1e-5)


def initial_params(spec, mesh: MeshSpec | None = None) -> dict[str, np.ndarray]:
    shardings = param_shardings(make_mesh(mesh), spec) if mesh else None
    return jax.jit(decoder.init_params, static_argnums=0, out_shardings=shardings)(spec, jax.random.key(0))


def test_initial_parameters_have_the_standard_deviations_of_the_docstring():
    spec = tiny(width=64, head_width=16, ffn_width=256, vocab_size=512, layers=1)
    d, f = spec.width, spec.ffn_width
    xavier = lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out))
    expected = {
        "embed_VxD": d**-0.5,
        "unembed_DxV": d**-0.5,
        "blocks.0.qkv_Dx3xNxH": xavier(d, d),
        "blocks.0.out_NxHxD": xavier(d, d),
        "blocks.0.up_DxF": xavier(d, f),
        "blocks.0.down_FxD": xavier(f, d),
    }
    params = initial_params(spec)
    assert params.keys() == expected.keys()
    for name, std in expected.items():
        np.testing.assert_allclose(np.std(params[name]), std, rtol=0.03, err_msg=name)
        if name.startswith("blocks"):  # uniform, not normal
            assert np.sqrt(3) * std * 0.99 < np.abs(params[name]).max() <= np.sqrt(3) * std * (1 + 1e-6), name


def test_initial_parameters_are_the_same_on_every_mesh():
    spec = tiny(layers=1)
    sharded = initial_params(spec, MeshSpec(1, 2, 4))
    assert not sharded["blocks.0.up_DxF"].sharding.is_fully_replicated
    for name, value in initial_params(spec).items():
        np.testing.assert_array_equal(sharded[name], value, err_msg=name)


def test_parameter_count_is_two_embeddings_and_four_matrices_a_block():
    drawn = jax.eval_shape(lambda: decoder.init_params(TINY, jax.random.key(0)))
    assert {name: x.shape for name, x in drawn.items()} == {
        n: x.shape for n, x in decoder.abstract_params(TINY).items()
    }
    d, f = TINY.width, TINY.ffn_width
    expected = 2 * TINY.vocab_size * d + TINY.layers * (4 * d * d + 2 * d * f)
    assert sum(x.size for x in drawn.values()) == expected


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_parameters_gradients_and_hidden_states_have_the_dtypes_of_the_spec(param_dtype):
    spec = tiny(param_dtype=param_dtype, compute_dtype="bfloat16")
    params, batch = decoder.abstract_params(spec), tokens((1, 9))
    hidden = jax.eval_shape(lambda p, batch: decoder.with_params(spec, p)(batch), params, batch)
    loss, grads = jax.eval_shape(jax.value_and_grad(lambda p: nats(spec, p, batch)), params)
    assert hidden.dtype == jnp.bfloat16 and loss.dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves((params, grads))} == {param_dtype}


def test_bfloat16_compute_equals_float32_up_to_rounding():
    params, batch = params_of(TINY), tokens((2, 16))
    spec = tiny(compute_dtype="bfloat16")
    hidden = jax.jit(lambda p: decoder.with_params(spec, p)(batch))(params).astype(np.float32)
    error = np.abs(hidden - numpy_hidden(TINY, params, batch))
    assert 1e-4 < error.mean() < 0.02


def test_remat_stores_less_and_gives_the_same_gradients():
    params, batch = params_of(tiny(layers=1)), tokens((2, 17))
    kept, grads = {}, {}
    for remat in ("none", "dots", "full"):
        spec = tiny(layers=1, remat=remat)
        loss = lambda p, spec=spec: nats(spec, p, batch)
        residuals = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(residuals))
        grads[remat] = jax.jit(jax.grad(loss))(params)
    assert kept["full"] < kept["dots"] < kept["none"]
    for remat in ("dots", "full"):
        for name in params:
            np.testing.assert_allclose(grads[remat][name], grads["none"][name], rtol=1e-4, atol=1e-5)


def test_models_under_vmap_equal_each_model_alone():
    batch = tokens((2, 17))
    spec = tiny(layers=1)
    models = [params_of(spec, seed) for seed in (0, 1)]
    grad = jax.value_and_grad(lambda p: nats(spec, p, batch))
    together = jax.jit(jax.vmap(grad))(jax.tree.map(lambda *x: np.stack(x), *models))
    alone = [jax.jit(grad)(params) for params in models]
    assert abs(alone[0][0] - alone[1][0]) > 0.1
    for lane, expected in enumerate(alone):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[lane], b, rtol=1e-4, atol=1e-5)
