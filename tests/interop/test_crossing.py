"""Runs carried over from PyTorch and Optax, and to them, go on as if nothing had happened.

PyTorch's run is on record (`record_crossing.py`), and repeated where it is installed; Optax is
live.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import record_crossing
from quick import quick_jit
from record_crossing import CASES, DTYPES, HALF, ROWS, STEPS, handed_back, run_ours, taken_over
from record_torch import tolerances

import functional_adam as fa


def cut(tree, start, stop):
    return {k: x[start:stop] for k, x in tree.items()}


def assert_close(found, wanted, tolerance, unit=0.0):
    """Relative to `unit`, or to what is wanted where that is larger."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    error = np.abs(found - wanted)
    assert found.shape == wanted.shape
    assert (error <= tolerance * np.maximum(np.abs(wanted), unit)).all(), error.max()


# ---- PyTorch ----


@functools.cache
def recording():
    return record_crossing.load()


@pytest.fixture(params=DTYPES)
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def settings_of(name):
    """The settings of each leaf."""
    return {leaf: settings for leaves, settings in CASES[name].groups for leaf in leaves}


def rates_of(name):
    """What `tolerances` takes, the slowest of the groups."""
    b1, b2 = np.max([settings["betas"] for _, settings in CASES[name].groups], 0)
    return {"b1": b1, "b2": b2}


def assert_steps(name, dtype, ours, theirs, start):
    """1e-5 of a step in float32, 1e-12 of one in float64 for the sum of all steps."""
    updates, after = ours
    for leaf, settings in settings_of(name).items():
        found, wanted = after[leaf], theirs[leaf]
        if dtype == "float32":  # where parameters are put back: see `record_torch`
            found, wanted = updates[leaf], theirs[leaf].astype(np.float64) - start[leaf]
        if dtype == "float32":
            assert_close(found, wanted, 1e-5, settings["lr"])
        else:
            assert np.abs(found - wanted).max() <= 1e-12 * settings["lr"]


def assert_states(name, dtype, ours, theirs):
    """Torch's state dicts: the same keys, types and steps, moments to `tolerances`."""
    allowed = tolerances(dtype, rates_of(name))
    assert set(ours["state"]) >= set(theirs["state"])
    assert ours["param_groups"] == theirs["param_groups"]
    for i, wanted in theirs["state"].items():
        found = ours["state"][i]
        assert set(found) == set(wanted)
        for key, x in found.items():
            assert type(x) is np.ndarray
            assert x.flags.writeable
            assert x.shape == wanted[key].shape
            assert x.dtype == (np.float32 if key == "step" else dtype)
        assert found["step"] == wanted["step"]
        root = np.sqrt(wanted["exp_avg_sq"].astype(np.float64))
        error = np.abs(found["exp_avg"].astype(np.float64) - wanted["exp_avg"])
        assert (error <= allowed["mu"] * root).all()
        for key in set(wanted) - {"step", "exp_avg"}:
            assert_close(found[key], wanted[key], allowed["nu"])


def test_torch_run_on_record_is_taken_over(name, dtype):
    tape = recording()[name][dtype]
    grads, start = recording()["grads"], recording()["start"]
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    params = start if dtype == "float32" else tape["before"]
    state = taken_over(name, tape[HALF], jax.tree.map(lambda p: jnp.asarray(p, dtype), start))
    updates, after, state = run_ours(name, dtype, state, cut(grads, HALF, STEPS), params, start)
    rows = jax.tree.map(lambda x: x[ROWS - HALF], (updates, after))
    assert_steps(name, dtype, rows, tape["params"], start)
    assert_states(name, dtype, handed_back(name, state, tape[HALF]), tape[STEPS])


def test_what_is_handed_to_torch_is_what_it_would_hold(name, dtype):
    """Of our run from the first step on, at both recorded steps."""
    tape = recording()[name][dtype]
    grads, start = recording()["grads"], recording()["start"]
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    state = record_crossing.ours(name).init(jax.tree.map(lambda p: jnp.asarray(p, dtype), start))
    params = start
    fresh = {"state": {}, "param_groups": tape[HALF]["param_groups"]}
    for begin, end in ((0, HALF), (HALF, STEPS)):
        part = cut(grads, begin, end)
        _, after, state = run_ours(name, dtype, state, part, params, start)
        params = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
        assert_states(name, dtype, handed_back(name, state, fresh), tape[end])


