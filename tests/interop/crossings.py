"""What the tests of both crossings share: comparisons, state dicts of PyTorch, Optax's counters."""

import jax
import jax.numpy as jnp
import numpy as np
import record_crossing


def cut(tree, start, stop):
    return {k: x[start:stop] for k, x in tree.items()}


def assert_close(found, wanted, tolerance, unit=0.0):
    """Relative to `unit`, or to what is wanted where that is larger."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    error = np.abs(found - wanted)
    assert found.shape == wanted.shape
    assert (error <= tolerance * np.maximum(np.abs(wanted), unit)).all(), error.max()


def entry(shape=(2, 3), step=7.0, seed=1, **more):
    rng = np.random.default_rng(seed)
    m, v = rng.standard_normal(shape), rng.random(shape)
    return {"step": np.float32(step), "exp_avg": m, "exp_avg_sq": v} | more


def state_dict_of(*entries, **group):
    keys = list(range(len(entries)))
    state = {i: e for i, e in zip(keys, entries, strict=True) if e}
    return {"state": state, "param_groups": [{"params": keys, "lr": 1e-3} | group]}


PARAMS = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}


def rate(count):
    return 3e-3 / (1 + 0.011 * count)


ODD = {"b1": 0.83, "b2": 0.9953, "eps": 1e-6}


def optax_data(dtype):
    grads, params = record_crossing.data()
    grads["bias"] = grads["bias"] * 0.1
    cast = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    return jax.tree.map(cast, (grads, {k: params[k] for k in grads}))


def assert_same_types(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, wanted)


START, AT = 1000, 7  # Adam's count, and that of a schedule which began anew at 993


def restarted(tx, params, counts):
    """A state whose counters, in order, are these; with moments of a step."""
    _, state = tx.update(jax.tree.map(lambda p: 0.3 * p + 0.1, params), tx.init(params), params)
    counts = iter(counts)
    is_count = lambda path: jax.tree_util.keystr(path).endswith(("count", "count_m2"))  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(next(counts), x.dtype) if is_count(path) else x, state
    )
