"""Only files that a report wrote are replaced or removed."""

from pathlib import Path

import pytest
from grids import Cell, run, write_sweep

from smallbatch.analysis.analyze import analyze
from smallbatch.analysis.read import columns
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import output
from smallbatch.analysis.report import report_dir as directory
from smallbatch.analysis.report.report_dir import LIST, ReportDirectory
from smallbatch.analysis.report.section import Analysis
from smallbatch.errors import UserError
from smallbatch.files.json_files import read as read_json
from smallbatch.runs.records import write_json

RUNS = "batch_size,loss_nats\n1,3.1\n4,3.2\n"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def written_report(directory: Path) -> dict[str, bytes]:
    """Write a small report and return its files."""
    output.write(analyze(RunTable((run("adam", 4, 3.0),))), directory)
    return contents(directory)


@pytest.mark.parametrize("out", ["sweep", "sweep/cells", "sweep/cells/000000", ".", "link", "file"])
def test_a_report_does_not_overwrite_a_sweep_a_run_or_a_file(tmp_path, out):
    sweep = write_sweep(tmp_path / "sweep", [Cell({"train.batch_size": 4}, 2.5)])
    (tmp_path / "link").symlink_to(sweep)
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="--out="):
        ReportDirectory(tmp_path / out, [sweep])
    assert contents(tmp_path) == before
    assert ReportDirectory(sweep / "report", [sweep]).path == sweep / "report"


def test_an_input_that_links_into_or_out_of_the_directory_is_an_error(tmp_path):
    written_report(tmp_path / "out")
    (tmp_path / "runs.csv").write_text(RUNS)
    (tmp_path / "out" / "runs-link.csv").symlink_to(tmp_path / "runs.csv")
    (tmp_path / "into.csv").symlink_to(tmp_path / "out" / "equal_flops.csv")
    for given in (tmp_path / "out" / "runs-link.csv", tmp_path / "into.csv"):
        with pytest.raises(UserError, match="contains the input"):
            ReportDirectory(tmp_path / "out", [given])


def test_a_report_replaces_the_previous_one_and_keeps_other_files(tmp_path):
    output.write(two_methods(tmp_path), tmp_path / "out")
    ours = contents(tmp_path / "out")
    assert "figures/curve.svg" not in ours and len(ours) > 5
    for name in ("notes.csv", "figures/mine.svg"):
        (tmp_path / "out" / name).write_text("mine")
    second = written_report(tmp_path / "out")
    assert {"notes.csv", "figures/mine.svg"} <= second.keys()
    assert ours.keys() - second.keys() >= {"gaps.csv", "figures/gap-grid.svg"}  # one arm has no gap
    listed = read_json(tmp_path / "out" / LIST)["files"]
    assert set(listed) == second.keys() - {"notes.csv", "figures/mine.svg", LIST}
    (tmp_path / "out" / "gaps.csv").write_text("mine")
    with pytest.raises(UserError, match=r"gaps.csv was not written by a report"):
        output.write(two_methods(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "gaps.csv").read_text() == "mine"


def two_methods(tmp_path: Path) -> Analysis:
    path = tmp_path / "two.csv"
    path.write_text("batch_size,loss_nats,arm,setting\n4,3.1,adam,grid\n4,3.3,sgd,grid\n")
    return analyze(columns.read(path, ""))


def test_a_report_without_its_list_is_not_overwritten(tmp_path):
    written_report(tmp_path / "out")
    (tmp_path / "out" / LIST).unlink()
    with pytest.raises(UserError, match=r"has no report_files\.json of an earlier report"):
        written_report(tmp_path / "out")


def test_an_interrupted_report_can_be_written_again(tmp_path, monkeypatch):
    write = directory.write_bytes

    def interrupted(path, content):
        if path.name == "index.html":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(directory, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written_report(tmp_path / "out")
    monkeypatch.undo()
    assert "index.html" in written_report(tmp_path / "out")


@pytest.mark.parametrize(
    "listed",
    [["../mine.csv"], ["/etc/passwd"], ["figures/../../mine.csv"], ["notes.txt"], [3], {}, "index.html", None],
    ids=str,
)
def test_a_changed_list_cannot_remove_other_files(tmp_path, listed):
    written_report(tmp_path / "out")
    for name in ("mine.csv", "out/notes.txt"):
        (tmp_path / name).write_text("mine")
    write_json(tmp_path / "out" / LIST, {"format": 1, "files": listed})
    before = contents(tmp_path)
    with pytest.raises(UserError, match="must list the files of a report"):
        written_report(tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_link_in_place_of_the_figures_directory_is_an_error(tmp_path):
    written_report(tmp_path / "out")
    (tmp_path / "out" / "figures").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "figures").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="must be a directory"):
        written_report(tmp_path / "out")
    assert contents(tmp_path) == before