def test_recording_shows_what_it_is_for():
    """It is of these cases; with groups, names, a maximum, and a parameter without a gradient."""
    assert recording()["cases"] == CASES
    for name in CASES:
        for tape in recording()[name].values():
            for steps in (HALF, STEPS):
                held = tape[steps]["state"]
                assert all(s["step"] == steps for s in held.values())
                kernel = next(s for s in held.values() if s["exp_avg"].ndim == 2)
                assert kernel["exp_avg"].shape == (3, 5)
                for s in held.values():
                    assert ("max_exp_avg_sq" in s) == name.startswith("amsgrad")
                    if "max_exp_avg_sq" in s:
                        assert (s["max_exp_avg_sq"] > 1.05 * s["exp_avg_sq"]).any()
    first, second = (recording()[name]["float32"][HALF] for name in CASES)
    assert [g["param_names"] for g in first["param_groups"]] == [
        ["linear.weight"],
        ["scale", "linear.bias"],
    ]
    assert set(second["state"]) == {0, 1, 2}
    assert [g["params"] for g in second["param_groups"]] == [[0, 1], [2, 3]]


def test_a_torch_run_is_taken_over_live(name, dtype):
    """200 steps there, 200 here; torch goes on as well, and neither writes into the other."""
    pytest.importorskip("torch")
    grads, start = record_crossing.data()
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    theirs = record_crossing.Torch(name, dtype, start)
    after = theirs.run(cut(grads, 0, HALF))
    params = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
    cast = jax.tree.map(lambda p: jnp.asarray(p, dtype), start)
    state = taken_over(name, theirs.optimizer.state_dict(), cast)
    wanted = theirs.run(cut(grads, HALF, STEPS))
    *ours, state = run_ours(name, dtype, state, cut(grads, HALF, STEPS), params, start)
    assert_steps(name, dtype, ours, wanted, start)
    state_dict = record_crossing.plain(theirs.optimizer.state_dict())
    assert_states(name, dtype, handed_back(name, state, state_dict), state_dict)


def test_our_run_goes_on_in_torch_live(name, dtype):
    """200 steps here, 200 there, against 400 here."""
    torch = pytest.importorskip("torch")
    grads, start = record_crossing.data()
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), start)
    state = record_crossing.ours(name).init(params)
    _, after, state = run_ours(name, dtype, state, cut(grads, 0, HALF), params, start)
    middle = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
    *ours, _ = run_ours(name, dtype, state, cut(grads, HALF, STEPS), middle, start)

    theirs = record_crossing.Torch(name, dtype, middle)
    state_dict = handed_back(name, state, theirs.optimizer.state_dict())
    state_dict["state"] = jax.tree.map(torch.as_tensor, state_dict["state"])
    theirs.optimizer.load_state_dict(state_dict)
    assert_steps(name, dtype, ours, theirs.run(cut(grads, HALF, STEPS)), start)


def test_bfloat16_tensors_are_taken_over_live():
    torch = pytest.importorskip("torch")
    p = torch.full((2, 3), 0.7, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam([p], betas=(0.83, 0.97))
    p.grad = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    optimizer.step()
    state = fa.from_torch(optimizer.state_dict(), jnp.zeros((2, 3), jnp.bfloat16))
    wanted = optimizer.state[p]["exp_avg"].float().numpy()
    assert state.mu.dtype == np.float32
    np.testing.assert_array_equal(state.mu, wanted)
    assert wanted.all(where=np.arange(6).reshape(2, 3) > 0)


def entry(shape=(2, 3), step=7.0, seed=1, **more):
    rng = np.random.default_rng(seed)
    m, v = rng.standard_normal(shape), rng.random(shape)
    return {"step": np.float32(step), "exp_avg": m, "exp_avg_sq": v} | more


def state_dict_of(*entries, **group):
    keys = list(range(len(entries)))
    state = {i: e for i, e in zip(keys, entries, strict=True) if e}
    return {"state": state, "param_groups": [{"params": keys, "lr": 1e-3} | group]}


PARAMS = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}


