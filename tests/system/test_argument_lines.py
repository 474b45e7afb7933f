"""What docstrings say of arguments: written in one table, and true.

`tools/argument_lines.py` has the table and its exceptions, and writes them into the docstrings.
"""

import ast
import functools
import importlib.util
import inspect
import pathlib
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from names import OF_STATES, ROWS

import functional_adam as fa
from functional_adam import _types

ROOT = pathlib.Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("argument_lines", ROOT / "tools/argument_lines.py")
TABLE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TABLE)

X = np.float32([0.7, -1.3])


def update(params=X, **hyper):
    """A traced step from a state that fits; nothing is compiled."""
    state = fa.init(X, **{k: v for k, v in hyper.items() if k in ("moments", "rounding")})
    return jax.eval_shape(lambda g, state: fa.update(g, state, params, **hyper), X, state)


def of_rows(name, **hyper):
    """A traced call of a function of tables."""
    table = jnp.zeros((3, 2))
    stored = {k: v for k, v in hyper.items() if k in ("moments", "rounding")}
    state = fa.init_rows(table, **stored)
    calls = {
        "init_rows": lambda: fa.init_rows(table, **hyper),
        "update_rows": lambda: fa.update_rows(table[:1], np.array([2]), state, table, **hyper),
        "flush_rows": lambda: fa.flush_rows(state, table, catch_up="moments", **hyper),
    }
    return jax.eval_shape(calls[name])


CALLS = TABLE.functions() | {
    "init": lambda **hyper: fa.init(X, **hyper),
    "update": update,
    **{name: functools.partial(of_rows, name) for name in ROWS},
}
SIGNATURES = {
    name: inspect.signature(function).parameters for name, function in TABLE.functions().items()
}
# Every argument that is described, and the words.
SAID = {
    f"{name}.{argument}": TABLE.text(name, argument)
    for name in SIGNATURES
    for argument in TABLE.arguments(name)
    if f"{name}.{argument}" not in TABLE.OWN
}
OPTIONS = {
    "Placement": typing.get_args(_types.Placement),
    "ParameterRounding": typing.get_args(_types.ParameterRounding),
    "MomentFormat": ("full", "bfloat16", "int8"),
}


def parameter(key):
    name, argument = key.split(".")
    return SIGNATURES[name][argument]


def call(key, value):
    name, argument = key.split(".")
    return CALLS[name](**{argument: value})


def keys(condition):
    found = [key for key in SAID if condition(parameter(key).annotation)]
    assert len(found) >= 15
    return pytest.mark.parametrize("key", found)


# ---- One table ----


def test_all_factories_are_covered():
    public = {name for name in fa.__all__ if inspect.isfunction(getattr(fa, name))}
    assert set(TABLE.functions()) == (public - OF_STATES | ROWS) - {"apply_updates"}
    where = [name for names in TABLE.sources().values() for name in names]
    assert sorted(where) == sorted(TABLE.functions())


@pytest.mark.parametrize("path", TABLE.sources(), ids=lambda path: path.stem)
def test_docstrings_are_those_of_the_table(path):
    now = path.read_text(encoding="utf-8")
    assert now == TABLE.written(now, TABLE.sources()[path]), (
        "run: python tools/argument_lines.py --write"
    )


@pytest.mark.parametrize("name", SIGNATURES)
def test_help_says_it(name):
    words = " ".join(inspect.getdoc(getattr(fa, name)).split())
    for argument in TABLE.arguments(name):
        assert f" {argument}: {SAID.get(f'{name}.{argument}', '')}" in words
    assert ("Args:" in words) == bool(TABLE.arguments(name))


