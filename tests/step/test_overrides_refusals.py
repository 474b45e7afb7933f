"""What `overrides` refuses, where, and what it says instead."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

X = np.float32([0.7, -1.3])
PARAMS = {"embed": X, "layers": [{"bias": X, "kernel": np.ones((2, 3), np.float32)}]}
A_LIST = "^overrides must be a list of (regular expression, dict of arguments), or a function (path"
A_PAIR = "^overrides[0] must be a pair of a regular expression and a dict of arguments; got "
A_DICT = "must be a dict of arguments, such as dict(weight_decay=0.0), or {} to change"
EMBED = "^overrides[0] ('embed'): "
SHARED = "is the same for all leaves and cannot be overridden. "
APART = "give them an optimizer of their own: optax.partition({"


def rule(**arguments):
    return [("embed", arguments)]


AT_CONSTRUCTION = {
    "a number": (3, TypeError, [A_LIST, "got 3 of type int. For example overrides=[("]),
    "a dict": ({"embed": {}}, TypeError, [A_LIST, "a list: list(overrides.items())."]),
    "one pair": (("embed", {}), TypeError, [A_PAIR, "'embed' of type str. For example"]),
    "a triple": ([("a", {}, {})], TypeError, [A_PAIR, "of type tuple"]),
    "no dict": ([("embed", 0.1)], TypeError, ["^overrides[0][1] ", A_DICT, "; got 0.1"]),
    "numbered": ([("embed", {1: 0.1})], TypeError, ["^overrides[0][1] ", A_DICT, "{1: 0.1}"]),
    "bytes": ([(b"a", {})], TypeError, ["^overrides[0][0] must be a regular expression; got b'a'"]),
    "a glob": (
        [("bias", {}), ("*bias", {})],
        ValueError,
        [
            "^overrides[1][0] is '*bias', which is not a regular expression: not",
            "re.escape(",
            ".*",
        ],
    ),
    "a bracket": ([("a(", {})], ValueError, ["^overrides[0][0] is 'a('", "Write re.escape("]),
    "another name": (
        rule(lr=0.1),
        TypeError,
        [EMBED, "keyword argument 'lr'. Write learning_rate=0.1 instead of lr=0.1."],
    ),
    "a typing error": (rule(wieght_decay=0.1), TypeError, [EMBED, "mean weight_decay=0.1?"]),
    "moments": (rule(moments="int8"), TypeError, [EMBED, f"moments {SHARED}Int8(min_size", APART]),
    "rounding": (rule(rounding="split"), TypeError, [EMBED, f"rounding {SHARED}", APART]),
    "a dtype": (rule(mu_dtype="float16"), TypeError, [EMBED, f"mu_dtype {SHARED}", APART]),
    "a choice": (rule(nesterov=True), TypeError, [EMBED, f"nesterov {SHARED}", APART]),
    "a mask": (rule(mask=True), TypeError, [EMBED, f"mask {SHARED}", "override weight_decay=0.0"]),
    "rules": (
        rule(overrides=None),
        TypeError,
        [EMBED, f"overrides {SHARED}", "first rule that match"],
    ),
    "negative": (rule(weight_decay=-0.1), ValueError, [EMBED, "weight_decay must be", "got -0.1."]),
    "one": (rule(b1=1.0), ValueError, [EMBED, "b1 must be a number in [0, 1)", "got 1.0."]),
    "a text": (rule(eps="1e-6"), TypeError, [EMBED, "eps must be", "Write float('1e-6')"]),
    "an array": (rule(eps=jnp.ones(2)), ValueError, [EMBED, "eps must be", "shape (2,)"]),
    "a schedule": (
        rule(b2=lambda n: 0.9),
        TypeError,
        [EMBED, "b2 must be", "cannot be a schedule"],
    ),
}


@pytest.mark.parametrize("case", AT_CONSTRUCTION)
def test_a_factory_and_update_refuse_at_once(case):
    overrides, error, words = AT_CONSTRUCTION[case]
    pattern = "(?s)" + ".*".join("^" * (x[0] == "^") + re.escape(x.lstrip("^")) for x in words)
    with pytest.raises(error, match=pattern):
        fa.adamw(overrides=overrides)
    with pytest.raises(error, match=pattern):
        fa.update(PARAMS, fa.init(PARAMS), PARAMS, overrides=overrides)


def used(overrides):
    """Three ways to look at leaves: messages are the same."""
    tx = fa.adamw(overrides=overrides)
    yield lambda: tx.init(PARAMS)
    yield lambda: fa.update(PARAMS, fa.init(PARAMS), PARAMS, overrides=overrides)


WITH_LEAVES = {
    "no leaf": (
        [("bias", {}), ("norm", {})],
        ValueError,
        "overrides[1] ('norm') matches no leaf; the paths of the leaves are 'embed', "
        "'layers/0/bias', 'layers/0/kernel'.",
    ),
    "too late": (
        [("layers", {}), ("bias|kernel$", {})],
        ValueError,
        "overrides[1] ('bias|kernel$') has no effect: it matches 'layers/0/bias', "
        "'layers/0/kernel', but earlier rules match all of these, and the first match wins. Put it "
        "before them.",
    ),
    "None": (
        lambda path, leaf: None,
        TypeError,
        f"overrides('embed', leaf) {A_DICT} nothing; got None of type NoneType.",
    ),
    "a rate": (lambda path, leaf: 0.1, TypeError, f"overrides('embed', leaf) {A_DICT}"),
    "a bad rate": (
        lambda path, leaf: {"b1": 2.0} if path.endswith("kernel") else {},
        ValueError,
        "overrides('layers/0/kernel', leaf): b1 must be a number in [0, 1)",
    ),
    "a choice": (
        lambda path, leaf: {"nesterov": True},
        TypeError,
        f"overrides('embed', leaf): nesterov {SHARED}",
    ),
}


@pytest.mark.parametrize("case", WITH_LEAVES)
def test_leaves_are_looked_at_by_init_and_by_update(case):
    overrides, error, words = WITH_LEAVES[case]
    for look in used(overrides):
        with pytest.raises(error, match="^" + re.escape(words)):
            look()


def test_many_leaves_are_not_all_named():
    params = {f"w{n:02}": X for n in range(50)}
    message = r"^overrides\[0\] \('bias'\) matches no leaf; .* 'w19' and 30 more\.$"
    with pytest.raises(ValueError, match=message):
        fa.adam(overrides=[("bias", {})]).init(params)


def test_what_a_function_raises_says_how_it_is_called():
    for look in used(lambda count: 0.1):
        with pytest.raises(TypeError, match="takes 1 positional") as caught:
            look()
        (note,) = caught.value.__notes__
        assert "the path of a leaf, such as 'layers/0/kernel', and its shape and dtype" in note
        assert 'static_args=("overrides",)' in note


def test_what_is_no_mistake():
    pattern = re.compile("BIAS", re.I)
    for overrides in (
        None,
        [],
        (),
        [[pattern, {}]],
        [("embed", {}), ("", {"b1": jnp.float32(0.8)})],
    ):
        for look in used(overrides):
            look()
    assert not fa.adamw(overrides=[("anything", {})]).init({}).mu  # there is nothing to match


def test_parameters_are_needed_where_a_leaf_decays():
    tx = fa.adamw(weight_decay=0.0, overrides=[("kernel", dict(weight_decay=0.1))])
    state, grads = tx.init(PARAMS), {"embed": X, "layers": [{"bias": X, "kernel": None}]}
    tx.update(grads, state)  # what decays has no gradient
    with pytest.raises(ValueError, match=r"^weight_decay needs the parameters: call update\("):
        tx.update(PARAMS, state)
    tx = fa.adamw(weight_decay=0.1, overrides=[("", dict(weight_decay=0.0))])
    tx.update(PARAMS, state)
    l2 = fa.adam(overrides=[("bias", dict(l2=0.1))])
    with pytest.raises(ValueError, match=r"^l2 needs the parameters"):
        l2.update(PARAMS, state)


def test_a_mask_says_which_leaves_decay_and_a_rule_how_much():
    zeros = {"embed": 0 * X, "layers": [{"bias": 0 * X, "kernel": np.zeros((2, 3), np.float32)}]}
    mask = {"embed": False, "layers": [{"bias": True, "kernel": True}]}
    rules = [("bias|embed", dict(weight_decay=0.3))]
    for decay, kernel in ((0.2, -0.1), (0.0, 0.0)):
        tx = fa.adamw(0.5, weight_decay=decay, mask=mask, overrides=rules)
        updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
        np.testing.assert_allclose(updates["embed"], 0)
        np.testing.assert_allclose(updates["layers"][0]["bias"], -0.15 * X, rtol=1e-6)
        np.testing.assert_allclose(updates["layers"][0]["kernel"], kernel, rtol=1e-6)