@pytest.mark.parametrize(
    "names",
    [
        {"b": 1, "w": 0},
        {"b": "bias", "w": "weight"},
        {"b": "bias", "w": 0, "more": "other"},
        lambda path: {"['b']": "bias", "['w']": "weight"}[path],
    ],
)
def test_names_say_which_parameter_a_leaf_is(names):
    parts = entry((2, 3)), entry((3,), seed=2), entry((3,), seed=3)
    state_dict = state_dict_of(*parts, param_names=["weight", "bias", "other"])
    state = fa.from_torch(state_dict, PARAMS, names=names)
    assert int(state.count) == 7
    for leaf, part in (("w", parts[0]), ("b", parts[1])):
        np.testing.assert_array_equal(state.mu[leaf], part["exp_avg"].astype(np.float32))
        np.testing.assert_array_equal(state.nu[leaf], part["exp_avg_sq"].astype(np.float32))
    back = fa.to_torch(state, state_dict, names=names)["state"]
    assert back[2] is parts[2]  # not named: left alone
    np.testing.assert_array_equal(back[1]["exp_avg"], np.asarray(state.mu["b"]))


def test_names_may_be_the_keys():
    """As `torch.distributed.checkpoint` has them."""
    state_dict = {"state": {"a.b": entry((3,))}, "param_groups": [{"params": ["a.b"]}]}
    state = fa.from_torch(state_dict, {"x": jnp.zeros(3)}, names={"x": "a.b"})
    np.testing.assert_allclose(state.mu["x"], state_dict["state"]["a.b"]["exp_avg"], 1e-6)


def test_a_state_from_torch_is_as_init_makes_it():
    params = PARAMS | {"n": None, "h": jnp.zeros(2, jnp.bfloat16)}
    state = fa.from_torch(state_dict_of(entry((3,)), None, entry((2, 3))), params)
    wanted = fa.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, wanted)
    assert not state.mu["h"].any()  # no state in torch
    assert state.mu["b"].all()
    none = fa.from_torch(state_dict_of(None, None, None), params)
    jax.tree.map(np.testing.assert_array_equal, none, wanted)


def test_every_leaf_from_torch_is_its_own_buffer():
    largest = np.ones((3,))
    state_dict = state_dict_of(entry((3,), max_exp_avg_sq=largest), None)
    state = fa.from_torch(state_dict, PARAMS)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    largest[:] = 2
    assert (state.extra["nu_max"]["b"] == 1).all()


def test_from_torch_keeps_the_parameters_sharding():
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = fa.from_torch(state_dict_of(entry()), jax.device_put(jnp.zeros((2, 3)), sharding))
    wanted = fa.init(jax.device_put(jnp.zeros((2, 3)), sharding))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert a.sharding == b.sharding


def test_to_torch_widens_bfloat16_and_leaves_state_and_like_alone():
    state = fa.init(jnp.zeros((2, 3)), mu_dtype="bfloat16")
    state = fa.update(jnp.full((2, 3), 0.3), state, mu_dtype="bfloat16")[1]
    like = state_dict_of(None, lr=0.3)
    found = fa.to_torch(state, like)
    assert found["state"][0]["exp_avg"].dtype == np.float32
    assert found["param_groups"] == like["param_groups"]
    assert like["state"] == {}
    found["state"][0]["exp_avg_sq"][:] = 5
    assert not (state.nu == 5).any()


TWO = state_dict_of(entry((3,)), entry((2, 3)), param_names=["bias", "weight"])


