"""Whose state a flat dict is: its header says it, and no other transformation takes it."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest
from codes import CODES
from state_dict_stores import HEADER, RATES, assert_same_bits

import functional_adam as fa

# What each keeps, by name: variants of one name may go on from one another's states.
KEEPS = {
    "adam": [
        fa.adam(0.03, **RATES),
        fa.adamw(0.07, weight_decay=0.3),
        fa.adam(nesterov=True),
        fa.cautious(fa.adamw()),
        fa.hyperball(fa.clip_update_rms(fa.adam())),
        fa.cautious_weight_decay(fa.adamw()),
        fa.nadam(),
        fa.radam(),
        fa.lamb(),
        fa.adam_atan2(),
    ],
    "laprop": [fa.laprop(), fa.cautious_weight_decay(fa.laprop())],
    "simplified_ademamix": [fa.simplified_ademamix(), fa.scale_by_simplified_ademamix()],
    "adamax": [fa.adamax(), fa.adamaxw()],
    "adabelief": [fa.adabelief()],
    "yogi": [fa.yogi()],
    "adopt": [fa.adopt(), fa.cautious(fa.adopt())],
    "amsgrad": [
        fa.amsgrad(maximum="before_correction"),
        fa.amsgrad(bias_correction_nu=False),
    ],
    "amsgrad_of_corrected": [fa.amsgrad(), fa.amsgrad(bias_correction_mu=False)],
    "ademamix": [fa.ademamix()],
}
SMALL_PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


def variants_of(flat):
    return json.loads(flat[HEADER].tobytes()).get("variants")


def test_the_header_says_what_a_state_keeps():
    for name, txs in KEEPS.items():
        for tx in txs:
            state = tx.init(SMALL_PARAMS)
            assert variants_of(fa.to_state_dict({"state": state}, tx=tx)) == {"['state']": name}
    assert variants_of(fa.to_state_dict(state)) is None


def test_a_state_of_another_variant_is_refused():
    """Only of those whose states have the same leaves; the others' names differ anyway."""
    two_trees = ("adam", "adamax", "adabelief", "yogi", "adopt", "laprop", "simplified_ademamix")
    for names in (two_trees, ("amsgrad", "amsgrad_of_corrected")):
        for old in names:
            tree = {"state": KEEPS[old][0].init(SMALL_PARAMS)}
            flat = fa.to_state_dict(tree, tx=KEEPS[old][0])
            for new in names:
                for tx in KEEPS[new]:
                    if new == old:
                        assert_same_bits(fa.from_state_dict(flat, tree, tx=tx), tree)
                        continue
                    message = (
                        rf"a state of {old} at target\['state'\], but tx expects a state of {new}:"
                    )
                    with pytest.raises(ValueError, match=message):
                        fa.from_state_dict(flat, tree, tx=tx)


def test_what_was_saved_without_a_variant_loads_with_one():
    tree = fa.adamax().init(SMALL_PARAMS)
    assert_same_bits(fa.from_state_dict(fa.to_state_dict(tree), tree, tx=fa.adam()), tree)


KINDS = {"w": "matrix", "b": "vector"}
WRAPPED = {
    "chain": lambda adam: optax.chain(optax.clip(1.0), adam(), optax.scale(0.3)),
    "named_chain": lambda adam: optax.named_chain(("clip", optax.clip(1.0)), ("adam", adam())),
    "masked": lambda adam: optax.masked(adam(), {"w": True, "b": False}),
    "masked by a function": lambda adam: optax.masked(
        adam(), lambda params: jax.tree.map(lambda p: p.ndim == 1, params)
    ),
    "MultiSteps": lambda adam: optax.MultiSteps(adam(), 3),
    "inject_hyperparams": lambda adam: optax.inject_hyperparams(adam)(0.3),
    "partition": lambda adam: optax.partition({"vector": adam(), "matrix": fa.adopt()}, KINDS),
    "nested": lambda adam: optax.chain(
        optax.trace(0.31), optax.apply_if_finite(optax.chain(fa.scale_by_adopt(), adam()), 3)
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_variants_are_found_inside_wrappers(name):
    saved, other = WRAPPED[name](fa.adam), WRAPPED[name](fa.adamax)
    tree = (SMALL_PARAMS, saved.init(SMALL_PARAMS))
    flat = fa.to_state_dict(tree, tx=saved)
    assert sorted(variants_of(flat).values()) == ["adam"] + ["adopt"] * (
        name in ("partition", "nested")
    )
    shapes = jax.eval_shape(lambda: tree)
    assert_same_bits(fa.from_state_dict(flat, shapes, tx=saved), tree)
    with pytest.raises(
        ValueError, match=r"a state of adam at target\[1\].*, but tx expects a state of ad"
    ):
        fa.from_state_dict(flat, shapes, tx=other)
    assert fa.from_state_dict(flat, tree)  # not asked for
    assert isinstance(jax.tree.leaves(saved.init(SMALL_PARAMS))[0], jax.Array)  # nothing is left


def test_variants_of_small_moments_are_told():
    tx = fa.adamw(0.03, moments=CODES, rounding="compensated")
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "frozen": None}
    flat = fa.to_state_dict(tx.init(params), tx=tx)
    assert variants_of(flat) == {"": "adam"}
    with pytest.raises(
        ValueError, match=r"a state of adam at target.*, but tx expects a state of adopt"
    ):
        fa.from_state_dict(flat, tx.init(params), tx=fa.adopt(moments="bfloat16"))


def test_states_that_tx_does_not_make_are_refused():
    adam, chain = fa.adam(), optax.chain(optax.clip(1.0), fa.adam())
    both = {"a": adam.init(SMALL_PARAMS), "b": chain.init(SMALL_PARAMS)}
    flat = fa.to_state_dict(both)
    for message, tree, tx in [
        (
            r"tree\['a'\] is an AdamState, but tx makes none there \(it makes state\[1\]\)",
            both,
            chain,
        ),
        (
            r"tree.* is an AdamState, but tx makes none there \(it makes none\)",
            both,
            optax.sgd(0.1),
        ),
        ("tree must hold an AdamState; found none", SMALL_PARAMS, adam),
        (r"tx.init fails on .* \(ValueError: ", both["a"], optax.masked(adam, {"c": True})),
    ]:
        with pytest.raises(ValueError, match=message):
            fa.to_state_dict(tree, tx=tx)
    with pytest.raises(ValueError, match=r"target\['a'\] is an AdamState, but tx makes none"):
        fa.from_state_dict(flat, both, tx=chain)
    with pytest.raises(TypeError, match="tx must be a gradient transformation"):
        fa.to_state_dict(both, tx=fa.adam)
    # Of Optax's Adam, whose leaves have the names of ours.
    optax_adam = optax.scale_by_adam().init(SMALL_PARAMS)
    flat = fa.to_state_dict({"a": both["a"], "b": optax_adam}, tx=adam)
    target = {"a": both["a"], "b": both["a"]}
    with pytest.raises(
        ValueError, match=r"no state of this package at target\['b'\], but tx expects"
    ):
        fa.from_state_dict(flat, target, tx=adam)
