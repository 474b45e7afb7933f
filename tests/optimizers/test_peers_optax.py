"""The same numbers as Optax's, live, and as the formula that Keras has for its epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import record_torch

import functional_adam as fa

STEPS = 30
slow = pytest.mark.slow


# ---- Optax ----


def schedule(count):
    return 3e-3 / (1 + 0.07 * count)


def decay_schedule(count):
    return 0.037 + 0.011 * count


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def rising(count):
    return 0.91 + 0.08 * jnp.tanh(0.05 * count)


def loosening(count):
    return 0.31 + 0.057 * count


ODD = {"b1": 0.83, "b2": 0.9973, "eps": 1e-6}
RATE = ODD | {"learning_rate": 3e-3}
ROOT = {"eps_root": 1.7e-7}
# Optax takes rho as a difference, of which b2 = 0.9973 would leave it twelve digits.
RECTIFIED = {"b2": 0.947, "threshold": 7.3}
BELIEF = {"eps": 3.1e-7, "eps_root": 2.3e-5}
SLOW = {"b3": rising, "alpha": decay_schedule}
CONFIGURATIONS = {
    "adam": ("adam", RATE),
    "b1 = 0": ("adam", RATE | {"b1": 0.0}),
    "eps_root": ("adam", RATE | ROOT),
    "schedule": ("adam", ODD | {"learning_rate": schedule}),
    "nesterov": ("adam", RATE | ROOT | {"nesterov": True}),
    "adamw": ("adamw", RATE | {"weight_decay": 0.037}),
    "adamw, default decay": ("adamw", RATE),
    "mask": ("adamw", RATE | {"weight_decay": 0.37, "mask": matrices}),
    "adamw, schedules": (
        "adamw",
        ODD | {"learning_rate": schedule, "weight_decay": decay_schedule},
    ),
    "adamw, nesterov": (
        "adamw",
        ODD | {"learning_rate": schedule, "weight_decay": 0.037, "nesterov": True},
    ),
    "scale_by_adam": ("scale_by_adam", ODD | ROOT),
    "scale_by_adam, nesterov": ("scale_by_adam", ODD | {"nesterov": True}),
    "nadam": ("nadam", RATE | ROOT),
    "nadamw": ("nadamw", RATE | {"weight_decay": decay_schedule, "mask": matrices}),
    **{
        f"amsgrad, bias corrections {mu}, {nu}": (
            "amsgrad",
            RATE | ROOT | {"bias_correction_mu": mu, "bias_correction_nu": nu},
        )
        for mu in (True, False)
        for nu in (True, False)
    },
    "scale_by_amsgrad": ("scale_by_amsgrad", ODD | {"bias_correction_mu": False}),
    "adamax": ("adamax", ODD | {"learning_rate": schedule}),
    "adamaxw": ("adamaxw", RATE | {"weight_decay": decay_schedule, "mask": matrices}),
    "scale_by_adamax": ("scale_by_adamax", ODD),
    "radam": ("radam", RATE | ROOT | RECTIFIED),
    "radam, nesterov": ("radam", RATE | RECTIFIED | {"nesterov": True}),
    "scale_by_radam": ("scale_by_radam", ODD | ROOT | RECTIFIED),
    "adabelief": ("adabelief", RATE | BELIEF),
    "adabelief, nesterov": ("adabelief", RATE | BELIEF | {"nesterov": True}),
    "scale_by_belief": ("scale_by_belief", ODD | BELIEF),
    "yogi": ("yogi", RATE | {"eps": 2.3e-4}),
    "scale_by_yogi": ("scale_by_yogi", ODD | ROOT | {"initial_accumulator_value": 3.7e-5}),
    "lamb": ("lamb", RATE | ROOT | {"weight_decay": 0.037}),
    "lamb, mask": (
        "lamb",
        ODD | {"learning_rate": schedule, "weight_decay": decay_schedule, "mask": matrices},
    ),
    "adopt": ("adopt", RATE),
    "adopt, nesterov": ("adopt", RATE | {"nesterov": True}),
    "adopt, no clipping": ("adopt", RATE | {"use_clipping": False}),
    "adopt, own clipping": ("adopt", RATE | {"clip_value_fn": loosening}),
    "scale_by_adopt": ("scale_by_adopt", ODD | {"clip_value_fn": loosening, "nesterov": True}),
    "ademamix": ("ademamix", RATE | ROOT | {"b3": 0.991, "alpha": 3.7}),
    "ademamix, schedules": ("ademamix", RATE | SLOW | {"weight_decay": 0.37, "mask": matrices}),
    "simplified_ademamix": (
        "simplified_ademamix",
        RATE | ROOT | {"alpha": loosening, "weight_decay": 0.37, "mask": matrices},
    ),
    "scale_by_simplified_ademamix": ("scale_by_simplified_ademamix", ODD | ROOT | {"alpha": 3.7}),
    "scale_by_ademamix": ("scale_by_ademamix", ODD | ROOT | SLOW),
}
# Each argument and each equation once. The others only combine them anew, or are directions, which
# `test_family_contract` compares with their optimizers.
QUICK = {
    *("adam", "b1 = 0", "nesterov", "adamw, default decay", "mask", "adamw, schedules"),
    *("nadam", "nadamw", "adamax", "adamaxw", "radam, nesterov", "adabelief, nesterov"),
    *("amsgrad, bias corrections True, False", "amsgrad, bias corrections False, True"),
    *("yogi", "scale_by_yogi", "lamb, mask", "adopt, nesterov", "adopt, no clipping"),
    *("scale_by_adopt", "ademamix, schedules", "simplified_ademamix"),
}
# All that Optax has for complex parameters: it cannot clip them in ADOPT.
COMPLEX = {
    **dict.fromkeys(["adamw, nesterov", "amsgrad, bias corrections True, True"], ()),
    **dict.fromkeys(["adamaxw", "lamb, mask", "ademamix, schedules"], ()),
    **dict.fromkeys(["eps_root", "nadamw", "radam", "adabelief"], slow),
    **dict.fromkeys(["scale_by_yogi", "adopt, no clipping"], slow),
}
# Optax's AdEMAMix, counting twice, and its simplified one.
RENAMED = {"m1": "mu", "m2": "mu_slow", "count_m2": None, "t": "count", "m": "mu", "n": "nu"}


def data(dtype):
    """Gradients (one row a step) and parameters; scales from far above eps to below it."""
    rng = np.random.default_rng(7)
    scales = {"a": 1.9, "w": np.array([[0.017], [23.0], [0.017], [4.1e-7]])}
    shapes = {"a": (), "w": (4, 7)}  # a scalar, and all else in one leaf: it compiles for long

    def normal(*shape):
        x = rng.standard_normal(shape)
        return x + 1j * rng.standard_normal(shape) if np.issubdtype(dtype, complex) else x

    grads = {k: (scales[k] * normal(STEPS, *shape)).astype(dtype) for k, shape in shapes.items()}
    params = {k: np.asarray(normal(*shape), dtype) for k, shape in shapes.items()}
    grads["w"][:, 2] *= rng.random((STEPS, 7)) < 0.2
    grads["w"][:, 0, 0] = 0
    return grads, params


def kept(state):
    """Count and moments, by our names."""
    named = state if hasattr(state, "_asdict") else state[0]  # Optax: a chain, the moments first
    fields = {RENAMED.get(name, name): value for name, value in named._asdict().items()}
    fields |= fields.pop("extra", None) or {}
    return {name: value for name, value in fields.items() if name and value is not None}


def trajectory(library, kind, hyper, dtype):
    """(updates, what is kept) after each step, the parameters being trained along.

    Not jitted: Optax's operations are then compiled once for all.
    """
    factory = getattr(library, kind, None) or getattr(library.contrib, kind)
    tx = factory(**hyper)
    grads, params = data(dtype)
    state, rows = tx.init(params), []
    for t in range(STEPS):
        g = {name: jnp.asarray(rows_of[t]) for name, rows_of in grads.items()}
        updates, state = tx.update(g, state, params)
        params = library.apply_updates(params, updates)
        rows.append((updates, kept(state)))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def unit(kind, name, moments):
    """What errors are measured by: a moment's own size; for one that cancels, its divisor's."""
    if not name.startswith("mu"):
        return moments[name]
    if "adopt" in kind:  # of quotients
        return jax.tree.map(lambda mu: np.maximum(1, np.abs(mu)), moments["mu"])
    return moments["nu"] if "adamax" in kind else jax.tree.map(np.sqrt, moments["nu"])


def assert_trees_close(ours, theirs, rtol, atol=0.0):
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        np.testing.assert_allclose(ours[name], theirs[name], rtol, atol, err_msg=name)


def assert_same(kind, ours, theirs, allowed):
    """Everything kept: the same names, equal counts, moments to `allowed` units (a dict)."""
    assert set(ours) == set(theirs)
    assert ours["count"].dtype == theirs["count"].dtype
    assert (ours.pop("count") == theirs.pop("count")).all()
    for name, tree in ours.items():
        units = unit(kind, name, ours)
        for leaf, values in tree.items():
            their = theirs[name][leaf]
            if name.startswith("nu"):  # Optax's is complex for complex parameters
                assert values.dtype == their.real.dtype
                assert (their.imag == 0).all()
            else:
                assert values.dtype == their.dtype
            difference = np.abs(values - their.astype(np.promote_types(their.dtype, np.float64)))
            assert (difference <= allowed[name] * units[leaf]).all(), (name, leaf)


def assert_optax_is_ours(name, dtype):
    """To 1e-12: updates relative to a learning rate, moments as in `unit`, counts equal."""
    kind, hyper = CONFIGURATIONS[name]
    ours, our_moments = trajectory(fa, kind, hyper, dtype)
    theirs, their_moments = trajectory(optax, kind, hyper, dtype)
    largest = 1.0 if kind.startswith("scale_by") else 3e-3
    assert_trees_close(ours, theirs, 1e-12, 1e-12 * largest)
    assert all(leaf.dtype == dtype for leaf in ours.values())
    assert_same(kind, our_moments, their_moments, dict.fromkeys(our_moments, 1e-12))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else slow) for name in CONFIGURATIONS]
)
def test_optax_in_float64_is_ours(name, x64):
    assert_optax_is_ours(name, np.float64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks) for name, marks in COMPLEX.items()]
)
def test_optax_in_complex128_is_ours(name, x64):
    assert_optax_is_ours(name, np.complex128)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_optax_moments_in_float32_are_ours(kind):
    """To what Optax's own rounding leaves: see `record_torch.tolerances`."""
    hyper = ODD | {"learning_rate": 3e-3, "b2": 0.97}
    _, ours = trajectory(fa, kind, hyper, np.float32)
    _, theirs = trajectory(optax, kind, hyper, np.float32)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((ours["mu"], ours["nu"])))
    assert_same(kind, ours, theirs, record_torch.tolerances("float32", hyper))


