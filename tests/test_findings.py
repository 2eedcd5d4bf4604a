"""What a report says, in which words, and with which names: findings, warnings, figures."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grids import Cell, run, write_run, write_sweep

from smallbatch.analysis.read import columns, sweeps
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import output, study
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


def test_names_of_any_kind_are_drawn_shown_and_printed(tmp_path, capfd):
    runs = [
        run(name, size, 3 + i / 100 + size / 1000 + abs(rate - 0.002), setting="</style>\\1 \ud800",
            steps=1000 / size + 9, point=(("kind \\2", name), ("optimizer.peak_lr", rate)))
        for i, name in enumerate(HOSTILE) for size in (1, 4, 16) for rate in (0.001, 0.002)
    ]  # fmt: skip
    found = study.analyze(RunTable(tuple(runs)))
    page = output.write(found, tmp_path / "out").read_text()
    drawn = sorted((tmp_path / "out" / "figures").iterdir())
    words = {word for path in drawn for word in "\n".join(ElementTree.parse(path).getroot().itertext()).split("\n")}
    for shown in (
        "back\\slash \\1",
        "bell\\x07 \\x1b[2J\\r",
        "$x$ $\\frac$",
        "#000000 #0a0001",
        "--c-->",
        "\\ud800 half",
    ):
        assert shown in words
    assert any(word.strip() == "_hidden" for word in words)
    assert "<script>alert" not in page and page.count("</style>") == 1
    ids = re.findall(r'<[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and len({path.name.casefold() for path in drawn}) == len(drawn)
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", page + output.text(found))
    assert capfd.readouterr() == ("", "")


def test_a_long_text_hyperparameter_leaves_room_for_its_map(tmp_path):
    runs = [run("adam", 4, 3.0, point=(("a", name), ("b", value))) for name in ("x" * 400, "y") for value in "zw"]
    assert output.page.draw(study.analyze(RunTable(tuple(runs))))["robustness"]


def compared(*differences: float, **changes) -> study.Study:
    sizes = [4**i for i in range(len(differences))]
    runs = [run("adam", size, 3.0, **changes) for size in sizes]
    return study.analyze(
        RunTable((*runs, *(run("sgd", size, 3.0 + d, **changes) for size, d in zip(sizes, differences, strict=True))))
    )


@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        ((0.2,), "sgd minus adam: +0.200 nats at batch size 1."),
        (
            (0.1, -0.3, 0.2),
            "sgd minus adam: the largest gap over 3 batch sizes is -0.300 nats at batch size 4. Its sign changes "
            "between batch sizes 1 (+0.100) and 4 (-0.300), between 4 (-0.300) and 16 (+0.200).",
        ),
        (
            (0.1, 0.4, 0.2),
            "sgd minus adam: the largest gap over 3 batch sizes is +0.400 nats at batch size 4. Its sign is the same "
            "at all of them; the smallest is +0.100 nats at 1.",
        ),
        ((0.0, 0.0), "sgd minus adam: the gap is 0 nats at all 2 batch sizes."),
        (
            (-0.1, 0.0, 0.2),
            "sgd minus adam: the largest gap over 3 batch sizes is +0.200 nats at batch size 16. Its sign changes "
            "between batch sizes 1 (-0.100) and 16 (+0.200).",
        ),
    ],
)
def test_a_gap_is_told_by_its_largest_value_and_every_change_of_sign(differences, sentence):
    assert output.answers(compared(*differences))["Which optimizer"] == [sentence]


def test_two_methods_at_one_batch_size_have_a_gap_and_no_text_that_asks_for_two(tmp_path):
    values = {"train.batch_size": 4}
    cells = [Cell(values, 3.0), Cell({**values, **SGD}, 3.2)]
    for paths in ([write_sweep(tmp_path / "sweep", cells)], one_by_one(tmp_path, cells)):
        found = study.analyze(sweeps.read(paths))
        assert output.answers(found)["Which optimizer"] == ["sgd minus adam: +0.200 nats at batch size 4."]
        page = output.write(found, tmp_path / f"{paths[0].name}-report").read_text()
        assert 'id="data-gaps"' in page and "A gap needs" not in page and "No two arms" not in page


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

    apart = study.analyze(RunTable((*runs("adam", 3.0), *runs("sgd", 3.4))))
    together = study.analyze(RunTable((*runs("adam", 3.0), *runs("sgd", 3.0))))
    topics = [topic for topic in output.answers(apart) if topic.startswith("Critical")]
    assert topics == ["Critical batch size, target 3.02 nats", "Critical batch size, target 3.42 nats"]
    warning = (
        "The critical batch sizes have different target losses (adam 3.02 nats, sgd 3.42 nats) and cannot be compared"
    )
    assert warning in output.text(apart).replace("\n    ", " ") and "cannot be compared" not in output.text(together)
    assert "Critical batch size" in output.answers(together)
    for name in ("critical_batch", "steps_to_target"):
        assert len(output.page.comparable(apart.sheets[name])) == 2
        assert output.page.comparable(together.sheets[name]) == [together.sheets[name]]


def test_a_gap_below_the_standard_error_of_the_validation_loss_is_warned_of():
    words = "The standard error of the validation loss, 0.05 nats, is larger than 1 of 2 gaps between arms"
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
    ("multipliers", "said"),
    [
        ((1 / 8, 8), "cannot be given at batch size 4: no run at the tuned point (multiplier 1) has a result."),
        (
            (1 / 8, 1 / 2, 2, 8),
            "cannot be given at batch size 4: no run at the tuned point (multiplier 1) has a result.",
        ),
        ((1, 2), "cannot be given at batch size 4: only two of its values have a result."),
        ((1 / 2, 1, 2), "of its best spans at least 2.0 doublings at batch size 4."),
    ],
)
def test_a_sensitivity_table_without_its_tuned_point_gives_no_width(multipliers, said):
    found = study.analyze(RunTable(tuple(run("adam", 4, 3.0, point=(("multiplier", m),)) for m in multipliers)))
    (sentence,) = output.answers(found)["How robust"]
    assert sentence.startswith("adam: the range of multiplier within 0.02 nats ") and sentence.endswith(said)
