"""Every factory of the family with hyperparameters that are nobody's defaults, and how a run of one
is compared with another or with the truth.

Expected numbers come from `reference.family` in float64, from the same transformation run on its
own with a wrapper's work done by hand, or, where hyperparameters change in mid-run, from a fresh
transformation for every step.
"""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
import pytest
import reference

import functional_adam as fa

STEPS = 7
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}
ROOTED = {**RATES, "eps_root": 0.003}
SLOW = {**ROOTED, "b3": 0.9937, "alpha": 3.7}
NO_EPS = {"b1": 0.83, "b2": 0.971}
ALPHA = {"learning_rate": 0.013}
DECAY = {"weight_decay": 0.07}
COUPLED = {"l2": 0.21}
BEFORE = {"eps_placement": "before_correction"}


def cautious_adamw(
    learning_rate, b1, b2, eps, eps_root, weight_decay, mu_dtype=None, nu_dtype=None, overrides=None
):
    others = {"nu_dtype": nu_dtype, "overrides": overrides}
    tx = fa.adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, **others)
    return fa.cautious(tx)


def clipped_adamw(
    learning_rate,
    b1,
    b2,
    eps,
    eps_root,
    weight_decay,
    threshold_of_rms,
    mu_dtype=None,
    nu_dtype=None,
):
    tx = fa.adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, nu_dtype=nu_dtype)
    return fa.clip_update_rms(tx, threshold_of_rms)


def choosy_nadamw(learning_rate, b1, b2, eps, eps_root, weight_decay, mu_dtype=None, nu_dtype=None):
    tx = fa.nadamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, nu_dtype=nu_dtype)
    return fa.cautious_weight_decay(tx)


def adam_on_a_sphere(learning_rate, b1, b2, eps, eps_root, mu_dtype=None, nu_dtype=None):
    tx = fa.adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype)
    return fa.hyperball(tx)


class Member(NamedTuple):
    """A factory with hyperparameters that are nobody's defaults."""

    key: str
    make: Callable
    rule: str  # of `reference.RULES`
    hyper: dict
    implied: Mapping = MappingProxyType({})  # what `reference.family` must be told besides

    def tx(self, **changes):
        return self.make(**self.hyper | changes)

    @property
    def floats(self):
        return {name: x for name, x in self.hyper.items() if isinstance(x, float)}

    @property
    def alpha(self):
        """What updates are measured in."""
        return self.hyper.get("learning_rate", 1.0)


NESTEROV, CAUTIOUS = {"nesterov": True}, {"cautious": True}
CHOOSY, ON_A_SPHERE = {"cautious_weight_decay": True}, {"hyperball": True}
START = {"initial_accumulator_value": 0.07}
UNCORRECTED = {"bias_correction_mu": False, "bias_correction_nu": False}
MAXIMUM = {"maximum": "before_correction"}
UPWARDS = {"learning_rate": -1.0}  # a direction alone is neither scaled nor signed

