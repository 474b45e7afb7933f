"""Arguments that a function does not have: the error says which one it is here."""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

X = jnp.array([0.5, -1.5])
UPDATE = functools.partial(fa.update, X, fa.init(X))
CASES = {
    "lr": (fa.adamw, dict(lr=3e-4), ["Write learning_rate=0.0003 instead of lr=0.0003."]),
    "betas": (
        fa.adam,
        dict(betas=(0.8, 0.95)),
        ["Write b1=0.8, b2=0.95 instead of betas=(0.8, 0.95)."],
    ),
    "three betas": (
        fa.ademamix,
        dict(betas=(0.8, 0.95, 0.9)),
        ["Write b1=0.8, b2=0.95, b3=0.9 instead of betas="],
    ),
    "betas of one": (fa.adam, dict(betas=X), ["Write b1=..., b2=... instead of betas="]),
    "Keras": (
        fa.adam,
        dict(beta_1=0.8, epsilon=1e-7),
        ["Write b1=0.8 instead of beta_1=0.8.", "Write eps=1e-07 inst"],
    ),
    "wd": (fa.adamw, dict(wd=0.1), ["Write weight_decay=0.1 instead of wd=0.1."]),
    "amsgrad": (fa.adamw, dict(amsgrad=True), ["fa.amsgrad(..., maximum="]),
    "no amsgrad": (fa.adam, dict(amsgrad=False), ["Leave amsgrad=False out."]),
    "PyTorch's defaults": (
        fa.adam,
        dict(maximize=False, foreach=None),
        ["Leave maximize=False out. Leave foreach=None out."],
    ),
    "decay of adam": (
        fa.adam,
        dict(weight_decay=0.1),
        ["fa.adamw(weight_decay=0.1) decays", "l2=0.1 adds it to the gradient"],
    ),
    "wd of nadam": (fa.nadam, dict(wd=0.1), ["fa.nadamw(weight_decay=0.1)", "l2=0.1 adds"]),
    "decay of a direction": (
        fa.scale_by_adam,
        dict(weight_decay=0.1),
        ["optax.chain(fa.scale_by_adam(...), optax.add_decayed_weights(0.1)"],
    ),
    "rate of a direction": (
        fa.scale_by_belief,
        dict(lr=0.1),
        ["optax.chain(fa.scale_by_belief(...), optax.scale_by_learning_rate(0.1))"],
    ),
    "all of PyTorch": (
        fa.adamw,
        dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, maximize=True, fused=True),
        [
            "Write learning_rate=0.001 instead",
            "Write b1=0.9, b2=0.95 instead",
            "maximize: to maximize, pass the gradients of -loss.",
            "fused: leave",
        ],
    ),
    "a float32 copy": (fa.adamw, dict(master_weights=True), ['rounding="split"']),
    "8 bits": (fa.adamw, dict(optim_bits=8), ['moments="int8"']),
    "layers": (fa.adamw, dict(layer_decay=0.8), ["write overrides=[(regular expression for"]),
    "clipping": (fa.adamw, dict(max_grad_norm=1.0), ["optax.clip_by_global_norm(1.0)"]),
    "params": (
        fa.adam,
        dict(params=X, lr=0.1),
        ["leave it out; state = tx.init(params) takes the parameters."],
    ),
    "another's": (
        fa.adam,
        dict(threshold=5.0),
        ["threshold is an argument of clip_update_rms, radam, scale_by_ra"],
    ),
    "a slip": (fa.adam, dict(learing_rate=0.1), ["Did you mean learning_rate=0.1?"]),
    "unknown": (fa.adam, dict(gamma=0.1), ["adam takes learning_rate, b1, b2, eps, eps_root, mu_"]),
    "update": (UPDATE, dict(lr=0.1), ["Write learning_rate=0.1 instead of lr=0.1."]),
    "amsgrad of update": (UPDATE, dict(amsgrad=True), ["fa.amsgrad(...)"]),
    "init": (fa.init, dict(params=X, lr=0.1), ["init makes a state and takes no hyperparameters"]),
    "dtype of init": (
        fa.init,
        dict(params=X, dtype="bfloat16"),
        ["Write mu_dtype='bfloat16' instead"],
    ),
    "cautious": (fa.cautious, dict(tx=fa.adam(), lr=0.1), ["inside: fa.cautious(fa.adamw("]),
    "decay of a modifier": (
        fa.hyperball,
        dict(tx=fa.adam(), weight_decay=0.1),
        ["inside: fa.hyperball(fa.adamw(weight_decay=0.1))"],
    ),
    "cautious decay": (
        fa.adamw,
        dict(cautious_weight_decay=True),
        ["cautious_weight_decay: wrap it, fa.cautious_weight_decay(fa.adamw(...))"],
    ),
}


