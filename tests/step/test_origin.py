"""What a transformation says of itself: its class, its `repr`, what it is equal to."""

import copy
import functools
import pickle
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import pytest

import functional_adam as fa

optax = pytest.importorskip("optax")

FACTORIES = [
    fa.adabelief, fa.adam, fa.adam_atan2, fa.adamax, fa.adamaxw, fa.adamw, fa.ademamix,
    fa.adopt, fa.amsgrad, fa.lamb, fa.laprop, fa.nadam, fa.nadamw, fa.radam, fa.scale_by_adam,
    fa.scale_by_adamax, fa.scale_by_ademamix, fa.scale_by_adopt, fa.scale_by_amsgrad,
    fa.scale_by_belief, fa.scale_by_radam, fa.scale_by_simplified_ademamix, fa.scale_by_yogi,
    fa.simplified_ademamix, fa.yogi,
]  # fmt: skip
MODIFIERS = [fa.cautious, fa.cautious_weight_decay, fa.clip_update_rms, fa.hyperball]
PARAMS = {"w": jnp.array([[0.3, -2.0]]), "b": jnp.array([1.5])}
GRADS = {"w": jnp.array([[-0.7, 0.2]]), "b": jnp.array([3.0])}
ARRAY = jnp.float32(0.003)


def schedule(count):
    return 0.01 / (count + 1)


def test_every_factory_is_covered_here():
    made = [name for name in fa.__all__ if getattr(fa, name).__class__.__name__ == "function"]
    returning = {
        name
        for name in made
        if getattr(fa, name).__annotations__.get("return") == "GradientTransformation"
    }
    # `skip_spikes` takes any transformation: see `test_skip_spikes.py`.
    assert returning == {make.__name__ for make in [*FACTORIES, *MODIFIERS, fa.skip_spikes]}


# The class ------------------------------------------------------------------------------------


def test_it_is_optaxs_class_before_and_after_optax_is_imported():
    code = (
        "import sys, functional_adam as fa\n"
        "tx = fa.adam(3e-3)\n"
        "own = isinstance(tx, fa.GradientTransformation), tx.__class__ is type(tx)\n"
        "assert 'optax' not in sys.modules\n"
        "import optax\n"
        "both = optax.GradientTransformation, optax.GradientTransformationExtraArgs\n"
        "print(own, [isinstance(t, c) for t in (tx, fa.lamb(2e-3)) for c in both])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(True, True) [True, True, True, True]"


def test_every_factory_makes_what_optaxs_annotations_ask_for():
    def checked(function):  # as beartype does, at every call
        @functools.wraps(function)
        def call(tx):
            wanted = typing.get_type_hints(function)["tx"]
            if not isinstance(tx, wanted):
                raise TypeError(wanted)
            return function(tx)

        return call

    @checked
    def train(tx: optax.GradientTransformation):
        return tx.init(PARAMS)

    @checked
    def train_ours(tx: fa.GradientTransformation):
        return tx.init(PARAMS)

    for make in FACTORIES:
        train(make())
        train_ours(make())
    train_ours(optax.adam(0.1))
    train_ours(optax.chain(optax.clip(1.0), fa.cautious(fa.adamw())))
    for other in (tuple(fa.adam()), fa.adam, 3, None):
        with pytest.raises(TypeError):
            train(other)
        with pytest.raises(TypeError):
            train_ours(other)


def test_optax_wraps_it_as_one_of_its_own():
    tx = fa.adamw(0.02, b1=0.83)
    assert optax.with_extra_args_support(tx) is tx
    dispatch = functools.singledispatch(lambda tx: "other")
    dispatch.register(optax.GradientTransformation, lambda tx: "optax's")
    assert dispatch(tx) == "optax's"
    match tx:
        case optax.GradientTransformation(init, update):
            assert (init, update) == tuple(tx)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles_into_an_equal_one(protocol):
    for tx in (fa.adamw(schedule, b2=0.97, moments="int8"), fa.cautious(fa.nadam(0.02))):
        again = pickle.loads(pickle.dumps(tx, protocol))
        assert type(again) is fa.GradientTransformation
        assert again == tx
        assert repr(again) == repr(tx)


def test_it_is_a_pair_and_a_tree_of_two_functions():
    tx = fa.ademamix(0.02, b3=0.98, alpha=schedule)
    init, update = tx
    assert (tx[0], tx[1], len(tx)) == (init, update, 2)
    for again in (copy.copy(tx), copy.deepcopy(tx), jax.tree.map(lambda f: f, tx), tx._replace()):
        assert type(again) is fa.GradientTransformation
        assert again == tx
    assert jax.tree.leaves(tx) == [init, update]
    assert optax.GradientTransformation(*tx) == tx
    changed = tx._replace(update=max)
    assert changed.update is max
    assert changed != tx
    assert repr(changed).startswith("GradientTransformation(init=ademamix(learning_rate=0.02, b3")


# repr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (fa.adamw(0.001), "adamw(learning_rate=0.001)"),
        (fa.adam(), "adam(learning_rate=0.001)"),
        (fa.adamw(3e-4, b2=0.95, b1=0.9), "adamw(learning_rate=0.0003, b2=0.95)"),
        (fa.lamb(2, weight_decay=0.1), "lamb(learning_rate=2, weight_decay=0.1)"),
        (fa.scale_by_adam(), "scale_by_adam()"),
        (fa.scale_by_yogi(b1=0.8), "scale_by_yogi(b1=0.8)"),
        (fa.adam(schedule, nesterov=True), "adam(learning_rate=<schedule>, nesterov=True)"),
        (fa.adam(ARRAY), "adam(learning_rate=float32[])"),
        (fa.adopt(), "adopt(learning_rate=0.001)"),
        (
            fa.adam(optax.cosine_decay_schedule(0.1, 9), mu_dtype="bfloat16"),
            "adam(learning_rate=<cosine_decay_schedule.schedule>, mu_dtype='bfloat16')",
        ),
        (
            fa.adamw(mask={"w": True, "b": False}, moments=fa.Int8(block_size=64)),
            "adamw(learning_rate=0.001, mask={'w': True, 'b': False}, "
            "moments=Int8(block_size=64, min_size=4096))",
        ),
        (fa.cautious(fa.adamw(2e-3)), "cautious(adamw(learning_rate=0.002))"),
    ],
    ids=str,
)
def test_its_repr_is_the_call_with_what_differs_from_the_defaults(tx, text):
    assert repr(tx) == text
    assert repr(tx.update) == f"{text}.update"


