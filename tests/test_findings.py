"""Findings, warnings and names in a report."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grids import Cell, run, write_run, write_sweep

from smallbatch.analysis import heat_maps
from smallbatch.analysis.analyze import analyze
from smallbatch.analysis.read import columns, sweeps
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import output
from smallbatch.analysis.report.section import Analysis
from smallbatch.files.json_files import read as read_json
from smallbatch.runs.records import write_json

SGD = {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None}
HOSTILE = [
    "back\\slash \\1",
    "bell\x07 \x1b[2J\r",
    "$x$ $\\frac$",
    "<script>alert(1)</script>",
    "\ud800 half",
    "a" * 3000,
]
HOSTILE += ["#000000 #0a0001", "--c-->", "日本 😀", "A", "a", "_hidden", "=1+1"]


def test_names_with_any_characters_are_drawn_and_printed(tmp_path, capfd):
    runs = [
        run(name, size, 3 + i / 100 + size / 1000 + abs(rate - 0.002), setting="</style>\\1 \ud800",
            steps=1000 / size + 9, point=(("kind \\2", name), ("optimizer.peak_lr", rate)))
        for i, name in enumerate(HOSTILE) for size in (1, 4, 16) for rate in (0.001, 0.002)
    ]  # fmt: skip
    found = analyze(RunTable(tuple(runs)))
    page = output.write(found, tmp_path / "out").read_text()
    drawn = sorted((tmp_path / "out" / "figures").iterdir())
    words = {word for path in drawn for word in "\n".join(ElementTree.parse(path).getroot().itertext()).split("\n")}
    shown = {"back\\slash \\1", "bell\\x07 \\x1b[2J\\r", "$x$ $\\frac$", "#000000 #0a0001", "--c-->", "\\ud800 half"}
    assert shown <= words
    assert any(word.strip() == "_hidden" for word in words)
    assert "<script>alert" not in page and page.count("</style>") == 1
    ids = re.findall(r'<[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and len({path.name.casefold() for path in drawn}) == len(drawn)
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", page + output.text(found))
    assert capfd.readouterr() == ("", "")


def test_a_long_value_of_a_hyperparameter_leaves_room_for_the_map(tmp_path):
    runs = [run("adam", 4, 3.0, point=(("a", name), ("b", value))) for name in ("x" * 400, "y") for value in "zw"]
    assert output.page.draw(analyze(RunTable(tuple(runs))))[heat_maps.SECTION]


def compared(*differences: float, **changes) -> Analysis:
    sizes = [4**i for i in range(len(differences))]
    runs = [run("adam", size, 3.0, **changes) for size in sizes]
    return analyze(
        RunTable((*runs, *(run("sgd", size, 3.0 + d, **changes) for size, d in zip(sizes, differences, strict=True))))
    )


@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        ((0.2,), "sgd minus adam: +0.200 nats at batch size 1."),
        (
            (0.1, -0.3, 0.2),
            "sgd minus adam: the largest gap is -0.300 nats at batch size 4; the sign changes between 1 (+0.100) and 4 "
            "(-0.300), between 4 (-0.300) and 16 (+0.200).",
        ),
        (
            (0.1, 0.4, 0.2),
            "sgd minus adam: the largest gap is +0.400 nats at batch size 4, the smallest is +0.100 nats at 1; the "
            "sign is the same at all 3 batch sizes.",
        ),
        ((0.0, 0.0), "sgd minus adam: the gap is 0 nats at all 2 batch sizes."),
        (
            (-0.1, 0.0, 0.2),
            "sgd minus adam: the largest gap is +0.200 nats at batch size 16; the sign changes between 1 (-0.100) and "
            "16 (+0.200).",
        ),
    ],
)
def test_a_gap_is_reported_by_its_largest_value_and_all_changes_of_sign(differences, sentence):
    assert compared(*differences).findings()["Gaps between methods"] == [sentence]


def test_two_methods_at_one_batch_size_have_a_gap(tmp_path):
    values = {"train.batch_size": 4}
    cells = [Cell(values, 3.0), Cell({**values, **SGD}, 3.2)]
    for paths in ([write_sweep(tmp_path / "sweep", cells)], one_by_one(tmp_path, cells)):
        found = analyze(sweeps.read(paths))
        assert found.findings()["Gaps between methods"] == ["sgd minus adam: +0.200 nats at batch size 4."]
        page = output.write(found, tmp_path / f"{paths[0].name}-report").read_text()
        assert 'id="data-gaps"' in page and "A gap needs" not in page and "No two methods" not in page


def one_by_one(tmp_path: Path, cells: list[Cell]) -> list[Path]:
    paths = [tmp_path / f"run-{i}" for i in range(len(cells))]
    for path, cell in zip(paths, cells, strict=True):
        write_run(path, cell)
    return paths


def test_critical_batch_sizes_with_different_targets_are_not_compared():
    def runs(arm, floor):
        return [
            run(arm, size, floor + 0.01 * i, steps=1000 + 8000 / size, tokens=1e6)
            for i, size in enumerate((1, 4, 16, 64))
        ]

    apart = analyze(RunTable((*runs("adam", 3.0), *runs("sgd", 3.4))))
    together = analyze(RunTable((*runs("adam", 3.0), *runs("sgd", 3.0))))
    topics = [topic for topic in apart.findings() if topic.startswith("Critical")]
    assert topics == ["Critical batch size, target 3.02 nats", "Critical batch size, target 3.42 nats"]
    warning = "different target losses (adam 3.02 nats and sgd 3.42 nats) and cannot be compared"
    assert warning in output.text(apart).replace("\n    ", " ") and "cannot be compared" not in output.text(together)
    assert "Critical batch size" in together.findings()
    for name in ("critical_batch", "steps_to_target"):
        assert len(output.page.comparable(apart.tables[name])) == 2
        assert output.page.comparable(together.tables[name]) == [together.tables[name]]


def test_a_gap_below_the_standard_error_of_the_validation_loss_gives_a_warning():
    words = "The standard error of the validation loss, 0.05 nats, is larger than 1 of 2 gaps between methods"
    assert words in output.text(compared(0.04, 0.06, validation_loss_se_nats=0.05)).replace("\n    ", " ")
    assert "standard error" not in output.text(compared(0.06, 0.06, validation_loss_se_nats=0.05))
    assert "standard error" not in output.text(compared(0.04, 0.06))


def test_the_standard_error_is_read_from_a_run_and_from_a_column(tmp_path):
    write_run(tmp_path / "run", Cell({"train.batch_size": 4}, 3.0))
    result = read_json(tmp_path / "run" / "result.json") | {"validation_loss_se_nats": 0.25}
    write_json(tmp_path / "run" / "result.json", result)
    (tmp_path / "runs.csv").write_text("batch_size,loss_nats,validation_loss_se_nats\n4,3,0.25\n")
    for table in (sweeps.read([tmp_path / "run"]), columns.read(tmp_path / "runs.csv", "")):
        assert [r.validation_loss_se_nats for r in table.runs] == [0.25]


@pytest.mark.parametrize(
    ("multipliers", "ending"),
    [
        ((1 / 8, 8), "is unknown at batch size 4: no run at the tuned config (multiplier 1) has a result."),
        (
            (1 / 8, 1 / 2, 2, 8),
            "is unknown at batch size 4: no run at the tuned config (multiplier 1) has a result.",
        ),
        ((1, 2), "is unknown at batch size 4: only two of its values have a result."),
        ((1 / 2, 1, 2), "of the lowest loss spans at least a factor of 4 at batch size 4."),
    ],
)
def test_a_sensitivity_table_without_its_tuned_point_gives_no_width(multipliers, ending):
    found = analyze(RunTable(tuple(run("adam", 4, 3.0, point=(("multiplier", m),)) for m in multipliers)))
    (sentence,) = found.findings()["Robustness"]
    assert "range of multiplier within 0.02 nats of the lowest loss" in sentence and sentence.endswith(ending)
