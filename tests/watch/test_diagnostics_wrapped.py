"""The scalars to watch a run by, where the state is inside wrappers, groups and frameworks."""

import jax
import numpy as np
import optax
import pytest
from watched import HYPER, RATE, assert_close, expected, flat, numbers, watch

import functional_adam as fa


def test_the_state_is_found_inside_every_wrapper():
    """One Adam under the wrappers in turn, its gradients unchanged by them: the same numbers."""
    params, grads = numbers(0), numbers(3)
    adam = fa.adam(RATE, **HYPER)
    plain = adam.update(grads, adam.init(params), params)
    wanted = watch(*plain, params, **HYPER)
    for tx in (
        optax.named_chain(("first", optax.identity()), ("second", adam)),
        optax.masked(adam, True),
        optax.MultiSteps(adam, 1).gradient_transformation(),
        optax.partition({"all": adam}, "all"),
    ):
        found = tx.update(grads, tx.init(params), params)
        assert_close(watch(*found, params, **HYPER), wanted)


def test_the_state_is_found_in_the_opt_state_of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            for name, x in numbers(0).items():
                setattr(self, name, nnx.Param(x))

    model, adam = Model(), fa.adam(RATE, **HYPER)
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    grads = jax.tree.map(lambda p: 0.3 * p, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    params = numbers(0)
    updates, state = adam.update(jax.tree.map(lambda p: 0.3 * p, params), adam.init(params), params)
    params = fa.apply_updates(params, updates)
    boxed = nnx.state(model, nnx.Param)
    found = fa.diagnostics(boxed, optimizer.opt_state, boxed, **HYPER)
    assert_close(found, fa.diagnostics(params, state, params, **HYPER))


LABELS = {"a": "decayed", "b": "rest", "c": "decayed"}


def partitioned(params, **others):
    """Updates and the state of a partition in which `decayed` decays."""
    tx = optax.partition({"decayed": fa.adamw(RATE, **HYPER, weight_decay=0.3), **others}, LABELS)
    return tx.update(numbers(3), tx.init(params), params)


def test_a_group_of_a_partition_has_the_norms_of_its_own_leaves():
    params = numbers(0)
    updates, state = partitioned(params, rest=fa.adam(7 * RATE, **HYPER))
    for label, names in (("decayed", "ac"), ("rest", "b")):
        inner = state.inner_states[label]
        held = inner.inner_state
        mine = [{k: x[k] for k in names} for x in (updates, params, held.mu, held.nu)]
        assert_close(watch(updates, inner, params, **HYPER), expected(*mine, 1))


def test_a_partition_with_one_adam_in_it_needs_no_choice():
    params = numbers(0)
    updates, state = partitioned(params, rest=optax.sgd(0.1))
    watched = fa.diagnostics(updates, state, params, **HYPER)
    mine = {k: params[k] for k in "ac"}
    np.testing.assert_allclose(watched["param_norm"], np.linalg.norm(flat(mine)), rtol=1e-6)
