"""Statistics of others: what is wrong with them is told by their name, before anything is drawn."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import evaluate
from experiments.build import build
from experiments.features.references import read_moments


def write(path: pathlib.Path, mean: np.ndarray, covariance: np.ndarray) -> pathlib.Path:
    np.savez(path, mu=mean, sigma=covariance)
    return path


@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_numbers_that_are_not_finite_name_their_file_before_anything_is_drawn(
    tiny: Callable[[], ConfigDict], tmp_path: pathlib.Path, name: str
) -> None:
    arrays = {"mu": np.zeros(4), "sigma": np.eye(4)}
    arrays[name].ravel()[2] = np.nan
    path = write(tmp_path / "their.npz", arrays["mu"], arrays["sigma"])
    config = tiny()
    config.evaluate.metrics, config.evaluate.reference = "samples", str(path)
    with pytest.raises(ValueError, match=r"their\.npz holds numbers that are not finite"):
        evaluate.check(build(config))


def test_shapes_that_do_not_fit_each_other_are_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.npz", np.zeros(4), np.eye(3))
    with pytest.raises(ValueError, match=r"mu \(4,\) and sigma \(3, 3\)"):
        read_moments(path)
    mean, covariance, metadata = read_moments(write(path, np.zeros(3), np.eye(3)))
    assert mean.shape == (3,) and covariance.dtype == np.float64 and metadata is None