@pytest.mark.parametrize(
    ("error", "message", "state_dict", "options"),
    [
        (TypeError, "state_dict must be the state_dict.. of a torch", TWO["state"], {}),
        (TypeError, "state_dict must be .*got 3 of type int", 3, {}),
        (ValueError, "has 1 parameters, but there are 2 leaves.*names=", state_dict_of(None), {}),
        (
            ValueError,
            r"params\['b'\] from exp_avg of torch's parameter 0.*shape \(2, 3\), where \(3,\) "
            "belongs. Say with names=",
            state_dict_of(entry((2, 3)), entry((3,))),
            {},
        ),
        (
            ValueError,
            r"params\['w'\].*shape \(3, 2\), where \(2, 3\).*transform=lambda path, x: x.T",
            state_dict_of(entry((3,)), entry((3, 2))),
            {},
        ),
        (
            ValueError,
            r"params\['w'\].*shape \(3, 2\) after transform, where \(2, 3\)",
            TWO,
            {"transform": lambda path, x: x.T},
        ),
        (
            ValueError,
            r"\[1\]\['step'\] is 8, but that of 0 is 7: an AdamState has one count",
            state_dict_of(entry((3,)), entry(step=8)),
            {},
        ),
        (
            ValueError,
            r"\[0\]\['step'\] must be a whole number >= 0 and <= 2147483647, .*; got 2.5",
            state_dict_of(entry((3,), step=2.5), entry(step=2.5)),
            {},
        ),
        (
            ValueError,
            r"\[0\]\['step'\] must be a whole number >= 0 .*; got inf",
            state_dict_of(entry((3,), step=np.inf), entry(step=np.inf)),
            {},
        ),
        (
            ValueError,
            r"params\['w'\] from exp_avg_sq of .* holds negative numbers",
            state_dict_of(entry((3,)), entry(exp_avg_sq=-np.ones((2, 3)))),
            {},
        ),
        (
            ValueError,
            r"\['state'\]\[1\] holds step, exp_avg, exp_avg_sq; it must .*max_exp_avg_sq",
            state_dict_of(entry((3,), max_exp_avg_sq=np.ones(3)), entry()),
            {},
        ),
        (
            ValueError,
            r"\[0\] holds step, exp_inf; it must hold step, exp_avg, exp_avg_sq",
            state_dict_of({"step": 3.0, "exp_inf": np.ones(3)}, None),
            {},
        ),
        (
            ValueError,
            r"names has 'beta' for leaf \['b'\], but state_dict has 0, 1, 'bias', 'weight'\.",
            TWO,
            {"names": {"b": "beta", "w": 1}},
        ),
        (ValueError, r"names has nothing for leaf \['w'\]", TWO, {"names": {"b": 0}}),
        (
            ValueError,
            r"names has 0 for leaf \['w'\] and for another",
            TWO,
            {"names": {"b": "bias", "w": 0}},
        ),
    ],
)
def test_what_torch_does_not_fit_raises(error, message, state_dict, options):
    with pytest.raises(error, match=message):
        fa.from_torch(state_dict, PARAMS, **options)


def one_state(**changes):
    """A state dict of one parameter, with something in its entry replaced."""
    return state_dict_of(entry() | changes)


@pytest.mark.parametrize("step", [2**31 - 1, 2.0**30, np.float32(2**24), np.int64(5), [[3]]])
def test_steps_up_to_the_last_one_of_a_count_are_taken(step):
    state = fa.from_torch(one_state(step=np.asarray(step)), jnp.zeros((2, 3)))
    assert int(state.count) == int(np.asarray(step).item())
    assert state.count.dtype == np.int32


