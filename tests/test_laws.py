"""The properties that a comparison of batch sizes relies on, tested on complete runs.

Float32 sums of some thousand terms in another order differ by about 1e-6 of their size, and ten or twenty steps of
training amplify the difference. Losses that differ only by rounding are compared to 1e-4.
"""

import jax
import numpy as np
import pytest
import runs

from smallbatch.data import prepare
from smallbatch.data.validation_split import is_validation
from smallbatch.errors import UserError
from smallbatch.plan import plan as plans
from smallbatch.runs import run_dir as workdir
from smallbatch.specs import DeviceSpec
from smallbatch.training import run, trainer
from smallbatch.training.program import TrainProgram, train_program
from smallbatch.training.validation import validate

home = runs.home
SGD = {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None, "optimizer.warmup_frac": 0.0}
ASLEEP = SGD | {"optimizer.peak_lr": 1e-30}  # updates that are rounded to nothing
ROUNDING = 1e-4


def initial(plan):
    """Return the program and the hyperparameters of the first stage."""
    program = train_program(plan.program())
    return program, program.put_hyperparams([plan.first.hyperparams])


def stopped_after(polls: int, plan, path):
    """Train until the stop is polled for the nth time; return the outcome."""
    directory = workdir.RunDir(path)
    directory.path.mkdir()
    one = trainer.Trainer(
        [trainer.Run(plan, directory)],
        prepare.prepare(plan.data),
        directory.checkpoints,
        3600.0,
        runs.StopAtPoll(polls),
    )
    one.restore()
    return one.run()[0]


def test_every_batch_size_trains_on_the_same_sequences_in_the_same_order(home, tmp_path):
    # With constant parameters, a loss identifies the sequences.
    losses, every = {}, ASLEEP | {"train.log_every_tokens": 32}
    for batch_size in (1, 8):
        _, found = runs.trained(home, tmp_path / str(batch_size), every | {"train.batch_size": batch_size})
        losses[batch_size] = runs.train_losses(found)
    ones = losses[1]
    assert len(ones) == 40 and len(np.unique(ones)) > 30
    np.testing.assert_allclose(losses[8], ones.reshape(-1, 8).mean(axis=1), rtol=1e-5)


def test_validation_loss_of_equal_weights_is_the_same_for_every_batch_size_and_seed(home):
    scores = []
    dataset, state = None, None
    for changes in ({}, {"train.batch_size": 8, "train.seed": 5, "data.shuffle_seed": 3}, {"train.batch_size": 1}):
        plan = run.make_plan(runs.tiny_config(home, changes))
        program, hyperparams = initial(plan)
        state = program.init(hyperparams) if state is None else state
        dataset = prepare.prepare(plan.data)
        scores.append(validate(program, hyperparams, state, plan, dataset))
    assert scores[0] == scores[1] == scores[2]
    assert validate(program, hyperparams, program.init(hyperparams), plan, dataset) == scores[0]  # seed 0 again
    program, hyperparams = initial(run.make_plan(runs.tiny_config(home, {"train.seed": 5})))
    assert validate(program, hyperparams, program.init(hyperparams), plan, dataset) != scores[0]


def test_micro_batches_equal_one_batch(home, tmp_path):
    whole = {"train.batch_size": 8, "train.microbatch_size": 8, "train.budget_tokens": 256 * 10}
    _, one = runs.trained(home, tmp_path / "one", whole)
    _, four = runs.trained(home, tmp_path / "four", whole | {"train.microbatch_size": 2})
    assert len(one) == len(four) == 11
    np.testing.assert_allclose(runs.train_losses(four), runs.train_losses(one), rtol=ROUNDING)
    assert four[-1]["loss_nats"] == pytest.approx(one[-1]["loss_nats"], rel=ROUNDING)
    _, small = runs.trained(home, tmp_path / "small", whole | {"train.batch_size": 2, "train.microbatch_size": None})
    assert abs(runs.train_losses(small)[-1] / runs.train_losses(one)[-1] - 1) > 10 * ROUNDING


