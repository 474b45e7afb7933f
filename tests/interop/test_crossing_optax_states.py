"""Counters, dtypes and trees on the way from Optax and to it, and what does not cross."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES
from crossings import (
    AT,
    ODD,
    PARAMS,
    START,
    assert_close,
    assert_same_types,
    optax_data,
    rate,
    restarted,
)

import functional_adam as fa


def test_counters_with_counterparts_may_differ():
    """The other way out: a counter of its own on both sides, both ways."""
    _, params = optax_data(np.float32)
    theirs, ours = (
        optax.chain(lib.scale_by_adam(**ODD), optax.scale_by_learning_rate(rate))
        for lib in (optax, fa)
    )
    for one, other, cross in ((theirs, ours, fa.from_optax), (ours, theirs, fa.to_optax)):
        state = restarted(one, params, (START, AT))
        crossed = cross(state, other.init(params))
        assert [int(part.count) for part in crossed] == [START, AT]
        wanted, found = one.update(params, state)[0], other.update(params, crossed)[0]
        for leaf in wanted:
            assert_close(found[leaf], wanted[leaf], 1e-5, 3e-3)


def test_counters_that_differ_and_are_dropped_are_named():
    params = PARAMS
    optax_adamw = optax.adamw(rate, **ODD, weight_decay=rate)  # two schedules, two counters
    ours = optax.chain(fa.scale_by_adam(), optax.scale_by_learning_rate(rate))
    twice = optax.chain(fa.scale_by_adam(), fa.adam(rate))
    flat = optax.chain(
        optax.scale_by_adam(), optax.scale_by_adam(), optax.scale_by_learning_rate(rate)
    )
    mixed = getattr(optax, "contrib", optax).ademamix(1e-3)
    for message, cross, (tx, counts), other in (
        # One of two is kept, but nobody says which.
        (r"e\[1\].count is 7, but opt_state\[0\]", fa.from_optax, (optax_adamw, (9, 7, 9)), ours),
        (r"e\[2\].count is 12,.* is 9.*\(n \+ 3\)", fa.from_optax, (optax_adamw, (9, 9, 12)), ours),
        (r"state\[1\].count is 3, but state\[0\]", fa.to_optax, (ours, (9, 3)), optax.adam(1e-3)),
        (
            r"like\[2\].* from like\[0\], which is at 5, or from like\[1\], which is at 6",
            fa.to_optax,
            (twice, (5, 6)),
            flat,
        ),
        (
            r"count is 5, but .*count_m2 is 6, and an AdamState has a single count",
            fa.from_optax,
            (mixed, (5, 6)),
            fa.ademamix(),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            cross(restarted(tx, params, counts), other.init(params))
    same = restarted(optax_adamw, params, (9, 9, 9))
    assert int(fa.from_optax(same, fa.adamw().init(params)).count) == 9


def test_counters_without_values_are_not_compared():
    """As `from_optax` says: under `jax.jit` the schedule's is dropped."""
    state = restarted(optax.adam(rate), PARAMS, (START, AT))
    crossed = jax.jit(fa.from_optax)(state, fa.adam(rate).init(PARAMS))
    assert int(crossed.count) == START


def test_a_crossed_state_can_be_donated():
    """No buffer twice in it, and the template may be abstract."""
    _, params = optax_data(np.float32)
    for tx, like, cross in (
        (fa.ademamix(1e-3), getattr(optax, "contrib", optax).ademamix(rate), fa.to_optax),
        (optax.amsgrad(rate), optax.chain(fa.amsgrad(1e-3)), fa.from_optax),
    ):
        crossed = cross(tx.init(params), jax.eval_shape(like.init, params))
        assert_same_types(crossed, like.init(params))
        pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(crossed)]
        assert len(set(pointers)) == len(pointers)


