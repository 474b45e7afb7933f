"""`offload` in use: which leaves it takes, Optax around and inside, checkpoints, mistakes."""

import pickle
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from codes import CODES
from sharded import differing
from test_offload import by_step, kinds, lies_as, numbers, whole

import functional_adam as fa
from functional_adam import _host
from functional_adam._devices.waiting import Moments, chosen

pytestmark = pytest.mark.skipif(not _host.HAS_SPACES, reason="older JAX: no jax.memory")

ADAM = fa.adamw(0.03, b1=0.85, b2=0.97, weight_decay=0.2)
HOST, DEVICE = "pinned_host", "device"


def begun(tx, params, **options):
    """What `offload` returns, and a state of it."""
    offloaded = fa.offload(tx, params, **options)
    return offloaded, jax.device_put(offloaded.tx.init(params), offloaded.shardings)


# ---- Which leaves ----

SIZES = {"layers/0/kernel": 600, "layers/0/bias": 30, "layers/1/kernel": 500, "embed": 870}
LEAVES = {
    f"[{path}]": Moments(path, jax.ShapeDtypeStruct((size // 10, 10), jnp.float32), size)
    for path, size in SIZES.items()
}
KERNELS = {"layers/0/kernel", "layers/1/kernel"}
RULES = {  # of 2,000 bytes
    "all": (0, {*SIZES}),
    "as large": (500, {*SIZES} - {"layers/0/bias"}),
    "larger": (501, {"layers/0/kernel", "embed"}),
    "none so large": (10**6, set()),
    "a pattern": ("0", {"layers/0/kernel", "layers/0/bias"}),
    "anchored": (re.compile(r"(^|/)kernel$"), KERNELS),
    "the largest": (0.3, {"embed"}),
    "a bit more than the largest": (0.436, {"embed", "layers/0/kernel"}),
    "everything": (1.0, {*SIZES}),
    "a function": (lambda path, leaf: leaf.shape[0] > 55 and "0" in path, {"layers/0/kernel"}),
    "both": (["layers", 500], KERNELS),
    "a part of those": (["layers", 0.5], {"layers/0/kernel"}),
    "in another order": ([0.5, "layers"], {"layers/0/kernel"}),
    "nothing is left": (["embed", 900], set()),
    "no rule": ([], {*SIZES}),
    "default": (None, set()),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_choose_leaves_one_after_the_other(name):
    rules, wanted = RULES[name]
    assert {path.strip("[]") for path in chosen(rules, LEAVES)} == wanted


def test_by_default_leaves_whose_moments_fill_a_mebibyte_wait():
    shapes = {"just": (1024, 128), "less": (1023, 128)}  # 8 bytes an element
    params = {k: jax.ShapeDtypeStruct(x, jnp.float32, sharding=whole()) for k, x in shapes.items()}
    assert kinds(fa.offload(ADAM, params).shardings.mu) == {"just": HOST, "less": DEVICE}
    small = fa.offload(fa.adam(moments="bfloat16"), params).shardings
    assert kinds(small.nu) == {"just": DEVICE, "less": DEVICE}


MISTAKES = [
    (
        ValueError,
        "kernel$",
        r"leaves \('kernel\$'\) matches no leaf; the paths of the leaves are 'body/0', ",
    ),
    (ValueError, ["body", "x"], r"leaves\[1\] \('x'\) matches no leaf"),
    (ValueError, "[", r"leaves is '\[', which is not a regular expression"),
    (ValueError, 0.0, r"leaves must be in \(0, 1\] where it is a float, .*; got 0.0. A number of"),
    (ValueError, [1.5], r"leaves\[0\] must be in \(0, 1\].*; got 1.5"),
    (ValueError, float("nan"), r"in \(0, 1\]"),
    (ValueError, -1, "leaves must be an integer >= 0; got -1"),
    (TypeError, True, "leaves must be a number of bytes, a regular .* or a function .*; got True"),
    (TypeError, [None], r"leaves\[0\] must be a number of bytes, .*; got None"),
    (TypeError, lambda path, leaf: 1, r"leaves\('body/0', leaf\) must be True or False; got 1"),
]


@pytest.mark.parametrize(("error", "leaves", "match"), MISTAKES)
def test_rules_that_are_none(error, leaves, match):
    with pytest.raises(error, match=match):
        fa.offload(ADAM, numbers(0), leaves=leaves)


def test_a_rule_that_raises_says_how_it_is_called():
    with pytest.raises(TypeError) as caught:
        fa.offload(ADAM, numbers(0), leaves=lambda path: True)
    assert "called with the path of a leaf" in caught.value.__notes__[0]


def test_mistakes_in_the_other_arguments(monkeypatch):
    params = numbers(0)
    shardings = fa.state_shardings(ADAM, params)

    def refused(error, match, *arguments):
        with pytest.raises(error, match=match):
            fa.offload(*arguments)

    refused(ValueError, "must hold an AdamState; found none", optax.sgd(0.1), params)
    refused(TypeError, "tx must be a gradient transformation, such as", fa.adamw, params)
    refused(TypeError, r"params\.count is a sharding\. Pass the parameters", ADAM, shardings)
    other = fa.state_shardings(ADAM, {"w": params["head"]})
    refused(ValueError, "shardings must have the structure of the state", ADAM, params, other)
    wrong = shardings._replace(count=jax.devices()[0])
    refused(TypeError, r"shardings\.count must be a sharding.*; got .*Device", ADAM, params, wrong)
    twice = fa.offload(ADAM, params, leaves=0).shardings
    refused(ValueError, r"shardings\.mu\['body'\]\['0'\] lies in the host's", ADAM, params, twice)
    monkeypatch.setattr(_host, "KIND", "shelf")
    refused(ValueError, "read 'shelf' memory; .* has 'device' and 'pinned_host'", ADAM, params)
    monkeypatch.setattr(_host, "HAS_SPACES", False)
    refused(NotImplementedError, f"has jax.memory; this is {jax.__version__}", ADAM, params)


# ---- A state on the other side ----


@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_a_state_on_the_wrong_side_says_so(transformed):
    params = numbers(0, jnp.bfloat16)
    tx = fa.adamw(0.03, b1=0.85, moments=CODES, rounding="compensated")
    offloaded, state = begun(tx, params, leaves="body")

    def refused(step, state, match):
        with pytest.raises(ValueError, match=match):
            transformed(by_step(step))(params, state, params)

    where = r"\['body'\]\['0'\] lies "
    away = "in the host's memory, and this transformation does not fetch it. Take the"
    refused(tx, state, r"state\.mu" + where + away)
    for name in ("nu", "nu_scale"):
        fetched = state._replace(**{name: getattr(tx.init(params), name)})
        refused(offloaded.tx, fetched, rf"state\.{name}{where}on the devices, but .* offload keeps")
    sent = state._replace(residual=jax.tree.map(_host.on_host, state.residual))
    refused(offloaded.tx, sent, r"state\.residual" + where + away)
    # Each message's way out.
    fetched = jax.device_put(state, offloaded.device_shardings)
    jax.eval_shape(by_step(tx), params, fetched, params)
    sent = jax.device_put(tx.init(params), offloaded.shardings)
    jax.eval_shape(by_step(offloaded.tx), params, sent, params)


# ---- Optax ----

INSIDE = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), ADAM),
    "masked": optax.masked(ADAM, {"body": True, "head": False}),
    "partition": optax.partition({"a": ADAM, "b": fa.adam(0.2)}, {"body": "a", "head": "b"}),
    "inject_hyperparams": optax.inject_hyperparams(fa.adamw)(learning_rate=0.03),
    "MultiSteps": optax.MultiSteps(ADAM, 2),
    "apply_if_finite": optax.apply_if_finite(ADAM, 3),
    "flatten": optax.flatten(ADAM),
}


def optax_steps(tx, params, state):
    """Two steps as Optax takes them; compiled once."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, unknown=1)
        return optax.apply_updates(params, updates), state

    for n in (1, 2):
        params, state = step(params, state, numbers(n))
    return step, params, state


@pytest.mark.parametrize("name", INSIDE)
def test_optax_around_a_transformation_that_is_offloaded_whole(name, unoptimized):
    tx, params = INSIDE[name], numbers(0)
    offloaded, state = begun(tx, params, leaves=0)
    step, *found = optax_steps(offloaded.tx, params, state)
    assert step._cache_size() == 1
    lies_as(found[1], offloaded.shardings)
    (mu, *_) = [x for x in jax.tree.leaves(found[1]) if x.sharding.memory_kind == HOST]
    assert mu.size
    with_support = optax.with_extra_args_support(tx)
    wanted = optax_steps(with_support, params, jax.device_put(tx.init(params), whole()))[1:]
    assert differing(found, wanted) == {}
    assert offloaded.tx == fa.offload(tx, params, leaves=0).tx
    assert hash(offloaded.tx) == hash(fa.offload(tx, params, leaves=0).tx)
    assert _host.WITHIN.get() == frozenset()


@pytest.mark.parametrize("outer", ["offload", "skip_spikes"])
def test_spikes_are_skipped_on_the_host_too(outer, unoptimized):
    params, plain = numbers(0), fa.skip_spikes(ADAM)
    tx = fa.offload(plain if outer == "offload" else ADAM, params, leaves="body").tx
    tx = tx if outer == "offload" else fa.skip_spikes(tx)

    def losses(tx):
        step = jax.jit(
            lambda state, params, grads, loss: fa.step(tx, grads, state, params, value=loss)
        )
        state, theta = tx.init(params), params
        for n, loss in enumerate([1.1, float("nan"), 1.3]):
            theta, state = step(state, theta, numbers(n), loss)
        return theta, state

    found = losses(tx)
    assert differing(found, losses(plain)) == {}
    assert sum(x.sharding.memory_kind == HOST for x in jax.tree.leaves(found[1])) == 4


def test_an_offloaded_member_inside_of_optax():
    params = numbers(0)
    tx = fa.offload(ADAM, params, leaves="body").tx
    chain = optax.chain(optax.clip_by_global_norm(1.0), tx)
    _, *found = optax_steps(chain, params, chain.init(params))
    plain = optax.chain(optax.clip_by_global_norm(1.0), ADAM)
    assert differing(found, optax_steps(plain, params, plain.init(params))[1:]) == {}
    assert kinds(found[1][1].mu) == {"body": {"0": HOST, "1": HOST}, "head": DEVICE}
    assert optax.tree.get(found[1], "count") == 2


def test_a_transformation_knows_where_its_moments_wait():
    params = numbers(0)
    tx = fa.offload(ADAM, params, leaves="body").tx
    again = fa.adamw(0.03, b1=0.85, b2=0.97, weight_decay=0.2)
    assert tx == fa.offload(again, params, leaves="body").tx
    assert hash(tx) == hash(fa.offload(again, params, leaves="body").tx)
    assert tx not in (ADAM, fa.offload(ADAM, params, leaves="head").tx)
    assert pickle.loads(pickle.dumps(tx)) == tx
    shorter = fa.offload(fa.adamw(0.03, weight_decay=0.2), params).tx
    assert repr(shorter) == "offload(adamw(learning_rate=0.03, weight_decay=0.2))"
    modified = fa.cautious(tx)
    assert kinds(modified.init(params).mu["body"]) == {"0": HOST, "1": HOST}
    with pytest.raises(TypeError, match=r"learning_rate"):
        tx.update(params, tx.init(params), params, learning_rate=0.1)


# ---- What else takes a state ----


def test_checkpoints_bring_a_state_back_to_the_host(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = numbers(0)
    offloaded, state = begun(fa.adamw(0.03, moments=CODES), params, leaves="body")
    _, state = by_step(offloaded.tx)(params, state, numbers(1))
    target = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        *(state, offloaded.shardings),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    for found in (restored, fa.from_state_dict(fa.to_state_dict(state), target)):
        assert differing(found, state) == {}
        lies_as(found, offloaded.shardings)
    assert kinds(state.mu["body"]) == {"0": HOST, "1": HOST}


def test_functions_of_a_state_take_it_from_the_host():
    params, grads = numbers(0), numbers(1)
    offloaded, state = begun(ADAM, params, leaves=0)
    updates, state = offloaded.tx.update(grads, state, params)
    fetched = jax.device_put(state, offloaded.device_shardings)
    watched = jax.jit(fa.diagnostics)
    assert watched(updates, state, params) == watched(updates, fetched, params)
    small = fa.convert_moments(state, params, moments="bfloat16")
    assert differing(small, fa.convert_moments(fetched, params, moments="bfloat16")) == {}
    assert {*jax.tree.leaves(kinds(small))} == {DEVICE}
    grown = {**params, "new": jnp.ones(5)}
    longer = fa.extend_state(offloaded.tx, state, params, grown)
    assert kinds(longer.mu) == {"body": {"0": HOST, "1": HOST}, "head": HOST, "new": DEVICE}


def test_the_report_tells_the_host_from_the_devices():
    params = numbers(0)
    tx = fa.amsgrad(moments="bfloat16")
    offloaded = fa.offload(tx, params, leaves="body")
    report = fa.memory_report(tx, params, offloaded.shardings)
    assert report == fa.memory_report(offloaded.tx, params, offloaded.shardings)
    sizes = {leaf.path: (leaf.per_device, leaf.on_host) for leaf in report.leaves}
    assert sizes == {
        "['body']['0']": (0, 6 * 12 * 130),
        "['body']['1']": (0, 6 * 5 * 260),
        "['head']": (6 * 7, 0),
    }
    assert (report.other_per_device, report.other_on_host) == (4, 0)
    assert report.state_bytes_per_device == 6 * 7 + 4
    assert report.state_bytes_on_host == 6 * (12 * 130 + 5 * 260)
    head, *rest = str(report).split("\n")
    assert re.search("per device +on host$", head)
    (total,) = [line for line in rest if line.startswith("total")]
    assert total.split()[-2:] == ["42", "16.8K"]
    assert "; 46 on each device, 17,160 for it on the host" in " ".join(rest)
    there = fa.memory_report(tx, params, offloaded.device_shardings)
    assert there.state_bytes_on_host is there.leaves[0].on_host is None
    assert "host" not in str(there)