def test_one_device_equals_eight(home, tmp_path):
    shape = {"train.batch_size": 8, "train.budget_tokens": 256 * 12}
    meshes = {"one": (1, 1, 1, 1), "auto": (None, 1, None, 1), "mixed": (2, 2, 2, 1), "positions": (1, 2, 1, 4)}
    losses = {}
    for name, sizes in meshes.items():
        mesh = {f"mesh.{axis}": size for axis, size in zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True)}
        result, found = runs.trained(home, tmp_path / name, shape | mesh)
        assert result.device["count"] == (1 if name == "one" else 8)
        losses[name] = np.append(runs.train_losses(found), result.validation_loss_nats)
    assert jax.device_count() == 8 and losses["one"][-1] < losses["one"][0] - 0.5
    for name in ("auto", "mixed", "positions"):
        np.testing.assert_allclose(losses[name], losses["one"], rtol=ROUNDING, err_msg=name)


def test_parameters_are_split_over_the_mesh_and_not_copied(home):
    config = runs.configs.quickstart()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 4, 2
    plan = plans.make(config, vocab_size=256, devices=DeviceSpec("cpu", 8))
    program, hyperparams = initial(plan)
    state = program.init(hyperparams)
    for name, array in state.params.items():
        assert array.addressable_shards[0].data.size * 8 == array.size, name
        assert state.opt_state.nu[name].sharding == array.sharding, name


def test_run_resumes_on_another_number_of_devices(home, tmp_path):
    shape = {"train.batch_size": 8, "train.budget_tokens": 256 * 12, "mesh.data": None, "mesh.tensor": None}
    config = runs.tiny_config(home, shape)
    _, whole = runs.trained(home, tmp_path / "whole", shape)
    few = plans.make(config, vocab_size=256, devices=DeviceSpec("cpu", 2))
    outcome = stopped_after(5, few, tmp_path / "moved")
    assert outcome.status == "stopped" and 0 < outcome.step < 12
    result, moved = runs.trained(home, tmp_path / "moved", shape)
    assert result.status == "done" and result.device["count"] == 8 and few.mesh.devices == 2
    assert [r["step"] for r in moved] == [r["step"] for r in whole]
    np.testing.assert_allclose(runs.train_losses(moved), runs.train_losses(whole), rtol=ROUNDING)


def test_a_run_at_batch_size_1_moves_from_one_device_to_eight_and_back(home, tmp_path):
    """The mesh is not part of the config's fingerprint: it depends on the devices."""
    shape = {"train.batch_size": 1, "train.budget_tokens": 32 * 30}
    one, eight = shape, shape | {"mesh.tensor": 2, "mesh.sequence": 4}
    _, whole = runs.trained(home, tmp_path / "whole", one)
    for until_tokens, changes, devices in ((320, one, 1), (640, eight, 8), (None, one, 1)):
        result = run.train(runs.tiny_config(home, changes), tmp_path / "moved", until_tokens)
        assert result.device["count"] == devices
    moved = runs.numbers(tmp_path / "moved")
    trained = [r for r in moved if r["kind"] == "train"]
    assert [r["step"] for r in trained] == [r["step"] for r in whole if r["kind"] == "train"]
    np.testing.assert_allclose(runs.train_losses(moved), runs.train_losses(whole), rtol=ROUNDING)


