"""Every command shown in README.md, docs/, the launch scripts and the configs is parsed and planned.

Nothing is trained: each command parses its own command line, and the plan is made for hypothetical devices.
"""

import math
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import runs

from smallbatch.config import cli
from smallbatch.config import files as config_files
from smallbatch.config.keys import markdown
from smallbatch.data import prepare
from smallbatch.grid import cells as grid_cells
from smallbatch.optim import markdown_table
from smallbatch.plan import plan as plans
from smallbatch.specs import DeviceSpec

GPT2_VOCABULARY = 50257
LAUNCH = runs.ROOT / "launch"
PAGES = [runs.ROOT / "README.md", *sorted((runs.ROOT / "docs").glob("*.md"))]
FILES = [*PAGES, LAUNCH / "Containerfile", *LAUNCH.glob("*.sh"), *runs.ROOT.glob("configs/*.py")]


@dataclass(frozen=True)
class Command:
    """A smallbatch command line, and the words before it."""

    where: str
    name: str  # of smallbatch.NAME
    words: tuple[str, ...]
    before: tuple[str, ...]  # the words before it: sbatch, the type of a TPU VM, ...

    def __str__(self) -> str:
        return f"{self.where}: {self.name} {' '.join(self.words)}"


def shown_lines(path: Path) -> list[tuple[str, str]]:
    """Return (where, command line) of the code blocks of a README, of a script's header or a config's docstring."""
    text = path.read_text()
    if path.suffix == ".md":
        parts = re.split(r"^#{2,} (.*)\n", text, flags=re.MULTILINE)
        sections = zip(["the top", *parts[1::2]], parts[::2], strict=True)
        blocks = [
            (where, block) for where, part in sections for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL)
        ]
    elif path.suffix == ".py":
        blocks = [(path.name, text.split('"""')[1].replace("Run:  ", ""))]
    else:
        header = text.partition("\nset " if path.suffix == ".sh" else "\nFROM ")[0]
        blocks = [(path.name, re.sub(r"^# ?", "", header, flags=re.MULTILINE))]
    joined = [(where, re.sub(r" *\\\n *", " ", block)) for where, block in blocks]
    lines = [(where, line.strip()) for where, block in joined for line in block.splitlines()]
    begin = re.compile(r"python -m smallbatch|pip install|GLIBC|sbatch|launch/|docker run")
    return [(where, re.split(r" {3,}", line)[0]) for where, line in lines if begin.match(line) and "..." not in line]


def command(where: str, line: str) -> Command | None:
    """Return the smallbatch command that a line runs; None if it only installs something."""
    words = shlex.split(line.rpartition(" && ")[2], comments=True)
    script = next((i for i, word in enumerate(words) if word.startswith("launch/")), None)
    if "-m" in words:
        i = words.index("-m") + 1
        return Command(where, words[i].removeprefix("smallbatch."), tuple(words[i + 1 :]), tuple(words[:i]))
    if words[:2] == ["docker", "run"]:
        i = words.index("smallbatch")  # the image, whose entry point is the train command
        return Command(where, "train", tuple(words[i + 1 :]), tuple(words[:i]))
    if script is None:
        return None
    name = words[script].removeprefix("launch/")
    first = {"slurm.sh": script + 1, "ray_slurm.sh": script, "ray_tpu_vm.sh": script + 2}.get(name)
    first = words.index("--") + 1 if first is None else first
    sweep = name.startswith("ray_")
    return Command(where, "sweep" if sweep else words[first], tuple(words[first + 1 :]), tuple(words[: first + sweep]))


COMMANDS = [found for path in FILES for shown in shown_lines(path) if (found := command(*shown))]
ON_TPU_VMS = [found for found in COMMANDS if any(word.endswith("/tpu_vm.sh") for word in found.before)]


