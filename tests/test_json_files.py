"""JSON files of the wrong shape: each reader raises one UserError that names the file, or ignores the file."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_specs import data_spec, sentences, write_corpus
from grids import Cell, write_sweep
from test_records import RESULT, train, validation

from smallbatch import config as configs
from smallbatch.analysis.read import sweeps
from smallbatch.data import dataset as datasets
from smallbatch.data import prepare, sources, tokenizers
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.grid import lane_engine as lanes
from smallbatch.grid.axes import axis
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.plan import plan
from smallbatch.runs import records
from smallbatch.runs import run_dir as workdir
from smallbatch.specs import DeviceSpec
from smallbatch.training import trained_run

# Contents that are invalid in every file.
MALFORMED = [
    *("", "[]", "3", "null", "true", '"x"', "{", "[{}]", "[3]", "-1e999", "NaN", "[" * 100_000, '{"a":' * 100_000),
    *("1" * 5000, '{"a": 1e999}', '{"a": 1' + "0" * 400 + "}", '{"a": NaN}', '{"a": 1, "a": 2}', "\0" * 50),
]
BYTES = [b"\xff\xfe\x00", b'{"a": "\xe9"}', b"\x80" * 20]
VALUES = ([], {}, None, 3, -1, "x", True, 2.5, [[]], 10**400)


def mutations(document: dict) -> Iterator[dict]:
    """Yield copies of a document: each value replaced, each key dropped or misspelled, at every depth.

    In a large document, only some values at each key are changed.
    """
    found = list(paths(document))
    for i, (*parents, key) in enumerate(found):
        values = VALUES if len(found) <= 8 else [VALUES[i % len(VALUES)], VALUES[(i + 3) % len(VALUES)]]
        for value in values:
            yield changed(document, parents, lambda parent, key=key, value=value: parent.update({key: value}))
        yield changed(document, parents, lambda parent, key=key: parent.pop(key))
        yield changed(document, parents, lambda parent, key=key: parent.update({f"{key[:-1]}~": parent.pop(key)}))


def paths(document: dict) -> Iterator[tuple]:
    for key, value in document.items():
        yield (key,)
        below = value if isinstance(value, dict) else value[0] if isinstance(value, list) and value else None
        if isinstance(below, dict):
            for rest in paths(below):
                yield (key, *([] if isinstance(value, dict) else [0]), *rest)


def changed(document: dict, parents: list, change: Callable[[dict], None]) -> dict:
    copied = copy.deepcopy(document)
    parent = copied
    for step in parents:
        parent = parent[step]
    change(parent)
    return copied


def ends_well(path: Path, read: Callable[[], object]) -> bool:
    """Read; return whether that raised a one-line UserError that names the file. Other exceptions propagate."""
    try:
        read()
    except UserError as error:
        assert path.name in str(error) or path.parent.name in str(error), error
        assert "\n" not in str(error) or "invalid cells" in str(error), error
        assert len(str(error)) < 2000
        return True
    return False


def attack(path: Path, document: dict, read: Callable[[], object], line: bool = False, needed: bool = True) -> None:
    """Write every kind of damage to a JSON file. needed: a file of another kind must be an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = "\n" if line else ""
    path.write_text(json.dumps(document) + end)
    assert not ends_well(path, read), "the file as it should be was refused"
    for content in [*(text.encode() for text in MALFORMED), *BYTES]:
        path.write_bytes(content + end.encode())
        refused = ends_well(path, read)
        assert refused or not needed or not content.strip(), content[:50]
    for mutated in mutations(document):
        path.write_text(json.dumps(mutated) + end)
        ends_well(path, read)
    path.write_text(json.dumps(document) + end)


CONFIG = configs.quickstart()
PLAN = plan.make(CONFIG, vocab_size=256, devices=DeviceSpec("cpu", 1)).to_dict()
CELLS = enumerate_cells(CONFIG, axis("train.seed", [1, 2]))


def test_config_json(tmp_path):
    directory = workdir.RunDir(tmp_path)
    directory.metrics.write_text("{}\n")  # a started run; before the start, another config would be replaced
    attack(directory.config, CONFIG.to_dict(), lambda: workdir.check_owner(directory, CONFIG))


def test_plan_json(tmp_path):
    directory = workdir.RunDir(tmp_path)
    attack(directory.plan, PLAN, lambda: trained_run.ModelSpec(**trained_run.read_plan(directory, 256)["model"]))


def test_grid_json_and_the_marks_of_cells(tmp_path):
    directory = SweepDirectory(tmp_path)
    directory.write_grid("grid", CONFIG, CELLS)
    attack(directory.grid_json, json.loads(directory.grid_json.read_text()), directory.read_grid)
    marks = {"cut": {"tokens": 1, "validation_loss_nats": 2.0}, "skipped": {"error": "x"}, "failed": {"error": "x"}}
    for status, about in marks.items():
        mark = directory.cell("a").path / f"{status}.json"
        attack(mark, about, lambda: directory.state("a"))
        mark.unlink()


