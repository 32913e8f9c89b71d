"""Distances of any two sets of pictures."""

import json
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import fid, picture_sets
from experiments.build import build
from experiments.data.dataset import gather
from experiments.data.digits import digits
from experiments.data.image_folder import image_folder
from experiments.features import frechet, scores
from experiments.picture_sets import Reading
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


def compare(a: object, b: object, **how: object) -> dict[str, float]:
    values = fid.compare(str(a), str(b), "digits", **how)["values"]
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
    assert picture_sets.pictures_of(str(tmp_path / "npz")).number == 24
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_an_evaluation_has_the_same_numbers(trained, tmp_path, monkeypatch) -> None:
    """The same samples beside the same images, more of them than KID looks at."""
    monkeypatch.setattr(scores, "MOST", 30)
    config, workdir = ConfigDict(trained[0].to_dict()), trained[1]
    config.sample.num_images = 40
    config.evaluate.update(metrics="samples", num_samples=40, num_splits=10)
    modes.sample(build(config), workdir, Place(None, tmp_path / "drawn"))
    monkeypatch.setenv("TFDS_DATA_DIR", config.data.data_dir)
    ours = compare(tmp_path / "drawn", "data:digits")
    theirs = modes.evaluate(build(config), workdir)["samples"]
    theirs = {name.partition("_digits")[0]: value["value"] for name, value in theirs.items()}
    theirs["fd"] = theirs["fd_train"]
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-4), name


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


def form(sets: pathlib.Path, name: str, make: Callable[[np.ndarray], Image.Image], end: str) -> Any:
    """A folder of the real digits, each in another form."""
    folder = sets / "forms" / name
    for i, pixels in enumerate(np.load(sets / "real.npz")["arr_0"][..., 0]):
        folder.mkdir(parents=True, exist_ok=True)
        picture = make(pixels)
        options = {"exif": picture.getexif()} if "turned" in name else {}
        picture.save(folder / f"{i:04d}{end}", **options)
    return folder


def turned(grey: np.ndarray) -> Image.Image:
    """On its side, with the tag that tells so."""
    picture = Image.fromarray(np.rot90(grey))
    picture.getexif()[0x0112] = 6
    return picture


def deep(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.astype(np.uint16) * 257)


def floating(grey: np.ndarray) -> Image.Image:
    return Image.fromarray((grey / 255).astype(np.float32))


def transparent(grey: np.ndarray) -> Image.Image:
    """Black where the digit is not, which is white where nothing is."""
    picture = Image.new("LA", grey.shape[::-1])
    picture.putalpha(Image.fromarray(255 - grey))
    return picture


FORMS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "16 bits": (deep, ".png"),
    "float": (floating, ".tif"),
    "grey and alpha": (transparent, ".png"),
    "colours": (lambda grey: Image.fromarray(grey).convert("RGB"), ".png"),
    "palette": (lambda grey: Image.fromarray(grey).convert("P"), ".gif"),
    "plain": (Image.fromarray, ".pgm"),
    "turned": (turned, ".png"),
}


def test_no_form_of_the_same_pictures_is_at_a_distance(sets: pathlib.Path) -> None:
    """To the last grey level, and so of the distance, which one of them shows."""
    pictures = np.load(sets / "real.npz")["arr_0"]
    for name, (make, end) in FORMS.items():
        folder = form(sets, name, make, end)
        for channels in (1, 3):
            found = picture_sets.pictures_of(str(folder), Reading(channels=channels))
            expected = np.repeat(pictures, channels, axis=3)
            np.testing.assert_array_equal(found.read(0, len(pictures)), expected)
    assert compare(sets / "forms" / "16 bits", sets / "real.npz")["fd"] < 1e-3


