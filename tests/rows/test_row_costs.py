"""What a step of some rows costs: the same for a table of any height, and nothing is copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

WIDTH, ROWS = 48, 21
# Not bfloat16: XLA for the CPU has no scatter of it, and converts the whole array.
FORMS = [
    ("full", "nearest", jnp.float32, "lazy"),
    ("full", "stochastic", jnp.float16, "dense"),
    ("int8", "compensated", jnp.float16, "moments"),
    ("int8", "nearest", jnp.float32, "dense"),
]
# What writes into its operand, or only names it.
IN_PLACE = {"parameter", "while", "tuple", "get-tuple-element", "bitcast", "dynamic-update-slice"}


def compiled(height, moments, rounding, dtype, catch_up):
    how = dict(moments=moments, rounding=rounding)
    table = jax.ShapeDtypeStruct((height, WIDTH), dtype)
    state = jax.eval_shape(lambda: fa.init_rows(jnp.zeros((height, WIDTH), dtype), **how))

    def step(table, state, grads, rows):
        how_too = how | dict(catch_up=catch_up, weight_decay=0.03)
        return fa.update_rows(grads, rows, state, table, **how_too)

    grads = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    rows = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    made = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, grads, rows).compile()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((table, state)))
    return made, held


def whole_table_operations(text, height):
    """The operations that give something of the table's height, but for those in `IN_PLACE`."""
    found = re.findall(rf"= \w+\[{height}[,\d]*\]\S* ([\w-]+)\((.*)", text)
    return {innermost(text, *operation) for operation in found} - IN_PLACE - {"scatter"}


def innermost(text, name, rest):
    """The name of an operation, or of the last one in what it calls."""
    call = re.search(r"(?:calls|to_apply)=(%?[\w.-]+)", rest)
    if name not in ("fusion", "call") or call is None:
        return name
    body = text[text.index(f"\n{call[1]} ") :].partition("\n}")[0]
    return innermost(text, *re.search(r"ROOT [^=]*= \S+ ([\w-]+)\((.*)", body).groups())


@pytest.mark.parametrize(
    "form",
    [*FORMS[1:3], *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[::3])],
    ids=lambda form: f"{form[0]}-{form[1]}-{form[3]}",
)
def test_a_step_costs_the_same_in_a_table_of_any_height(form):
    (low, few), (high, many) = compiled(3001, *form), compiled(30011, *form)
    assert many > 9.9 * few
    sizes = [made.memory_analysis() for made in (low, high)]
    assert sizes[0].temp_size_in_bytes == sizes[1].temp_size_in_bytes
    assert [size.alias_size_in_bytes for size in sizes] == [few, many]
    assert low.cost_analysis()["flops"] == high.cost_analysis()["flops"]
    assert whole_table_operations(high.as_text(), 30011) == set()


def test_the_measure_sees_a_pass_over_the_table():
    table, grads = jnp.zeros((30011, WIDTH)), jnp.zeros((ROWS, WIDTH))
    dense = jax.jit(lambda t, g: t.at[:ROWS].add(g) * 2, donate_argnums=0)
    assert whole_table_operations(dense.lower(table, grads).compile().as_text(), 30011)


def test_a_donated_table_is_written_where_it_is():
    table = jnp.zeros((5000, WIDTH))
    state = fa.init_rows(table)
    step = jax.jit(lambda t, s, g, r: fa.update_rows(g, r, s, t), donate_argnums=(0, 1))
    places = [x.unsafe_buffer_pointer() for x in (table, state.mu, state.nu)]
    for i in range(3):
        table, state = step(table, state, jnp.ones((ROWS, WIDTH)), np.arange(ROWS) * 3 + i)
    assert [x.unsafe_buffer_pointer() for x in (table, state.mu, state.nu)] == places
    assert step._cache_size() == 1
