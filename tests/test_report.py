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
from grids import Basin, Cell, basin_cells, replaced, write_sweep

from smallbatch.files.json_files import read as read_json

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
        (["--csv=nowhere.csv"], "error: --csv=nowhere.csv does not exist"),
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


def test_a_report_never_touches_its_input_or_the_files_of_a_person(tmp_path):
    mine = tmp_path / "mine"
    (mine / "figures").mkdir(parents=True)
    for name, text in (("runs.csv", RUNS), ("index.html", "mine"), ("figures/mine.svg", "<svg/>")):
        (mine / name).write_text(text)
    before = contents(mine)
    done = report("--csv=runs.csv", "--out=.", cwd=mine)
    assert done.returncode == 2 and done.stderr.startswith("error: --out=. contains the input runs.csv")
    done = report("--csv=mine/runs.csv", f"--out={mine}/figures", cwd=tmp_path)
    assert done.returncode == 2 and "is not empty and holds no report" in done.stderr
    assert contents(mine) == before