def test_steps_and_moments_that_no_state_holds_raise():
    like, whole = jnp.zeros((2, 3)), np.full((2, 3), 0.7)
    masked = np.ma.masked_array(whole, mask=np.eye(2, 3, dtype=bool))
    wild = {x: np.where(np.eye(2, 3), float(x), whole) for x in ("nan", "-inf", "inf")}
    for error, message, changes in (
        (ValueError, r"\['step'\] must be .* <= 2147483647, .*; got 2147483648", {"step": 2**31}),
        (ValueError, r"\['step'\] must be .*; got 1e\+20", {"step": 1e20}),
        (ValueError, r"\['step'\] must be .*; got nan", {"step": np.nan}),
        (ValueError, r"\['step'\] must be .*; got -1", {"step": -1}),
        (TypeError, r"\['step'\] must be one real number; got array", {"step": np.ones(2)}),
        (TypeError, r"\['step'\] must be one real number; got '7' of", {"step": "7"}),
        (TypeError, r"\['step'\] must be one real number; got None", {"step": None}),
        (TypeError, r"\['step'\] is a masked array", {"step": np.ma.masked_array(7.0, True)}),
        (ValueError, "exp_avg of .* holds NaN or infinity in float32", {"exp_avg": wild["nan"]}),
        (ValueError, "exp_avg of .* holds NaN or infinity", {"exp_avg": wild["-inf"]}),
        (ValueError, "exp_avg_sq of .* holds NaN", {"exp_avg_sq": wild["inf"]}),
        # Finite in torch's float64, not in the float32 that the state has.
        (ValueError, "exp_avg of .* holds NaN or infinity in float32", {"exp_avg": whole * 1e39}),
        (TypeError, "exp_avg_sq of .* is a masked array of NumPy", {"exp_avg_sq": masked}),
    ):
        with pytest.raises(error, match=message):
            fa.from_torch(one_state(**changes), like)
    with pytest.raises(TypeError, match=r"exp_avg of .* is a masked array of NumPy"):
        fa.from_torch(one_state(), like, transform=lambda path, x: np.ma.masked_array(x, x > 0))
    for broken in (
        one_state() | {"param_groups": [{"lr": 0.1}]},
        one_state() | {"param_groups": [[0]]},
        one_state() | {"state": [entry()]},
        one_state() | {"state": {0: [1.0]}},
    ):
        with pytest.raises(TypeError, match=r"must be the state_dict\(\) of a torch optimizer"):
            fa.from_torch(broken, like)


def places(tree, path=()):
    """Every path in nested dicts and lists."""
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("value", [None, True, -1, 2.0**31, "x", [], {"a": 1}, np.array([None])])
def test_whatever_is_wrong_in_a_state_dict_of_torch_is_named(value):
    """In any place of it, both ways: nothing but the two errors that are documented."""
    good = state_dict_of(entry((3,)), entry(), param_names=["b", "w"])
    for path in places(good):
        broken = replaced(good, path, value)
        for cross in (
            lambda broken=broken: fa.from_torch(broken, PARAMS, names={"b": "b", "w": 1}),
            lambda broken=broken: fa.to_torch(fa.init(PARAMS), broken),
        ):
            with contextlib.suppress(ValueError, TypeError):
                cross()


def test_moments_that_torch_should_not_get_raise():
    state, like = fa.init(jnp.zeros((2, 3))), state_dict_of(None)
    for error, message, changes in (
        (ValueError, "exp_avg of .* holds NaN", {"mu": jnp.full((2, 3), np.nan)}),
        (ValueError, "exp_avg_sq of .* holds NaN or inf", {"nu": jnp.full((2, 3), np.inf)}),
        (ValueError, "exp_avg_sq of .* holds negative", {"nu": jnp.full((2, 3), -0.3)}),
        (
            ValueError,
            "exp_avg of .* holds NaN or infinity",
            {"mu": jnp.full((2, 3), np.nan, jnp.bfloat16)},
        ),
        (TypeError, "exp_avg of .* is a masked", {"mu": np.ma.masked_array(np.ones((2, 3)), True)}),
    ):
        with pytest.raises(error, match=message):
            fa.to_torch(state._replace(**changes), like)


