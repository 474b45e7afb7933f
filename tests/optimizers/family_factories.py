"""Every factory of the package by name, and what its signature has."""

import inspect

import numpy as np
import pytest
from names import MODIFIERS, OF_STATES

import functional_adam as fa

FACTORIES = {
    name: getattr(fa, name)
    for name in fa.__all__
    if inspect.isfunction(getattr(fa, name))
    and name not in ("init", "update", "apply_updates")
    and name not in OF_STATES | MODIFIERS
}
# Calls that bind arguments as a factory does, `update` among them.
CALLS = FACTORIES | {"update": lambda **hyper: fa.update(X, fa.init(X), X, **hyper)}
X = np.float32([0.7, -1.3])
TREE = {"a": X, "b": [np.ones((2, 3), np.float32)]}


def arguments(name):
    return inspect.signature(fa.update if name == "update" else FACTORIES[name]).parameters


def having(names):
    """(factory, argument) for each argument of `names` that a factory has."""
    cases = [(name, argument) for name in CALLS for argument in arguments(name)]
    return pytest.mark.parametrize(
        ("factory", "argument"), [case for case in cases if case[1] in names]
    )


def decaying(factory):
    """What makes it decay, if it can: arguments that say how to decay need it."""
    return {"weight_decay": 0.3} if "weight_decay" in arguments(factory) else {}