@pytest.mark.parametrize(("function", "arguments", "parts"), CASES.values(), ids=CASES)
def test_an_unknown_argument_has_a_way_out(function, arguments, parts):
    name = getattr(function, "func", function).__name__
    with pytest.raises(TypeError) as raised:
        function(**arguments)
    text = str(raised.value)
    assert text.startswith(f"{name}() got an unexpected keyword argument '")
    for part in parts:
        assert part in text
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_every_factory_knows_lr_and_betas():
    for name in fa.__all__:
        make = getattr(fa, name)
        if inspect.isfunction(make) and {"b1", "eps"} <= {*inspect.signature(make).parameters}:
            with pytest.raises(TypeError) as raised:
                make(lr=0.02, betas=(0.8, 0.95))
            text = str(raised.value)
            assert "learning_rate" in text or "optax.scale_by_learning_rate(0.02)" in text, name
            assert "b1=0.8, b2=0.95" in text, name


def test_what_is_given_by_position_and_does_not_fit():
    with pytest.raises(TypeError, match=r"multiple values .*takes no parameters: state = tx"):
        fa.adam([X], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"^adam\(\): too many .* Only learning_rate, b1, b2, eps,"):
        fa.adam(0.1, 0.8, 0.9, 1e-8, 0.0, None, True)
    with pytest.raises(
        TypeError, match=r"Only grads, state, params can .* position; .*\(..., learning_rate="
    ):
        fa.update(X, fa.init(X), X, 0.1)


def test_inject_hyperparams_says_it_too():
    optax = pytest.importorskip("optax")
    with pytest.raises(TypeError, match=r"Write learning_rate=0.1 instead of lr=0.1"):
        optax.inject_hyperparams(fa.adamw)(lr=0.1)
    with pytest.raises(TypeError, match=r"Write learning_rate=0.1 instead of lr=0.1"):
        functools.partial(fa.adamw, b1=0.8)(lr=0.1)


@pytest.mark.parametrize("function", [fa.adam, fa.scale_by_yogi, fa.cautious, fa.init, fa.update])
def test_a_decorated_function_is_seen_as_what_it_is(function):
    plain = inspect.signature(function.__wrapped__)
    assert list(inspect.signature(function).parameters.values()) == list(plain.parameters.values())
    assert inspect.signature(function).return_annotation == plain.return_annotation
    assert function.__doc__ == function.__wrapped__.__doc__
    assert function.__module__.startswith("functional_adam._")
    assert pickle.loads(pickle.dumps(function)) is function
    first = next(iter(plain.parameters))
    bound = inspect.signature(functools.partial(function, **{first: 0.1})).parameters
    assert set(bound) == set(plain.parameters)


def test_the_plain_functions_work_under_jit():
    init = jax.jit(fa.init, static_argnames="moments")
    state = init(X, moments="bfloat16")
    updates, _ = jax.jit(fa.update, static_argnames="moments")(
        X, state, learning_rate=0.03, eps=0.0, moments="bfloat16"
    )
    np.testing.assert_allclose(updates, -0.03 * jnp.sign(X), rtol=1e-2)