def test_a_parameter_of_torch_is_listed_once():
    """In a group or in two, by number or by name, in both directions."""
    part, params = entry((3,)), {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    again = {"state": {0: part}, "param_groups": [{"params": [0, 0]}]}
    groups = {"state": {0: part}, "param_groups": [{"params": [0]}, {"params": [0]}]}
    named = state_dict_of(part, part, param_names=["w", "w"])
    known = {"state": {"w": part, 1: part}, "param_groups": [{"params": ["w", 1]}]}
    known["param_groups"][0]["param_names"] = ["v", "w"]
    short = state_dict_of(part, part, param_names=["w"])
    names = {"a": "w", "b": 1}
    for state_dict, chosen, message in (
        (again, None, r"\['param_groups'\] lists parameter 0 twice"),
        (groups, None, r"\['param_groups'\] lists parameter 0 twice"),
        (named, names, "has two parameters called 'w'"),
        (known, names, "has two parameters called 'w'"),
        (short, names, r"\['param_groups'\]\[0\] has 1 names for 2 parameters"),
    ):
        with pytest.raises(ValueError, match="state_dict" + ".*" + message):
            fa.from_torch(state_dict, params, names=chosen)
        with pytest.raises(ValueError, match="like.*" + message):
            fa.to_torch(fa.init(params), state_dict, names=chosen)


def test_an_axis_order_is_advised_for_more_axes():
    with pytest.raises(ValueError, match=r"transform=lambda path, x: x.transpose\(...\)"):
        fa.from_torch(state_dict_of(entry((4, 3, 2))), jnp.zeros((3, 4, 2)))


def test_complex_parameters_do_not_cross_to_torch():
    for crossing in (
        lambda: fa.from_torch(state_dict_of(entry((2,))), jnp.zeros(2, complex)),
        lambda: fa.to_torch(fa.init(jnp.zeros(2, complex)), state_dict_of(None)),
    ):
        with pytest.raises(TypeError, match="is complex: torch keeps a second moment for its real"):
            crossing()
    with pytest.raises(TypeError, match="Cannot cast"):
        fa.from_torch(state_dict_of(entry((2,), exp_avg=np.ones(2, complex))), jnp.zeros(2))


def test_what_does_not_fit_torch_raises():
    state, leaf = fa.init(PARAMS), jnp.zeros((2, 3))
    one = state_dict_of(None)
    with pytest.raises(TypeError, match="state must be an AdamState"):
        fa.to_torch((state,), TWO)
    with pytest.raises(TypeError, match="like must be the state_dict"):
        fa.to_torch(state, {"state": {}})
    with pytest.raises(ValueError, match="like has 1 parameters, but there are 2 leaves"):
        fa.to_torch(state, one)
    with pytest.raises(ValueError, match="8-bit moments: use convert_moments"):
        fa.to_torch(fa.init(leaf, moments="int8"), one)
    with pytest.raises(ValueError, match=r"holds \['mu_slow'\], which torch's Adam has not"):
        fa.to_torch(fa.ademamix(b3=0.99).init(leaf), one)
    with pytest.raises(ValueError, match=r"\[0\] has amsgrad=True, but the state is not of an ams"):
        fa.to_torch(fa.init(leaf), state_dict_of(None, amsgrad=True))
    with pytest.raises(ValueError, match=r"\[0\] has amsgrad=False, but the state is of an amsgr"):
        fa.to_torch(fa.amsgrad().init(leaf), state_dict_of(None, amsgrad=False))
    with pytest.raises(ValueError, match=r"parameter 0 from leaf : .*\(2, 3\), where \(3, 2\) bel"):
        fa.to_torch(fa.init(leaf), state_dict_of(entry((3, 2))))
    with pytest.raises(ValueError, match=r"state: nu\['b'\] is missing"):
        fa.to_torch(state._replace(nu={"w": leaf}), TWO)


# ---- Optax ----


def rate(count):
    return 3e-3 / (1 + 0.011 * count)


ODD = {"b1": 0.83, "b2": 0.9953, "eps": 1e-6}
OTHER = {"b1": 0.91, "b2": 0.971, "eps": 3e-7}
LABELS = {"bias": "slow", "kernel": "fast", "scale": "slow"}
MASK = {"bias": False, "kernel": True, "scale": True}


def injected(library):
    return optax.inject_hyperparams(library.adamw)(2e-3, **ODD, weight_decay=rate)


def chained(*members):
    return optax.chain(optax.clip_by_global_norm(3.0), *members)


def parts():
    return optax.scale_by_adam(**ODD), optax.add_decayed_weights(0.037)


WRAPPERS = {  # Optax's, ours
    "schedule": lambda lib: lib.adamw(rate, **ODD, weight_decay=0.037),
    "chain": (
        lambda: chained(optax.trace(0.31), *parts(), optax.scale_by_learning_rate(rate)),
        lambda: chained(optax.trace(0.31), fa.adamw(rate, **ODD, weight_decay=0.037)),
    ),
    "parts": lambda lib: chained(lib.scale_by_adam(**ODD), optax.scale_by_learning_rate(rate)),
    "named_chain": (  # of other names
        lambda: optax.named_chain(
            ("momentum", optax.trace(0.31)),
            ("direction", optax.scale_by_adam(**ODD)),
            ("rate", optax.scale_by_learning_rate(rate)),
        ),
        lambda: optax.named_chain(("momentum", optax.trace(0.31)), ("adam", fa.adam(rate, **ODD))),
    ),
    "masked": lambda lib: optax.masked(lib.adamw(rate, **ODD), MASK),
    "inject": injected,
    "partition": lambda lib: chained(
        optax.partition({"slow": lib.adamw(rate, **ODD), "fast": lib.adam(4e-3, **OTHER)}, LABELS)
    ),
    "MultiSteps": lambda lib: optax.MultiSteps(lib.adam(rate, **ODD), 3).gradient_transformation(),
    "apply_if_finite": lambda lib: optax.apply_if_finite(lib.nadam(rate, **ODD), 3),
    "two in a row": lambda lib: optax.chain(lib.scale_by_adam(**ODD), lib.adam(rate, **OTHER)),
    "amsgrad": lambda lib: lib.amsgrad(rate, **ODD),
    "ademamix": lambda lib: getattr(lib, "contrib", lib).ademamix(rate, **ODD, b3=0.991, alpha=3.7),
}


def pair(name):
    made = WRAPPERS[name]
    return tuple(f() for f in made) if isinstance(made, tuple) else (made(optax), made(fa))


def runner(tx):
    """Updates and the state after them, the parameters trained along; compiled once."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return quick_jit(lambda params, state, grads: jax.lax.scan(step, (params, state), grads))


def middle_of(name, state):
    """What a user may have changed in mid-run."""
    if name == "inject":
        state.hyperparams["learning_rate"] = jnp.full_like(state.hyperparams["learning_rate"], 5e-3)
    return state


def optax_data(dtype):
    grads, params = record_crossing.data()
    grads["bias"] = grads["bias"] * 0.1
    cast = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    return jax.tree.map(cast, (grads, {k: params[k] for k in grads}))


def assert_same_types(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, wanted)


def assert_run_goes_on(name, dtype, tolerance):
    """200 steps in one library, 200 in the other, against 400 in the first; both ways."""
    theirs, ours = pair(name)
    grads, params = optax_data(dtype)
    first, second = cut(grads, 0, HALF), cut(grads, HALF, STEPS)
    run = {"theirs": runner(theirs), "ours": runner(ours)}
    start = {"theirs": theirs.init(params), "ours": ours.init(params)}
    cross = {"theirs": fa.from_optax, "ours": fa.to_optax}
    for one, other in (("theirs", "ours"), ("ours", "theirs")):
        (middle, state), _ = run[one](params, start[one], first)
        state = middle_of(name, state)
        crossed = cross[one](state, like=start[other])
        assert_same_types(crossed, start[other])
        (_, last), wanted = run[one](middle, state, second)
        (_, other_last), found = run[other](middle, crossed, second)
        for leaf in wanted:
            assert_close(found[leaf], wanted[leaf], tolerance, 3e-3)
        # Every counter and hyperparameter ends where it would have ended.
        back = cross[other](other_last, like=start[one])
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(last), jax.tree.leaves(back), strict=True
        ):
            if a.ndim == 0 and "scale" not in jax.tree_util.keystr(path):
                np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path))
        assert run[other]._cache_size() == 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_runs_in_float64_cross_to_and_from_optax(name, x64):
    assert_run_goes_on(name, np.float64, 1e-12)


@pytest.mark.parametrize("name", ["schedule", "chain"])
def test_runs_in_float32_cross_to_and_from_optax(name):
    assert_run_goes_on(name, np.float32, 1e-5)


def test_a_schedule_that_begins_at_the_crossing_follows_the_adam_beside_it():
    """Two Adams of different counts in a partition, each with a schedule of its own."""
    grads, params = optax_data(np.float32)
    first = {k: g[0] for k, g in grads.items()}
    rates = {"slow": 3e-3, "fast": 4e-3}
    tx = optax.partition({k: fa.adam(x) for k, x in rates.items()}, LABELS)
    state = tx.init(params)
    inner = dict(state.inner_states)
    for label, count in (("slow", 5), ("fast", 11)):
        masked = inner[label]
        adam = masked.inner_state._replace(count=jnp.array(count, jnp.int32))
        inner[label] = masked._replace(inner_state=adam)
    state = state._replace(inner_states=inner)
    scheduled = optax.partition({k: optax.adam(rate) for k in rates}, LABELS)
    found = fa.to_optax(state, scheduled.init(params)).inner_states
    for label, count in (("slow", 5), ("fast", 11)):
        adam, schedule = found[label].inner_state
        assert int(adam.count) == int(schedule.count) == count
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, params)


START, AT = 1000, 7  # Adam's count, and that of a schedule which began anew at 993


def restarted(tx, params, counts):
    """A state whose counters, in order, are these; with moments of a step."""
    _, state = tx.update(jax.tree.map(lambda p: 0.3 * p + 0.1, params), tx.init(params), params)
    counts = iter(counts)
    is_count = lambda path: jax.tree_util.keystr(path).endswith(("count", "count_m2"))  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(next(counts), x.dtype) if is_count(path) else x, state
    )


def test_a_schedule_that_began_anew_is_refused_and_goes_on_moved():
    """The way out that the message names, against Optax going on."""
    _, params = optax_data(np.float32)
    theirs = optax.adam(rate, **ODD)
    state = restarted(theirs, params, (START, AT))
    message = (
        r"opt_state\[1\].count is 7, but opt_state\[0\].count is 1000, .*"
        r"`lambda n: schedule\(n - 993\)`, and set opt_state\[1\].count to 1000 before"
    )
    with pytest.raises(ValueError, match=message):
        fa.from_optax(state, fa.adam(rate, **ODD).init(params))
    moved = fa.adam(lambda n: rate(n - (START - AT)), **ODD)
    adam, schedule = state
    ours = fa.from_optax(
        (adam, schedule._replace(count=jnp.int32(START))), jax.eval_shape(moved.init, params)
    )
    for _ in range(2):
        wanted, state = theirs.update(params, state, params)
        found, ours = moved.update(params, ours, params)
        for leaf in wanted:
            assert_close(found[leaf], wanted[leaf], 1e-5, 3e-3)


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
            r"like\[2\].* of like\[0\], which is 5, or of like\[1\], which is 6",
            fa.to_optax,
            (twice, (5, 6)),
            flat,
        ),
        (
            r"count is 5, but .*count_m2 is 6, and an AdamState has one count",
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
            r"carried over: opt_state\[0\].trace \(an array\) without a counterpart",
            fa.from_optax,
            (clipped, adam),
        ),
        (
            ValueError,
            r"carried over: like\[0\].trace \(an array\) without a counterpart",
            fa.from_optax,
            (opt_adam, optax.chain(optax.trace(0.9), fa.adam()).init(leaf)),
        ),
        (
            ValueError,
            r"opt_state\[0\] keeps mu and nu, but like keeps mu and nu and nu_max",
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
            (opt_adam, fa.adam(moments="int8").init(leaf)),
        ),
        (
            ValueError,
            "state has 8-bit moments.*convert_moments",
            fa.to_optax,
            (fa.adam(moments="int8").init(leaf), opt_adam),
        ),
    ):
        with pytest.raises(error, match=message):
            cross(*arguments)