def test_a_repr_stays_short():
    def rate(count):
        return 0.1

    tx = fa.adamw(rate, mask={f"layer {i}": True for i in range(999)})
    assert len(repr(tx)) < 150
    assert " at 0x" not in repr(fa.adamw(rate, mask=lambda params: params))
    seen = []
    jax.jit(lambda x: seen.append(repr(fa.adam(x))))(0.1)
    assert seen == ["adam(learning_rate=float32[])"]


# Equality and hash ----------------------------------------------------------------------------

matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
EQUAL = [
    (lambda: fa.adam(0.02), lambda: fa.adam(learning_rate=0.02)),
    (fa.adam, lambda: fa.adam(1e-3, 0.9, 0.999)),
    (lambda: fa.lamb(2), lambda: fa.lamb(2.0)),
    (lambda: fa.adamw(ARRAY, b2=ARRAY), lambda: fa.adamw(ARRAY, b2=ARRAY)),
    (lambda: fa.adamw(schedule, mask=matrices), lambda: fa.adamw(schedule, mask=matrices)),
    (lambda: fa.adamw(mask={"w": True}), lambda: fa.adamw(mask={"w": True})),
    (lambda: fa.adam(moments="int8"), lambda: fa.adam(moments=fa.Int8())),
    (lambda: fa.adam(mu_dtype="bfloat16"), lambda: fa.adam(mu_dtype=jnp.bfloat16)),
    (lambda: fa.ademamix(b3=0.99), lambda: fa.ademamix(b3=0.99)),
    (lambda: fa.cautious(fa.adamw(0.02)), lambda: fa.cautious(fa.adamw(0.02))),
    (lambda: fa.nadam(momentum_decay=4e-3), lambda: fa.nadam(momentum_decay=4e-3)),
    *((make, make) for make in FACTORIES),
]
OTHERS = [
    lambda: fa.adam(0.02),
    lambda: fa.adam(0.03),
    lambda: fa.adam(0.02, b1=0.8),
    lambda: fa.adam(0.02, nesterov=True),
    lambda: fa.adam(0.02, moments="bfloat16"),
    lambda: fa.adam(0.02, rounding="stochastic"),
    lambda: fa.adam(0.02, eps_placement="before_correction"),
    lambda: fa.adam(jnp.float32(0.02)),
    lambda: fa.adam(jnp.float32(0.02)),
    lambda: fa.adam(lambda count: 0.02),
    lambda: fa.adam(lambda count: 0.02),
    lambda: fa.adamw(0.02, weight_decay=0.0),
    lambda: fa.adamw(0.02, mask={"w": True}),
    lambda: fa.adamw(0.02, mask={"w": False}),
    lambda: fa.adamw(0.02, mask=[True]),
    lambda: fa.adamw(0.02, mask=lambda params: params),
    fa.scale_by_adam,
    lambda: fa.cautious(fa.adam(0.02)),
    lambda: fa.cautious(fa.adamw(0.02, weight_decay=0.0)),
    lambda: fa.ademamix(0.02, b3=0.99),
    lambda: fa.ademamix(0.02, b3=0.98),
    lambda: optax.adam(0.02),
]


