"""The surface: what is public, what importing costs, what a wheel holds, how it is documented."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pickle
import pkgutil
import re
import subprocess
import sys
import tomllib

import jax.numpy as jnp
import pytest

import functional_adam as fa

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "functional_adam"
NAMES = [module.name for module in pkgutil.walk_packages(fa.__path__, "functional_adam.")]
MODULES = [fa, *map(importlib.import_module, NAMES)]
PUBLIC = [getattr(fa, name) for name in fa.__all__ if name != "__version__"]


def test_the_public_names_are_exactly_these():
    assert set(fa.__all__) == {
        "AdamState",
        "BFloat16",
        "Full",
        "GradientTransformation",
        "Int8",
        "SkipSpikesState",
        "__version__",
        "adabelief",
        "adam",
        "adam_atan2",
        "adamax",
        "adamaxw",
        "adamw",
        "ademamix",
        "adopt",
        "amsgrad",
        "apply_updates",
        "cautious",
        "cautious_weight_decay",
        "clip_update_rms",
        "convert_moments",
        "extend_state",
        "flush_rows",
        "from_optax",
        "from_state_dict",
        "from_torch",
        "hyperball",
        "init",
        "init_rows",
        "lamb",
        "laprop",
        "master_params",
        "diagnostics",
        "memory_report",
        "nadam",
        "nadamw",
        "offload",
        "overrides_from_torch",
        "radam",
        "scale_by_adam",
        "scale_by_adamax",
        "scale_by_ademamix",
        "scale_by_adopt",
        "scale_by_amsgrad",
        "scale_by_belief",
        "scale_by_radam",
        "scale_by_simplified_ademamix",
        "scale_by_yogi",
        "simplified_ademamix",
        "skip_spikes",
        "state_shardings",
        "step",
        "to_optax",
        "to_state_dict",
        "to_torch",
        "update",
        "update_rows",
        "yogi",
    }
    visible = {name for name in vars(fa) if not name.startswith("_")}
    assert visible == set(fa.__all__) - {"__version__"}


def test_importing_brings_in_nothing_of_the_test_set():
    test_set = "optax flax equinox haiku orbax torch sklearn matplotlib rich hypothesis pytest"
    code = (
        "import sys, functional_adam as fa, jax.numpy as jnp\n"
        "tx = fa.adamw(); p = jnp.ones(2); tx.update(p, tx.init(p), p)\n"
        f"print([m for m in {test_set.split()} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_requirements_are_jax_jaxlib_chex():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line).group() for line in project["dependencies"]}
    assert names == {"jax", "jaxlib", "chex"}


def test_a_state_is_a_named_tuple_of_the_agreed_fields():
    assert fa.AdamState._fields == ("count", "mu", "nu", "nu_scale", "residual", "extra")
    state = fa.init(jnp.ones(2))
    assert state.nu_scale is state.residual is state.extra is None
    assert fa.GradientTransformation._fields == ("init", "update")
    init, update = fa.adam()  # unpacks
    update(jnp.ones(2), init(jnp.ones(2)))


def test_a_transformation_pickles():
    tx = pickle.loads(pickle.dumps(fa.adamw(3e-3, weight_decay=0.2)))
    p = jnp.array([2.0])
    u, _ = tx.update(jnp.zeros(1), tx.init(p), p)
    assert abs(u[0] + 3e-3 * 0.2 * 2) < 1e-8


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_docstring_examples_are_true(module):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda x: x.__name__)
def test_public_docstrings_have_an_example_and_every_argument(thing):
    doc = inspect.getdoc(thing)
    assert ">>> " in doc
    if not inspect.isfunction(thing):
        return
    assert "Returns:" in doc
    if thing.__name__.startswith("scale_by_"):  # its arguments are those of its optimizer
        assert "The arguments are as in `" in doc
    else:
        described = re.findall(
            r"^    [*]{0,2}(\w+): ", doc.split("Args:")[1].split("Returns:")[0], re.M
        )
        assert described == list(inspect.signature(thing).parameters)
    if inspect.signature(thing).return_annotation == "GradientTransformation":
        # What all factories raise is said once, in `GradientTransformation`.
        raises = doc.partition("Raises:")[2].partition("Example:")[0]
        assert not re.search(r"out of range|wrong type|mask that does not fit", raises)
    else:
        assert "Raises:" in doc


def test_what_all_factories_raise_is_said_once():
    doc = " ".join(inspect.getdoc(fa.GradientTransformation).split())
    assert "raises `ValueError` for an argument out of range and `TypeError` for" in doc


def test_modules_and_functions_stay_short():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1
                assert length <= 40, f"{path.name}: {node.name}"


def test_nothing_in_the_package_asserts():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*assert\b", path.read_text(), re.M), path.name


def annotations_of(thing):
    """(where, annotation as written) of what a user sees of a public name."""
    if inspect.isfunction(thing):
        yield from ((f"{thing.__name__}({k})", v) for k, v in thing.__annotations__.items())
    elif inspect.isclass(thing):
        yield from ((f"{thing.__name__}.{k}", v) for k, v in thing.__annotations__.items())


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda x: x.__name__)
def test_nothing_public_is_annotated_as_any(thing):
    # `PyTree` is the one alias for it: a tree is whatever `jax.tree` can walk.
    found = list(annotations_of(thing))
    assert found
    for where, written in found:
        annotation = getattr(written, "__forward_arg__", written)  # of a NamedTuple
        assert isinstance(annotation, str), where
        assert not re.search(r"\bAny\b|\bobject\b", annotation), f"{where}: {annotation}"
