"""A table divided over 8 devices by its rows: the bits of one device, and what is sent."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_costs import COLLECTIVE
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import EXPLICIT, HYPER, differing, mesh_of

import functional_adam as fa

HEIGHT, WIDTH, ROWS = 4000, 136, 48
FORMS = [
    ("Auto", ("data",), "full nearest", jnp.float32, "dense"),
    ("Auto", (("data", "model"),), "int8 compensated", jnp.float16, "moments"),
    ("Auto", ("data", "model"), "bfloat16 split", jnp.bfloat16, "lazy"),
]
if EXPLICIT:
    FORMS.append(("Explicit", ("data", None), "int8 stochastic", jnp.bfloat16, "dense"))


def batch(i):
    rng = np.random.default_rng(i)
    rows = rng.integers(0, HEIGHT + 99, ROWS).astype(np.int32)
    rows[:3] = 7  # in all batches, several times
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32), rows


def functions(mode, catch_up):
    moments, rounding = mode.split()
    how = HYPER | dict(moments=moments, rounding=rounding, catch_up=catch_up)

    def update(table, state, grads, rows):
        return fa.update_rows(grads, rows, state, table, **how)

    def flush(table, state):
        if catch_up == "lazy":
            return table, state
        return fa.flush_rows(state, table, **how)

    init = functools.partial(fa.init_rows, moments=moments, rounding=rounding)
    return init, jax.jit(update, donate_argnums=(0, 1)), jax.jit(flush)


@pytest.mark.parametrize(("kind", "spec", "mode", "dtype", "catch_up"), FORMS)
def test_a_divided_table_has_the_bits_of_a_whole_one(kind, spec, mode, dtype, catch_up):
    mesh = mesh_of("2x4", kind)
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(*spec))
    init, update, flush = functions(mode, catch_up)
    numbers = np.random.default_rng(9).normal(size=(HEIGHT, WIDTH))

    def run(place, theta):
        state = init(theta)
        for i in range(3):
            theta, state = update(theta, state, *(place(x) for x in batch(i)))
            if i == 0:
                before = update._cache_size()
        assert update._cache_size() == before  # nothing is compiled anew
        return flush(theta, state)

    alone = run(jnp.asarray, jnp.asarray(numbers, dtype))
    table = jax.device_put(jnp.asarray(numbers, dtype), divided)
    found = run(lambda x: jax.device_put(x, everywhere), table)
    assert differing(found, alone) == {}
    theta, state = found
    assert theta.sharding == state.mu.sharding == divided
    assert state.extra["last"].sharding.is_equivalent_to(NamedSharding(mesh, P(spec[0])), 1)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[-1]], ids=lambda form: form[0])
def test_only_the_rows_of_a_batch_are_sent(form):
    kind, spec, mode, dtype, catch_up = form
    mesh = mesh_of("2x4", kind)
    init, update, _ = functions(mode, catch_up)
    table = jax.device_put(jnp.zeros((HEIGHT, WIDTH), dtype), NamedSharding(mesh, P(*spec)))
    given = [jax.device_put(x, NamedSharding(mesh, P())) for x in batch(0)]
    compiled = update.lower(table, init(table), *given).compile()
    lines = [line for line in compiled.as_text().splitlines() if COLLECTIVE.search(line)]
    assert {COLLECTIVE.search(line)[2] for line in lines} == {"all-reduce"}
    for line in lines:
        shapes = re.findall(r"\w\[([\d,]*)\]", line.partition(" all-reduce")[0])
        sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes]
        assert max(sizes) <= ROWS * WIDTH
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((table, init(table))))
    assert compiled.memory_analysis().alias_size_in_bytes == held
