"""The house: rooms in one order, imports downwards only, tests in rooms of the same names."""

import ast
import pathlib
import pkgutil
import re

import pytest

import functional_adam as fa

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "functional_adam"
# From the roof to the ground; what stands on one line may import each other, but not in a circle.
FLOORS = """
__init__ __main__
_watch
_devices
_interop
_optimizers
_rows
_take_step
_transform _update
_apply
_nested
_step
_kernels
_leaf
_leaf_params
_scalars
_settings
_state
_masks
_overrides
_host
_mesh
_storage
_equations
_trees
_check
_hints
_origin
_types
_branch
"""
FLOOR_OF = {name: n for n, line in enumerate(FLOORS.split("\n")) for name in line.split()}
ROOMS = [path.parent for path in PACKAGE.glob("*/__init__.py")]


def modules():
    """Every module by its dotted name within the package: `_step`, `_storage.int8`."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), path


MODULES = dict(modules())


def imported(path):
    """The package's modules that a module imports anywhere, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a module is"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("functional_adam.")
            if name.startswith("functional_adam.") and inside in MODULES:
                yield inside


IMPORTS = {name: set(imported(path)) for name, path in MODULES.items()}


def floor(name):
    return FLOOR_OF[name.partition(".")[0]]


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in MODULES} == set(FLOOR_OF)
    assert len(MODULES) > 50
    assert IMPORTS["_step"] >= {"_check", "_trees", "_leaf", "_kernels.choice"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_downwards(name):
    assert {other for other in IMPORTS[name] if floor(other) < floor(name)} == set()


def test_there_is_no_circle():
    left = dict(IMPORTS)
    while leaves := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}


def test_every_room_says_what_is_in_it():
    assert {room.name for room in ROOMS} == {
        m.name for m in pkgutil.iter_modules(fa.__path__) if m.ispkg
    }
    for room in ROOMS:
        (docstring,) = ast.parse((room / "__init__.py").read_text()).body  # and nothing else
        assert len(ast.literal_eval(docstring.value)) > 20


def test_tests_stand_in_rooms_of_the_same_names():
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms == {room.name.removeprefix("_") for room in ROOMS} | {"step", "system"}
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names)), "pytest needs names that are unique in all rooms"


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_pages_name_modules_that_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:functional_adam|tests|tools)/[\w/]+\.(?:py|sh)", text))
    named |= {f"functional_adam/{path}" for path in re.findall(r"`(_\w+/\w+\.py|_\w+\.py)", text)}
    assert len(named) > 4
    assert {path for path in named if not (ROOT / path).exists()} == set()