MEMBERS = [  # first those that represent others: see `each_structure`, `each_number`, `each_rule`
    Member("amsgrad", fa.amsgrad, "amsgrad", ALPHA | ROOTED | COUPLED | DECAY),
    Member("yogi", fa.yogi, "yogi", ALPHA | ROOTED | START),
    Member("lamb", fa.lamb, "lamb", ALPHA | ROOTED | DECAY),
    Member("ademamix", fa.ademamix, "ademamix", ALPHA | SLOW | DECAY),
    Member(
        "scale_by_adopt",
        fa.scale_by_adopt,
        "adopt",
        RATES | NESTEROV | {"clip_value_fn": 0.83},
        UPWARDS,
    ),
    Member("nadam_dozat", fa.nadam, "nadam", ALPHA | ROOTED | BEFORE | {"momentum_decay": 0.37}),
    Member(
        "radam_nesterov", fa.radam, "radam", ALPHA | ROOTED | BEFORE | NESTEROV | {"threshold": 4.6}
    ),
    Member(
        "adam_atan2", fa.adam_atan2, "adam_atan2", ALPHA | NO_EPS | DECAY | {"a": 0.83, "b": 1.37}
    ),
    Member("adamw", fa.adamw, "adam", ALPHA | ROOTED | DECAY | {"independent_weight_decay": True}),
    Member("adamax", fa.adamax, "adamax", ALPHA | RATES | COUPLED),
    Member("adabelief", fa.adabelief, "adabelief", ALPHA | ROOTED | DECAY),
    Member("cautious", cautious_adamw, "adam", ALPHA | ROOTED | DECAY, CAUTIOUS),
    Member("laprop", fa.laprop, "laprop", ALPHA | RATES | DECAY),
    Member(
        "simplified_ademamix",
        fa.simplified_ademamix,
        "simplified_ademamix",
        ALPHA | ROOTED | DECAY | {"alpha": 1.7},
    ),
    Member(
        "clip_update_rms",
        clipped_adamw,
        "adam",
        ALPHA | ROOTED | DECAY | {"threshold_of_rms": 0.87},
    ),
    Member("cautious_weight_decay", choosy_nadamw, "nadam", ALPHA | ROOTED | DECAY, CHOOSY),
    Member("hyperball", adam_on_a_sphere, "adam", ALPHA | ROOTED, ON_A_SPHERE),
    Member("adam_l2", fa.adam, "adam", ALPHA | ROOTED | COUPLED),
    Member("adam_eps", fa.adam, "adam", ALPHA | ROOTED | BEFORE | NESTEROV),
    Member("nadam", fa.nadam, "nadam", ALPHA | ROOTED | COUPLED),
    Member("nadamw", fa.nadamw, "nadam", ALPHA | ROOTED | DECAY | {"momentum_decay": 0.19}),
    Member("amsgrad_maximum", fa.amsgrad, "amsgrad", ALPHA | ROOTED | COUPLED | MAXIMUM | BEFORE),
    Member("adamaxw", fa.adamaxw, "adamax", ALPHA | RATES | DECAY),
    Member("radam", fa.radam, "radam", ALPHA | ROOTED | COUPLED | DECAY | {"threshold": 4.3}),
    Member("adopt", fa.adopt, "adopt", ALPHA | RATES),
    Member("adopt_unclipped", fa.adopt, "adopt", ALPHA | RATES | DECAY | {"use_clipping": False}),
    Member("scale_by_adam", fa.scale_by_adam, "adam", ROOTED | BEFORE, UPWARDS),
    Member("scale_by_amsgrad", fa.scale_by_amsgrad, "amsgrad", ROOTED | UNCORRECTED, UPWARDS),
    Member("scale_by_adamax", fa.scale_by_adamax, "adamax", RATES, UPWARDS),
    Member("scale_by_radam", fa.scale_by_radam, "radam", ROOTED | {"threshold": 4.3}, UPWARDS),
    Member("scale_by_belief", fa.scale_by_belief, "adabelief", ROOTED | NESTEROV, UPWARDS),
    Member("scale_by_yogi", fa.scale_by_yogi, "yogi", ROOTED | START, UPWARDS),
    Member("scale_by_ademamix", fa.scale_by_ademamix, "ademamix", SLOW, UPWARDS),
    Member(
        "scale_by_simplified_ademamix",
        fa.scale_by_simplified_ademamix,
        "simplified_ademamix",
        ROOTED | {"alpha": 1.7},
        UPWARDS,
    ),
]
MEMBERS = {member.key: member for member in MEMBERS}
EXTRA = {"amsgrad": ("nu_max", "v"), "ademamix": ("mu_slow", "m")}


# Scoped to the module, so that pytest runs all tests of a member in a row, and a worker finds what
# it has compiled.
def members(number):
    chosen = dict(itertools.islice(MEMBERS.items(), number))
    return pytest.mark.parametrize("member", chosen.values(), ids=chosen, scope="module")


every_member = members(len(MEMBERS))
each_rule = members(14)  # every rule of `reference`; a direction is its optimizer
each_number = members(8)  # every hyperparameter that is a number
each_structure = members(5)  # extra trees and none, with and without parameters: for wrappers