def test_results_and_records(tmp_path):
    records.write_result(tmp_path / "result.json", RESULT)
    result = json.loads((tmp_path / "result.json").read_text())
    attack(tmp_path / "result.json", result, lambda: records.read_result(tmp_path / "result.json"))
    metrics = tmp_path / "metrics.jsonl"
    for record in (train(1), validation(1)):
        attack(metrics, record, lambda: records.read_metrics(metrics), line=True)
        attack(metrics, record, lambda: records.rewind(metrics, 1), line=True)
        attack(metrics, record, lambda: records.last_tokens_and_secs(metrics), line=True, needed=False)


def test_groups_of_lanes(tmp_path):
    group = {"cells": ["a", "b"], "lanes": 2}
    attack(tmp_path / "name" / "group.json", group, lambda: lanes.Group.read(tmp_path / "name"))
    measured = tmp_path / "lanes.json"
    attack(measured, {"a": 4}, lambda: lanes.measured_lanes(measured), needed=False)
    measured.write_text('{"a": 4, "b": true, "c": 0, "d": "x"}')
    assert lanes.measured_lanes(measured) == {"a": 4}


def test_meta_json_of_a_dataset(tmp_path):
    dataset = prepare.prepare(data_spec(tmp_path / "cache", source=write_corpus(tmp_path / "corpus", sentences(30))))
    meta = dataset.dir / datasets.META_FILE
    attack(meta, json.loads(meta.read_text()), lambda: len(datasets.open_dataset(dataset.dir).train))


def test_tokenizer_files(tmp_path):
    tokenizer = tokenizers.train_bpe(sentences(50), 300)
    tokenizer.save(tmp_path)
    config, file = tmp_path / tokenizers.CONFIG_FILE, tmp_path / tokenizers.JSON_FILE
    document = json.loads(file.read_text())
    attack(config, json.loads(config.read_text()), lambda: tokenizers.load(tmp_path))
    without_words = document | {"model": document["model"] | {"vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []}}
    attack(file, without_words, lambda: tokenizers.load(tmp_path))


def test_lines_of_jsonl_text(tmp_path):
    path = tmp_path / "corpus.jsonl"
    read = lambda: list(sources.documents(data_spec(tmp_path, source=f"text:{path}")))
    for content in [*(text.encode() for text in MALFORMED), *BYTES]:
        path.write_bytes(b'{"text": "x"}\n' + content + b"\n")
        assert ends_well(path, read) or not content.strip()
    path.write_text('{"text": "x", "score": NaN, "id": 1' + "0" * 400 + "}\n")  # other fields are not read
    assert read() == ["x"]


def test_the_report_reads_damaged_sweeps(tmp_path):
    cells = [Cell({"train.batch_size": 4, "train.seed": seed}, 2.5, records=2) for seed in (0, 1)]
    path = write_sweep(tmp_path / "sweep", [*cells, Cell({"train.seed": 2}, 2.5, "cut", records=2)])
    one = path / "cells" / "000000"
    read = lambda: sweeps.read([path])
    for file in (path / "grid.json", one / "result.json", one / "plan.json", path / "cells" / "000002" / "cut.json"):
        document = json.loads(file.read_text())
        if file.name == "grid.json":
            document["config"] = {"train": document["config"]["train"]}
        attack(file, document, read, needed=False)
    config = json.loads((one / "config.json").read_text())
    few = {section: dict(list(keys.items())[:3]) for section, keys in config.items()}
    attack(one / "config.json", few | {"train": config["train"]}, lambda: sweeps.read([one]))


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", "[" * 100_000, '{"custom_metadata": 3}'])
def test_the_description_of_a_checkpoint(tmp_path, content):
    from test_checkpoint import abstract, saved, state_of

    from smallbatch.training.checkpoint import Checkpoints

    saved(tmp_path, 1)
    (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}/1 is damaged"):
        Checkpoints(tmp_path).restore(abstract(state_of(0)), pytest.fail)


def test_a_mismatch_names_the_key_the_value_and_the_shape():
    shape = {"a": int, "b": {"c": float | None}, "d": [str]}
    sound = {"a": 1, "b": {"c": None, "more": 1}, "d": ["x"]}
    assert json_files.mismatch(sound, shape) == "" == json_files.mismatch(sound | {"b": {"c": 3}}, shape)
    assert json_files.mismatch([], shape) == "it is [], not an object"
    assert json_files.mismatch(sound | {"a": True}, shape) == "a is True, not an integer"
    assert json_files.mismatch(sound | {"b": {}}, shape) == "the key b.c is missing"
    assert json_files.mismatch(sound | {"b": {"c": "x"}}, shape) == "b.c is 'x', not a number or null"
    assert json_files.mismatch(sound | {"d": ["x", 3]}, shape) == "d.1 is 3, not text"


def test_only_json_files_parses_json():
    package = Path(json_files.__file__).parents[1]
    messages = {
        "training/distributed.py",
        "grid/worker.py",
        "grid/local_engine.py",
    }  # between our processes
    sealed = {"training/checkpoint.py"}  # by a digest
    found = {str(f.relative_to(package)) for f in package.rglob("*.py") if re.search(r"json\.loads?\(", f.read_text())}
    assert found == messages | sealed | {"files/json_files.py", "data/tokenizers.py"}
