"""Modules import only their own room and lower ones, and heavy packages are imported only where they are used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    # Floor 0: errors.
    "common.errors",
    # Floor 1: the basis of configuration.
    "core.config",
    # Floor 2: libraries for any training program.
    "common.process",
    "common.files.durable",
    "common.files.abilities",
    "common.distributed",
    "common.process.program",
    "common.batch",
    "common.device_copies",
    "common.numerics",
    "common.wandb",
    "common.tracking",
    "common.checkpointing.raw_storage",
    "common.checkpointing",
    "common.reader",
    "common.features",
    "common.reader.inspect",
    "common.reader.__main__",
    "common.files",
    "common.optimizers",
    "common.modules",
    # Floor 3: training.
    "core.config.training",
    "core.command_line",
    "core.autocast",
    "core.losses",
    "core.metrics",
    "core.models",
    "core.run",
    "core.checkpoints",
    "core.evaluation",
    "core.loop",
    "core.debug_training_loop",
    "core.custom_training_loop",
    "core.closing_report",
    "core.project",
    # Floor 4: the projects. No project imports another.
    "projects",
)
"""Rooms, lowest first. A module belongs to the room with the longest prefix of its name, and imports its own room or a
lower one."""

TOPS = ("common", "core", "projects")
HEAVY = {"torchrec", "fbgemm_gpu", "wandb", "sklearn"}
OPTIONAL = {"onnx", "onnxscript", "onnxruntime", "faiss", "safetensors"}
"""Modules of requirements-serving.txt, which only some commands need."""
SLOW = {"torch", "numpy", "pyarrow", "google.protobuf"}
"""Packages that the command line and the configuration must not import: they take up to seconds of processor time."""


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    lazy: bool
    """True within a function or under TYPE_CHECKING."""

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))}
SHIPPED = ("projects.home.recap", "projects.twhin")
PROJECTS = sorted(name.removesuffix(".main") for name in MODULES if name.endswith(".main"))


def imports_of(module: str, tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """Yield the imports of a module, including those under TYPE_CHECKING.

    `from a import b` imports a.b if that is a module, and a otherwise.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield Import(module, below if below in MODULES else str(node.module), node.lineno, lazy)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            inside |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports_of(module, node, lazy or inside)


IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, ast.parse(path.read_text()))]


def project_of(module: str) -> str | None:
    return next((project for project in PROJECTS if f"{module}.".startswith(f"{project}.")), None)


def room_of(module: str) -> str:
    """The room with the longest prefix of the module's name."""
    rooms = [room for room in ORDER if f"{module}.".startswith(f"{room}.")]
    assert rooms, f"{module} belongs to no room: add one to ORDER"
    return max(rooms, key=len)


def is_allowed(importer: str, imported: str) -> bool:
    """Return True if a module may import another."""
    room, other = room_of(importer), room_of(imported)
    if room == other == "projects":
        return project_of(importer) is not None and project_of(importer) == project_of(imported)
    return ORDER.index(other) <= ORDER.index(room)


def test_modules_and_imports_are_found():
    assert {"projects.home.recap", "core.config", "common.wandb"} <= {*PROJECTS, *MODULES}
    assert len(IMPORTS) > 200


def test_every_room_has_modules():
    assert set(ORDER) == {room_of(module) for module in MODULES if module not in TOPS}


def test_no_module_imports_a_higher_room():
    internal = [found for found in IMPORTS if found.imported.split(".")[0] in TOPS]
    assert [str(found) for found in internal if not is_allowed(found.importer, found.imported)] == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("projects.home.recap.main", "core.loop.step", True),
        ("projects.home.recap.main", "projects.home.recap.data.dataset", True),
        ("projects.home.recap.main", "projects.twhin.config", False),
        ("core.loop.step", "common.batch", True),
        ("core.loop.step", "projects.home.recap.main", False),
        ("core.loop.trainer", "core.checkpoints.saver", True),
        ("core.checkpoints.saver", "core.loop.trainer", False),
        ("common.wandb", "core.config.base_config", True),
        ("common.wandb", "core.config.training", False),
        ("common.wandb", "core.losses", False),
        ("common.wandb", "common.tracking.wandb", False),
        ("common.tracking.wandb", "common.wandb", True),
        ("core.config.training", "common.wandb", True),
        ("core.config.training", "core.losses", False),
        ("core.config", "core.config.training", False),
        ("core.config.config_load", "common.wandb", False),
        ("common.errors", "core.config.base_config", False),
    ],
)
def test_import_rules(importer, imported, allowed):
    assert is_allowed(importer, imported) == allowed


