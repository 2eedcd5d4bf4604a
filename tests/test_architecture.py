"""Rules for the code: which package imports which, length of files and functions, and names."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "smallbatch"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = ("train", "sweep", "report", "prepare", "sample", "benchmark", "memory")
# Packages and modules directly below smallbatch. Each may import itself, and those in the lines above its own.
LAYERS = (
    ("__init__", "errors"),
    ("units", "specs"),
    ("files", "optim"),
    ("config",),
    ("plan",),
    ("runs", "model"),
    ("data", "analysis"),
    ("training",),
    ("grid",),
    COMMANDS,
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
# These import less than their layer allows.
ONLY = {
    "optim": {"errors", "units", "specs"},
    "model": {"errors", "units", "specs"},
    "data": {"errors", "units", "specs", "files", "runs"},
    "analysis": {"__init__", "errors", "units", "specs", "files", "optim", "runs"},
}
# Below `plan`, only these use a ConfigDict, to make plans.
SEE_CONFIG = {"training/run.py", "training/trained_run.py", "training/memory_table.py"}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow_datasets", "grain", "tokenizers", "pyarrow", "wandb"}
HEAVY |= {"tensorboardX", "tensorflow", "duckdb", "jinja2", "matplotlib", "scipy", "ray"}
NO_JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Return the dotted names that are imported anywhere in a tree."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_at_start(tree: ast.Module) -> set[str]:
    """Return what is imported at import time, without imports in functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in tree.body:
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= imports(node)
    return names


def rooms_of(names: set[str]) -> set[str]:
    """Return the packages and modules of smallbatch among dotted names."""
    rooms = set()
    for name in names:
        first, *rest = name.split(".")
        if first == "smallbatch":
            part = rest[0]
            rooms.add(part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists() else "__init__")
    return rooms


def outside(file: Path, tree: ast.Module) -> set[str]:
    """Return the packages that a file imports but may not."""
    here = room(file)
    below = {other for other, layer in LAYER_OF.items() if layer < LAYER_OF[here]}
    return rooms_of(imports(tree)) - ONLY.get(here, below) - {here}


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def test_each_package_imports_only_packages_below_it():
    assert {room(f) for f in FILES} == set(LAYER_OF), "add a new package to LAYERS"
    assert not {name(f): rooms for f in FILES if (rooms := outside(f, parsed(f)))}


def test_the_root_is_small_and_packages_import_few_others():
    assert len(list(PACKAGE.glob("*.py"))) <= 13
    pairs = {(room(f), other) for f in FILES for other in rooms_of(imports(parsed(f))) - {room(f)}}
    assert len(pairs) < 75, sorted(pairs)


def test_a_forbidden_import_is_detected():
    forbidden = {
        "data/stream.py": "from smallbatch import config",
        "model/decoder.py": "def f():\n    from smallbatch.optim import adam",
        "optim/adam.py": "import smallbatch.model.decoder",
        "plan/plan.py": "from smallbatch.training.run import train",
        "files/paths.py": "from smallbatch.runs import records",
    }
    for file, source in forbidden.items():
        assert outside(PACKAGE / file, ast.parse(source)), file
    assert not outside(PACKAGE / "optim/adam.py", ast.parse("from smallbatch.optim import sgd"))


def test_below_the_plan_only_run_imports_config():
    below = [f for f in FILES if room(f) in ("data", "model", "optim", "training")]
    assert {name(f) for f in below if "config" in rooms_of(imports(parsed(f)))} == SEE_CONFIG
    assert not [name(f) for f in FILES if "ml_collections" in f.read_text() and room(f) in ("data", "model", "optim")]


def test_data_and_analysis_never_import_jax():
    rooms = ("analysis", "report", "data", "runs", "config", "files", "units", "plan")
    without = [f for f in FILES if room(f) in rooms]
    assert len(without) > 40
    for file in without:
        assert not {n.partition(".")[0] for n in imports(parsed(file))} & NO_JAX, name(file)


def test_data_imports_no_plan_config_or_training():
    for file in FILES:
        if room(file) == "data":
            assert not rooms_of(imports(parsed(file))) & {"plan", "config", "training"}, name(file)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command_imports_no_heavy_library(command):
    # Follow the imports at import time, module by module.
    waiting, seen = {f"smallbatch.{command}"}, set()
    while waiting:
        module = waiting.pop()
        file = ROOT / (module.replace(".", "/") + ".py")
        if not file.exists():
            file = ROOT / module.replace(".", "/") / "__init__.py"
        if module in seen or not file.exists():
            continue
        seen.add(module)
        names = imports_at_start(parsed(file))
        assert not {n.partition(".")[0] for n in names} & HEAVY, f"{module} is imported by --help"
        ours = {n for n in names if n.startswith("smallbatch")}
        waiting |= ours | {n.rpartition(".")[0] for n in ours}
    assert "smallbatch.config.cli" in seen


def test_only_the_sharding_rules_name_mesh_axes():
    for file in FILES:
        if name(file) in ("model/sharding_rules.py", "plan/mesh_plan.py"):  # mesh_plan reads and reports config keys
            continue
        words = {n.value for n in ast.walk(parsed(file)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not words & {"fsdp", "tensor"}, name(file)
        called = {n.attr for n in ast.walk(parsed(file)) if isinstance(n, ast.Attribute)}
        names = {n.id for n in ast.walk(parsed(file)) if isinstance(n, ast.Name)}
        if name(file) != "training/sharding.py":
            assert not (called | names) & {"PartitionSpec", "NamedSharding", "Mesh"}, name(file)


def test_train_step_does_no_io():
    tree = parsed(PACKAGE / "training" / "train_step.py")
    assert not {n.partition(".")[0] for n in imports(tree)} & {"os", "pathlib", "logging", "sys", "json", "time"}
    assert not {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & {"print", "open"}


def test_files_and_functions_are_short():
    assert not [name(f) for f in FILES if len(f.read_text().splitlines()) > 400]
    long = {
        f"{name(f)}:{node.name}"
        for f in FILES
        for node in functions(parsed(f))
        if (node.end_lineno or 0) - node.lineno + 1 > 60
    }
    assert not long


def test_names_are_descriptive_and_modules_have_a_docstring():
    for file in FILES:
        assert file.stem not in ("utils", "util", "common", "misc", "helpers", "helper")
        assert not file.stem.endswith(("_v2", "_new"))
        assert ast.get_docstring(parsed(file)), name(file)
        getters = {n.name for n in functions(parsed(file)) if n.name.startswith("get_")}
        assert not getters - {"get_config", "get_grid"}, name(file)


def test_nothing_uses_pickle():
    for file in FILES:
        assert not {n.partition(".")[0] for n in imports(parsed(file))} & {"pickle", "shelve", "dill"}, name(file)
        assert "allow_pickle=True" not in file.read_text(), name(file)
