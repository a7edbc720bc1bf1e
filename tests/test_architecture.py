"""The house: rooms with their public names, the floor that each stands on, and which room alone may import a library.

`python tests/test_architecture.py` prints the figures that ARCHITECTURE.md gives.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults.server import IMPORTED
from faults.test_tiles import CONSTANTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"
FLOORS = [  # a room imports rooms of lower floors only
    {"errors", "layout"},
    {"system", "validation"},
    {"cluster", "config", "criterion", "device", "model", "objective", "shards", "spectrum"},
    {"data", "matrix", "results", "storage", "strategy"},
    {"aggregate", "experiment", "operator", "tracking", "training"},
    {"compute", "report"},
    {"law", "sweep"},
    {"run"},
]
FLAT = {"errors", "layout", "validation"}
FENCES = {  # a library, and the modules or rooms that import it
    "h5py": {"shards.hdf5", "shards.hdf5_store"},
    "dask": {"aggregate", "cluster", "shards.dask_array"},
    "distributed": {"cluster"},
    "hydra": {
        "experiment.instantiate",
        "run.command",
        "sweep.hydra_callback",
        "sweep.hydra_job",
        "sweep.slurm.launcher",
    },
    "mlflow": {"tracking"},
    "plotly": {"report.page"},
    "matplotlib": {"report"},
}
WITHOUT_TORCH = {"aggregate", "config", "errors", "layout", "report", "results", "shards", "sweep", "system"}
MOST_LINES = 350


def name_of(path: Path) -> str:
    """The module without `pipeline.`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
del MODULES[""]  # the public functions, lazily


def room_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def imports_of(module: str) -> frozenset[str]:
    """Full names of what a module imports, inside functions and for types alone too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def rooms_below(room: str) -> set[str]:
    """The rooms that a room imports."""
    found = {
        room_of(name.removeprefix("pipeline."))
        for module in MODULES
        if room_of(module) == room
        for name in imports_of(module)
        if name.startswith("pipeline.")
    }
    return found - {room}


def height(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS, start=1) if room in rooms)


def modules_below(module: str) -> set[str]:
    """The modules that a module imports; of a name that a package hands on, the package."""
    names = {name.removeprefix("pipeline.") for name in imports_of(module) if name.startswith("pipeline.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {module, ""}


def public_names(room: str) -> set[str]:
    """What a room's `__init__` imports or defines; of a module that lies flat, all."""
    tree = ast.parse(MODULES[room].read_text())
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } | {name for node in tree.body for name in _bound(node)}


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def users_of(library: str) -> Iterator[str]:
    for module in MODULES:
        if any(name == library or name.startswith(f"{library}.") for name in imports_of(module)):
            yield module


def test_every_room_stands_on_a_floor():
    assert {room_of(module) for module in MODULES} == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))
    assert len(FLOORS) <= 8


@pytest.mark.parametrize("room", sorted(set().union(*FLOORS)))
def test_a_room_imports_lower_floors_only(room):
    assert {other for other in rooms_below(room) if height(other) >= height(room)} == set()


@pytest.mark.parametrize("module", MODULES)
def test_of_another_room_only_public_names_are_imported(module):
    abroad = {
        tuple(name.removeprefix("pipeline.").split(".", 1))
        for name in imports_of(module)
        if name.startswith("pipeline.") and room_of(name.removeprefix("pipeline.")) != room_of(module)
    }
    assert [
        ".".join(name)
        for name in sorted(abroad)
        if name[0] not in FLAT and name[1] not in public_names(name[0])
    ] == []


def test_no_module_imports_what_the_package_hands_to_users():
    assert [
        module
        for module in MODULES
        if "pipeline" in {name.rpartition(".")[0] or name for name in imports_of(module)}
    ] == []


def test_modules_import_each_other_in_no_circle():
    TopologicalSorter({module: modules_below(module) for module in MODULES}).prepare()  # raises CycleError


def test_few_modules_lie_flat():
    assert {module for module, path in MODULES.items() if path.parent == PACKAGE} == FLAT


@pytest.mark.parametrize("library", FENCES)
def test_a_library_is_imported_where_it_belongs(library):
    def allowed(module: str) -> bool:
        return any(module == place or module.startswith(f"{place}.") for place in FENCES[library])

    assert [module for module in users_of(library) if not allowed(module)] == []


def test_rooms_that_need_no_torch_import_none():
    assert [module for module in users_of("torch") if room_of(module) in WITHOUT_TORCH] == []


def test_a_module_fits_on_a_few_screens():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: number for module, number in lines.items() if number > MOST_LINES} == {}


def test_memory_that_runs_out_is_told_apart_in_one_place():
    """PyTorch's own class is for GPUs alone, so that whoever catches it forgets the allocator of the CPU."""
    caught = [
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type and "OutOfMemory" in ast.unparse(node.type)
    ]
    assert caught == []


def test_what_the_fault_tests_name_is_there():
    """They take too long to be run each time that something is moved."""
    for module in IMPORTED:
        assert find_spec(module), module
    for constant in CONSTANTS:
        module, _, name = constant.rpartition(".")
        assert name in {
            bound
            for node in ast.parse(MODULES[module.removeprefix("pipeline.")].read_text()).body
            for bound in _bound(node)
        }, constant


if __name__ == "__main__":
    print(
        f"{len(FLOORS)} floors, {len(set().union(*FLOORS))} rooms, {len(MODULES)} modules, {len(FLAT)} flat"
    )
    for floor, rooms in reversed(list(enumerate(FLOORS, start=1))):
        print(f"{floor}  {'  '.join(sorted(rooms))}")
