"""Files of a run: records and results are read as written, survive crashes, and invalid ones are errors."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import metadata

import pytest

from smallbatch.errors import UserError
from smallbatch.files.json_files import read as read_json
from smallbatch.runs import records
from smallbatch.runs.records import MetricsWriter, Result, read_metrics, rewind, write_json

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def train(step, loss_nats=3.25):
    return {
        "kind": "train", "step": step, "tokens": 64 * step, "flops": 1e6 * step, "loss_nats": loss_nats,
        "learning_rate": 0.003, "secs": 1.5, "tokens_per_sec": 640.0,
    }  # fmt: skip


def validation(step, bits_per_byte=1.75):
    return {
        "kind": "validation", "step": step, "tokens": 64 * step, "flops": 1e6 * step, "loss_nats": 3.5,
        "bits_per_byte": bits_per_byte, "secs": 0.5,
    }  # fmt: skip


RESULT = Result(
    status="done", validation_loss_nats=3.5, bits_per_byte=None, perplexity=math.exp(3.5),
    average_validation_loss_nats=None,
    train_loss_nats=3.25, tokens=640, flops=1e7, tokens_per_sec=640.0, mfu=0.4, optimizer_steps=10, secs=1.5,
    peak_memory_bytes=None, fingerprint="ab" * 32, dataset_sha256="cd" * 32, diverged_at_step=None,
    sample="def f():\n\t'é'", params=1000, seed=0, batch_size=1,
    device={"platform": "cpu", "kind": "cpu", "count": 1}, started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:01:00+00:00", versions={"python": "3.11.0"}, git_sha=None, git_dirty=None,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *recorded):
    with closing(MetricsWriter(path)) as writer:
        for record in recorded:
            writer.write(record)
        writer.sync()
    return writer.count


def test_records_are_read_as_written(path):
    recorded = [train(1), validation(1), train(2), validation(2, bits_per_byte=None)]
    assert write(path, *recorded) == 4
    assert read_metrics(path) == recorded
    assert read_metrics(path, "validation") == recorded[1::2]
    assert set(records.WALL_CLOCK_FIELDS) < set(records.FIELDS["train"])


def test_loss_that_is_not_finite_is_null(path):
    write(path, train(1, math.nan), train(2, math.inf))
    assert [json.loads(line, parse_constant=pytest.fail)["loss_nats"] for line in path.read_text().splitlines()] == [
        None,
        None,
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, {**train(3), "learning_rate": math.nan})


@pytest.mark.parametrize("wrong", [{**train(1), "extra": 1}, {k: v for k, v in train(1).items() if k != "flops"}])
def test_writing_a_record_with_wrong_fields_is_an_error(path, wrong):
    with pytest.raises(ValueError, match="a train record has"):
        write(path, wrong)


def test_writer_appends(path):
    write(path, train(1))
    assert write(path, train(2)) == 2
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_partial_last_line_is_ignored_and_replaced(path, cut):
    write(path, train(1), train(2))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_metrics(path) == [train(1)]
    write(path, train(2), train(3))
    assert read_metrics(path) == [train(1), train(2), train(3)]


def test_rewind_drops_records_after_the_checkpoint(path):
    write(path, train(1), validation(1), train(2))
    path.write_bytes(path.read_bytes() + b'{"kind": "tra')
    rewind(path, 2)
    assert read_metrics(path) == [train(1), validation(1)]
    rewind(path, 0)
    assert path.read_bytes() == b""


def test_rewind_of_a_file_that_lacks_records_is_an_error(path):
    rewind(path, 0)  # a run that was never started
    assert not path.exists()
    write(path, train(1), train(2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="has 1 records, but the checkpoint was saved after 2; restore the file"):
        rewind(path, 2)


LINES = ["[]", "{", "", "3", "1, 2", "[" * 100_000, "\0\0\0", '{"kind": "train"}', '{"kind": "other"}', '{"step": 1}']
LINES += ['{"kind": NaN}', '{"kind": "train"}, {"kind": "train"}', json.dumps(train(2) | {"tokens": "x"})]
LINES += [json.dumps(train(2) | {"secs": math.nan})]


@pytest.mark.parametrize("line", LINES)
def test_invalid_line_is_an_error_with_its_number(path, line):
    write(path, train(1))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is not a record of a run: .*; restore the file") as raised:
        read_metrics(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ["[]", json.dumps(train(2) | {"tokens": "x"})])
def test_invalid_line_is_an_error_before_the_checkpoint_and_dropped_after_it(path, line):
    write(path, train(1), train(2), train(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is not a record of a run"):
        rewind(path, 3)
    assert path.read_bytes() == before
    rewind(path, 1)
    assert read_metrics(path) == [train(1)]


def test_missing_metrics_file_is_an_error(path):
    with pytest.raises(UserError, match="is this a run directory"):
        read_metrics(path)


def run_with_files_of_at_most_1000_bytes(code, path):
    """Return what a script prints on a disk that fills up; a limit on file sizes is the disk."""
    limited = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + code
    words = [sys.executable, "-c", limited, str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    write_json(path, {"a": 1})
    printed = run_with_files_of_at_most_1000_bytes(
        "from smallbatch.runs.records import write_json\n"
        "try: write_json(sys.argv[1], 'x' * 2000)\n"
        "except ValueError as error: print(type(error).__name__, error)",
        path,
    )
    words = "File too large; free some space or choose another directory"
    assert printed == f"UserError cannot write {path}: {words}\n"
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["plan.json"]


def test_full_disk_is_one_error_and_loses_one_record(path):
    printed = run_with_files_of_at_most_1000_bytes(
        "from smallbatch.runs.records import MetricsWriter\n"
        f"writer, record = MetricsWriter(sys.argv[1]), {train(1)!r}\n"
        "try:\n    while True: writer.write(record)\n"
        "except ValueError as error: print(writer.count, type(error).__name__, error)",
        path,
    )
    assert printed.startswith(f"6 UserError cannot write {path}: ") and printed.count("\n") == 1
    assert path.stat().st_size == 1000
    assert read_metrics(path) == [train(1)] * 6


def test_missing_directory_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*x.json: No such file or directory"):
        write_json(tmp_path / "no" / "x.json", 1)
    with pytest.raises(UserError, match=r"cannot read .*x.json: No such file or directory"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"cannot write .*m.jsonl: No such file or directory"):
        MetricsWriter(tmp_path / "no" / "m.jsonl")


def test_concurrent_writers_do_not_mix_their_files(tmp_path):
    path = tmp_path / "results.csv"
    contents = [bytes([65 + i]) * 10_000 for i in range(4)]

    def write_often(content):
        for _ in range(25):
            records.write_bytes(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write_often, contents))
    assert os.listdir(tmp_path) == ["results.csv"]


def test_replaced_file_has_the_permissions_of_a_new_one(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b.json").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode
    with pytest.raises(UserError, match=r"check the path and its permissions$"):
        write_json(tmp_path / "a.json" / "c.json", 1)


def test_killed_writer_leaves_a_complete_json_file(tmp_path):
    path = tmp_path / "big.json"
    code = (
        "import sys; from smallbatch.runs.records import write_json\n"
        "n = 0\n"
        "while True:\n    n += 1; write_json(sys.argv[1], [n] * 200_000)\n"
        "    n == 1 and print('go', flush=True)"
    )
    for pause_secs in (0.0, 0.013, 0.029):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout
        process.stdout.readline()
        time.sleep(pause_secs)
        process.kill()
        process.communicate()
        value = read_json(path)
        assert len(value) == 200_000 and len(set(value)) == 1


def test_curve_has_columns_with_nan_for_null(tmp_path):
    write(tmp_path / "metrics.jsonl", validation(5), train(6), validation(10, bits_per_byte=None))
    curve = records.read_curve(tmp_path, "validation")
    assert list(curve) == ["step", "tokens", "flops", "loss_nats", "bits_per_byte", "secs"]
    assert curve["step"] == [5, 10] and curve["bits_per_byte"][0] == 1.75 and math.isnan(curve["bits_per_byte"][1])
    records.write_result(tmp_path / "result.json", RESULT)
    assert records.read_result(tmp_path / "result.json").curve()["step"] == [6]


def test_result_is_read_as_written(tmp_path):
    path = tmp_path / "result.json"
    records.write_result(path, RESULT)
    assert records.read_result(path) == RESULT


@pytest.mark.parametrize("name", ["validation_loss_se_nats", "program_memory_bytes"])
def test_result_of_an_earlier_version_lacks_later_fields(tmp_path, name):
    path = tmp_path / "result.json"
    records.write_result(path, dataclasses.replace(RESULT, **{name: 3}))
    values = read_json(path)
    assert getattr(records.read_result(path), name) == 3 == values.pop(name)
    write_json(path, values)
    assert getattr(records.read_result(path), name) is None


def test_loss_of_a_diverged_run_is_null(tmp_path):
    path = tmp_path / "result.json"
    records.write_result(path, dataclasses.replace(RESULT, status="diverged", train_loss_nats=math.nan))
    assert records.read_result(path).train_loss_nats is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": 1}, "extra is unknown"),
        ({"tokens": None}, "tokens is None"),
        ({"tokens": "640"}, "tokens is '640'"),
        ({"flops": []}, r"flops is \[\]"),
        ({"status": "fine"}, "status is 'fine', not one of done, diverged, stopped"),
    ],
)
def test_invalid_result_is_an_error(tmp_path, change, words):
    path = tmp_path / "result.json"
    records.write_result(path, RESULT)
    write_json(path, {**read_json(path), **change})
    with pytest.raises(UserError, match=words):
        records.read_result(path)


def test_former_status_is_read(tmp_path):
    path = tmp_path / "result.json"
    records.write_result(path, dataclasses.replace(RESULT, status="preempted"))
    assert records.read_result(path).status == "stopped"


def test_result_without_a_key_is_an_error(tmp_path):
    path = tmp_path / "result.json"
    records.write_result(path, RESULT)
    values = read_json(path)
    del values["fingerprint"]
    for wrong, problem in [(values, "fingerprint is missing"), ([], "is not the result of a run")]:
        write_json(path, wrong)
        with pytest.raises(UserError, match=problem):
            records.read_result(path)


def test_environment_does_not_import_jax():
    code = (
        "import json, sys; from smallbatch.runs import records\n"
        "print(json.dumps([records.environment(), 'jax' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    found, jax_was_imported = json.loads(done.stdout)
    assert not jax_was_imported
    assert found["versions"]["jax"] == metadata.version("jax")
    assert found["versions"]["orbax"] == metadata.version("orbax-checkpoint")
    assert found["versions"].keys() == {
        "smallbatch", "python", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"
    }  # fmt: skip
    if os.path.isdir(os.path.join(ROOT, ".git")):
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        assert found["git_sha"] == (head or None) and isinstance(found["git_dirty"], bool) == bool(head)