@pytest.mark.parametrize("project", PROJECTS)
def test_the_data_of_a_project_does_not_import_its_model(project):
    imports = [each for each in IMPORTS if f"{each.importer}.".startswith(f"{project}.data.")]
    assert imports or f"{project}.data" not in MODULES
    assert [str(each) for each in imports if f"{each.imported}.".startswith(f"{project}.model.")] == []


def test_core_config_exports_only_the_basis_of_configuration():
    exported = {found.imported for found in IMPORTS if found.importer == "core.config"}
    assert exported == {"common.errors", "core.config.base_config", "core.config.config_load"}


def test_heavy_and_optional_packages_are_imported_only_where_they_are_used():
    eager = [found for found in IMPORTS if found.imported.split(".")[0] in HEAVY | OPTIONAL and not found.lazy]
    assert [str(found) for found in eager] == []


def test_wandb_is_imported_in_one_module():
    assert {found.importer for found in IMPORTS if found.imported.split(".")[0] == "wandb"} == {"common.tracking.wandb"}


def test_the_heavy_ranker_imports_no_heavy_package():
    """Uses a new process and includes indirect imports."""
    code = "import sys, projects.home.recap.project; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    imported = set(ended.stdout.split())
    assert "torch" in imported
    assert imported & HEAVY == set()


LIGHT = [name for name in MODULES if name.split(".")[-1] == "config" or name == "core.config.training"]


@pytest.mark.parametrize("module", [*LIGHT, "projects.home.recap"])
def test_configurations_and_their_packages_import_no_slow_package(module):
    """Uses a new process and includes indirect imports."""
    code = f"import sys, {module}; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert set(ended.stdout.split()) & (HEAVY | SLOW) == set()


PROGRAMS = [
    name
    for name, path in MODULES.items()
    if 'if __name__ == "__main__":' in path.read_text()
    and name.startswith(("common.", "core.", *(f"{project}." for project in SHIPPED)))
    # The second one is copied into an export, and run there.
    and name not in ("projects.twhin.run", "projects.home.recap.export.score")
]
STARTED = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print(ended.code, *sys.modules)
"""


def started_by_path(name: str, directory: Path, *arguments: str) -> tuple[str, str, set[str]]:
    """Run a program by its path. Return its exit status, its output, and the modules that it imported."""
    command = [sys.executable, "-c", STARTED, str(MODULES[name]), *arguments]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=120)
    output, _, last = ended.stdout.rstrip().rpartition("\n")
    status, *modules = last.split()
    return status, output + ended.stderr, set(modules)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_starts_by_its_path_in_any_directory_and_helps_without_torch(name, tmp_path):
    status, output, modules = started_by_path(name, tmp_path, "--help")
    assert status == "0"
    assert output.startswith("usage: python -m ")
    assert "torch" not in modules


@pytest.mark.parametrize("project", SHIPPED)
def test_errors_in_a_command_and_in_a_configuration_need_no_slow_package(project, tmp_path):
    config = ROOT / project.replace(".", "/") / "configs/local.yaml"
    for arguments in (["--mood"], ["--config", "nowhere"], ["--config_path", str(config), "--set", "training.x=1"]):
        status, output, modules = started_by_path(f"{project}.main", tmp_path, *arguments)
        assert status == "2"
        assert output.startswith("error: ")
        assert modules & (HEAVY | SLOW) == set()


def test_only_what_others_import_by_short_names_has_code_in_init():
    assert [name for name, path in MODULES.items() if path.name == "__init__.py" and path.read_text()] == [
        "core.config",
        "projects.home.recap",
    ]


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in MODULES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