def normal_tree(seed, scale=1.0):
    """A tree of normal numbers of two shapes, since each shape is compiled for itself."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.float32(scale * rng.standard_normal(shape))  # noqa: E731
    return {"b": draw(), "layers": [draw(2, 3), {"w": draw(2, 3)}]}


PARAMS = normal_tree(0, scale=2.0)
GRADS = [normal_tree(t + 1, scale=(1.0, 0.2, 3.1, 0.07, 1.7, 0.4, 0.9)[t]) for t in range(STEPS)]
PART = {"b": True, "layers": [False, {"w": True}]}


def part(tree):
    """The leaves that `PART` names: two instead of three, where compiling takes long."""
    return {"b": tree["b"], "w": tree["layers"][1]["w"]}


# Running and comparing ------------------------------------------------------------------------


class Row(NamedTuple):
    """What stands after a step."""

    updates: dict
    params: dict
    state: fa.AdamState


def walk(tx, grads, params, state=None):
    """Step by step, not jitted: a Row for each of `grads`; `tx` may be a function of the count."""
    at = (lambda count: tx) if hasattr(tx, "update") else tx
    state, rows = at(0).init(params) if state is None else state, []
    for t, g in enumerate(grads):
        updates, state = at(t).update(g, state, params)
        params = fa.apply_updates(params, updates)
        rows.append(Row(updates, params, state))
    return rows


def scan(tx, grads, params):
    """A stacked Row; fails where the state is no valid carry."""

    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        carry = fa.apply_updates(params, updates), state
        return carry, Row(updates, *carry)

    return jax.lax.scan(body, (params, tx.init(params)), grads)[1]


def stacked(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def at_row(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


def expected(member, grads, params, **hyper):
    """`reference.family` leaf by leaf: a stacked Row, of which the state is mu, nu and extra."""
    leaves, treedef = jax.tree.flatten(params)
    columns = []
    for theta, g in zip(leaves, zip(*map(jax.tree.leaves, grads), strict=True), strict=True):
        told = {**member.hyper, **hyper, **member.implied}
        if "clip_value_fn" in told:  # there only as a function
            told["clip_value_fn"] = lambda _, clip=told["clip_value_fn"]: clip
        updates, thetas, kept = reference.family(member.rule, g, wide(theta), **told)
        extra = {EXTRA[member.rule][0]: kept[EXTRA[member.rule][0]]} if member.rule in EXTRA else {}
        columns.append((updates, thetas, (kept["m"], kept["v"], extra)))
    unzip = lambda rows: zip(*rows, strict=True)  # noqa: E731
    updates, thetas, kept = unzip(columns)
    mu, nu, extra = unzip(kept)
    extra = {key: treedef.unflatten(x[key] for x in extra) for key in extra[0]} or None
    return Row(
        treedef.unflatten(updates),
        treedef.unflatten(thetas),
        fa.AdamState(None, treedef.unflatten(mu), treedef.unflatten(nu), extra=extra),
    )


def wide(x):
    """In float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float64))


def error(actual, wanted, size):
    """The largest error, relative to `size` or to what is wanted, whichever is larger."""
    worst = 0.0
    for a, w in zip(*map(jax.tree.leaves, (actual, wanted)), strict=True):
        assert np.shape(a) == np.shape(w)
        relative = np.abs(wide(a) - wide(w)) / np.maximum(size, np.abs(wide(w)))
        worst = np.maximum(worst, relative.max(initial=0.0))  # a NaN stays
    return worst


def assert_row(row, wanted, alpha, tolerance):
    """Updates to `tolerance` in units of `alpha`; parameters, moments and extra trees in ones."""
    errors = {
        "updates": error(row.updates, wanted.updates, alpha),
        "params": error(row.params, wanted.params, 1.0),
        **{
            field: error(getattr(row.state, field), getattr(wanted.state, field), 1.0)
            for field in ("mu", "nu", "extra")
        },
    }
    bad = {key: f"{value:.1e}" for key, value in errors.items() if not value <= tolerance}
    assert not bad, f"relative errors above {tolerance:.1e}: {bad}"


A_FEW_UNITS = 8 * 2.0**-24


def assert_rows(rows, wanted, alpha, tolerance=A_FEW_UNITS):
    for row, want in zip(rows, wanted, strict=True):
        assert_row(row, want, alpha, tolerance)
        assert int(row.state.count) == int(want.state.count)


def assert_equal(actual, wanted):
    """Structures, dtypes and every bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, w in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(w), strict=True)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def rounded(hyper):
    """The values that float32 arrays of them hold."""
    return {name: float(np.float32(x)) if isinstance(x, float) else x for name, x in hyper.items()}


def adam_state(state) -> fa.AdamState:
    """The one AdamState inside a wrapper's state."""
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    return found


def unwrapped(rows):
    return [row._replace(state=adam_state(row.state)) for row in rows]
