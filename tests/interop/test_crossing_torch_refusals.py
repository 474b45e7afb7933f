"""What does not fit on the way from PyTorch or to it, and how the error names it."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from crossings import PARAMS, entry, state_dict_of

import functional_adam as fa

TWO = state_dict_of(entry((3,)), entry((2, 3)), param_names=["bias", "weight"])


@pytest.mark.parametrize(
    ("error", "message", "state_dict", "options"),
    [
        (TypeError, "state_dict must be the state_dict.. of a torch", TWO["state"], {}),
        (TypeError, "state_dict must be .*got 3 of type int", 3, {}),
        (ValueError, "has 1 parameters, but there are 2 leaves.*names=", state_dict_of(None), {}),
        (
            ValueError,
            r"params\['b'\] from exp_avg of torch's parameter 0.*shape \(2, 3\), but must have "
            r"\(3,\). Pass names= to say which parameter",
            state_dict_of(entry((2, 3)), entry((3,))),
            {},
        ),
        (
            ValueError,
            r"params\['w'\].*shape \(3, 2\), but must have \(2, 3\).*transform=lambda path, x: x.T",
            state_dict_of(entry((3,)), entry((3, 2))),
            {},
        ),
        (
            ValueError,
            r"params\['w'\].*shape \(3, 2\) after transform, but must have \(2, 3\)",
            TWO,
            {"transform": lambda path, x: x.T},
        ),
        (
            ValueError,
            r"\[1\]\['step'\] is 8, but that of 0 is 7: an AdamState has a single count",
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
        (TypeError, r"\['step'\] is a NumPy masked array", {"step": np.ma.masked_array(7.0, True)}),
        (ValueError, "exp_avg of .* holds NaN or infinity in float32", {"exp_avg": wild["nan"]}),
        (ValueError, "exp_avg of .* holds NaN or infinity", {"exp_avg": wild["-inf"]}),
        (ValueError, "exp_avg_sq of .* holds NaN", {"exp_avg_sq": wild["inf"]}),
        # Finite in torch's float64, not in the float32 that the state has.
        (ValueError, "exp_avg of .* holds NaN or infinity in float32", {"exp_avg": whole * 1e39}),
        (TypeError, "exp_avg_sq of .* is a NumPy masked array", {"exp_avg_sq": masked}),
    ):
        with pytest.raises(error, match=message):
            fa.from_torch(one_state(**changes), like)
    with pytest.raises(TypeError, match=r"exp_avg of .* is a NumPy masked array"):
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
        (
            TypeError,
            "exp_avg of .* is a NumPy masked",
            {"mu": np.ma.masked_array(np.ones((2, 3)), True)},
        ),
    ):
        with pytest.raises(error, match=message):
            fa.to_torch(state._replace(**changes), like)


def test_an_axis_order_is_advised_for_more_axes():
    with pytest.raises(ValueError, match=r"transform=lambda path, x: x.transpose\(...\)"):
        fa.from_torch(state_dict_of(entry((4, 3, 2))), jnp.zeros((3, 4, 2)))


def test_complex_parameters_do_not_cross_to_torch():
    for crossing in (
        lambda: fa.from_torch(state_dict_of(entry((2,))), jnp.zeros(2, complex)),
        lambda: fa.to_torch(fa.init(jnp.zeros(2, complex)), state_dict_of(None)),
    ):
        with pytest.raises(
            TypeError, match="is complex and cannot be converted: torch keeps separate second"
        ):
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
        fa.to_torch(fa.init(leaf, moments=CODES), one)
    with pytest.raises(ValueError, match=r"holds \['mu_slow'\], which torch's Adam does not have"):
        fa.to_torch(fa.ademamix(b3=0.99).init(leaf), one)
    with pytest.raises(
        ValueError, match=r"\[0\] has amsgrad=True, but the state is not that of ams"
    ):
        fa.to_torch(fa.init(leaf), state_dict_of(None, amsgrad=True))
    with pytest.raises(
        ValueError, match=r"\[0\] has amsgrad=False, but the state is that of amsgr"
    ):
        fa.to_torch(fa.amsgrad().init(leaf), state_dict_of(None, amsgrad=False))
    with pytest.raises(
        ValueError, match=r"parameter 0 from leaf : .*\(2, 3\), but must have \(3, 2\)"
    ):
        fa.to_torch(fa.init(leaf), state_dict_of(entry((3, 2))))
    with pytest.raises(ValueError, match=r"state: nu\['b'\] is missing"):
        fa.to_torch(state._replace(nu={"w": leaf}), TWO)
