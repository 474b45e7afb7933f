"""Parameter groups of PyTorch as overrides: what becomes of a group, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

PARAMS = {"layers": [{"b": jnp.zeros(3), "w.x": jnp.zeros((2, 3))}], "scale": jnp.zeros(3)}
NAMES = {"layers": [{"b": 2, "w.x": 0}], "scale": 1}


def group(*keys, lr=1e-3, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.03, **more):
    numbers = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    return {"params": list(keys), **numbers, **more}


def rules_of(*groups, names=NAMES, **options):
    state_dict = {"state": {}, "param_groups": list(groups)}
    return fa.overrides_from_torch(state_dict, PARAMS, names=names, **options)


def test_each_group_is_a_rule_for_its_leaves_alone():
    new = {"decoupled_weight_decay": True}
    rules = rules_of(
        group(0, lr=np.float32(0.5), **new),
        group(1, 2, betas=[0.8, 0.95], weight_decay=0.0, **new),
        group(3, lr=7.0, **new),  # not named here
    )
    numbers = {"learning_rate": 0.5, "b1": 0.9, "b2": 0.98, "eps": 1e-7, "weight_decay": 0.03}
    others = {"learning_rate": 1e-3, "b1": 0.8, "b2": 0.95, "eps": 1e-7, "weight_decay": 0.0}
    assert [arguments for _, arguments in rules] == [numbers, others]
    found = [
        [path for path in ("layers/0/b", "layers/0/w.x", "layers/0/w_x", "scale", "scale/0")
         if re.search(pattern, path)]
        for pattern, _ in rules
    ]  # fmt: skip
    assert found == [["layers/0/w.x"], ["layers/0/b", "scale"]]
    fa.adamw(overrides=rules).init(PARAMS)


@pytest.mark.parametrize(
    ("said", "options", "name"),
    [
        ({"decoupled_weight_decay": True}, {}, "weight_decay"),
        ({"decoupled_weight_decay": False}, {}, "l2"),
        ({}, {"decay": "weight_decay"}, "weight_decay"),
        ({}, {"decay": "l2"}, "l2"),
        ({"decoupled_weight_decay": True}, {"decay": "l2"}, "l2"),
    ],
)
def test_the_kind_of_decay(said, options, name):
    ((_, arguments),) = rules_of(group(0, 1, 2, **said), **options)
    assert arguments[name] == 0.03
    assert {"weight_decay", "l2"} & arguments.keys() == {name}
    make = {"weight_decay": fa.adamw, "l2": fa.adam}[name]
    make(overrides=[("", arguments)])


def test_groups_without_decay_are_of_any_optimizer():
    ((_, arguments),) = rules_of(group(0, 1, 2, weight_decay=0, decoupled_weight_decay=False))
    assert arguments.keys() == {"learning_rate", "b1", "b2", "eps"}
    fa.radam(overrides=[("", arguments)])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (
            [group(0, 1, 2)],
            ValueError,
            "['param_groups'][0] has weight_decay=0.03 but does not state its kind",
        ),
        ([{"params": [0, 1, 2], "lr": 0.1}], ValueError, "[0] has no betas, eps, weight_decay: "),
        (
            [group(0, 1, 2, maximize=True)],
            ValueError,
            "[0] has maximize=True, which does not exist here: pass the gradients of -loss",
        ),
        ([group(0, 1, 2, lr="0.1")], TypeError, "[0]['lr'] must be a number; got '0.1'"),
        ([group(0, 1, 2, lr=np.ones(2))], TypeError, "[0]['lr'] must be a number; got array"),
        ([group(0, 1)], ValueError, "names has 2 for leaf ['layers'][0]['b'], but state_dict has"),
    ],
)
def test_what_is_refused(groups, error, message):
    with pytest.raises(error, match=re.escape(message)):
        rules_of(*groups)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"^decay must be 'weight_decay' or 'l2'; got 'L2'"):
        rules_of(group(0, 1, 2), decay="L2")
    with pytest.raises(ValueError, match=r"state_dict has 1 parameters, but there are 3 leaves"):
        rules_of(group(0), names=None)
    with pytest.raises(TypeError, match=r"^state_dict must be the state_dict\(\) of a torch"):
        fa.overrides_from_torch({}, PARAMS)