def devices(of: Command) -> tuple[DeviceSpec, int]:
    """Return the devices and the number of processes that a command is meant for."""
    settings = dict(word.lstrip("-").partition("=")[::2] for word in (*of.before, *of.words))
    if "topology" in settings:
        return DeviceSpec("tpu", math.prod(map(int, settings["topology"].partition(":")[2].split("x")))), 1
    if of in ON_TPU_VMS:
        chips = next(int(word.partition("-")[2]) for word in of.before if re.fullmatch(r"v6e-\d+", word))
        return DeviceSpec("tpu", chips), chips // 4
    if "gpus-per-node" in settings:
        gpus = int(settings["nodes"]) * int(settings["gpus-per-node"])
        assert settings["ntasks-per-node"] == settings["gpus-per-node"]
        return DeviceSpec("gpu", gpus), gpus
    if of.where == "GPUs of one machine" or "gpus" in settings:
        return DeviceSpec("gpu", 4), 1
    processes = int(settings.get("process_count", 1))
    return DeviceSpec("cpu", 2 * processes), processes


def parsed(of: Command, monkeypatch, capsys) -> list:
    """Return the arguments of the command's main: config and words, if it takes any, and flags."""
    got, run = [], cli.run
    monkeypatch.setattr(cli, "run", lambda main, flags=(), **how: run(lambda *given: got.extend(given), flags, **how))
    monkeypatch.setattr(sys, "argv", [of.name, *of.words])
    monkeypatch.chdir(runs.ROOT)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(runs.ROOT / "smallbatch" / f"{of.name}.py"), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().err
    return got


def test_commands_are_found_in_every_file():
    assert {path.name for path in FILES if path not in PAGES} - {"tpu_hosts.sh"} <= {found.where for found in COMMANDS}
    assert {"TPU VM", "Slurm", "Container", "Several processes without Slurm or a TPU VM"} <= {
        found.where for found in COMMANDS
    }
    assert len(COMMANDS) > 40 and len(ON_TPU_VMS) == 2


@pytest.mark.parametrize("of", COMMANDS, ids=str)
def test_each_command_is_accepted_and_gives_every_process_work(of, monkeypatch, capsys):
    given = parsed(of, monkeypatch, capsys)
    if not given or not hasattr(given[0], "data"):
        return  # --help, or a command without a config
    config, flags = given
    if of.name == "sweep" and flags.status:
        return  # it reads the files of a sweep
    if of.name == "sweep":
        cells = grid_cells.enumerate_cells(config, config_files.load_grid(flags.config))
        assert grid_cells.selected(cells, flags.only)
        return
    spec, (there, processes) = plans.data_spec(config), devices(of)
    vocab_size = GPT2_VOCABULARY if spec.tokenizer.startswith("file:") else prepare.vocab_size(spec)
    mesh = plans.make(config, vocab_size=vocab_size, devices=there).mesh
    assert processes == 1 or mesh.devices == there.count, f"{mesh} on {there.count} devices in {processes} processes"


@pytest.mark.parametrize("of", ON_TPU_VMS, ids=str)
def test_on_a_tpu_vm_a_run_uses_only_the_mounted_disk(of, monkeypatch, capsys):
    config, flags = parsed(of, monkeypatch, capsys)
    disk = next(word for word in of.before if word.startswith("--setup=")).split()[-1]
    data = config.data
    paths = [data.source.partition(":")[2], data.tokenizer.partition(":")[2], data.cache_dir, flags.workdir]
    assert all(path.startswith(f"{disk}/") for path in paths), paths


def test_the_stand_in_for_a_corpus_needs_no_file(tmp_path, monkeypatch, capsys):
    (of,) = [found for found in COMMANDS if any(word.startswith("--topology=") for word in found.words)]
    config, _ = parsed(of, monkeypatch, capsys)
    config.data.cache_dir = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert prepare.vocab_size(plans.data_spec(config)) == GPT2_VOCABULARY
    assert prepare.lookup(plans.data_spec(config)) is None


def test_the_readme_is_short_and_links_exist():
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1500
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_generated_pages_are_up_to_date():
    docs = runs.ROOT / "docs"
    assert (docs / "configs.md").read_text() == markdown(), "run python -m smallbatch.config"
    assert markdown_table() in (docs / "optimizers.md").read_text()
