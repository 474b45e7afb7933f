"""The example `word_vectors.py`: its loss, its three ways, and what it draws."""

import types
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit
from running import assert_png, example, rows_of, run


@pytest.mark.slow
def test_all_ways_learn(tmp_path):
    output = run("word_vectors.py", "--steps", 1000, "--width", 32, cwd=tmp_path)
    rows = {row[0]: row for row in rows_of(output) if row[0] in ("lazy", "moments", "dense")}
    losses = {name: (float(row[1]), float(row[2])) for name, row in rows.items()}
    assert len(losses) == 3
    for first, last in losses.values():
        assert first == pytest.approx(6 * np.log(2), abs=1e-3)
        assert last < first - 1
    assert_png(tmp_path / "word_vectors.png")


def some_text(module):
    rng = np.random.default_rng(0)
    words = [*module.SHOWN, *(f"word{n}" for n in range(30))]
    pairs = rng.integers(0, len(words), (500, 2)).astype(np.int32)
    return module.Text(words, np.arange(40, 0, -1), pairs, pairs[:50])


def test_a_run_over_a_small_text(tmp_path, monkeypatch):
    module, advanced = example("word_vectors"), Counter()
    monkeypatch.setattr(module, "EVERY", 4)
    monkeypatch.setattr(module, "PAIRS", 6)
    monkeypatch.setattr(jax, "jit", quick_jit)
    args = types.SimpleNamespace(steps=8, width=5, learning_rate=0.3, moments="full", seed=0)
    text = some_text(module)
    result = module.fit("dense", text, args, lambda n: advanced.update(steps=n))
    assert advanced == {"steps": 8}
    assert len(result.losses) == 3
    assert result.losses[0] == pytest.approx(6 * np.log(2), abs=1e-4)
    assert result.losses[2] != result.losses[1] != result.losses[0]
    assert np.isfinite(result.losses).all()
    # Rows that no batch has read, and those that the first alone has, whose rate is 0, stay.
    start = jax.random.normal(jax.random.key(0), (40, 5)) / 5
    stay = np.sum(np.all(result.table == start, axis=1))
    assert 0 < 40 - result.seen <= stay < 20
    module.draw(tmp_path / "a.png", text, {"dense": result})
    assert_png(tmp_path / "a.png")
    losses, near = module.tables_of(text, {"dense": result})
    assert (losses.row_count, near.row_count) == (1, len(module.SHOWN))


def test_the_loss_is_that_of_negative_sampling():
    module = example("word_vectors")
    rng = np.random.default_rng(1)
    vectors, contexts = rng.normal(size=(3, 4)), rng.normal(size=(3, 1 + module.NEGATIVES, 4))
    scores = np.einsum("pw,pcw->pc", vectors, contexts)
    signs = np.array([1] + [-1] * module.NEGATIVES)
    wanted = np.log1p(np.exp(-signs * scores)).sum(axis=1).mean()
    assert float(module.loss_of(jnp.asarray(vectors), contexts)) == pytest.approx(wanted, rel=1e-6)


def test_neighbours_are_nearest_by_the_cosine():
    module = example("word_vectors")
    text = module.Text(["a", "b", "c", "d"], np.ones(4), None, None)
    table = np.array([[1.0, 0.0], [-3.0, 0.1], [5.0, 1.0], [0.0, 9.0]])
    assert module.neighbours(text, table, "a", 3) == ["c", "d", "b"]
