"""What the tests of modifiers share: leaves, modifiers around a member, a run."""

import numpy as np

import functional_adam as fa

RATES = {"b1": 0.83, "b2": 0.93, "eps": 1e-3}
random = np.random.default_rng(4)
PARAMS = {
    "w": random.normal(size=(3, 6, 5)).astype(np.float32),
    "b": random.normal(size=7).astype(np.float32),
}
GRADS = [
    {name: (scale * random.normal(size=p.shape)).astype(np.float32) for name, p in PARAMS.items()}
    for scale in (1.0, 0.3, 5.0, 0.1)
]
MATRICES = {"w": True, "b": False}


def on_a_sphere(tx):
    return fa.hyperball(tx, MATRICES, stacked={"w": 1, "b": 0})


def clipped(tx):
    return fa.clip_update_rms(tx, 0.71, stacked=1)


MODIFIERS = {
    "cautious": fa.cautious,
    "cautious_weight_decay": fa.cautious_weight_decay,
    "clip_update_rms": clipped,
    "hyperball": on_a_sphere,
}


def together(tx, names=tuple(MODIFIERS)):
    for name in names:
        tx = MODIFIERS[name](tx)
    return tx


def walk(tx, params=PARAMS, grads=GRADS):
    """(last updates, parameters, state)."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = fa.apply_updates(params, updates)
    return updates, params, state


def norm(x):
    return np.linalg.norm(np.float64(x))
