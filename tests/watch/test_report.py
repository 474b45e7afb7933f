"""The memory report against what a state really takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES

import functional_adam as fa
from functional_adam._watch import table

PARAMS = {
    "body": [jnp.ones((5, 130)), jnp.ones((7, 3, 3), jnp.bfloat16)],
    "head": jnp.ones((40, 1), jnp.float16),
    "none": None,
    "scalar": jnp.float32(3.0),
}


def allocated(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


TRANSFORMATIONS = {
    "full": fa.adam(),
    "mu_dtype": fa.adam(mu_dtype="bfloat16"),
    "bfloat16": fa.adam(moments="bfloat16"),
    "int8": fa.adamw(moments=CODES, rounding="compensated"),
    "blocks of 16": fa.adamw(moments=fa.Int8(block_size=16, min_size=0), rounding="stochastic"),
    "amsgrad": fa.amsgrad(moments="bfloat16", rounding="compensated"),
    "split": fa.adamw(rounding="split"),
    "ademamix": fa.ademamix(),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_sums_are_the_bytes_that_init_allocates(name):
    tx = TRANSFORMATIONS[name]
    state, report = tx.init(PARAMS), fa.memory_report(tx, PARAMS)
    assert report.state_bytes == allocated(state)
    assert report.parameter_bytes == allocated(PARAMS)
    assert report.parameters == 5 * 130 + 63 + 40 + 1
    assert report.float32_adam_bytes == 8 * report.parameters + 4
    assert report.other == 4  # the count
    for part in ("mu", "nu", "nu_scale", "residual", "extra"):
        assert sum(getattr(leaf, part) for leaf in report.leaves) == allocated(getattr(state, part))
    paths = ["['body'][0]", "['body'][1]", "['head']", "['scalar']"]
    assert [leaf.path for leaf in report.leaves] == paths
    parts = report.leaves[1]
    assert (parts.shape, parts.dtype, parts.parameter) == ((7, 3, 3), "bfloat16", 126)
    assert parts.state == parts.mu + parts.nu + parts.nu_scale + parts.residual + parts.extra


def test_bytes_of_each_part_of_a_leaf():
    tx = fa.amsgrad(moments="bfloat16", rounding="compensated")
    (leaf,) = fa.memory_report(tx, jnp.ones((6, 50), jnp.float16)).leaves
    assert leaf[3:9] == (600, 600, 600, 0, 300, 600)
    (leaf,) = fa.memory_report(fa.adam(moments=CODES), jnp.ones((6, 300))).leaves
    assert leaf[3:9] == (7200, 1800, 1800, 36, 0, 0)
    split = fa.adam(moments=CODES, rounding="split")
    (leaf,) = fa.memory_report(split, jnp.ones((6, 300), jnp.bfloat16)).leaves
    assert leaf[3:9] == (3600, 1800, 1800, 36, 3600, 0)


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """As Flax puts around a leaf."""

    def __init__(self, value):
        self.value = value

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_what_lies_outside_of_boxes_belongs_to_their_parameters():
    """Scales and residuals, which are not shaped like the parameters; None where there is none."""
    adam = fa.adam(moments=CODES, rounding="compensated")
    boxed = {"h": Box(jnp.ones((6, 300), jnp.bfloat16)), "w": Box(jnp.ones((5, 130)))}

    def init(params):
        state = adam.init(params)
        plain = adam.init(jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box))
        residual = plain.residual | {"w": None}
        return state._replace(nu_scale=plain.nu_scale, residual=residual)

    is_box = lambda x: isinstance(x, Box)  # noqa: E731
    report = fa.memory_report(optax.GradientTransformation(init, adam.update), boxed)
    h, w = report.leaves
    assert (h.path, h.nu_scale, h.residual) == ("['h'].value", 36, 1800)
    assert (w.path, w.nu_scale, w.residual) == ("['w'].value", 20, 0)
    assert report.other == 4


def test_nothing_is_allocated():
    shape = jax.ShapeDtypeStruct((2**20, 2**20), jnp.bfloat16)  # 2 TiB
    report = fa.memory_report(fa.adamw(moments=CODES, rounding="compensated"), {"w": shape})
    assert report.parameter_bytes == 2**41
    assert report.state_bytes == 3 * 2**40 + 2**34 + 4
    assert report.other == 4


INT8 = fa.adam(moments=CODES)
WITHIN = {
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), INT8), 0),
    "inject_hyperparams": (
        optax.inject_hyperparams(lambda rate: fa.adam(rate, moments=CODES))(rate=3e-3),
        None,
    ),
    "trace": (optax.chain(optax.trace(0.9), INT8), 4 * 354),
    "MultiSteps": (optax.MultiSteps(INT8, 3).gradient_transformation(), None),
}


@pytest.mark.parametrize("name", WITHIN)
def test_states_inside_others_are_found_and_the_rest_counted(name):
    params = {"a": jnp.ones((2, 130)), "b": jnp.ones(94)}
    tx, other = WITHIN[name]
    report = fa.memory_report(tx, params)
    alone = fa.memory_report(INT8, params)
    assert report.leaves == alone.leaves
    assert report.state_bytes == allocated(tx.init(params))
    assert report.other > 4 if other is None else report.other == 4 + other


def test_masked_and_partitioned_leaves_have_what_their_own_transformation_keeps():
    params = {"a": jnp.ones((2, 130)), "b": jnp.ones(94)}
    masked = fa.memory_report(optax.masked(INT8, {"a": True, "b": False}), params)
    assert [leaf.state for leaf in masked.leaves] == [2 * 260 + 8, 0]
    parts = optax.partition({"x": INT8, "y": fa.adam()}, {"a": "x", "b": "y"})
    report = fa.memory_report(parts, params)
    assert [leaf.state for leaf in report.leaves] == [2 * 260 + 8, 8 * 94]
    assert report.other == 8  # two counts


def test_the_text_has_a_line_for_each_leaf_and_the_sums():
    report = fa.memory_report(TRANSFORMATIONS["int8"], PARAMS)
    lines = str(report).splitlines()
    assert lines[0].split() == [
        *("leaf", "shape", "dtype", "parameter", "mu", "nu", "nu_scale", "residual"),
        *("state", "B/param"),
    ]
    assert len(lines) == 1 + 1 + 4 + 1 + 1 + 1 + 1
    assert lines.pop() == "No one-pass kernel on TPUs: ['body'][0], ['head'], ['scalar']."
    first = ["['body'][0]", "(5,", "130)", "float32", "2,600", "650", "650", "20", "0"]
    assert lines[2].split() == [*first, "1,320", f"{1320 / 650:.3f}"]
    total = lines[-2].split()
    assert total[0] == "total"
    assert total[-2] == f"{report.state_bytes - report.other:,}"
    assert f"{report.state_bytes:,} in total" in lines[-1]
    assert len({len(line) for line in lines[:-1]}) == 1  # columns are aligned


LARGE = {
    "decoder": [{"attention": {"out_projection": {"kernel": (32, 4096, 14336)}}}] * 2,
    "tower_of_a_name_that_is_longer_than_any_screen_" * 3: (4096,),
}
LARGE = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
    LARGE,
    is_leaf=lambda x: isinstance(x, tuple),
)


@pytest.mark.parametrize("of_devices", [False, True])
@pytest.mark.parametrize("params", [PARAMS, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", ["full", "int8", "amsgrad"])
def test_the_text_fits_88_columns_and_keeps_every_leaf(name, params, of_devices):
    tx, mesh = TRANSFORMATIONS[name], jax.make_mesh((1,), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda x: everywhere, jax.eval_shape(tx.init, params))
    report = fa.memory_report(tx, params, shardings if of_devices else None)
    text = str(report)
    assert max(map(len, text.splitlines())) <= 88
    for leaf in report.leaves:
        assert leaf.path[-87:] in text
        row = next(r for r in text.splitlines() if f"{leaf.shape}" in r)
        assert f"{leaf.state / np.prod(leaf.shape):.3f}" in row
    assert f"{report.state_bytes:,} in total" in text.replace("\n", " ")


def test_large_sizes_have_three_digits_and_a_unit():
    report = fa.memory_report(fa.adam(), LARGE)
    row = next(line for line in str(report).splitlines() if "14336" in line).split()
    assert row == ["(32,", "4096,", "14336)", "bfloat16", "3.5G", "7G", "7G", "14G", "8.000"]
    assert 32 * 4096 * 14336 * 2 == 3.5 * 1024**3
    assert "powers of 1024" in str(report).replace("\n", " ")
    for size, text in {999: "999", 1000: "0.977K", 123 * 2**20: "123M", 2**41: "2T"}.items():
        assert table.short(size) == text


def test_a_single_leaf_and_empty_trees_have_a_table():
    assert "(params)" in str(fa.memory_report(INT8, jnp.ones((3, 40))))
    for tree in ({}, [], None, {"a": None}, {"a": jnp.zeros((0, 3))}):
        report = fa.memory_report(INT8, tree)
        assert report.parameters == report.parameter_bytes == 0
        assert report.state_bytes == allocated(INT8.init(tree))
        assert "total" in str(report)


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)])
def test_what_is_not_this_packages_counts_as_other(tx):
    params = {"w": jnp.ones((3, 5))}
    report = fa.memory_report(tx, params)
    assert report.other == report.state_bytes == allocated(tx.init(params))
    assert [leaf.state for leaf in report.leaves] == [0]


@pytest.mark.parametrize("tx", [None, 3, "adam", fa.adam, np.ones(3)])
def test_what_has_no_init_is_refused(tx):
    with pytest.raises(
        TypeError, match=r"tx must be a gradient transformation, such as adam\(1e-3\); got"
    ):
        fa.memory_report(tx, PARAMS)


def test_without_shardings_nothing_is_said_of_devices():
    report = fa.memory_report(INT8, PARAMS)
    assert report.state_bytes_per_device is report.other_per_device is None
    assert {leaf.per_device for leaf in report.leaves} == {None}
    assert "device" not in str(report)


def test_one_device_has_it_all():  # more of them: cases_costs.py
    tx, mesh = TRANSFORMATIONS["int8"], jax.make_mesh((1,), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda x: everywhere, jax.eval_shape(tx.init, PARAMS))
    report = fa.memory_report(tx, PARAMS, shardings)
    assert report.state_bytes_per_device == report.state_bytes == allocated(tx.init(PARAMS))
    assert all(leaf.per_device == leaf.state for leaf in report.leaves)
    empty = fa.memory_report(tx, {}, shardings._replace(mu={}, nu={}, nu_scale={}, residual={}))
    assert (empty.state_bytes_per_device, empty.other_per_device) == (4, 4)
    assert "4 on each device" in str(empty)


def test_shardings_of_another_state_are_refused():
    tx, mesh = TRANSFORMATIONS["int8"], jax.make_mesh((1,), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda x: everywhere, jax.eval_shape(tx.init, PARAMS))
    with pytest.raises(TypeError, match=r"params.* is a sharding\. Pass the parameters"):
        fa.memory_report(fa.adam(), shardings)
    with pytest.raises(ValueError, match="shardings must have the structure of the state: shard"):
        fa.memory_report(fa.adam(), PARAMS, shardings)
    with pytest.raises(TypeError, match=r"shardings\.count must be a sharding, as state_shardings"):
        fa.memory_report(tx, PARAMS, shardings._replace(count=3))


def test_leaves_that_cannot_be_trained_are_refused():
    with pytest.raises(TypeError, match=r"params\['i'\]"):
        fa.memory_report(fa.adam(), {"i": jnp.arange(3)})


def test_leaves_without_a_kernel_are_named():
    shapes = {"a": (8, 1024), "b": (40, 320), "c": (16, 192), "d": (640, 160), "e": (30, 320)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()} | {"small": jnp.ones(300)}
    report = fa.memory_report(fa.adamw(moments=fa.Int8(min_size=1000)), params)
    both = ("gpu", "tpu")
    wanted = [both, both[:1], both[:1], both[:1], both[:1], ()]  # of blocks of 112, 96 and 80
    assert [leaf.kernels for leaf in report.leaves] == wanted
    text = str(report).splitlines()
    assert text[-1] == "No one-pass kernel on TPUs: ['b'], ['c'], ['d'] and 1 more."
    half = {"a": jnp.ones((8, 1024), jnp.float16)}
    assert fa.memory_report(fa.adamw(moments="int8"), half).leaves[0].kernels == ("gpu",)
    whole = fa.memory_report(fa.lamb(moments="int8"), {"a": jnp.ones((8, 1024))})  # sums over it
    assert whole.leaves[0].kernels == ()
    assert str(whole).endswith("TPUs: ['a'].")