def test_no_line_and_no_exception_is_left_over():
    lines, replaced, added = TABLE.LINE, TABLE.REPLACEMENT, TABLE.ADDITION
    own = {f"{name}.{x}" for name in SIGNATURES for x in TABLE.arguments(name)} - SAID.keys()
    assert own == TABLE.OWN
    assert replaced.keys() | added.keys() <= SAID.keys()
    assert not replaced.keys() & added.keys()
    assert set(lines) == {key.split(".")[1] for key in SAID.keys() - replaced.keys()}
    for key, words in replaced.items():
        assert words != lines.get(key.split(".")[1]), key
    for key in own:
        argument = key.split(".")[1]
        doc = inspect.getdoc(getattr(fa, key.split(".")[0]))
        assert f"    {argument}: {lines.get(argument, 'no line')}" not in doc, key


@pytest.mark.parametrize("table", [TABLE.LINES, TABLE.REPLACED, TABLE.ADDED])
def test_the_tables_are_read_whole(table):
    words = sum(len(text.split()) for text in TABLE.parsed(table).values())
    shared = [len(names.split()) for names in re.findall(r"^(\w[\w. ]*):", table, re.M)]
    assert words >= len(table.split()) - sum(shared)
    assert len(TABLE.parsed(table)) == sum(shared)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("b1: Decay rate", "b1: decay rate"),
        ("            parameter's dtype if that is wider.\n", ""),
        ("    Args:\n", "    Args:\n        lr: No argument.\n"),
        ("of gradients, in [0, 1).", "of\n            gradients, in [0, 1)."),
        ("Default 0.9.", "Default 0.95."),
    ],
)
def test_a_docstring_that_differs_is_found(good, bad):
    path = pathlib.Path(inspect.getfile(inspect.unwrap(fa.yogi)))
    now = path.read_text(encoding="utf-8")
    broken = now.replace(good, bad, 1)
    assert broken != now
    assert TABLE.written(broken, ["yogi", "scale_by_yogi"]) == now


def test_the_script_checks_and_writes(tmp_path, monkeypatch, capsys):
    good = pathlib.Path(inspect.getfile(inspect.unwrap(fa.lamb))).read_text(encoding="utf-8")
    copy = tmp_path / "lamb.py"
    copy.write_text(good.replace("eps: Added", "eps: added"), encoding="utf-8")
    monkeypatch.setattr(TABLE, "sources", lambda: {copy: ["lamb"]})
    said = []
    for option in ("--check", "--write", "--check"):
        monkeypatch.setattr("sys.argv", ["argument_lines.py", option])
        said.append((TABLE.main(), capsys.readouterr().out))
    assert said == [(1, "not up to date: lamb.py\n"), (0, "written: lamb.py\n"), (0, "")]
    assert copy.read_text(encoding="utf-8") == good


def test_only_this_checkout_is_written_to(monkeypatch, tmp_path):
    monkeypatch.setattr(TABLE, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"is not in .* run with PYTHONPATH="):
        TABLE.sources()


def test_a_docstring_without_its_section_is_refused():
    source = inspect.getsource(inspect.unwrap(fa.yogi))
    with pytest.raises(ValueError, match=r'docstring of yogi must have 1 "Args:" sections'):
        TABLE.written(source.replace("    Args:\n", "    Arguments:\n"), ["yogi"])


@pytest.mark.parametrize("name", SIGNATURES)
def test_only_directions_refer_to_their_optimizer(name):
    optimizer = TABLE.optimizer_of(name)
    assert name.startswith("scale_by_") == (optimizer is not None)
    if optimizer is None:
        return
    assert TABLE.optimizer_of(optimizer) is None
    there = {argument: p.default for argument, p in SIGNATURES[optimizer].items()}
    here = {argument: p.default for argument, p in SIGNATURES[name].items()}
    assert here.keys() <= there.keys()
    words = " ".join(inspect.getdoc(getattr(fa, name)).split())
    said = re.findall(r"`(\w+)` is ([\d.]+) by default", words)
    differ = {argument: value for argument, value in here.items() if value != there[argument]}
    assert {argument: float(value) for argument, value in said} == differ


# ---- True ----


