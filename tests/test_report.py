"""The report command: the page, its files, and errors of one line."""

import csv
import html
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from grids import Basin, Cell, basin_cells, replaced, write_sweep

from smallbatch.analysis.analyze import analyze
from smallbatch.analysis.read import sweeps
from smallbatch.analysis.report import output
from smallbatch.files.json_files import read as read_json

SGD = {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None}


def report(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "smallbatch.report", *map(str, words)], capture_output=True, text=True, cwd=cwd
    )


class Page(HTMLParser):
    """The tags, links and text of a page."""

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
    rng = np.random.default_rng(0)
    axes = ([1, 4, 16, 64], range(-11, -5), [0, 1, 2], rng)
    cells = basin_cells(Basin(noise=0.002), *axes) + basin_cells(Basin(floor_nats=2.4, noise=0.002), *axes, **SGD)
    return [replaced(cell, **changes) for cell in cells]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The report of a grid with two methods, two hyperparameters, diagnostics, and one run of each status."""
    diagnostics = {"grad_norm": lambda _: 1.0, "update_norm": lambda _: 0.1, "path_per_token": lambda _: 1e-4,
                   "grad_signal_sq": lambda _: 1.0, "grad_noise_sq": lambda _: 9.0}  # fmt: skip
    cells = grid(extra=diagnostics, records=40)
    cells += [replaced(c, values={**c.values, "optimizer.weight_decay": 0.1}) for c in cells[:72]]
    for i, status in enumerate(("diverged", "missing", "failed", "cut", "skipped")):
        cells[7 * i + 1] = replaced(cells[7 * i + 1], status=status)
    path = write_sweep(tmp_path_factory.mktemp("full") / "sweep", cells, name="<script>alert(1)</script> & co")
    done = report(path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return path / "report", done.stdout


def test_findings_warnings_and_the_path_are_printed(full):
    out, printed = full
    assert printed.startswith("Best batch size\n  The lowest loss is 2.")
    assert printed.rstrip().endswith(str(out / "index.html"))
    for words in (
        "1 of 216 runs is missing",
        "1 of 216 runs failed",
        "1 of 216 runs stopped early",
        "1 of 216 runs diverged",
        "1 of 216 runs is marked as skipped (a lower learning rate diverged) and counted as diverged",
    ):
        assert words in printed


def test_the_page_is_self_contained_and_its_links_work(full):
    page = Page(full[0] / "index.html")
    assert page.loads == [] and page.tags.count("script") == 1
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "data:text/csv")) for link in page.links)


def test_markup_in_a_name_is_escaped(full):
    text = (full[0] / "index.html").read_text()
    assert "<script>alert" not in text and "alert(1)" in html.unescape(text)
    assert all("<script" not in path.read_text() for path in (full[0] / "figures").glob("*.svg"))


def test_every_figure_has_a_caption_and_data(full):
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


def test_the_page_defines_the_colours_of_its_figures_in_both_themes(full):
    text = (full[0] / "index.html").read_text()
    used = set(re.findall(r"var\((--[bm]\d+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    for name in used:
        assert f"{name}:" in light and f"{name}:" in dark.partition("</style>")[0]
    assert not re.search(r"#0[abc]00[0-9a-f]{2}", text), "a placeholder colour is left"


def test_a_figure_file_defines_its_colours(full):
    svg = (full[0] / "figures").glob("*.svg").__next__().read_text()
    ElementTree.fromstring(svg)
    assert set(re.findall(r"var\((--\w+)\)", svg)) <= set(re.findall(r"(--\w+):", svg))


def test_tables_are_in_csv_files_and_in_the_summary(full):
    found = read_json(full[0] / "summary.json")
    for name in ("equal_flops", "gaps", "robustness", "critical_batch", "gradients", "hardware"):
        rows = list(csv.DictReader((full[0] / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == len(found[name]) > 0
        assert list(rows[0]) == list(found[name][0])
    assert len((full[0] / "runs.csv").read_text().splitlines()) == 1 + 216
    assert found["provenance"][0]["versions"]["jax"] == ["0.10.2"]
    assert found["options"]["delta_nats"] == 0.02


def test_a_report_is_deterministic(tmp_path):
    path = write_sweep(tmp_path / "sweep", grid()[:36])
    pages = []
    for name in ("a", "b"):
        assert report(path, f"--out={tmp_path / name}").returncode == 0
        pages.append((tmp_path / name / "index.html").read_bytes())
    assert pages[0] == pages[1]


def test_two_sweeps_are_reported_separately(tmp_path):
    paths = [write_sweep(tmp_path / name, grid()[:72], name=name) for name in ("small", "large")]
    done = report(*paths, f"--out={tmp_path / 'out'}")
    assert "Best batch size · small" in done.stdout and "Best batch size · large" in done.stdout
    assert {"figure-loss-small", "figure-loss-large"} <= set(Page(tmp_path / "out" / "index.html").ids)


def single_run(**changes):
    return [Cell({"train.batch_size": 4}, 2.5, **changes)]


@pytest.mark.parametrize(
    ("cells", "finding", "empty"),
    [
        (single_run(), "The lowest loss is 2.500 nats", "a critical batch size needs three batch sizes"),
        (single_run(status="diverged"), "No run has a finite loss", "No run has a finite loss."),
        (single_run(status="missing"), "No run has a finite loss", "curves need metrics.jsonl"),
        (basin_cells(Basin(), [4], range(-10, -6), [0]), "lowest loss", "All runs have the same batch size;"),
        (basin_cells(Basin(), [1, 4], [-9], [0]), "lowest loss", "Robustness needs a hyperparameter with two values"),
        ([replaced(c, status="diverged") for c in grid()[:24]], "No run has a finite loss", "A gap needs two methods"),
        (single_run(records=1), "The lowest loss is 2.500 nats", "curves need metrics.jsonl"),
    ],
    ids=["one run", "one diverged", "nothing run", "one batch size", "one learning rate", "all diverged", "one record"],
)
def test_missing_results_are_explained(tmp_path, cells, finding, empty):
    path = write_sweep(tmp_path / "sweep", cells)
    analysis = analyze(sweeps.read([path]))
    page = output.write(analysis, path / "report").read_text()
    assert finding in output.text(analysis) and empty in page
    for svg in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert svg.count("<use") + svg.count("<path") > 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "error: there are no runs to report; give a sweep directory"),
        (["nowhere"], "error: there is no directory nowhere"),
        (["."], "error: . contains no sweep (grid.json) and no runs (config.json, result.json)"),
        (["--csv=nowhere.csv"], "error: --csv=nowhere.csv does not exist"),
        ([".", "--columns=batch_size=b"], "error: --columns needs a file of runs"),
        (["--delta_nats=-1", "."], "error: --delta_nats is -1.0, but must be a number in [0, 1000]"),
        (["--delta=1", "."], "error: there is no flag --delta; did you mean --delta_nats?"),
    ],
)
def test_a_usage_error_is_one_line(tmp_path, words, line):
    done = report(*words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_a_large_grid_gives_a_small_page_quickly(tmp_path):
    # 480 runs; 5,000 must take under a minute on an idle machine
    cells = basin_cells(Basin(noise=0.002), [1, 4, 16, 64], range(-14, 1), range(8), np.random.default_rng(0))
    path = write_sweep(tmp_path / "sweep", [replaced(cell, records=100) for cell in cells])
    busy_secs = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    began = busy_secs()
    assert report(path).returncode == 0
    assert busy_secs() - began < 60
    assert (path / "report" / "index.html").stat().st_size < 3e6


RUNS = "batch_size,loss_nats\n1,3.1\n4,3.2\n"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_report_never_changes_its_input_or_other_files(tmp_path):
    mine = tmp_path / "mine"
    (mine / "figures").mkdir(parents=True)
    for name, text in (("runs.csv", RUNS), ("index.html", "mine"), ("figures/mine.svg", "<svg/>")):
        (mine / name).write_text(text)
    before = contents(mine)
    done = report("--csv=runs.csv", "--out=.", cwd=mine)
    assert done.returncode == 2 and done.stderr.startswith("error: --out=. contains the input runs.csv")
    done = report("--csv=mine/runs.csv", f"--out={mine}/figures", cwd=tmp_path)
    assert done.returncode == 2 and "is not empty and has no report_files.json" in done.stderr
    assert contents(mine) == before
