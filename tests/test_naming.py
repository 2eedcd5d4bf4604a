"""Methods, hyperparameters and settings follow from the configs."""

from grids import base

from smallbatch.analysis.read import naming
from smallbatch.analysis.read.naming import Named, flatten, identify


def config(**changes):
    return flatten(base()) | {key.replace("__", "."): value for key, value in changes.items()}


def identities(*configs, name="s", arms=()):
    return identify([Named(name, configs, arms)])[0]


B2 = {"optimizer__t2_tokens": None, "optimizer__b2": 0.95}


def test_an_optimizer_with_a_unique_name_is_named_by_it():
    found = identities(config(), config(optimizer__name="sgd", optimizer__b1=None, optimizer__t2_tokens=None))
    assert [i.arm for i in found] == ["adam", "sgd"]


def test_methods_differ_by_how_an_average_is_set_and_not_by_its_value():
    found = identities(config(), config(**B2), config(optimizer__t2_tokens=4e6), config(**B2))
    assert [i.arm for i in found] == ["adam, t2_tokens", "adam, b2 0.95", "adam, t2_tokens", "adam, b2 0.95"]
    assert found[0].point == (("optimizer.t2_tokens", 1e6),) and found[1].point == ()


def test_a_grid_can_name_the_keys_that_define_a_method():
    grid = [config(optimizer__transfer_rule=rule) for rule in ("sqrt", "half_life")]
    assert [i.arm for i in identities(*grid)] == ["adam", "adam"]
    told = identities(*grid, arms=("optimizer.transfer_rule",))
    assert [i.arm for i in told] == ["adam, transfer_rule sqrt", "adam, transfer_rule half_life"]
    assert [i.point for i in told] == [(), ()]


def test_hyperparameters_are_the_keys_that_differ_and_affect_the_result():
    grid = [
        config(optimizer__peak_lr=lr, train__batch_size=b, train__seed=s, train__log_every_tokens=b * 8, mesh__data=b)
        for lr in (1e-3, 2e-3) for b in (1, 4) for s in (0, 1)
    ]  # fmt: skip
    found = identities(*grid)
    assert {i.point for i in found} == {(("optimizer.peak_lr", 1e-3),), (("optimizer.peak_lr", 2e-3),)}
    assert {i.setting for i in found} == {"s"}


def test_sweeping_the_model_or_the_budget_makes_settings():
    found = identities(config(model__width=128), config(model__width=256))
    assert [i.setting for i in found] == ["s, width 128", "s, width 256"]
    found = identities(config(train__budget_tokens=2**20), config(train__budget_tokens=2**21))
    assert [i.setting for i in found] == ["s, budget_tokens 1.05M", "s, budget_tokens 2.1M"]


def test_rounding_the_budget_makes_no_setting():
    found = identities(
        config(train__batch_size=1, train__budget_tokens=1000), config(train__batch_size=3, train__budget_tokens=999)
    )
    assert {i.setting for i in found} == {"s"}


def test_a_key_that_older_runs_lack_is_no_difference():
    old = {key: value for key, value in config().items() if key != "optimizer.interpolation"}
    assert {i.point for i in identities(old, config())} == {()}


def test_a_method_has_the_same_name_in_all_sweeps():
    found = identify([Named("a", [config()]), Named("b", [config(**B2)])])
    assert [own[0].arm for own in found] == ["adam, t2_tokens 1M", "adam, b2 0.95"]
    assert [own[0].setting for own in found] == ["a", "b"]


def test_all_ignored_keys_exist():
    assert set(naming.flatten(base())) >= naming.NO_EFFECT | {key for pair in naming.PAIRS for key in pair}