# ---- Keras ----


def keras(grads, learning_rate, b1, b2, eps, amsgrad):
    """The updates of `keras.optimizers.Adam`, as its source and its documentation have them."""
    m, v, largest, updates = 0.0, 0.0, 0.0, []
    for t, g in enumerate(grads, start=1):
        m = m + (g - m) * (1 - b1)
        v = v + (g**2 - v) * (1 - b2)
        largest = np.maximum(largest, v)
        alpha = learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        updates.append(-m * alpha / (np.sqrt(largest if amsgrad else v) + eps))
    return np.stack(updates)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_eps_before_correction_is_that_of_keras(amsgrad, x64):
    """To 1e-12 of a step, from gradients near eps, where its place matters.

    They fade, so that a maximum shows as well.
    """
    numbers = {"learning_rate": 3e-3, "b1": 0.83, "b2": 0.987, "eps": 2.3e-4}
    fading = 1 / (1 + 0.03 * np.arange(200)[:, None])
    rng = np.random.default_rng(17)
    grads = rng.standard_normal((200, 24)) * fading * np.repeat([7e-5, 9e-4, 0.011], 8)

    def updates(tx):
        step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
        return np.asarray(jax.lax.scan(step, tx.init(grads[0]), grads)[1])

    placed = {"eps_placement": "before_correction"}
    maximum = {"maximum": "before_correction"}
    others = [fa.adam(**numbers), fa.amsgrad(**numbers, **maximum), fa.amsgrad(**numbers)]
    both = [fa.adam(**numbers, **placed), fa.amsgrad(**numbers, **placed, **maximum)]
    wanted = keras(grads, amsgrad=amsgrad, **numbers)
    np.testing.assert_allclose(updates(both.pop(amsgrad)), wanted, 1e-12, 1e-12 * 3e-3)
    for other in others + both:
        assert np.abs(updates(other) - wanted).max() > 0.1 * 3e-3
