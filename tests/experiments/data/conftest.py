"""Small files in the formats of published data sets."""

import pathlib

import numpy as np
import pytest

from experiments.data import cifar10, fashion_mnist
from tests.experiments import synthetic


@pytest.fixture
def idx(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    arrays = synthetic.idx_files(tmp_path / "idx")
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "SHA256", synthetic.idx_sha256(arrays))
    return arrays


@pytest.fixture
def few_records(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", synthetic.CIFAR_RECORDS)
