"""The numbers of a plan against arithmetic, and its errors."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from smallbatch import config as configs
from smallbatch import optim
from smallbatch.config import files as config_files
from smallbatch.errors import UserError
from smallbatch.plan import mesh_plan as layout
from smallbatch.plan import plan
from smallbatch.specs import DeviceSpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def config(**changes):
    """Return the quickstart config with `section__key=value` changed."""
    c = configs.quickstart()
    c.train.batch_size, c.train.budget_tokens = 16, 2**21
    for name, value in changes.items():
        section, _, key = name.partition("__")
        c[section][key] = value
    configs.validate(c)
    return c


def make(devices: int = 1, platform: str = "cpu", vocab_size: int = 256, capability=None, **changes) -> plan.Plan:
    return plan.make(config(**changes), vocab_size=vocab_size, devices=DeviceSpec(platform, devices, capability))


# b2 at a half-life of 10M tokens and T = 512, as published for these batch sizes (Marek et al. 2025).
@pytest.mark.parametrize(
    "batch_size, b2", [(1, 0.999965), (4, 0.99986), (16, 0.99943), (64, 0.9977), (256, 0.9910), (1024, 0.9643)]
)
def test_half_life_of_10m_tokens_gives_the_published_decays(batch_size, b2):
    changes = {"optimizer__t2_tokens": 1e7, "model__context_tokens": 512, "train__batch_size": batch_size}
    p = make(**changes, train__budget_tokens=2**26)
    digits = len(str(b2)) - 2
    assert round(1 - p.first.hyperparams["one_minus_b2"], digits) == b2
    # To float64 precision: b2^(half-life in steps) is one half.
    half_life_steps = 1e7 / (batch_size * 512)
    assert math.exp(half_life_steps * math.log1p(-p.first.hyperparams["one_minus_b2"])) == pytest.approx(0.5, rel=1e-12)


def test_a_decay_per_step_is_reported_as_half_life_in_tokens_steps_and_fraction_of_the_run():
    p = make(
        optimizer__t2_tokens=None,
        optimizer__b2=0.95,
        model__context_tokens=1024,
        train__batch_size=512,
        train__budget_tokens=2**26,
    )
    b1, b2 = p.first.averages
    assert b2.half_life_tokens == pytest.approx(7.085e6, rel=1e-3)  # 7.1M: GPT-2's 0.95 at batch size 512
    assert b2.half_life_steps == pytest.approx(math.log(0.5) / math.log(0.95))
    assert b2.half_life_frac == pytest.approx(b2.half_life_tokens / 2**26)
    assert (b1.name, b1.one_minus_b) == ("b1", pytest.approx(0.1, rel=1e-15))
    # The same half-life at batch size 1 is the paper's 0.9999.
    one = make(optimizer__t2_tokens=b2.half_life_tokens, model__context_tokens=1024, train__batch_size=1)
    assert round(1 - one.first.hyperparams["one_minus_b2"], 4) == 0.9999


def test_budget_warmup_and_intervals_in_tokens_are_the_same_at_every_batch_size():
    plans = [make(train__batch_size=b, train__validate_every_tokens=2**16) for b in (1, 2, 8, 64)]
    for p, batch_size in zip(plans, (1, 2, 8, 64), strict=True):
        assert p.first.tokens_per_step == batch_size * 256
        assert p.optimizer_steps == 2**21 // (batch_size * 256)
        assert p.warmup_tokens == 0.05 * 2**21
        assert p.first.hyperparams["warmup_steps"] * p.first.tokens_per_step == pytest.approx(0.05 * 2**21)
        assert p.first.log_every_steps * p.first.tokens_per_step == 2**15
        assert (
            p.first.validate_every_steps is not None and p.first.validate_every_steps * p.first.tokens_per_step == 2**16
        )
        assert p.first.hyperparams["total_steps"] == p.optimizer_steps
    assert len({p.flops for p in plans}) == len({p.flops_per_token for p in plans}) == 1
    assert len({p.validation_batch_seqs for p in plans}) == 1


def test_warmup_given_in_tokens_is_not_rounded_to_steps():
    p = make(optimizer__warmup_frac=None, optimizer__warmup_tokens=10_000)
    assert p.warmup_tokens == 10_000 and p.first.hyperparams["warmup_steps"] == 10_000 / 4096


def test_interval_shorter_than_a_step_means_every_step():
    p = make(train__log_every_tokens=1, train__validate_every_tokens=5)
    assert p.first.log_every_steps == p.first.validate_every_steps == 1


def test_sgd_keeps_no_averages():
    p = make(optimizer__name="sgd", optimizer__peak_lr=0.3, optimizer__b1=None, optimizer__t2_tokens=None)
    assert p.first.averages == () and p.first.hyperparams["one_minus_b1"] == p.first.hyperparams["one_minus_b2"] == 1.0


def test_accumulation_splits_the_batch_and_changes_no_budget():
    p = make(train__batch_size=16, train__microbatch_size=4)
    assert p.first.accumulation_steps == 4 and p.first.tokens_per_step == 16 * 256
    assert make(train__batch_size=16, platform="gpu").first.accumulation_steps == 1


def test_default_micro_batch_is_one_sequence_per_device_on_a_cpu_and_the_batch_elsewhere():
    assert make(train__batch_size=16).first.microbatch_size == 1
    assert make(train__batch_size=16, devices=4).first.microbatch_size == 4
    assert make(train__batch_size=16, train__microbatch_size=8).first.microbatch_size == 8
    assert make(train__batch_size=16, platform="gpu").first.microbatch_size == 16


@pytest.mark.parametrize(
    "changes, devices",
    [
        ({}, 8),  # 256 x 512 float32: 0.5 MiB
        ({"model__ffn_width": 2048}, 1),  # 2 MiB
        ({"model__width": 512}, 1),
        ({"model__width": 512, "mesh__data": 2}, 8),
        ({"model__width": 512, "mesh__cpu_devices": 3}, 3),
    ],
)
def test_a_core_is_a_device_unless_the_model_is_large(changes, devices):
    assert layout.cpu_devices(config(**changes), cores=16) == devices


@pytest.mark.parametrize(
    "devices, changes, mesh",
    [
        (8, {"train__batch_size": 16}, (8, 1, 1)),
        (8, {"train__batch_size": 1}, (1, 1, 4)),  # the idle cores share the four heads
        (8, {"train__batch_size": 2}, (2, 1, 4)),
        (8, {"train__batch_size": 6}, (6, 1, 1)),
        (8, {"train__batch_size": 3}, (3, 1, 2)),
        (1, {"train__batch_size": 3}, (1, 1, 1)),
        (8, {"train__batch_size": 16, "train__microbatch_size": 2}, (2, 1, 4)),
        (8, {"train__batch_size": 16, "mesh__fsdp": 2}, (4, 2, 1)),
        (8, {"train__batch_size": 16, "mesh__data": 2, "mesh__tensor": 2}, (2, 1, 2)),
        (2, {"train__batch_size": 1, "model__ffn_width": 333}, (1, 1, 1)),  # 333 is not divisible by 2
        (8, {"train__batch_size": 1, "mesh__sequence": 2}, (1, 1, 4)),
        (8, {"train__batch_size": 16, "mesh__sequence": 4, "mesh__tensor": 1}, (2, 1, 1)),
    ],
)
def test_mesh_uses_the_devices_that_the_batch_divides_over(devices, changes, mesh):
    chosen = make(devices=devices, **changes, train__budget_tokens=48 * 256 * 10).mesh
    assert (chosen.data, chosen.fsdp, chosen.tensor) == mesh
    assert chosen.devices <= devices and chosen.sequence == changes.get("mesh__sequence", 1)


def test_idle_accelerators_do_not_share_heads_by_default():
    chosen = make(devices=8, platform="gpu", train__batch_size=2).mesh
    assert (chosen.data, chosen.fsdp, chosen.tensor) == (2, 1, 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mesh__data": 16}, "needs 16 devices .* there are 8"),
        ({"mesh__data": 2, "train__batch_size": 3, "train__budget_tokens": 768 * 100}, "3 sequences is not divisible"),
        ({"mesh__fsdp": 8, "train__batch_size": 4}, "4 sequences is not divisible .* 1 x 8"),
        ({"mesh__tensor": 8, "mesh__data": 1}, "does not divide the model's 4 heads"),
        ({"mesh__tensor": 2, "model__ffn_width": 333}, "does not divide the model's 333 ffn_width"),
        ({"mesh__sequence": 16}, "needs 16 devices .* there are 8"),
        ({"model__attention": "cudnn"}, "cudnn cannot run: it needs a GPU, but this machine has a CPU; set it to auto"),
        ({"model__attention": "splash"}, "splash cannot run: it needs a TPU, but this machine has a CPU"),
    ],
)
def test_a_plan_that_the_devices_do_not_support_is_a_one_line_error(changes, words):
    with pytest.raises(UserError, match=words) as error:
        make(devices=8, **changes)
    assert "\n" not in str(error.value)


LONG = {"model__context_tokens": 1024, "model__width": 256, "model__head_width": 64}
BF16 = LONG | {"model__compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("platform", "capability", "changes", "attention", "reason"),
    [
        ("cpu", None, {}, "xla", "no fused kernel for a CPU"),
        ("gpu", "9.0", BF16, "cudnn", "the fused kernel of a GPU"),
        ("gpu", "8.0", BF16, "cudnn", "the fused kernel of a GPU"),
        ("gpu", None, BF16, "cudnn", "the fused kernel of a GPU"),  # unknown, as on a Ray driver without a device
        ("gpu", "9.0", LONG, "xla", "not cudnn: it needs model.compute_dtype=bfloat16, but it is float32"),
        ("gpu", "7.5", BF16, "xla", "compute capability 8.0 or later, but this one has 7.5"),  # T4
        ("gpu", "gfx942", BF16, "xla", "an NVIDIA GPU .* this one has gfx942"),
        ("gpu", "8.9", BF16 | {"model__head_width": 256}, "xla", "multiple of 8, up to 128, but it is 256"),
        ("gpu", "9.0", BF16 | {"model__head_width": 256}, "cudnn", "the fused kernel of a GPU"),
        ("gpu", "9.0", BF16 | {"mesh__sequence": 2}, "xla", "whole sequences, but mesh.sequence=2 splits them"),
        ("gpu", "9.0", BF16 | {"model__attention": "xla"}, "xla", "set by model.attention"),
        ("tpu", None, LONG, "splash", "the fused kernel of a TPU"),
        ("tpu", None, {}, "xla", "not splash: .* at least 1024, but it is 256"),
        ("tpu", None, LONG | {"model__head_width": 32}, "xla", "multiple of 64, but it is 32"),
        ("tpu", None, LONG | {"model__attention": "splash"}, "splash", "set by model.attention"),
    ],
)
def test_auto_attention_is_the_fused_kernel_where_supported_and_the_plan_has_the_reason(
    platform, capability, changes, attention, reason
):
    p = make(2, platform, capability=capability, **changes)
    assert p.model.attention == attention
    assert re.search(reason, p.attention_reason)


@pytest.mark.parametrize(
    ("kind", "changes", "attention"),
    [
        ("TPU v2", BF16, "xla"),
        ("TPU v3", BF16, "xla"),
        ("TPU v3", LONG, "splash"),  # float32 is supported
        ("TPU v4", BF16, "splash"),
        ("TPU v5 lite", BF16, "splash"),
        (None, BF16, "splash"),  # unknown, as on a Ray driver without a device
    ],
)
def test_auto_attention_is_xla_on_tpus_that_do_not_support_the_splash_kernel(kind, changes, attention):
    devices = DeviceSpec("tpu", 2, kind=kind)
    p = plan.make(config(**changes), vocab_size=256, devices=devices)
    assert p.model.attention == attention
    if attention == "xla":
        assert p.attention_reason == f"not splash: it does not compile in bfloat16 for a {kind}"
        with pytest.raises(UserError, match="splash cannot run: it does not compile in bfloat16"):
            plan.make(config(**changes, model__attention="splash"), vocab_size=256, devices=devices)


def test_a_dispatch_has_many_short_steps_or_one_long_step():
    short, long = make(train__batch_size=1), make(train__batch_size=1024)
    assert short.first.steps_per_dispatch == plan.MAX_STEPS_PER_DISPATCH and long.first.steps_per_dispatch == 1
    assert make(train__steps_per_dispatch=7).first.steps_per_dispatch == 7


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_validation_batches_fill_the_mesh_and_depend_on_the_context_alone(devices):
    p = make(devices=devices, train__batch_size=24, train__budget_tokens=24 * 256 * 10)
    assert p.mesh.data == devices
    assert p.validation_batch_seqs % devices == 0
    assert 0 <= p.validation_batch_seqs - plan.VALIDATION_BATCH_TOKENS // 256 < devices


def test_a_plan_is_json_with_the_fingerprint_of_its_config():
    c = config()
    p = plan.make(c, vocab_size=256, devices=DeviceSpec("cpu", 1))
    read = json.loads(json.dumps(p.to_dict(), allow_nan=False))
    assert read["fingerprint"] == configs.fingerprint(c)
    assert type(p.model)(**read["model"]) == p.model
    assert type(p.mesh)(**read["mesh"]) == p.mesh
    (stage,) = read["stages"]
    assert stage["averages"] == [dataclasses.asdict(average) for average in p.first.averages]
    assert stage["hyperparams"] == p.first.hyperparams
    assert read["weight_decay_timescale_frac"] is None
    decayed = make(optimizer__weight_decay=0.1)
    assert decayed.to_dict()["weight_decay_timescale_frac"] == decayed.weight_decay_timescale_frac > 0


def test_data_spec_is_the_data_section():
    spec = plan.data_spec(config(data__validation_frac=0.25))
    assert spec.validation_frac == 0.25 and spec.source == "pystdlib"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_experiment_has_a_plan_on_one_gpu(file):
    c = config_files.load(str(file))
    p = plan.make(c, vocab_size=50257, devices=DeviceSpec("gpu", 1))
    assert p.optimizer_steps * p.first.tokens_per_step == p.budget_tokens == c.train.budget_tokens
    assert p.flops == p.flops_per_token * p.budget_tokens


def test_b2_min_and_b2_max_limit_the_decay_computed_from_a_half_life():
    def b2(**changes) -> plan.RunningAverage:
        return make(train__batch_size=4, optimizer__t2_tokens=1e6, **changes).first.averages[1]

    free = b2()
    assert free.half_life_tokens == pytest.approx(1e6)
    floored = b2(optimizer__b2_min=0.9999)
    assert floored.one_minus_b == pytest.approx(1e-4, rel=1e-12) and floored.half_life_tokens > free.half_life_tokens
    capped = b2(optimizer__b2_max=0.99)
    assert capped.one_minus_b == pytest.approx(0.01, rel=1e-12)
    assert capped.half_life_tokens == pytest.approx(1024 * math.log(0.5) / math.log(0.99))
    assert b2(optimizer__b2_min=0.9, optimizer__b2_max=0.9999999) == free


def test_a_plan_has_the_averages_that_its_optimizer_keeps():
    off = {"optimizer__b1": None, "optimizer__t2_tokens": None}
    for name, optimizer in optim.OPTIMIZERS.items():
        keys = optimizer.hyperparams
        given = {"b1": {"optimizer__b1": 0.9}, "b2": {"optimizer__t2_tokens": 1e6}}
        if "embed_lr" in keys:
            off["optimizer__embed_lr"] = 0.003
        else:
            off.pop("optimizer__embed_lr", None)
        set_here = {k: v for key in keys for k, v in given.get(key, {}).items()}
        schedule = "constant" if "interpolation" in keys else "cosine"
        p = make(optimizer__name=name, optimizer__peak_lr=0.01, optimizer__schedule=schedule, **(off | set_here))
        assert [average.name for average in p.first.averages] == [key for key in keys if key in given]


def test_hyperparameters_are_transferred_from_the_tuned_batch_size():
    tuned = {"optimizer__t2_tokens": 1e6, "optimizer__peak_lr": 0.004, "optimizer__tuned_at_batch_size": 256}
    there = make(train__batch_size=256, **tuned, optimizer__transfer_rule="sqrt")
    assert (
        there.first.hyperparams
        == make(train__batch_size=256, optimizer__t2_tokens=1e6, optimizer__peak_lr=0.004).first.hyperparams
    )

    rule = {"optimizer__transfer_rule": "half_life", "optimizer__lr_exponent": 0.25}
    here = make(train__batch_size=1, **tuned, **rule)
    b1, b2 = here.first.averages
    assert here.first.hyperparams["peak_lr"] == pytest.approx(0.001)
    assert b1.one_minus_b == pytest.approx(0.1) and b2.half_life_tokens == pytest.approx(1e6)

    control = make(train__batch_size=1, **tuned, **(rule | {"optimizer__transfer_rule": "fixed"}))
    assert control.first.averages[1].one_minus_b == pytest.approx(there.first.averages[1].one_minus_b, rel=1e-12)
    assert control.first.averages[1].half_life_tokens == pytest.approx(1e6 / 256)

    sqrt = make(train__batch_size=1, **tuned, optimizer__transfer_rule="sqrt")
    assert sqrt.first.hyperparams["peak_lr"] == pytest.approx(0.00025) and sqrt.first.hyperparams[
        "eps"
    ] == pytest.approx(16e-8)
    assert "sqrt rule from batch size 256" in sqrt.transfer


def test_the_timescale_of_weight_decay_is_a_fraction_of_the_run():
    p = make(train__batch_size=16, optimizer__weight_decay=0.1, optimizer__peak_lr=0.01)
    tokens = {"B": 16 * 256, "D": 2**21}
    assert p.weight_decay_timescale_frac == pytest.approx(tokens["B"] / (0.01 * 0.1 * tokens["D"]))
    assert make().weight_decay_timescale_frac is None


@pytest.mark.parametrize(("batch_size", "used"), [(3, 2_097_408), (5, 2_097_920), (6, 2_098_176)])
def test_the_default_budget_is_rounded_up_at_every_batch_size(batch_size, used):
    p = make(train__batch_size=batch_size)
    assert (p.asked_budget_tokens, p.budget_tokens) == (2**21, used)
    assert p.optimizer_steps * p.first.tokens_per_step == used
    assert p.first.hyperparams["total_steps"] == p.optimizer_steps and p.flops == p.flops_per_token * used
    assert p.warmup_tokens == pytest.approx(0.05 * used)
    assert p.first.averages[1].half_life_frac == pytest.approx(1e6 / used)
    assert p.tokens_at(p.optimizer_steps) == used and p.step_at(used) == p.optimizer_steps


def test_a_half_life_longer_than_the_run_gives_a_warning():
    assert make().warnings == ()
    (words,) = make(optimizer__t2_tokens=1e7).warnings
    assert words == (
        "the half-life of b2 is 10,000,000 tokens, longer than the run of 2,097,152, so its average "
        "is close to the mean over the whole run; lower optimizer.t2_tokens or b2, or raise train.budget_tokens"
    )
    both = make(optimizer__b1=None, optimizer__t1_tokens=1e7, optimizer__weight_average_tokens=1e8).warnings
    assert [line.split()[3] for line in both] == ["b1", "weights"]


def test_the_first_rates_are_those_of_the_compiled_schedule():
    for p in (make(), make(optimizer__schedule="wsd_sqrt", optimizer__decay_frac=0.2), make(train__budget_tokens=4096)):
        hyperparams = optim.HyperParams.from_floats(**p.first.hyperparams)
        counts = np.arange(len(p.first.first_learning_rates), dtype=np.int32)
        compiled = [optim.learning_rate(p.optimizer.schedule, hyperparams, count) for count in counts]
        np.testing.assert_allclose(p.first.first_learning_rates, compiled, rtol=1e-5)
    assert len(make().first.first_learning_rates) == 3 and len(p.first.first_learning_rates) == 1


GROWTH = {"train__batch_size_schedule": "1048576:64", "train__batch_size_lr_rule": "sqrt"}


def test_a_batch_schedule_keeps_b1_per_step_and_b2_in_tokens():
    start, later = make(**GROWTH).stages
    (b1, b2), (later_b1, later_b2) = start.averages, later.averages
    assert later_b1.one_minus_b == b1.one_minus_b and later_b2.half_life_tokens == pytest.approx(b2.half_life_tokens)
    assert later.hyperparams["b1_step_offset"] == 0 and later.hyperparams["step_offset"] != 0
    rule = {"transfer_rule": "half_life", "tuned_at_batch_size": 16, "lr_exponent": 0.5}
    moved = make(train__batch_size=64, **{f"optimizer__{key}": value for key, value in rule.items()})
    for name in ("peak_lr", "one_minus_b1", "one_minus_b2"):
        assert moved.first.hyperparams[name] == pytest.approx(later.hyperparams[name], rel=1e-12)
    in_tokens = make(**GROWTH, optimizer__b1=None, optimizer__t1_tokens=1e5).stages[1]
    assert in_tokens.averages[0].half_life_tokens == pytest.approx(1e5)
    assert in_tokens.hyperparams["b1_step_offset"] == in_tokens.hyperparams["step_offset"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer__t2_tokens": 1e45}, "1 - b2 is 2.84e-42, which is below .*change optimizer.b2 or t2"),
        ({"optimizer__t2_tokens": 1e20}, "1 - b2 is .* must be at least 1e-12.*t2_tokens"),
        ({"optimizer__b1": 1 - 1e-16}, "1 - b1 is .*optimizer.b1 or t1_tokens"),
        (
            {"optimizer__peak_lr": 1e-20, "optimizer__weight_decay": 1e-20},
            "learning rate x weight decay is 1e-40",
        ),
        ({"optimizer__peak_lr": 1e30, "optimizer__weight_decay": 1e30}, "learning rate x weight decay is 1e.60"),
        ({"optimizer__warmup_frac": 1e-44}, "warmup_frac"),
        (
            {"optimizer__eps": 3e38, "optimizer__transfer_rule": "sqrt", "optimizer__tuned_at_batch_size": 64},
            "eps is 6e.38, which is above the largest float32 number.*change optimizer.eps",
        ),
    ],
)
def test_a_derived_number_outside_float32_is_an_error_with_its_key(changes, words):
    with pytest.raises(UserError, match=words):
        make(**changes)


def test_the_square_of_a_schedule_free_rate_must_fit_float32():
    changes = {"optimizer__b1": None, "optimizer__schedule": "constant", "optimizer__peak_lr": 1e-20}
    with pytest.raises(UserError, match=r"the squared learning rate.* is 1e-40"):
        make(optimizer__name="schedule_free_adamw", **changes)


def test_a_long_half_life_and_a_short_one_are_allowed():
    for tokens in (1e-300, 1.0, 1e14):
        assert np.float32(make(optimizer__t2_tokens=tokens).first.hyperparams["one_minus_b2"]) > 0
