"""The command line: flags and overrides reach the command, and a usage error is one line and exit code 2."""

import importlib
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch import config
from smallbatch.config import cli, keys
from smallbatch.config import files as config_files
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.grid.axes import axis
from smallbatch.grid.cells import enumerate_cells
from smallbatch.runs.records import write_json

REPOSITORY = Path(__file__).parents[1]


FLAGS = (
    Key("--workdir", None, str, "where the run is written"),
    Key("--dry_run", False, bool, "print the plan and stop"),
    Key("--count", 3, int, "how many", Interval(0, 2**32)),
    Key("--sizes", (1, 4), int, "several", Interval(1, 2**16)),
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: words -> (exit code, stdout, stderr, what main got)."""

    def run(*words, main=None, config=True):
        got = []
        monkeypatch.setattr(sys, "argv", ["command", *words])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(main or (lambda *arguments: got.extend(arguments)), FLAGS, config=config)
        return exit_info.value.code, *capsys.readouterr(), got

    return run


def configured(run, *words):
    code, _, err, got = run(*words)
    assert (code, err) == (0, "")
    return got[0]


def test_without_a_config_file_the_config_is_the_quickstart(run):
    assert configured(run) == config.quickstart()


def test_overrides_and_flags_reach_main_in_both_spellings(run):
    _, _, _, (c, flags) = run("--config.train.batch_size=4", "--config.model.width", "64", "--workdir=x", "--dry_run")
    assert (c.train.batch_size, c.model.width, flags.workdir, flags.dry_run, flags.count) == (
        4,
        64,
        "x",
        True,
        3,
    )


def test_the_last_override_wins_in_any_order(run):
    file = str(REPOSITORY / "configs/quickstart.py")
    c = configured(run, "--config.train.seed=1", "--config.train.seed=2", f"--config={file}")
    assert c.train.seed == 2


def test_values_have_the_type_of_their_key(run):
    c = configured(
        run, "--config.optimizer.peak_lr=1", "--config.train.seed", "1_000", "--config.train.sample_prompt=7"
    )
    assert [type(x) for x in (c.optimizer.peak_lr, c.train.seed, c.train.sample_prompt)] == [float, int, str]


@pytest.mark.parametrize(
    ("text", "number"), [("0.0", 0), ("3.", 3), ("1e3", 1000), ("+2.00", 2), ("4294967295.0", 2**32 - 1)]
)
def test_an_integer_can_be_written_as_a_float(run, text, number):
    c = configured(run, f"--config.train.seed={text}", f"--config.data.shuffle_seed={text}")
    assert (c.train.seed, c.data.shuffle_seed) == (number, number) and type(c.train.seed) is int
    assert run(f"--count={text}")[3][1].count == number


def test_an_integer_can_be_a_float_in_a_config_file_and_a_grid(run, tmp_path):
    c = config.base()
    c.train.seed, c.mesh.data = 3.0, 2.0
    c.train.update({"batch_size": 8.0})
    assert (c.train.seed, c.mesh.data, c.train.batch_size) == (3, 2, 8)
    assert {type(x) for x in (c.train.seed, c.mesh.data, c.train.batch_size)} == {int}
    (one, two) = enumerate_cells(config.quickstart(), axis("train.seed", [0.0, 1.0]))
    assert (one.values, type(two.flat["train.seed"])) == ({"train.seed": 0}, int)
    assert one.id == enumerate_cells(config.quickstart(), axis("train.seed", [0]))[0].id


@pytest.mark.parametrize(("key", "value"), [("seed", True), ("seed", 0.5), ("checkpoint_every_secs", False)])
def test_a_bool_is_not_a_number(key, value):
    c = config.base()
    with pytest.raises(UserError, match=f"train.{key} is {value}, but must be a"):
        c.train[key] = value
    c.train[key] = 1  # the type of the key is unchanged
    assert c.train[key] == 1


@pytest.mark.parametrize("none", ["none", "None"])
def test_none_unsets_an_optional_key(run, none):
    c = configured(run, f"--config.optimizer.t2_tokens={none}", "--config.optimizer.b2=0.95")
    assert (c.optimizer.t2_tokens, c.optimizer.b2) == (None, 0.95)
    assert configured(run, f"--config.model.remat={none.lower()}").model.remat == "none"


def test_switches_work_with_and_without_a_value(run):
    assert configured(run, "--config.records.tensorboard").records.tensorboard is True
    assert configured(run, "--noconfig.records.tensorboard").records.tensorboard is False
    assert configured(run, "--config.records.tensorboard=false").records.tensorboard is False
    assert run("--nodry_run")[3][1].dry_run is False


USAGE_ERRORS = {
    "--config.train.batch_sise=4": "did you mean train.batch_size?",
    "--config.trian.batch_size=4": "did you mean train.batch_size?",
    "--config.optimizer.batch_size=4": "did you mean train.batch_size?",
    "--config.batch_size=4": "did you mean train.batch_size?",
    "--batch_size=4": "did you mean --config.train.batch_size?",
    "--batch-size=4": "did you mean --config.train.batch_size?",
    "--config.train.zzzz=4": "choose one of train.batch_size, ",
    "--config.zzzz.zzzz=4": "choose one of data, model, ",
    "--config.train=4": "there is no key train; choose one of train.batch_size, ",
    "--dry-run": "did you mean --dry_run?",
    "--zzzz": "the flags are --workdir, --dry_run, --count, --sizes, --config, --help",
    "--config.train.batch_size=1e30": "but must be an integer in [1, 2^24]",
    f"--config.train.budget_tokens={'9' * 5000}": "but must be an integer in [1, 2^53]",
    "--config.train.seed=nan": "train.seed is 'nan', but must be an integer in [0, 2^32)",
    "--config.train.sample_prompt=caf\udce9": "is not UTF-8; use a UTF-8 terminal",
    "--workdir=\udcff": "is not UTF-8; use a UTF-8 terminal",
    "\udcff": "is not UTF-8",
    "--count=2.5": "--count is '2.5', but must be an integer in [0, 2^32]",
    "--config.train.batch_size=1,000": "train.batch_size is '1,000', but must be an integer in [1, 2^24]",
    "--config.train.batch_size=2.5": "but must be an integer in [1, 2^24]",
    "--config.train.batch_size=true": "but must be an integer in [1, 2^24]",
    "--config.train.batch_size=None": "but must be an integer in [1, 2^24]",
    "--config.train.microbatch_size=x": "train.microbatch_size is 'x', but must be an integer in [1, 2^24], or None",
    "--config.optimizer.peak_lr=fast": "optimizer.peak_lr is 'fast', but must be a number in (0, inf), or None",
    "--config.optimizer.eps=None": "optimizer.eps is 'None', but must be a number in (0, inf)",
    "--config.data.source=None": "data.source cannot be unset; its default is pystdlib",
    "--config.records.tensorboard=yes": "records.tensorboard is 'yes', but must be true or false",
    "--config.train.seed": "--config.train.seed has no value; write --config.train.seed=VALUE",
    "--config": "--config has no value; write --config=VALUE",
    "--count=many": "--count is 'many', but must be an integer in [0, 2^32]",
    "train": "unexpected argument 'train'; write a flag as --name=value",
    "--": "unexpected argument '--'",
    "--config=no/such.py": "there is no config file 'no/such.py'",
    "--config.model.width=100": "model.head_width is 32, which does not divide model.width, 100",
}


COMMANDS = ("benchmark", "memory", "prepare", "report", "sample", "sweep", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_on_a_command_line_has_an_interval(command):
    for flag in getattr(importlib.import_module(f"smallbatch.{command}"), "FLAGS", ()):
        assert flag.name.startswith("--") and flag.problem(flag.default) is None
        assert flag.type not in (int, float) or isinstance(flag.allowed, Interval), flag.name


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1,65537", "9" * 5000, "x", "1,,2", ""])
def test_each_value_of_a_list_is_checked(run, text):
    code, _, err, _ = run(f"--sizes={text}")
    assert code == 2 and "but must be an integer in [1, 2^16], or several separated by commas" in err
    assert run("--sizes=1,65536")[3][1].sizes == (1, 65_536)


@pytest.mark.parametrize("word", USAGE_ERRORS)
def test_a_usage_error_is_one_line_with_a_fix(run, word):
    code, out, err, got = run(word)
    assert (code, out, got) == (2, "", [])
    assert err.startswith("error: ") and err.count("\n") == 1
    assert USAGE_ERRORS[word] in err


def test_a_flag_is_not_the_value_of_another_flag(run):
    assert "--config.train.seed has no value" in run("--config.train.seed", "--dry_run")[2]
    assert configured(run, "--config.optimizer.warmup_frac", "0").optimizer.warmup_frac == 0
    assert "train.seed is -1" in run("--config.train.seed", "-1")[2]


CONFIG_FILES = {
    "def get_config(:": ":1: invalid syntax",
    "x = 1": "has no get_config()",
    "import no_such_module": ":1: ModuleNotFoundError: No module named 'no_such_module'",
    "def get_config():\n    return 1 / 0": ":2: ZeroDivisionError: division by zero",
    "def get_config():\n    pass": "returned None; is its return statement missing?",
    "def get_config():\n    return {'a': 1}": "must return a ConfigDict, but returned {'a': 1}",
    "def get_config(size):\n    return size": "needs one; write FILE.py:ARGUMENT",
    "from smallbatch import config\ndef get_config():\n    c = config.base()\n    c.train.batch_sise = 1\n": (
        ":4: there is no key train.batch_sise; did you mean train.batch_size?"
    ),
    "from smallbatch import config\ndef get_config():\n    c = config.base()\n    c.train.seed = 1.5\n": (
        ":4: train.seed is 1.5, but must be an integer in [0, 2^32)"
    ),
    "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'width': 1})": (
        "must start from smallbatch.config.base(): its keys differ in data."
    ),
    "from smallbatch.errors import UserError\ndef get_config():\n    raise UserError('no size huge')": (
        ":3: no size huge"
    ),
}


@pytest.mark.parametrize("text", CONFIG_FILES)
def test_an_error_in_a_config_file_is_reported_with_its_line(run, tmp_path, text):
    file = tmp_path / "broken.py"
    file.write_text(text)
    code, _, err, _ = run(f"--config={file}")
    assert code == 2 and err.count("\n") == 1
    assert str(file) in err and CONFIG_FILES[text] in err


def write_experiment(folder: Path, seed: int, package: bool = False) -> Path:
    """Write exp.py and the module common beside it, which exp.py imports, at its start and in its functions."""
    folder.mkdir()
    (folder / "common").mkdir() if package else None
    (folder / ("common/__init__.py" if package else "common.py")).write_text(f"SEED = {seed}\n")
    (folder / "late.py").write_text(f"WIDTH = {64 * seed}\n")
    (folder / "exp.py").write_text(
        "import common\nfrom smallbatch import config\nfrom smallbatch.grid import axis\n"
        "def get_config():\n    from late import WIDTH\n    c = config.quickstart()\n"
        "    c.train.seed, c.model.width = common.SEED, WIDTH\n    return c\n"
        "def get_grid():\n    import late\n    return axis('model.width', [late.WIDTH])\n"
    )
    return folder / "exp.py"


def test_each_config_file_imports_the_modules_of_its_own_folder(run, tmp_path, monkeypatch):
    files = [write_experiment(tmp_path / str(seed), seed, package=seed == 2) for seed in (1, 2, 3)]
    path, modules = list(sys.path), set(sys.modules)
    for seed, file in enumerate(files, 1):
        c = configured(run, f"--config={file}")
        assert (c.train.seed, c.model.width) == (seed, 64 * seed)
        assert config_files.load_grid(str(file)) == ({"model.width": 64 * seed},)
    monkeypatch.chdir(files[0].parent)
    assert configured(run, "--config=exp.py").train.seed == 1
    (files[0].parent / "common.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in run("--config=exp.py")[2]
    assert sys.path == path and not {"common", "late"} & (set(sys.modules) - modules)


def test_config_json_is_a_config_file(run, tmp_path):
    file = tmp_path / "config.json"
    c = config.quickstart()
    c.train.seed, c.model.ffn_width = 7, 96
    write_json(file, c.to_dict())
    assert configured(run, f"--config={file}", "--config.model.layers=2").train.seed == 7
    assert configured(run, f"--config={file}").model.ffn_width == 96
    assert "has no argument; remove ':x'" in run(f"--config={file}:x")[2]
    assert "there is no config file" in run(f"--config={tmp_path}/none.json")[2]


def test_invalid_utf8_in_a_config_json_is_an_error(run, tmp_path):
    c = config.quickstart()
    c.train.sample_prompt = "\ud800"
    write_json(tmp_path / "config.json", c.to_dict())
    code, _, err, _ = run(f"--config={tmp_path}/config.json")
    assert code == 2 and "train.sample_prompt is '\\ud800', which is not valid UTF-8" in err and err.count("\n") == 1


BAD_SAVED = {
    '{"train": {"sede": 1}}': "or is from another version: there is no key train.sede; did you mean train.seed?",
    '{"optimiser": {"name": "adam"}}': "there is no key optimiser.name; did you mean",
    '{"train": {"seed": "x"}}': "train.seed is 'x', but must be an integer in [0, 2^32)",
    '{"train": 3}': "is damaged, or is not the config of a run (train is 3, not an object)",
    "[1]": "is damaged, or is not the config of a run (it is [1], not an object)",
    "{": "is damaged",
}


@pytest.mark.parametrize("text", BAD_SAVED)
def test_an_invalid_config_json_is_a_one_line_error(run, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    code, _, err, _ = run(f"--config={tmp_path}/config.json")
    assert code == 2 and err.count("\n") == 1 and BAD_SAVED[text] in err and str(tmp_path) in err


def test_get_config_gets_the_argument(run, tmp_path):
    file = tmp_path / "sized.py"
    file.write_text(
        "from smallbatch import config\n"
        "def get_config(seed='1'):\n    c = config.quickstart()\n    c.train.seed = int(seed)\n    return c\n"
    )
    assert configured(run, f"--config={file}").train.seed == 1
    assert configured(run, f"--config={file}:5", "--config.model.layers=2").train.seed == 5
    assert ":4: ValueError: invalid literal" in run(f"--config={file}:x")[2]
    quickstart = REPOSITORY / "configs/quickstart.py"
    assert "has no argument; remove ':x'" in run(f"--config={quickstart}:x")[2]
    assert "did you mean" in run(f"--config={str(quickstart).replace('quick', 'quik')}")[2]


def test_all_problems_of_a_config_are_printed(run):
    words = ["--config.train.microbatch_size=3", "--config.optimizer.b2=0.9", "--config.model.remat=ful"]
    _, _, err, _ = run(*words, "--config.optimizer.warmup_frac=nan")
    assert err.startswith("error: in the config:\n")
    assert len(err.splitlines()) == 5
    for part in (
        "warmup_frac is nan",
        "did you mean full?",
        "microbatch_size is 3, which does not divide",
        "optimizer.b2 is 0.9",
    ):
        assert part in err


def test_a_command_without_a_config_has_only_its_own_flags(run):
    code, _, _, got = run("--count=4", config=False)
    assert code == 0 and len(got) == 1 and got[0].count == 4
    assert "there is no flag --config; the flags are" in run("--config=x.py", config=False)[2]


def test_main_returns_the_exit_code_and_a_user_error_is_one_line(run):
    def fail(config, flags):
        raise UserError("no room left in runs/; free some")

    assert run(main=lambda config, flags: 3)[0] == 3
    assert run(main=fail)[:3] == (2, "", "error: no room left in runs/; free some\n")


def test_other_exceptions_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda config, flags: 1 // 0, FLAGS)


COMMAND = '''"""Say the width: a command for a test."""
import sys, time
from smallbatch.config import cli

def main(config, flags):
    print(config.model.width, "jax" in sys.modules, flush=True)
    time.sleep(config.train.seed)

if __name__ == "__main__":
    cli.run(main)
'''


@pytest.fixture
def command(tmp_path):
    (tmp_path / "say.py").write_text(COMMAND)
    return {
        # The test runner may ignore Ctrl-C, as shells do for background processes.
        "args": [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import runpy, signal;"
                 "signal.signal(signal.SIGINT, signal.default_int_handler);"
                 "runpy.run_module('say', run_name='__main__', alter_sys=True)"],
        "cwd": tmp_path,
        "text": True,
    }  # fmt: skip


def test_help_is_fast_and_lists_flags_and_keys(command):
    command["args"].append("--help")
    busy_secs = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    began = busy_secs()
    done = subprocess.run(**command, capture_output=True)
    assert busy_secs() - began < 2  # 0.3 s; importing JAX and TFDS would take longer
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Say the width: a command for a test.\n\nusage: python -m say ")
    for key in keys.KEYS:
        assert key.name.partition(".")[2] in done.stdout
    assert len(done.stdout.splitlines()) < 40 and max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.parametrize("words", [["--help", "optimizer"], ["--help=optimizer"], ["--workdir=x", "-h", "optimizer"]])
def test_help_of_a_section_explains_each_of_its_keys(run, words):
    code, out, err, _ = run(*words)
    assert (code, err) == (0, "") and "--config.train" not in out
    for key in keys.sections()["optimizer"]:
        assert f"--config.{key.name} " in out
    assert "optimizer.t1_tokens  number in (0, inf) (default: unset)\n      half-life in tokens of" in out


def test_help_of_one_key_and_of_an_unknown_section(run):
    assert "none, dots, full (default: none)" in run("--help", "model.remat")[1]
    assert run("--help=optimiser")[0] == 2


def test_a_command_runs_in_any_directory_without_importing_jax(command):
    done = subprocess.run(**command, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "128 False\n", "")


def test_ctrl_c_exits_with_code_130(command):
    command["args"].append("--config.train.seed=60")
    with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "stopped\n")
