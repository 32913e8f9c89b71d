"""The classifier's training, and what an interruption of it loses."""

import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import console, devices
from experiments.data import dataset, digits
from experiments.features import classifier
from experiments.features.extractors import features_of, load_extractor, make_feature_fn

RECIPE = classifier.Recipe(channels=(8, 16), steps=30, batch_size=32)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "RECIPE", RECIPE)
    monkeypatch.setattr(classifier, "KEPT_EVERY", 10)
    return tmp_path / "classifiers"


def test_an_interrupted_training_goes_on_and_ends_in_the_same_weights(
    short: pathlib.Path,
    data_dir: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    data = digits.digits(data_dir=str(data_dir))
    taken: list[int] = []
    gather = dataset.InMemory.gather

    def counted(self: dataset.InMemory, indices: list[int]) -> dict[str, np.ndarray]:
        taken.append(len(indices))
        if len(taken) == stop:
            raise KeyboardInterrupt
        return gather(self, indices)

    monkeypatch.setattr(dataset.InMemory, "gather", counted)
    stop = 26  # the 26th batch
    with pytest.raises(KeyboardInterrupt):
        classifier.load_classifier(data)
    assert [path.name.endswith(".partial.npz") for path in short.iterdir()] == [True]
    taken.clear()
    stop = 0
    resumed = classifier.load_classifier(data)
    assert taken.count(32) == 10  # of 30, from the 20th on
    assert "resuming  the training of a classifier at step 20 of 30" in capsys.readouterr().out
    (kept,) = short.iterdir()
    kept.unlink()
    whole = classifier.load_classifier(data)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert resumed.accuracy == whole.accuracy


def test_a_damaged_beginning_is_no_beginning(
    short: pathlib.Path, data_dir: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    data = digits.digits(data_dir=str(data_dir))
    whole = classifier.load_classifier(data)
    (kept,) = short.iterdir()
    kept.rename(kept.with_suffix(".partial.npz"))  # which is none
    again = classifier.load_classifier(data)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert "resuming" not in capsys.readouterr().out


def test_the_way_to_features_says_how_far_it_is(
    short: pathlib.Path,
    data_dir: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Reading, training, testing and judging, each of which takes minutes of a large set."""
    monkeypatch.setattr(console, "SOON", 0.0)
    mesh, data = devices.make_mesh(), digits.digits(data_dir=str(data_dir))
    extractor = load_extractor("classifier", None, data)
    pictures = np.zeros((9, 8, 8, 1), np.uint8)
    feature_fn = make_feature_fn(extractor, mesh)
    features_of(feature_fn, lambda start, stop: pictures[start:stop], 9, 4, mesh)
    said = capsys.readouterr().out
    for loop in ("reading images", "training a classifier", "testing it", "features"):
        assert re.search(rf"^  {loop}: \d+ of \d+, \d:\d\d left$", said, re.M), loop
