"""Arrays in files of strangers."""

import pathlib

import numpy as np
import pytest

from experiments.files import tensors
from experiments.files.tensors import read_npz


def test_only_the_arrays_that_are_wanted_are_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, mu=np.arange(3.0), objects=np.array([{}], dtype=object))
    assert read_npz(path, ("mu", "sigma")).keys() == {"mu"}
    with pytest.raises(ValueError, match="no npz of plain arrays"):
        read_npz(path)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused_unread(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, mu=np.zeros(10), sigma=np.zeros((1000, 1000)))
    assert read_npz(path)["sigma"].shape == (1000, 1000)  # small, though it is mostly air
    monkeypatch.setattr(tensors, "BOMB_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"unpack to 8,000,\d+, as no numbers do"):
        read_npz(path)
    assert read_npz(path, ("mu",)).keys() == {"mu"}
    np.savez_compressed(path, sigma=np.random.default_rng(0).normal(size=(1000, 1000)))
    assert read_npz(path).keys() == {"sigma"}
