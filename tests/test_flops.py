"""Parameters and FLOPs against counts of the matrices, the real model and XLA."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from smallbatch.config import files as config_files
from smallbatch.model import decoder
from smallbatch.plan import flops, plan
from smallbatch.specs import DeviceSpec, ModelSpec
from smallbatch.training import train_step as steps

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def spec(**changes) -> ModelSpec:
    fields = {"width": 64, "layers": 2, "head_width": 16, "ffn_width": 160, "context_tokens": 128, "vocab_size": 500}
    fields |= {"rope_base": 1e4, "param_dtype": "float32", "compute_dtype": "float32", "remat": "none"}
    return ModelSpec(**(fields | {"attention": "xla", "matmul_precision": "highest", "max_logits": 2**30} | changes))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_parameter_count_equals_the_model(file):
    c = config_files.load(str(file))
    model = plan.make(c, vocab_size=50257, devices=DeviceSpec("gpu", 1)).model
    real = jax.eval_shape(lambda key: decoder.init_params(model, key), jax.random.key(0))
    sizes = {name: math.prod(array.shape) for name, array in real.items()}
    assert flops.total_params(model) == sum(sizes.values())
    assert flops.non_embedding_params(model) == sum(n for name, n in sizes.items() if name.startswith("blocks."))
    assert flops.active_params(model) == sum(sizes.values()) - sizes["embed_VxD"]


@pytest.mark.parametrize(
    "name, active, blocks", [("lm30m", 29.9e6, 10.6e6), ("lm19m", 44.6e6, 18.9e6), ("gpt2s", 123.5e6, 84.9e6)]
)
def test_models_have_the_sizes_of_their_papers(name, active, blocks):
    # 30M and 124M count active parameters, 19M those without embeddings.
    c = config_files.load(str(CONFIGS / f"{name}.py"))
    model = plan.make(c, vocab_size=50257, devices=DeviceSpec("gpu", 1)).model
    assert flops.active_params(model) == pytest.approx(active, rel=0.002)
    assert flops.non_embedding_params(model) == pytest.approx(blocks, rel=0.002)


def matrix_products(model: ModelSpec) -> list[tuple[int, int, int]]:
    """Return (rows, inner, columns) of every matrix product of a forward pass over one sequence."""
    t, d, f, v, h = model.context_tokens, model.width, model.ffn_width, model.vocab_size, model.head_width
    scores_and_mix = [(t, h, t), (t, t, h)] * model.heads
    layer = [(t, d, d)] * 3 + scores_and_mix + [(t, d, d), (t, d, f), (t, f, d)]
    return layer * model.layers + [(t, d, v)]


@pytest.mark.parametrize("changes", [{}, {"layers": 5}, {"head_width": 64}, {"context_tokens": 32}, {"ffn_width": 7}])
def test_flops_per_token_are_those_of_three_forward_passes(changes):
    model = spec(**changes)
    forward = sum(2 * rows * inner * columns for rows, inner, columns in matrix_products(model))
    assert flops.train_flops_per_token(model) * model.context_tokens == 3 * forward


def test_xla_counts_the_same_except_for_masked_attention():
    # XLA counts the operations of its program: attention over blocks of queries omits fully masked keys (5/8 of the
    # scores remain with blocks of 64 queries at T = 128), and element-wise operations are added.
    def counted(model: ModelSpec) -> float:
        tokens = jnp.zeros((1, 1, model.context_tokens + 1), jnp.int32)
        params = decoder.abstract_params(model)
        lowered = jax.jit(lambda p: steps.mean_loss_and_grads(model, False, p, tokens)).lower(params)
        analysis = lowered.compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"] / model.context_tokens

    model = spec(layers=1, width=128, head_width=64, ffn_width=512, vocab_size=2000)
    claimed = flops.train_flops_per_token(model)
    counted_model = counted(model)
    assert counted_model == pytest.approx(claimed, rel=0.1)
    # Larger matrices add the same to both counts.
    wide = spec(layers=1, width=128, head_width=64, ffn_width=1024, vocab_size=4000)
    added = flops.train_flops_per_token(wide) - claimed
    assert added > claimed / 2
    assert counted(wide) - counted_model == pytest.approx(added, rel=0.05)
