"""NumPyro: Bayesian linear regression of diabetes on five findings, by variational inference.

`SVI` takes the transformation as it is. The rate decays because the gradients are noisy; at a
constant one the posterior's mean would keep moving about.
"""

import sys

import jax
import numpy as np

import functional_adam as fa

try:
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from sklearn.datasets import load_diabetes
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install numpyro optax scikit-learn")

NOISE = 0.7


def load():
    """Age, sex, body mass, blood pressure and s5 of 442 patients; progress. Both standardised."""
    data = load_diabetes()
    x, y = data.data[:, [0, 1, 2, 3, 8]], data.target
    return np.float32(x / x.std(axis=0)), np.float32((y - y.mean()) / y.std())


def model(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def train(tx, steps):
    """NumPyro's result: `params` (guide), `losses` (-ELBO) and `state` at the end."""
    svi = SVI(model, AutoNormal(model), tx, Trace_ELBO(num_particles=4))
    return svi.run(jax.random.key(0), steps, *load(), progress_bar=False)


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    result = train(fa.adam(optax.cosine_decay_schedule(0.05, 1500)), steps=1500)
    print(f"-ELBO {result.losses[0]:.1f} -> {result.losses[-100:].mean():.1f}")
    print("mean ", np.round(result.params["w_auto_loc"], 3))
    print("scale", np.round(result.params["w_auto_scale"], 3))
