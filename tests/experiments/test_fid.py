"""Distances of any two sets of pictures."""

import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import fid
from experiments.build import build
from experiments.data.dataset import gather
from experiments.data.digits import digits
from experiments.features import frechet
from experiments.sample import Place
from tests.experiments import modes

pytestmark = pytest.mark.usefixtures("quick_classifier")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, data_dir: pathlib.Path) -> pathlib.Path:
    """real.npz, other.npz of digits, and the same as folders of PNG files."""
    folder = tmp_path_factory.mktemp("sets")
    train = digits(str(data_dir)).open("train")
    for name, places in (("real", range(200)), ("other", range(300, 420))):
        pictures = gather(train, places)["image"]
        np.savez(folder / f"{name}.npz", arr_0=pictures)
        for i, picture in enumerate(pictures):
            path = folder / name / f"{i // 50}" / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[..., 0]).save(path)
    return folder


def compare(a: object, b: object) -> dict[str, float]:
    values = fid.compare(str(a), str(b), "digits")["values"]
    return {name.partition("_digits")[0]: value for name, value in values.items()}


def test_a_folder_is_its_npz(sets: pathlib.Path) -> None:
    one = compare(sets / "other", sets / "real")
    two = compare(sets / "other.npz", sets / "real.npz")
    assert one.keys() == two.keys() == {"fd", "classifier_score", "kd", "precision", "recall"}
    for name, value in one.items():
        assert value == pytest.approx(two[name], rel=1e-5)


def test_a_folder_of_samples_is_its_samples(trained, sets: pathlib.Path, tmp_path) -> None:
    """Not the grids that lie beside them; as npz files, several of them, or as PNG files."""
    config, workdir = ConfigDict(trained[0].to_dict()), trained[1]
    config.sample.update(num_images=24, images_per_file=10)
    values = []
    for kind in ("npz", "png"):
        config.sample.format = kind
        modes.sample(build(config), workdir, Place(None, tmp_path / kind))
        values.append(compare(tmp_path / kind, sets / "real"))
    assert fid.pictures_of(str(tmp_path / "npz")).number == 24
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_set_has_no_distance_to_itself(sets: pathlib.Path) -> None:
    same = compare(sets / "real", sets / "real.npz")
    assert same["fd"] == pytest.approx(0.0, abs=1e-3)
    assert same["precision"] == same["recall"] == 1.0
    noise = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1), dtype=np.uint8)
    np.savez(sets / "noise.npz", arr_0=noise)
    far, near = compare(sets / "noise.npz", sets / "real"), compare(sets / "other", sets / "real")
    assert far["fd"] > 3 * near["fd"] and far["precision"] < near["precision"]


def test_the_number_is_the_distance_of_the_features_moments(sets: pathlib.Path) -> None:
    """By hand, from the classifier's features, standardised by the reference's deviations."""
    from experiments import devices
    from experiments.features.extractors import features_of, load_extractor, make_feature_fn

    extractor = load_extractor("classifier", None, digits(None))
    mesh = devices.make_mesh()
    feature_fn, moments = make_feature_fn(extractor, mesh), []
    for name in ("other", "real"):
        pictures = np.load(sets / f"{name}.npz")["arr_0"]
        found = features_of(feature_fn, lambda a, b, p=pictures: p[a:b], len(pictures), 8, mesh)
        moments.append(found.features.astype(np.float64))
    scale = moments[1].std(axis=0, ddof=1)
    scale[scale == 0] = 1
    (m, c), (n, d) = (
        (f.mean(axis=0), np.cov(f, rowvar=False)) for f in (x / scale for x in moments)
    )
    expected = frechet.frechet_distance(m, c, n, d)
    assert compare(sets / "other", sets / "real")["fd"] == pytest.approx(expected, rel=1e-3)


def test_it_prints_for_people(sets: pathlib.Path, capsys) -> None:
    words = [str(sets / "other"), str(sets / "real"), "--classifier=digits"]
    assert fid.main(words) == 0
    said = capsys.readouterr().out
    assert "of 120 and 200 images, features of digits-cnn" in said and "fd_digits-cnn" in said
    assert fid.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == [120, 200] and found["features"] == 16


def test_what_cannot_be_compared_is_said(sets: pathlib.Path, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "numbers.npz", arr_0=np.zeros(3))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((5, 16, 16, 1), np.uint8))
    (tmp_path / "mixed").mkdir()
    for size in (8, 9):
        Image.new("L", (size, size)).save(tmp_path / "mixed" / f"{size}.png")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG no")
    for word, expected in (
        ("nowhere", "nowhere does not exist: name a folder of pictures"),
        (tmp_path / "empty", "holds no pictures"),
        (tmp_path / "numbers.npz", "arr_0 is float64[3], and images are uint8"),
        (tmp_path / "large.npz", "holds images of (16, 16, 1), and"),
        (tmp_path / "mixed", "pictures of one size and kind are needed"),
        (tmp_path / "torn", "cannot be read as a picture"),
        ("data:digts", "Did you mean 'digits'"),
    ):
        assert fid.main([str(word), str(sets / "real"), "--classifier=digits"]) == 2
        assert expected in capsys.readouterr().err
    assert fid.main([str(sets / "real"), str(sets / "real")]) == 2  # without Inception's weights
    assert "not downloaded silently" in capsys.readouterr().err
    assert fid.main([str(sets / "real"), str(sets / "real"), "--batch_size=0"]) == 2
