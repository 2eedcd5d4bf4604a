"""The report command: a page that says what can be said, safe and whole, or one line; whatever it is given."""

import csv
import html
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grids import Basin, Cell, basin_cells, replaced, write_run, write_sweep

from smallbatch.analysis import columns, directory, output, study, sweeps
from smallbatch.analysis.directory import LIST, ReportDirectory
from smallbatch.analysis.table import Run, RunTable
from smallbatch.errors import UserError
from smallbatch.records import read_json, write_json

ADAM_B2 = {"optimizer.t2_tokens": None, "optimizer.b2": 0.95}
SGD = {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None}


def report(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "smallbatch.report", *map(str, words)], capture_output=True, text=True, cwd=cwd
    )


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.loads, self.ids, self.links, self.texts = [], [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.loads += [found[key] for key in ("src", "srcset", "data") if key in found]
        self.loads += [found["href"]] if tag == "link" else []

    def handle_data(self, data):
        self.texts.append(data)


def grid(**changes):
    cells = basin_cells(Basin(noise=0.002), [1, 4, 16, 64], range(-11, -5), [0, 1, 2], rng(0))
    cells += basin_cells(Basin(floor_nats=2.4, noise=0.002), [1, 4, 16, 64], range(-11, -5), [0, 1, 2], rng(1), **SGD)
    return [replaced(cell, **changes) for cell in cells]


def rng(seed):
    import numpy as np

    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The report of a grid with two arms, two hyperparameters, diagnostics, and one of every kind of failure."""
    diagnostics = {"grad_norm": lambda _: 1.0, "update_norm": lambda _: 0.1, "path_per_token": lambda _: 1e-4,
                   "grad_signal_sq": lambda _: 1.0, "grad_noise_sq": lambda _: 9.0}  # fmt: skip
    cells = grid(extra=diagnostics, records=40)
    cells += [replaced(c, values={**c.values, "optimizer.weight_decay": 0.1}) for c in cells[:72]]
    for i, status in enumerate(("diverged", "missing", "failed", "cut", "skipped")):
        cells[7 * i + 1] = replaced(cells[7 * i + 1], status=status)
    path = write_sweep(tmp_path_factory.mktemp("full") / "sweep", cells, name="<script>alert(1)</script> & co")
    done = report(path)
    assert done.returncode == 0, done.stderr
    return path / "report", done.stdout


def test_the_terminal_gets_answers_warnings_and_the_path(full):
    out, said = full
    assert said.startswith("Which batch size\n  On this grid the lowest loss is 2.")
    assert said.rstrip().endswith(str(out / "index.html"))
    for words in (
        "1 of 216 runs are missing",
        "1 of 216 runs failed",
        "1 of 216 runs were cut short",
        "1 of 216 runs diverged",
        "1 of 216 runs were skipped above a learning rate that diverged",
    ):
        assert words in said


def test_the_page_loads_nothing_and_every_link_leads_somewhere(full):
    page = Page(full[0] / "index.html")
    assert page.loads == [] and page.tags.count("script") == 1
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "data:text/csv")) for link in page.links)


def test_a_name_that_is_markup_is_shown_and_not_run(full):
    text = (full[0] / "index.html").read_text()
    assert "<script>alert" not in text and "alert(1)" in html.unescape(text)
    assert all("<script" not in path.read_text() for path in (full[0] / "figures").glob("*.svg"))


def test_every_section_has_its_figures_and_every_figure_its_sentence_and_data(full):
    text = (full[0] / "index.html").read_text()
    figures = re.findall(r'<figure id="figure-(.*?)">(.*?)</figure>', text, re.DOTALL)
    kinds = {name.partition("-")[0] for name, _ in figures}
    assert kinds >= {"loss", "gap", "curve", "cost", "rise", "width", "heat", "trials", "learning", "critical", "grad"}
    for name, content in figures:
        assert re.search(r"<figcaption>[A-Z“a-z].{20,}<a href=\"#data-\w+\">", content, re.DOTALL), name
        svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", content, re.DOTALL)[0])
        drawn = [e for e in svg.iter() if e.tag.endswith(("}path", "}use", "}rect"))]
        assert len(drawn) > 10, f"{name} is empty"
        assert svg.get("aria-label")


def test_figures_take_their_colours_from_the_page_in_both_themes(full):
    text = (full[0] / "index.html").read_text()
    used = set(re.findall(r"var\((--[ab]\d+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    for name in used:
        assert f"{name}:" in light and f"{name}:" in dark.partition("</style>")[0]
    assert not re.search(r"#0[abc]00[0-9a-f]{2}", text), "a stand-in colour was left"


def test_a_figure_of_its_own_brings_its_colours(full):
    svg = (full[0] / "figures").glob("*.svg").__next__().read_text()
    ElementTree.fromstring(svg)
    assert set(re.findall(r"var\((--\w+)\)", svg)) <= set(re.findall(r"(--\w+):", svg))


def test_tables_are_files_and_in_the_summary(full):
    found = read_json(full[0] / "summary.json")
    for name in ("equal_flops", "gaps", "robustness", "critical_batch", "gradients", "hardware"):
        rows = list(csv.DictReader((full[0] / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == len(found[name]) > 0
        assert list(rows[0]) == list(found[name][0])
    assert len((full[0] / "runs.csv").read_text().splitlines()) == 1 + 216
    assert found["provenance"][0]["versions"]["jax"] == ["0.10.2"]
    assert found["questions"]["delta_nats"] == 0.02


def test_two_reports_of_the_same_runs_are_the_same(tmp_path):
    path = write_sweep(tmp_path / "sweep", grid()[:36])
    pages = []
    for name in ("a", "b"):
        assert report(path, f"--out={tmp_path / name}").returncode == 0
        pages.append((tmp_path / name / "index.html").read_bytes())
    assert pages[0] == pages[1]


def test_two_sweeps_stand_side_by_side(tmp_path):
    paths = [write_sweep(tmp_path / name, grid()[:72], name=name) for name in ("small", "large")]
    done = report(*paths, f"--out={tmp_path / 'out'}")
    assert "Which batch size · small" in done.stdout and "Which batch size · large" in done.stdout
    assert {"figure-loss-small", "figure-loss-large"} <= set(Page(tmp_path / "out" / "index.html").ids)


def lonely(**changes):
    return [Cell({"train.batch_size": 4}, 2.5, **changes)]


@pytest.mark.parametrize(
    ("cells", "said", "unsaid"),
    [
        (lonely(), "the lowest loss is 2.500 nats", "a critical batch size needs three batch sizes"),
        (lonely(status="diverged"), "no run came to a finite loss", "No run came to a finite loss."),
        (lonely(status="missing"), "no run came to a finite loss", "curves need metrics.jsonl"),
        (basin_cells(Basin(), [4], range(-10, -6), [0]), "lowest loss", "There is one batch size;"),
        (basin_cells(Basin(), [1, 4], [-9], [0]), "lowest loss", "Robustness needs a hyperparameter with two values"),
        ([replaced(c, status="diverged") for c in grid()[:24]], "no run came to a finite loss", "A gap needs two arms"),
        (lonely(records=1), "the lowest loss is 2.500 nats", "curves need metrics.jsonl"),
    ],
    ids=["one run", "one diverged", "nothing run", "one batch size", "one learning rate", "all diverged", "one record"],
)
def test_what_cannot_be_said_is_said(tmp_path, cells, said, unsaid):
    path = write_sweep(tmp_path / "sweep", cells)
    done = report(path)
    assert done.returncode == 0 and done.stderr == ""
    assert said in done.stdout
    assert unsaid in (path / "report" / "index.html").read_text()
    for svg in re.findall(r"<figure.*?</figure>", (path / "report" / "index.html").read_text(), re.DOTALL):
        assert svg.count("<use") + svg.count("<path") > 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "error: name a sweep directory: python -m smallbatch.report WORKDIR, or a file: --csv=runs.csv"),
        (["nowhere"], "error: there is no directory nowhere"),
        (["."], "error: . is no sweep (grid.json), no run (config.json, result.json) and holds no runs"),
        (["--csv=nowhere.csv"], "error: there is no file nowhere.csv"),
        ([".", "--columns=batch_size=b"], "error: --columns names the columns of a --csv, and there is none"),
        (["--delta_nats=-1", "."], "error: flag --delta_nats=-1"),
        (["--delta=1", "."], "error: there is no flag --delta; did you mean --delta_nats?"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, line):
    done = report(*words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_the_page_of_a_large_grid_stays_readable_and_quick(tmp_path):
    # a tenth of the 5,000 runs that are to take under a minute on a quiet machine
    cells = basin_cells(Basin(noise=0.002), [1, 4, 16, 64], range(-14, 1), range(8), rng(0))
    path = write_sweep(tmp_path / "sweep", [replaced(cell, records=100) for cell in cells])
    busy_secs = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    began = busy_secs()
    assert report(path).returncode == 0
    assert busy_secs() - began < 60
    assert (path / "report" / "index.html").stat().st_size < 3e6


RUNS = "batch_size,loss_nats\n1,3.1\n4,3.2\n"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def written_report(directory: Path) -> dict[str, bytes]:
    """Write a small report and return its files."""
    output.write(study.analyze(RunTable((run("adam", 4, 3.0),))), directory)
    return contents(directory)


def run(arm: str, batch_size: float, loss_nats: float, **changes) -> Run:
    known = {"setting": "grid", "seed": 0, "point": (), "status": "done"} | changes
    return Run(arm=arm, batch_size=batch_size, loss_nats=loss_nats, **known)


def test_a_report_never_touches_its_input_or_the_files_of_a_person(tmp_path):
    mine = tmp_path / "mine"
    (mine / "figures").mkdir(parents=True)
    for name, text in (("runs.csv", RUNS), ("index.html", "mine"), ("figures/mine.svg", "<svg/>")):
        (mine / name).write_text(text)
    before = contents(mine)
    done = report("--csv=runs.csv", "--out=.", cwd=mine)
    assert done.returncode == 2 and done.stderr.startswith("error: --out=. holds the input runs.csv")
    done = report("--csv=mine/runs.csv", f"--out={mine}/figures", cwd=tmp_path)
    assert done.returncode == 2 and "is not empty and holds no report" in done.stderr
    assert contents(mine) == before


@pytest.mark.parametrize("out", ["sweep", "sweep/cells", "sweep/cells/000000", ".", "link", "file"])
def test_a_report_is_not_written_over_a_sweep_a_run_or_a_file(tmp_path, out):
    sweep = write_sweep(tmp_path / "sweep", lonely())
    (tmp_path / "link").symlink_to(sweep)
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="--out="):
        ReportDirectory(tmp_path / out, [sweep])
    assert contents(tmp_path) == before
    assert ReportDirectory(sweep / "report", [sweep]).path == sweep / "report"


def test_an_input_that_is_a_link_into_the_directory_or_out_of_it_is_seen(tmp_path):
    written_report(tmp_path / "out")
    (tmp_path / "runs.csv").write_text(RUNS)
    (tmp_path / "out" / "runs-link.csv").symlink_to(tmp_path / "runs.csv")
    (tmp_path / "into.csv").symlink_to(tmp_path / "out" / "equal_flops.csv")
    for given in (tmp_path / "out" / "runs-link.csv", tmp_path / "into.csv"):
        with pytest.raises(UserError, match="holds the input"):
            ReportDirectory(tmp_path / "out", [given])


def test_a_report_replaces_the_last_one_and_keeps_what_a_person_put_beside_it(tmp_path):
    output.write(columns_report(tmp_path), tmp_path / "out")
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
    with pytest.raises(UserError, match=r"gaps.csv is in the way: no report wrote it"):
        output.write(columns_report(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "gaps.csv").read_text() == "mine"


def columns_report(tmp_path: Path) -> study.Study:
    path = tmp_path / "two.csv"
    path.write_text("batch_size,loss_nats,arm,setting\n4,3.1,adam,grid\n4,3.3,sgd,grid\n")
    return study.analyze(columns.read(path, ""))


def test_a_report_without_a_list_is_known_by_its_summary(tmp_path):
    output.write(columns_report(tmp_path), tmp_path / "out")
    (tmp_path / "out" / LIST).unlink()
    (tmp_path / "out" / "figures" / "mine.svg").write_text("mine")
    found = written_report(tmp_path / "out")
    assert "gaps.csv" not in found and "figures/gap-grid.svg" not in found
    assert found["figures/mine.svg"] == b"mine"


def test_a_report_that_was_interrupted_can_be_written_again(tmp_path, monkeypatch):
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
def test_a_list_cannot_make_a_report_remove_other_files(tmp_path, listed):
    written_report(tmp_path / "out")
    for name in ("mine.csv", "out/notes.txt"):
        (tmp_path / name).write_text("mine")
    write_json(tmp_path / "out" / LIST, {"format": 1, "files": listed})
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is not the list of a report's files; remove"):
        written_report(tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_directory_of_figures_that_is_a_link_is_refused(tmp_path):
    written_report(tmp_path / "out")
    (tmp_path / "out" / "figures").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "figures").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is not a directory of the report"):
        written_report(tmp_path / "out")
    assert contents(tmp_path) == before


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
    ids = Page(tmp_path / "out" / "index.html").ids
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
    words = "The standard error of the validation loss is 0.05 nats, which is larger than 1 of 2 gaps between arms"
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
        ((1, 2), "cannot be given at batch size 4: only two values of it have a result."),
        ((1 / 2, 1, 2), "of its best spans at least 2.0 doublings at batch size 4."),
    ],
)
def test_a_sensitivity_table_without_its_tuned_point_gives_no_width(multipliers, said):
    found = study.analyze(RunTable(tuple(run("adam", 4, 3.0, point=(("multiplier", m),)) for m in multipliers)))
    (sentence,) = output.answers(found)["How robust"]
    assert sentence.startswith("adam: the range of multiplier within 0.02 nats ") and sentence.endswith(said)
