"""Every optimizer against float64 numpy and against optax; half-lives, state, precision, vectorized runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_specs import hyperparams, normal, tiny

from smallbatch import optim
from smallbatch.model import decoder
from smallbatch.optim import OPTIMIZERS
from smallbatch.optim._adafactor import matrix_shape
from smallbatch.specs import OptimizerSpec
from smallbatch.units import one_minus_b_from_half_life

STEPS, SHAPE = 200, (12, 8)
GRADS = normal(STEPS, *SHAPE) * np.geomspace(1e-4, 1e3, SHAPE[1], dtype=np.float32)
START = normal(*SHAPE, seed=1)
LR, EPS, WD, C, A = 0.01, 1e-8, 0.1, 0.8, 0.9


def average(old, new, one_minus_b):
    return old + one_minus_b * (new - old)


def reference(name: str, c1: float, c2: float, nesterov: bool = False) -> np.ndarray:
    """Return the parameters after STEPS updates in float64, computed from the formulas of the papers."""
    if name.startswith("schedule_free"):
        return schedule_free_reference(name, c2)
    p, b1, b2 = START.astype(np.float64), 1 - c1, 1 - c2
    m, v, row, column = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE[0]), np.zeros(SHAPE[1])
    for t, g in enumerate(GRADS.astype(np.float64), 1):
        if name == "adam":
            m, v = average(m, g, c1), average(v, g * g, c2)
            u = m / -np.expm1(t * np.log1p(-c1)) / (np.sqrt(v / -np.expm1(t * np.log1p(-c2))) + EPS)
        elif name == "momentum":
            m = average(m, g, c1)
            u = m / (1 - b1**t)
            if nesterov:
                u = b1 * m / (1 - b1 ** (t + 1)) + c1 * g / (1 - b1**t)
        elif name == "heavy_ball":
            m = b1 * m + g
            u = g + b1 * m if nesterov else m
        elif name == "signum":
            m = average(m, g, c1)
            u = np.sign(m)
        elif name == "lion":
            u = np.sign(b1 * m + c1 * g)
            m = b2 * m + c2 * g
        elif name == "muon":
            m = average(m, g, c1)
            ahead = b1 * m / (1 - b1 ** (t + 1)) + c1 * g / (1 - b1**t)
            x = (ahead if nesterov else m / (1 - b1**t)).T  # 8 x 12: rows no more than columns
            x = x / np.linalg.norm(x)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            u = x.T  # 12 inputs, 8 outputs: no scale
        elif name.startswith("adafactor"):
            decay, correction = (b2, -np.expm1(t * np.log1p(-c2))) if name == "adafactor" else (1 - t**-C, 1)
            row, column = average(row, (g * g).mean(1), 1 - decay), average(column, (g * g).mean(0), 1 - decay)
            u = g / np.sqrt(np.outer(row, column) / row.mean() / correction)
            u *= max(1e-3, np.sqrt((p * p).mean())) / max(1, np.sqrt((u * u).mean()))
        else:
            u = {"sgd": g, "sign_sgd": np.sign(g)}[name]
        p = p - LR * (u + WD * p)
    return p


def schedule_free_reference(name: str, c2: float) -> np.ndarray:
    """Return y of Defazio et al. 2024, equations 3 to 5; at a constant learning rate all weights are equal."""
    x = z = y = START.astype(np.float64)
    v = np.zeros(SHAPE)
    for t, g in enumerate(GRADS.astype(np.float64), 1):
        u = g
        if name == "schedule_free_adamw":
            v = average(v, g * g, c2)
            u = g / (np.sqrt(v / -np.expm1(t * np.log1p(-c2))) + EPS)
        z = z - LR * (u + WD * y)
        x = x + (z - x) / t
        y = A * x + (1 - A) * z
    return y


def scan(transformation: optax.GradientTransformation) -> jax.Array:
    def body(carry, g):
        delta, state = transformation.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], delta), state), None

    return jax.lax.scan(body, (jnp.asarray(START), transformation.init(jnp.asarray(START))), GRADS)[0][0]


def ours(name: str, c1: float, c2: float, nesterov: bool = False) -> np.ndarray:
    averages = {"one_minus_b1": c1, "one_minus_b2": c2, "decay_exponent": C, "interpolation": A}
    numbers = hyperparams(peak_lr=LR, eps=EPS, weight_decay=WD, **averages)
    spec = OptimizerSpec(name, "constant", nesterov)
    return np.asarray(jax.jit(lambda h: scan(optim.build(spec, h)))(numbers))


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the norm of the difference, relative to that of the parameters."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


DECAYS = [(None, None), (16, 1e7), (512, 1e7), (65_536, 1e7)]  # per-step 0.1 and 0.01, or tokens per step and t2
REFERENCES = [
    "adam",
    "sgd",
    "sign_sgd",
    "momentum",
    "heavy_ball",
    "signum",
    "lion",
    "muon",
    "adafactor",
    "adafactor_power",
]
REFERENCES += ["schedule_free_sgd", "schedule_free_adamw"]
VARIANTS = [(name, False) for name in REFERENCES] + [(name, True) for name in ("momentum", "heavy_ball", "muon")]


def one_minus_bs(tokens_per_step: int | None, t2_tokens: float | None) -> tuple[float, float]:
    if tokens_per_step is None or t2_tokens is None:
        return 0.1, 0.01
    return one_minus_b_from_half_life(100_000, tokens_per_step), one_minus_b_from_half_life(t2_tokens, tokens_per_step)


@pytest.mark.parametrize("decays", DECAYS, ids=str)
@pytest.mark.parametrize(("name", "nesterov"), VARIANTS)
def test_updates_equal_float64_numpy(name, nesterov, decays):
    c1, c2 = one_minus_bs(*decays)
    assert error(reference(name, c1, c2, nesterov), START) > 0.01
    assert error(ours(name, c1, c2, nesterov), reference(name, c1, c2, nesterov)) < 1e-6


@pytest.mark.parametrize(("tokens_per_step", "off_by"), [(16, 0.01), (512, 5e-4)])
def test_second_moment_is_exact_where_a_float32_b2_is_not(tokens_per_step, off_by):
    _, c2 = one_minus_bs(tokens_per_step, 1e7)

    @jax.jit
    def second_moments(c2, b2):
        adam = optim.scale_by_adam(b1=0.9, b2=optim.Decay(c2))

        def body(carry, g):
            state, naive = carry
            return (adam.update(g, state, START)[1], b2 * naive + (1 - b2) * g * g), None

        state, naive = jax.lax.scan(body, (adam.init(jnp.asarray(START)), jnp.zeros(SHAPE)), GRADS)[0]
        return state.nu, naive

    exact = np.zeros(SHAPE)
    for g in GRADS.astype(np.float64):
        exact += c2 * (g * g - exact)
    ours, naive = second_moments(np.float32(c2), np.float32(1 - c2))
    np.testing.assert_allclose(ours, exact, rtol=2e-6)
    assert (np.abs(naive / exact - 1) > off_by).all()


THEIRS = {
    "adam": lambda: optax.adamw(LR, b1=0.9, b2=0.99, eps=EPS, weight_decay=WD),
    "sgd": lambda: optax.chain(optax.add_decayed_weights(WD), optax.sgd(LR)),
    "sign_sgd": lambda: optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(WD), optax.scale(-LR)),
    "heavy_ball": lambda: optax.chain(optax.trace(0.9), optax.add_decayed_weights(WD), optax.scale(-LR)),
    "nesterov": lambda: optax.chain(optax.trace(0.9, nesterov=True), optax.add_decayed_weights(WD), optax.scale(-LR)),
    "lion": lambda: optax.lion(LR, b1=0.9, b2=0.99, weight_decay=WD),
    "muon": lambda: optax.contrib.muon(LR, beta=0.9, nesterov=False, weight_decay=WD),
    "schedule_free_sgd": lambda: optax.contrib.schedule_free(
        optax.chain(optax.add_decayed_weights(WD), optax.scale(-LR)), LR, b1=A
    ),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free(
        optax.adamw(LR, b1=0.0, b2=0.99, eps=EPS, weight_decay=WD), LR, b1=A
    ),
    "adafactor_power": lambda: optax.chain(
        optax.scale_by_factored_rms(decay_rate=C, min_dim_size_to_factor=1),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(WD),
        optax.scale(-LR),
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_updates_equal_optax(name):
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        theirs = np.asarray(jax.jit(lambda: scan(THEIRS[name]()))())
    nesterov = name == "nesterov"
    assert error(ours("heavy_ball" if nesterov else name, 0.1, 0.01, nesterov), theirs) < 1e-5


@pytest.mark.parametrize("tokens_per_step", [16, 512, 4096])
@pytest.mark.parametrize(
    "average", ["adam.mu", "adam.nu", "momentum.mu", "signum.mu", "heavy_ball.mu", "lion.mu", "adafactor.row"]
)
def test_weight_of_a_gradient_halves_after_one_half_life(average, tokens_per_step):
    name, field = average.split(".")
    half_life_tokens = 10 * 4096
    half_lives = {f"t{b[1]}_tokens": half_life_tokens for b in OPTIMIZERS[name].hyperparams if b in ("b1", "b2")}
    transformation = getattr(optim, name)(LR, **half_lives, tokens_per_step=tokens_per_step)

    @jax.jit
    def after(steps):
        update = lambda g, state: transformation.update({"w": g}, state, {"w": jnp.zeros((1, 1))})[1]
        state = update(jnp.full((1, 1), 3.0), transformation.init({"w": jnp.zeros((1, 1))}))
        state = jax.lax.fori_loop(0, steps, lambda _, state: update(jnp.zeros((1, 1)), state), state)
        return getattr(state, field)["w"].sum()

    np.testing.assert_allclose(after(half_life_tokens // tokens_per_step) / after(0), 0.5, rtol=1e-4)


def test_half_life_of_published_adafactor_grows_with_the_run():
    transformation = optim.adafactor_power(0.0, decay_exponent=C)

    def weight_left(before: int) -> float:
        """Return the fraction of the weight of the gradient of update `before` that is left 100 updates later."""
        state = transformation.init({"w": jnp.zeros((1, 1))})._replace(count=jnp.int32(before - 1))
        update = jax.jit(lambda g, state: transformation.update({"w": g}, state, {"w": jnp.zeros((1, 1))})[1])
        state = update(jnp.ones((1, 1)), state)
        first = float(state.row["w"][0])
        for _ in range(100):
            state = update(jnp.zeros((1, 1)), state)
        return float(state.row["w"][0]) / first

    assert weight_left(10) < 0.01 and weight_left(10_000) > 0.9


def abstract_state(name: str, param_dtype: str = "float32"):
    params = decoder.abstract_params(tiny(param_dtype=param_dtype))
    state = jax.eval_shape(optim.build(OptimizerSpec(name, "cosine"), hyperparams()).init, params)
    return state, params


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_float32_and_of_the_size_in_the_table(name, param_dtype):
    if OPTIMIZERS[name].schedule_free and param_dtype == "bfloat16":
        with pytest.raises(ValueError, match="Use float32 for schedule-free optimizers"):
            abstract_state(name, param_dtype)
        return
    state, params = abstract_state(name, param_dtype)
    size = sum(int(np.prod(x.shape)) for x in params.values())
    d, f, v = 32, 48, 64  # Adafactor: qkv is a matrix of D x 3NH, out of NH x D; Muon: Adam's nu of the two embeddings
    by_shape = {
        "adafactor": 4 * (2 * (d + 3 * d + d + d + 2 * (d + f)) + 2 * (v + d)),
        "muon": 4 * size + 4 * 2 * v * d,
    }
    by_shape["adafactor_power"] = by_shape["adafactor"]
    per_param = OPTIMIZERS[name].state_bytes
    if name in by_shape or isinstance(per_param, int):
        expected = by_shape[name] if name in by_shape else per_param * size
        scalars = 4 + 12 * OPTIMIZERS[name].schedule_free  # count; weight_sum, weight_rest, max_lr
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) == expected + scalars
    assert state.count.dtype == jnp.int32
    assert {x.dtype.name for x in jax.tree.leaves(state._replace(count=None))} <= {"float32"}


def test_averages_of_bfloat16_gradients_are_float32():
    c2 = np.float32(one_minus_b_from_half_life(1e7, 512))  # far below bfloat16's 2^-8
    adam = optim.adam(0.0, b1=0.9, t2_tokens=1e7, tokens_per_step=512)
    p = {"w": jnp.ones(1, jnp.bfloat16)}

    @jax.jit
    def nu_after(steps):
        body = lambda _, state: adam.update({"w": jnp.ones(1, jnp.bfloat16)}, state, p)[1]
        return jax.lax.fori_loop(0, steps, body, adam.init(p)).nu["w"][0]

    np.testing.assert_allclose(nu_after(1000), -np.expm1(1000 * np.log1p(-float(c2))), rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_hyperparameters_do_not_recompile(name):
    @jax.jit
    def update(state, params, hyperparams):
        return optim.build(OptimizerSpec(name, "cosine"), hyperparams).update(params, state, params)

    params = {"w": jnp.asarray(START)}
    state = jax.jit(lambda p: optim.build(OptimizerSpec(name, "cosine"), hyperparams()).init(p))(params)
    first, state = update(state, params, hyperparams(peak_lr=0.1))
    update(state, params, hyperparams(peak_lr=0.1))
    changed = {"one_minus_b1": 0.01, "one_minus_b2": 1e-6, "eps": 1e-3, "warmup_steps": 5.0, "decay_exponent": 0.5}
    second, _ = update(state, params, hyperparams(peak_lr=0.3, **changed))
    assert (np.asarray(first["w"]) != np.asarray(second["w"])).any()
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vectorized_runs_equal_runs_alone(name):
    rates, one_minus_b = np.float32([0.001, 0.01]), np.float32([0.1, 0.001])

    def run(lr, c):
        numbers = hyperparams()._replace(peak_lr=lr, one_minus_b1=c, one_minus_b2=c)
        return scan(optim.build(OptimizerSpec(name, "constant"), numbers))

    together = jax.jit(jax.vmap(run))(rates, one_minus_b)
    assert error(together[0], together[1]) > 1e-3
    for params, lr, c in zip(together, rates, one_minus_b, strict=True):
        assert error(params, np.asarray(jax.jit(run)(lr, c))) < 1e-6


def test_adafactor_factors_a_parameter_as_the_matrix_it_multiplies_by():
    expected = {(5,): (5, 1), (4, 6): (4, 6), (32, 3, 4, 8): (32, 96), (4, 8, 32): (32, 32)}
    assert {shape: matrix_shape(shape) for shape in expected} == expected


def test_schedule_free_evaluates_the_average_of_iterates_weighted_by_the_largest_rate_so_far():
    rates = np.array([0.0, 0.01, 0.03, 0.02, 0.03])
    y, z = jnp.asarray(START), START.astype(np.float64)
    transformation = optim.schedule_free_sgd(lambda count: jnp.asarray(rates, jnp.float32)[count], interpolation=A)
    state, iterates = transformation.init(y), []
    for g, rate in zip(GRADS, rates, strict=False):
        deltas, state = transformation.update(g, state, y)
        y += deltas
        z = z - rate * g
        iterates.append(z)
    weights = np.maximum.accumulate(rates) ** 2
    x = np.tensordot(weights, iterates, 1) / weights.sum()
    np.testing.assert_allclose(optim.evaluated(y, state.z, A), x, rtol=1e-5)
    assert error(np.asarray(y), x) > 1e-4


# Not heavy_ball, whose sum of gradients grows with their number, nor adafactor_power, whose averages have no half-life.
@pytest.mark.parametrize("name", [*(n for n, o in OPTIMIZERS.items() if o.bias_corrected), "signum", "lion"])
def test_averages_stay_unbiased_after_a_change_of_batch_size(name):
    """With a constant gradient, 8 updates of one sequence and 2 of four equal 4 updates of four sequences."""
    c1, c2 = 0.02, 0.005
    stretched = {f"one_minus_b{i}": -np.expm1(4 * np.log1p(-c)) for i, c in ((1, c1), (2, c2))}
    g, p = jnp.asarray(GRADS[0]), jnp.asarray(START)
    numbers = hyperparams(peak_lr=0.0, one_minus_b1=c1, one_minus_b2=c2)

    def updated(state, count, h):
        update = jax.jit(lambda s: optim.build(OptimizerSpec(name, "constant"), h).update(g, s, p)[1])
        for _ in range(count):
            state = update(state)
        return state

    start = optim.build(OptimizerSpec(name, "constant"), numbers).init(p)
    offsets = {"step_offset": 8 / 4 - 8, "b1_step_offset": 8 / 4 - 8}
    changed = updated(updated(start, 8, numbers), 2, hyperparams(peak_lr=0.0, **offsets, **stretched))
    alone = updated(start, 4, hyperparams(peak_lr=0.0, **stretched))
    assert changed.count == 10
    corrected = lambda state, h: optim.build(OptimizerSpec(name, "constant"), h).update(g, state, p)[0]
    last = hyperparams(peak_lr=1.0, **offsets, **stretched)
    found = corrected(changed, last)
    expected = corrected(alone, hyperparams(peak_lr=1.0, **stretched))
    assert error(np.asarray(found), np.asarray(expected)) < 1e-5


@pytest.mark.parametrize("name", ["adam", "momentum", "muon"])
def test_b1_per_step_stays_unbiased_after_a_change_of_batch_size(name):
    """The average of a constant gradient is that gradient at any batch sizes."""
    c1, c2 = 0.02, 0.005
    g, p = jnp.asarray(GRADS[0]), jnp.asarray(START)
    before = hyperparams(peak_lr=1.0, one_minus_b1=c1, one_minus_b2=c2)
    after = before._replace(one_minus_b2=jnp.float32(-np.expm1(4 * np.log1p(-c2))), step_offset=jnp.float32(2.0 - 8))

    @functools.partial(jax.jit, static_argnums=2)
    def updated(state, h, count):
        for _ in range(count):
            delta, state = optim.build(OptimizerSpec(name, "constant"), h).update(g, state, p)
        return delta, state

    first, state = updated(optim.build(OptimizerSpec(name, "constant"), before).init(p), before, 1)
    _, state = updated(state, before, 7)
    last, _ = updated(state, after, 2)
    assert error(np.asarray(last), np.asarray(first)) < 1e-5


BOUNDED = {"adam", "sign_sgd", "signum", "lion", "muon", "adafactor", "adafactor_power", "schedule_free_adamw"}
BIG_THEN_SMALL = np.concatenate([np.full((3, *SHAPE), 1e4), np.full((3, *SHAPE), 1e-9), np.zeros((2, *SHAPE))])


@pytest.mark.parametrize("one_minus_b", [1.0, float(np.float32(1) - np.float32(2) ** -24), 0.75, 1e-3, 1e-12])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_finite_at_extreme_decay_rates(name, one_minus_b):
    """The gradients fall by 13 orders of magnitude and then to 0."""
    numbers = hyperparams(peak_lr=0.01, one_minus_b1=one_minus_b, one_minus_b2=one_minus_b)
    transformation = optim.build(OptimizerSpec(name, "constant"), numbers)
    p = {"w": jnp.asarray(START)}
    state, update = transformation.init(p), jax.jit(lambda g, s, p: transformation.update(g, s, p))
    for g in BIG_THEN_SMALL.astype(np.float32):
        deltas, state = update({"w": jnp.asarray(g)}, state, p)
        p = {"w": p["w"] + deltas["w"]}
        if name in BOUNDED:
            assert np.abs(deltas["w"]).max() < 0.02, g.flat[0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((p, state)))


@pytest.mark.parametrize("one_minus_b", [1.0, 0.9, 0.5, 0.1, 1e-3])
def test_average_keeps_small_values_beside_large_ones(one_minus_b):
    old, new = np.float32([1e8, 1.0, 1e-8]), np.float32([1e-8, 1e-30, 1e8])
    exact = (1 - one_minus_b) * old.astype(np.float64) + one_minus_b * new.astype(np.float64)
    np.testing.assert_allclose(optim.average(old, new, one_minus_b), exact, rtol=3e-7)


@pytest.mark.parametrize("warmup", [1, 1_000_000])
def test_schedule_free_weights_sum_exactly_over_10_million_updates(warmup):
    updates, peak = 10_000_000, np.float32(0.003)
    rate = lambda count: peak * jnp.minimum(1, (count + 1).astype(jnp.float32) / warmup)
    schedule_free = optim.schedule_free_sgd(rate)

    @jax.jit
    def weight_sum(y):
        body = lambda _, state: schedule_free.update(y, state, y)[1]
        return jax.lax.fori_loop(0, updates, body, schedule_free.init(y)).weight_sum

    exact = np.square(float(peak)) * np.sum(np.square(np.minimum(1, np.arange(1, updates + 1) / warmup)))
    assert float(weight_sum(jnp.float32(0))) == pytest.approx(exact, rel=1e-6)


def singular_values(m) -> np.ndarray:
    return np.linalg.svd(np.asarray(m), compute_uv=False)


def test_muon_orthogonalizes_matrices_and_updates_embeddings_by_adam():
    d, n, h = 32, 4, 8
    shapes = {"embed_VxD": (64, d), "b.qkv_Dx3xNxH": (d, 3, n, h), "b.out_NxHxD": (n, h, d), "b.up_DxF": (d, 128)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(normal(*shape, seed=i)) for i, (name, shape) in enumerate(shapes.items())}
    muon = optim.muon(1.0, b1=0.9, b2=0.99, embed_lr_ratio=0.25)
    deltas, _ = jax.jit(muon.update)(grads, muon.init(params), params)
    moved = {name: -np.asarray(delta) for name, delta in deltas.items()}
    np.testing.assert_allclose(moved["embed_VxD"], 0.25 * np.sign(grads["embed_VxD"]), rtol=1e-3)  # Adam's first step
    matrices = [moved["b.qkv_Dx3xNxH"][:, i].reshape(d, n * h) for i in range(3)]
    for matrix in (*matrices, moved["b.out_NxHxD"].reshape(n * h, d), moved["b.up_DxF"] / 2):  # sqrt(128 / 32) = 2
        # Five steps flatten most of the spectrum; the smallest singular values remain too small.
        assert 0.6 < np.median(singular_values(matrix)) < 1.3 and singular_values(matrix).max() < 1.3
    assert singular_values(np.asarray(grads["b.up_DxF"])).max() > 10


def test_muon_orthogonalizes_the_matrices_of_each_head():
    d, n, h = 32, 4, 8
    shapes = {"b.qkv_Dx3xNxH": (d, 3, n, h), "b.out_NxHxD": (n, h, d), "b.up_DxF": (d, 128)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(normal(*shape, seed=i)) for i, (name, shape) in enumerate(shapes.items())}
    spec = OptimizerSpec("muon", "constant", muon_heads=True)
    muon = optim.build(spec, hyperparams(peak_lr=1.0))
    deltas, _ = jax.jit(muon.update)(grads, muon.init(params), params)
    moved = {name: -np.asarray(delta) for name, delta in deltas.items()}
    heads = [moved["b.qkv_Dx3xNxH"][:, i, head] for i in range(3) for head in range(n)]
    heads += [moved["b.out_NxHxD"][head] / 2 for head in range(n)]  # 8 inputs, 32 outputs: sqrt(32 / 8) = 2
    for matrix in heads:  # far from square, so that five steps flatten all of the spectrum
        assert singular_values(matrix).min() > 0.6 and singular_values(matrix).max() < 1.3
    whole, _ = jax.jit(optim.build(OptimizerSpec("muon", "constant"), hyperparams(peak_lr=1.0)).update)(
        grads, muon.init(params), params
    )
    np.testing.assert_array_equal(whole["b.up_DxF"], deltas["b.up_DxF"])
    assert error(np.asarray(whole["b.out_NxHxD"]), np.asarray(deltas["b.out_NxHxD"])) > 0.1


def test_unknown_optimizer_and_missing_parameters_raise():
    with pytest.raises(ValueError, match=r"Unknown optimizer 'adamax'\. Use one of adam, sgd"):
        optim.build(OptimizerSpec("adamax", "cosine"), hyperparams())
    with pytest.raises(ValueError, match=r"params is None\. This optimizer needs the parameters\. Call update"):
        optim.sgd(LR, weight_decay=WD).update({}, optim.SgdState(jnp.int32(0)))