def test_a_run_whose_noise_scale_would_change_its_definition_does_not_move(home, tmp_path):
    shape = {"train.batch_size": 8, "train.microbatch_size": 8, "train.diagnostics": True, "train.budget_tokens": 2560}
    run.train(runs.tiny_config(home, shape), tmp_path / "run", until_tokens=1280)
    words = "from successive gradients, but on these devices it would be from parts of 1 sequences"
    with pytest.raises(UserError, match=words) as raised:
        run.train(runs.tiny_config(home, shape | {"mesh.data": 8}), tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_flops_of_a_run_depend_on_tokens_and_not_on_batch_size_or_accumulation(home, tmp_path):
    two, _ = runs.trained(home, tmp_path / "two", {})
    eight, _ = runs.trained(home, tmp_path / "eight", {"train.batch_size": 8, "train.microbatch_size": 2})
    assert two.flops == eight.flops and two.tokens == eight.tokens and two.optimizer_steps == 4 * eight.optimizer_steps
    double, _ = runs.trained(home, tmp_path / "double", {"train.budget_tokens": 2560})
    assert double.flops == 2 * two.flops


def test_other_hyperparameters_compile_nothing(home):
    def chunk(**changes) -> str:
        settings = {name.replace("__", "."): value for name, value in changes.items()}
        plan = run.make_plan(runs.tiny_config(home, settings))
        assert (train_program(plan.program()) is shared) is ("optimizer__schedule" not in changes)
        program = TrainProgram(plan.program())  # not the shared one, which is lowered only once
        return program._chunk.lower(
            program.abstract_state,
            initial(plan)[1],
            jax.ShapeDtypeStruct(program.tokens_shape, np.int32, sharding=program.tokens_sharding),
            jax.ShapeDtypeStruct((), np.int32, sharding=program.replicated),
        ).as_text()

    shared, _ = initial(run.make_plan(runs.tiny_config(home, {})))
    first = chunk()
    others = {"optimizer__peak_lr": 0.1, "optimizer__t2_tokens": 77.0, "optimizer__b1": 0.5, "optimizer__eps": 1e-3}
    others |= {"optimizer__weight_decay": 0.1, "optimizer__warmup_frac": 0.5, "optimizer__final_lr_frac": 0.2}
    others |= {"train__budget_tokens": 2560, "train__seed": 9, "data__shuffle_seed": 2}
    assert chunk(**others) == first
    assert chunk(optimizer__schedule="linear") != first


def test_no_program_is_compiled_twice_in_a_run(home, tmp_path, monkeypatch):
    config = runs.tiny_config(home, {"train.validate_every_tokens": 320})
    program = TrainProgram(run.make_plan(config).program())  # no other test has used it
    monkeypatch.setattr(trainer, "train_program", lambda *_: program)
    run.train(config, tmp_path / "run")
    assert len(runs.numbers(tmp_path / "run", "validation")) == 4
    assert program._score._cache_size() == 1
    assert program._chunk._cache_size() == 0  # compiled ahead, once; never through a call


def test_the_size_of_a_chunk_changes_no_number(home, tmp_path):
    changes = {"train.log_every_tokens": 64 * 9, "train.validate_every_tokens": 64 * 10}
    _, ones = runs.trained(home, tmp_path / "1", changes | {"train.steps_per_dispatch": 1})
    _, sevens = runs.trained(home, tmp_path / "7", changes | {"train.steps_per_dispatch": 7})
    assert [(r["kind"], r["step"]) for r in ones] == [
        *[("train", 9), ("validation", 10), ("train", 18), ("train", 20), ("validation", 20)]
    ]
    assert sevens == ones  # bitwise


def test_last_validation_document_changes_validation_and_no_training_record(home, tmp_path):
    texts = runs.sentences(300)
    held_out = [text for text in texts if is_validation(text.encode(), 0.05)]
    assert len(held_out) > 3
    runs_of = []
    for name, documents in (("all", texts), ("one less", [text for text in texts if text != held_out[-1]])):
        place = tmp_path / name
        place.mkdir()
        runs.write_jsonl(place / "corpus.jsonl", documents)
        runs_of.append(runs.trained(place, place / "run", {"data.cache_dir": str(place / "cache")}))
    (all_result, all_records), (less_result, less_records) = runs_of
    assert [r for r in all_records if r["kind"] == "train"] == [r for r in less_records if r["kind"] == "train"]
    assert all_result.validation_loss_nats != less_result.validation_loss_nats
    assert all_result.dataset_sha256 != less_result.dataset_sha256
