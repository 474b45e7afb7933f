"""The example `widths.py`: what muP changes, and that the best rate stays where it was."""

import jax
import numpy as np
import pytest
from quick import quick_jit
from running import assert_png, example, rows_of, run, run_here

BEST = {"one rate": [], "muP": []}


@pytest.mark.parametrize(
    ("way", "args", "widths"),
    [
        (run_here, ["--widths", 16, 64, "--steps", 60, "--seeds", 1], [16, 64]),
        pytest.param(run, [], [64, 128, 256, 512], marks=pytest.mark.slow),
    ],
)
def test_the_best_rate_stays_with_mup_and_falls_without(way, args, widths, tmp_path):
    rows = rows_of(way("widths.py", *args, cwd=tmp_path))
    best = {name: [row for row in rows if " ".join(row[:-4]) == name] for name in BEST}
    for name, found in best.items():
        assert [int(row[-4]) for row in found] == widths, name
    narrow, wide = ({n: float(found[i][-3]) for n, found in best.items()} for i in (0, -1))
    assert narrow["muP"] == narrow["one rate"]  # at the base width both are the same
    assert 0.49 < wide["muP"] / narrow["muP"] < 2.01  # within one point of the grid
    assert wide["one rate"] / narrow["one rate"] < 0.26
    at_base = {name: float(found[-1][-1]) for name, found in best.items()}
    assert at_base["muP"] < at_base["one rate"]
    assert_png(tmp_path / "widths.png")


def test_wide_matrices_alone_have_a_smaller_rate_and_the_last_one_a_smaller_start():
    module = example("widths")
    plain, mup = (module.start(3, 96, 32, way) for way in (False, True))
    ratio = [np.asarray(b["w"] / a["w"]).mean() for a, b in zip(plain, mup, strict=True)]
    np.testing.assert_allclose(ratio, [1] * module.HIDDEN + [3**-0.5], rtol=1e-6)
    tx = module.optimizer(0.3, 10, 96, 32, True)
    grads = jax.tree.map(np.ones_like, mup)
    step = quick_jit(tx.update)
    updates, state = step(grads, tx.init(mup))
    later, _ = step(grads, state)
    for each, rate in ((updates, 0.3), (later, 0.3 * 0.9)):
        for number, layer in enumerate(each):
            np.testing.assert_allclose(layer["b"], -rate, rtol=1e-5)
            np.testing.assert_allclose(layer["w"], -rate / (3 if number else 1), rtol=1e-5)
