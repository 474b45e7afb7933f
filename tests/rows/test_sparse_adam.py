"""The same numbers as `torch.optim.SparseAdam`, on record (`record_rows.py`)."""

import json

import numpy as np
import record_rows


def test_lazy_is_sparse_adam():
    recording = record_rows.recorded()
    assert record_rows.difference(record_rows.ours(), recording) < 1e-13
    # And not by accident: "moments" is another optimizer.
    assert record_rows.difference(record_rows.ours("moments"), recording) > 1e-2


def test_the_recording_is_of_the_data_and_says_of_what():
    recording = record_rows.recorded()
    about = json.loads(str(recording["about"]))
    assert about.pop("torch")
    assert about == record_rows.NUMBERS
    rows, grads, start = record_rows.batches()
    first = np.zeros(record_rows.SHAPE)
    np.add.at(first, rows[0], grads[0].astype(np.float64))
    np.testing.assert_allclose(recording["mu"][0], (1 - 0.87) * first, rtol=1e-12, atol=1e-18)
    never = np.setdiff1d(np.arange(record_rows.SHAPE[0]), rows)
    assert never.size
    np.testing.assert_array_equal(recording["table"][-1][never], start[never])
    assert any(len(set(row)) < len(row) for row in rows)