@pytest.mark.parametrize("pair", EQUAL)
def test_equal_calls_make_equal_transformations(pair):
    one, other = (make() for make in pair)
    assert one == other
    assert hash(one) == hash(other)
    assert one.update == other.update
    assert one.update != other.init


def test_other_calls_make_others():
    made = [make() for make in OTHERS]
    assert len(set(made)) == len(made)
    for i, one in enumerate(made):
        assert [one == other for other in made] == [i == j for j in range(len(made))]


def test_a_step_with_equal_transformations_compiles_once():
    traced = []

    @functools.partial(jax.jit, static_argnames="tx")
    def step(params, grads, state, tx):
        traced.append(tx)
        updates, state = tx.update(grads, state, params)
        return fa.apply_updates(params, updates), state

    def run(make):
        tx = make()
        return step(PARAMS, GRADS, tx.init(PARAMS), tx=tx)

    first = run(lambda: fa.adamw(0.02, b1=0.8, mask={"w": True, "b": False}))
    again = run(lambda: fa.adamw(learning_rate=0.02, b1=0.8, mask={"b": False, "w": True}))
    assert len(traced) == 1
    jax.tree.map(lambda x, y: jnp.array_equal(x, y) or pytest.fail("differs"), first, again)
    run(lambda: fa.adamw(0.02, b1=0.8))
    run(lambda: fa.adamw(0.03, b1=0.8))
    assert len(traced) == 3
    for _ in range(2):
        run(lambda: fa.adamw(ARRAY, b1=0.8))
    assert len(traced) == 4


def test_traced_arguments_are_equal_to_themselves():
    @jax.jit
    def compare(x, y):
        assert fa.adam(x) == fa.adam(x)
        assert hash(fa.adam(x)) == hash(fa.adam(x))
        assert fa.adam(x) != fa.adam(y)
        return x

    compare(0.1, 0.1)


# Extra arguments of update --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: fa.adam(0.02), "learning_rate"),
        (lambda: fa.adam(0.02), "l2"),
        (lambda: fa.adamw(0.02), "weight_decay"),
        (lambda: fa.adamw(0.02), "mask"),
        (lambda: fa.ademamix(0.02), "b3"),
        (fa.scale_by_adam, "b1"),
        (lambda: fa.cautious(fa.adamw(0.02)), "weight_decay"),
        (lambda: optax.chain(optax.clip(1.0), fa.adamw(0.02)), "learning_rate"),
        (lambda: optax.masked(fa.adam(0.02), {"w": True, "b": True}), "learning_rate"),
        (lambda: optax.inject_hyperparams(fa.adam)(0.02), "learning_rate"),
    ],
)
def test_an_argument_of_the_factory_is_refused_by_update(make, name):
    tx = make()
    wanted = rf"{name} has no effect on the update of \w+\(.*argument of the factory.*schedule.*inj"
    with pytest.raises(TypeError, match=wanted):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **{name: 0.0})


def with_rate():
    """Another member, whose update has an argument of the same name."""

    def update(updates, state, params=None, *, learning_rate, **extra):
        return jax.tree.map(lambda u: learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_arguments_of_other_members_pass():
    tx = fa.adam(0.02)
    plain, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    # A direction has no learning rate, and the pair alone is handed no extra arguments.
    for member, scale in ((fa.scale_by_adam(), -0.02), (optax.GradientTransformation(*tx), 1.0)):
        chain = optax.chain(member, with_rate())
        found, _ = chain.update(GRADS, chain.init(PARAMS), PARAMS, learning_rate=scale)
        jax.tree.map(lambda x, y: jnp.allclose(x, y) or pytest.fail("differs"), found, plain)
    chain = optax.chain(tx, with_rate())
    with pytest.raises(TypeError, match=r"learning_rate has no effect.*GradientTransformation\(\*"):
        chain.update(GRADS, chain.init(PARAMS), PARAMS, learning_rate=1.0)


def test_a_line_search_gets_what_its_loss_takes():
    def loss(params, mask):
        return mask * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    tx = optax.chain(fa.adamw(0.02), optax.scale_by_backtracking_linesearch(5))
    value, grads = jax.value_and_grad(loss)(PARAMS, 2.0)
    updates, _ = tx.update(
        grads, tx.init(PARAMS), PARAMS, value=value, grad=grads, value_fn=loss, mask=2.0
    )
    assert loss(fa.apply_updates(PARAMS, updates), 2.0) < value
