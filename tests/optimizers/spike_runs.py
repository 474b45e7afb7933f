"""What the tests of `skip_spikes` share: the judge in float64, and a run through a stream."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from quick import quick_jit

import functional_adam as fa

NAMES = ("losses", "grad_norms")


class Judged(NamedTuple):
    """What is expected of the state after a step."""

    last_accepted: bool
    accepted: int
    skipped: int
    forced: int
    off_in_a_row: int


class Judge:
    """The rule as documented, with lists, in float64. `least` is for float32 numbers."""

    def __init__(self, names, factor, window, warmup, max_consecutive, least=2.0**-10):
        self.factor, self.window, self.warmup = factor, window, warmup
        self.max_consecutive, self.least = max_consecutive, least
        self.histories = {name: [] for name in names}
        self.accepted = self.skipped = self.forced = self.in_a_row = 0
        self.margin = np.inf  # how near to its limit a number came, as a share of it

    def is_high(self, name, x):
        h = np.float64(self.histories[name][-self.window :])
        if self.accepted < self.warmup or not np.any(h):
            return False
        limit = h.mean() + self.factor * max(h.std(ddof=1), self.least * np.abs(h).max())
        self.margin = min(self.margin, abs(x - limit) / abs(limit))
        return bool(x > limit)

    def step(self, **numbers):
        finite = all(np.isfinite(x) for x in numbers.values())
        high = [self.is_high(name, x) for name, x in numbers.items()]
        off = not finite or any(high)
        self.in_a_row = self.in_a_row + 1 if off else 0
        forced = off and finite and self.in_a_row > self.max_consecutive
        accept = forced or not off
        if accept:
            for name, x in numbers.items():
                self.histories[name].append(x)
        self.accepted += accept
        self.skipped += not accept
        self.forced += forced
        return Judged(accept, self.accepted, self.skipped, self.forced, self.in_a_row)

    def history(self, name):
        """As the state has it: zeros first."""
        return ([0.0] * self.window + self.histories[name])[-self.window :]


def through(tx, losses, norms):
    """The states and parameters after each step, stacked, where gradients have these norms."""
    grads = np.float32(norms)[:, None] * np.float32([0.6, -0.8])
    params = jnp.float32([0.3, -1.7])
    return _scanned(tx, params, tx.init(params), (jnp.float32(losses), grads))


@functools.partial(quick_jit, static_argnums=0)
def _scanned(tx, params, state, rows):
    def body(kept, row):
        (params, state), (loss, g) = kept, row
        params, state = fa.step(tx, g, state, params, value=loss)
        return (params, state), (state, params)

    return jax.lax.scan(body, (params, state), rows)[1]


def rows_of(state):
    """Of stacked states a `Judged` each."""
    fields = [np.asarray(getattr(state, name)).tolist() for name in Judged._fields[:-1]]
    return [Judged(*row) for row in zip(*fields, np.asarray(state.off_in_a_row), strict=True)]
