"""Optimistix: logistic regression on the breast cancer data, by `optx.minimise` to convergence.

`OptaxMinimiser` stops when parameters and loss stand still, so the learning rate must not decay to
nothing before the minimum is reached. It compiles again for every new transformation: make one,
outside of loops.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

try:
    import optimistix as optx
    from sklearn.datasets import load_breast_cancer
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install optimistix scikit-learn")

L2 = 0.01


def load():
    """30 standardised measurements and a 1 of 569 tumours, and whether each is benign."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.float32(np.c_[x, np.ones(len(x))]), np.float32(y)


def loss_of(w, data):
    """Mean cross-entropy and a penalty on all weights but the bias."""
    x, y = data
    logits = x @ w
    return (jax.nn.softplus(logits) - y * logits).mean() + L2 / 2 * (w[:-1] ** 2).sum()


def train(tx, max_steps, rtol=1e-6, atol=1e-6):
    """The loss at the start and at the end, and Optimistix's solution."""
    data = jax.tree.map(jnp.asarray, load())
    start = jnp.zeros(data[0].shape[1])
    solver = optx.OptaxMinimiser(tx, rtol=rtol, atol=atol)
    # throw=False: running out of steps is no error here, `solution.result` tells.
    solution = optx.minimise(loss_of, solver, start, data, max_steps=max_steps, throw=False)
    return loss_of(start, data), loss_of(solution.value, data), solution


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    first, last, solution = train(fa.adam(0.1), max_steps=2000)
    print(f"loss {first:.4f} -> {last:.4f} in {solution.stats['num_steps']} steps")