def test_pictures_are_those_that_training_sees(sets: pathlib.Path, tmp_path) -> None:
    """Grey and colours, of several sizes, with hidden files, links and notes: the same images."""
    draw, folder = np.random.default_rng(0), tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    for i in range(30):
        shape = (*draw.integers(5, 20, 2), *((3,) if i % 2 else ()))
        picture = Image.fromarray(draw.integers(0, 256, shape, np.uint8))
        picture.save(folder / ("sub" if i % 3 else "") / f"{i}.png")
    (folder / "._0.png").write_bytes(b"notes")
    (folder / "notes.txt").write_text("notes")
    (folder / "sub" / "loop").symlink_to(folder)
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for path in [*folder.glob("*.*"), *folder.glob("sub/*.png")]:
            archive.write(path, path.relative_to(folder))
    for channels in (3, 1):
        options = dict(image_size=8, channels=channels, background="black")
        source = image_folder(str(folder), test_fraction=0.0, **options).open("train")
        trained = gather(source, range(30))["image"]
        np.savez(tmp_path / "trained.npz", trained)
        for where in (folder, tmp_path / "mixed.zip"):
            found = picture_sets.pictures_of(str(where), Reading(**options))
            assert (found.number, found.shape) == (30, (8, 8, channels))
            np.testing.assert_array_equal(found.read(0, 30), trained)
            assert "1 of other kinds (.txt 1); 1 hidden (._0.png)" in found.remarks[0]
            loaded = picture_sets.pictures_of(str(tmp_path / "trained.npz"), Reading(**options))
            np.testing.assert_array_equal(loaded.read(0, 30), trained)


def test_a_range_makes_of_12_bits_what_8_are(sets: pathlib.Path, capsys) -> None:
    """And without it the program tells of the few levels, also beside its JSON."""

    def shallow(grey: np.ndarray) -> Image.Image:
        return Image.fromarray(np.rint(grey * (4095 / 255)).astype(np.uint16))

    words = [str(form(sets, "12 bits", shallow, ".png")), str(sets / "real")]
    words += ["--classifier=digits", "--json"]
    assert fid.main(words) == 0
    [told] = json.loads(capsys.readouterr().out)["remarks"]
    assert "grey levels 0 to 16 of 0 to 255" in told and "--value_range), such as (0,4095)" in told
    assert fid.main([*words, "--value_range=0,4095"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = list(found["values"].values())
    assert found["remarks"] == [] and values[0] < 1e-3
    assert fid.main([*words, "--value_range=0"]) == 2
    assert "give the values of black and white, such as 0,4095" in capsys.readouterr().err


def test_the_advice_on_sizes_can_be_followed(sets: pathlib.Path, tmp_path, capsys) -> None:
    """The refusal of pictures of other sizes and in colours proposes options that compare them."""
    draw = np.random.default_rng(0)
    for i, side in enumerate((9, 12, 20, 16)):
        picture = Image.fromarray(draw.integers(0, 256, (side, 16, 3), np.uint8))
        picture.save(tmp_path / f"{i}.png")
    words = [str(tmp_path), str(sets / "real"), "--classifier=digits"]
    assert fid.main([*words, "--channels=3"]) == 2
    said = capsys.readouterr().err
    assert "16 x 9 pixels in colours, and the classifier takes pictures of 8 x 8 pixels i" in said
    assert fid.main([*words, *re.findall(r"--\w+=\d", said)]) == 0
    assert "read in grey" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(sets: pathlib.Path, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "numbers.npz", arr_0=np.zeros(3))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((5, 16, 16, 1), np.uint8))
    (tmp_path / "mixed").mkdir()
    for size in (8, 9):
        Image.new("L", (size, size)).save(tmp_path / "mixed" / f"{size}.png")
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG no")
    for word, expected in (
        ("nowhere", "nowhere does not exist: name a folder of pictures"),
        (tmp_path / "empty", "No picture (.jpg, .png or what else Pillow reads) is in"),
        (tmp_path / "numbers.npz", "arr_0 is float64[3], and images are uint8"),
        (tmp_path / "large.npz", "holds pictures of 16 x 16 pixels in grey, and the classifier"),
        (tmp_path / "mixed", "9.png is 9 x 9 pixels, and"),
        (tmp_path / "mixed", "pictures of one size are needed. --image_size=N"),
        (tmp_path / "torn", "a.png cannot be used"),
        (tmp_path / "one", "one holds 1 picture: a distance is between"),
        ("data:image_folder", "'image_folder' is no prepared data set. Choose one of"),
        ("data:digts", "Did you mean 'digits'"),
    ):
        assert fid.main([str(word), str(sets / "real"), "--classifier=digits"]) == 2
        assert expected in capsys.readouterr().err
    assert fid.main([str(sets / "real"), str(sets / "real")]) == 2  # without Inception's weights
    assert "not downloaded silently" in capsys.readouterr().err
    assert fid.main([str(sets / "real"), str(sets / "real"), "--batch_size=0"]) == 2