def test_moments_take_the_dtypes_of_like():
    """Optax keeps 16 bits for parameters of 16 bits; what lacks is no error of ours yet."""
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    old = optax.adam(1e-3, b1=0.83)
    _, opt_state = old.update({"w": jnp.full((2, 3), 0.37, jnp.bfloat16)}, old.init(params))
    tx = fa.adam(1e-3, b1=0.83, rounding="compensated")
    state = fa.from_optax(opt_state, tx.init(params))
    assert_same_types(state, tx.init(params))
    np.testing.assert_array_equal(state.mu["w"], opt_state[0].mu["w"].astype(np.float32))
    back = fa.to_optax(state, old.init(params))
    jax.tree.map(np.testing.assert_array_equal, back, opt_state)


def test_complex_second_moments_become_real_and_complex_again():
    params = jnp.ones(3, np.complex64)
    old, tx = optax.adam(1e-3), fa.adam(1e-3)
    _, opt_state = old.update(jnp.array([1 + 2j, 0.3j, 2.0]), old.init(params))
    state = fa.from_optax(opt_state, tx.init(params))
    np.testing.assert_array_equal(state.nu, opt_state[0].nu.real)
    np.testing.assert_array_equal(state.mu, opt_state[0].mu)
    jax.tree.map(np.testing.assert_array_equal, fa.to_optax(state, old.init(params)), opt_state)
    with pytest.raises(TypeError, match=r"mu is complex64, but its counterpart in like is float32"):
        fa.from_optax(opt_state, tx.init(jnp.ones(3)))


def test_what_does_not_cross_to_or_from_optax_raises():
    params, leaf = PARAMS, jnp.ones(3)
    adam, opt_adam = fa.adam().init(leaf), optax.adam(1e-3).init(leaf)
    two = optax.chain(fa.scale_by_adam(), fa.adam())
    clipped = optax.chain(optax.trace(0.9), optax.adam(1e-3)).init(leaf)
    masked = optax.masked(optax.adam(1e-3), {"b": True, "w": False}).init(params)
    for error, message, cross, arguments in (
        (ValueError, "opt_state must contain an Adam state of Optax", fa.from_optax, (adam, adam)),
        (ValueError, "like must contain an AdamState", fa.from_optax, (opt_adam, opt_adam)),
        (ValueError, "state must contain an AdamState", fa.to_optax, (opt_adam, opt_adam)),
        (ValueError, "restored without a target", fa.from_optax, ([{"mu": leaf}], adam)),
        (
            ValueError,
            r"like\[0\] \(an Adam state\).* without a counterpart",
            fa.from_optax,
            (optax.partition({"x": optax.adam(1.0)}, "x").init(leaf), two.init(leaf)),
        ),
        (
            ValueError,
            r"converted: opt_state\[0\].trace \(an array\) without a counterpart",
            fa.from_optax,
            (clipped, adam),
        ),
        (
            ValueError,
            r"converted: like\[0\].trace \(an array\) without a counterpart",
            fa.from_optax,
            (opt_adam, optax.chain(optax.trace(0.9), fa.adam()).init(leaf)),
        ),
        (
            ValueError,
            r"opt_state\[0\] has mu and nu, but like has mu and nu and nu_max",
            fa.from_optax,
            (opt_adam, fa.amsgrad().init(leaf)),
        ),
        (
            ValueError,
            r"opt_state\[0\]: mu has shape \(3,\), but its counterpart in like has shape \(2,\)",
            fa.from_optax,
            (opt_adam, fa.adam().init(jnp.ones(2))),
        ),
        (
            ValueError,
            r"inner_state\[0\]: mu must have the structure of like: mu: .*MaskedNode",
            fa.from_optax,
            (masked, fa.adam().init(params)),
        ),
        (
            ValueError,
            "like has 8-bit moments.*convert_moments",
            fa.from_optax,
            (opt_adam, fa.adam(moments=CODES).init(leaf)),
        ),
        (
            ValueError,
            "state has 8-bit moments.*convert_moments",
            fa.to_optax,
            (fa.adam(moments=CODES).init(leaf), opt_adam),
        ),
    ):
        with pytest.raises(error, match=message):
            cross(*arguments)