@keys(lambda annotation: "Scalar" in annotation)
def test_ranges_are_as_said(key):
    at_least, below = re.search(r"in \[(0), (1)\)|>= (\d)", SAID[key]).group(1, 2)
    if at_least is None:
        at_least = re.search(r">= (\d)", SAID[key])[1]
    for good in (float(at_least), float(at_least) + 0.37):
        call(key, good)
    with pytest.raises(ValueError, match=parameter(key).name):
        call(key, float(at_least) - 0.1)
    if below is None:
        call(key, 7.3)
    else:
        with pytest.raises(ValueError, match=parameter(key).name):
            call(key, float(below))


@keys(lambda annotation: "Scalar" in annotation)
def test_schedules_are_taken_where_they_are_named(key):
    if re.search(r"\ba schedule\b", SAID[key]):
        call(key, lambda count: 0.3 + 0 * count)
    else:
        with pytest.raises(TypeError, match=parameter(key).name):
            call(key, lambda count: 0.3 + 0 * count)


def test_defaults_are_as_said():
    for key, words in SAID.items():
        default = parameter(key).default
        said = [ast.literal_eval(x) for x in re.findall(r'([\w."]+) \(default\)', words)]
        assert said in ([], [default]), key
        if default is None or isinstance(default, str):
            assert said == [default], key
        elif isinstance(default, bool):
            assert re.match(str(default if said else not default), words), key
        elif isinstance(default, int | float):
            assert [float(x) for x in re.findall(r"Default (\S+)\.$", words)] == [default], key


@keys(lambda annotation: annotation in OPTIONS)
def test_choices_are_as_said(key):
    refused = re.findall(r'"(\w+)" is refused', SAID[key])
    conditional = re.findall(r'\(only with [^)]*\) "(\w+)"', SAID[key])
    options = OPTIONS[parameter(key).annotation]
    assert set(options) <= set(re.findall(r'"(\w+)"', SAID[key]))
    for option in options:
        if option in refused or option in conditional:
            with pytest.raises(ValueError, match=option):
                call(key, option)
        else:
            call(key, option)


@keys(lambda annotation: annotation == "MomentFormat")
def test_moments_take_as_many_bytes_as_said(key):
    name = key.split(".")[0]
    said = re.search(r"take (\d+)(?:, (\d+))? and (\d+) bytes", SAID[key])
    p = jnp.zeros((256, 128))
    counts = zip(OPTIONS["MomentFormat"], filter(None, said.groups()), strict=False)
    for option, count in counts:
        init = {"init": fa.init, "update": fa.init, **dict.fromkeys(ROWS, fa.init_rows)}.get(name)
        state = init(p, moments=option) if init else CALLS[name](moments=option).init(p)
        bytes_ = sum(leaf.nbytes for leaf in jax.tree.leaves(state._replace(count=None)))
        assert round(bytes_ / p.size) == int(count), option


# (does without `params`, needs them)
NEEDS = {"weight_decay": (0.0, 0.3), "l2": (None, 0.3), "rounding": ("nearest", "compensated")}


def update_without_params(name, **hyper):
    if name in ("init", "update"):  # `init` says it of `update`
        return update(None, **hyper)
    no_decay = {"weight_decay": 0.0} if "weight_decay" in SIGNATURES[name] else {}
    tx = CALLS[name](**no_decay | hyper)
    return jax.eval_shape(tx.update, X, tx.init(X))


@pytest.mark.parametrize(
    "key", [k for k in SAID if k.split(".")[1] in NEEDS and k.split(".")[0] not in ROWS]
)
def test_params_are_needed_as_said(key):
    name, argument = key.split(".")
    neutral, value = NEEDS[argument]
    with pytest.raises(ValueError, match="params"):
        update_without_params(name, **{argument: value})
    if name == "lamb":
        assert "`update` always needs `params`" in inspect.getdoc(fa.lamb)
        return
    assert "needs `params`" in SAID[key]
    update_without_params(name, **{argument: neutral})


def test_no_other_argument_is_said_to_need_params():
    said = {key.split(".")[1] for key, words in SAID.items() if "`params`" in words}
    assert said == NEEDS.keys()
