"""Pictures of an archive or a data set of the hub are those of the folder they came from."""

import io
import pathlib
import pickle
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from experiments.data import pictures
from experiments.data.dataset import load_in_memory, read_images
from experiments.data.image_folder import image_folder
from experiments.data.pictures import open_pictures

CLASSES = ("cats", "dogs")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Forty pictures of mixed sizes in two classes."""
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "pictures" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*rng.integers(9, 30, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return tmp_path / "pictures"


def zipped(folder: pathlib.Path, root: str, compression: int = zipfile.ZIP_DEFLATED) -> str:
    path = folder.parent / "pictures.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, root + file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/cats/._0.png", b"notes")
        archive.writestr("README.txt", b"notes")
    return str(path)


@pytest.mark.parametrize("root", ["", "pictures/", "a/b/", "/"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_is_the_folder_that_it_holds(folder, root: str, split: str) -> None:
    """In split and class too, whatever folder holds all of it; from threads and processes."""
    options = dict(image_size=8, test_fraction=0.3, num_classes=2)
    expected = image_folder(str(folder), **options).open(split)
    found = image_folder(zipped(folder, root), **options).open(split)
    everything = read_images(expected, 0, len(expected))
    for source in (found, pickle.loads(pickle.dumps(found))):
        with ThreadPoolExecutor(4) as pool:
            records = list(pool.map(source.__getitem__, range(len(source))))
        for key in ("image", "label"):
            np.testing.assert_array_equal([r[key] for r in records], everything[key])
    assert 0 < len(found) < 40 and set(everything["label"].tolist()) == {0, 1}


def test_a_bomb_is_not_unpacked(tmp_path: pathlib.Path, monkeypatch) -> None:
    """Neither one that tells how large it is nor one that does not; all of them are named."""
    monkeypatch.setattr(pictures, "LARGEST", 10_000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, "png")
        archive.writestr("b.png", content.getvalue())
        archive.writestr("c.png", bytes(10**6))
    raw = bytearray(path.read_bytes())
    for entry in (raw.rindex(b"PK\x01\x02") + 24, raw.rindex(b"PK\x03\x04") + 22):
        raw[entry : entry + 4] = struct.pack("<I", 100)  # what c.png says that it unpacks to
    path.write_bytes(raw)
    source = image_folder(str(path), 8, test_fraction=0.0).open("train")
    assert source[1]["image"].shape == (8, 8, 3)
    with pytest.raises(
        ValueError, match=r"(?s)2 of 3 images .*a.png in .* more than 10,000.*c.png"
    ):
        load_in_memory(source)


def test_what_is_no_archive_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no whole zip archive"):
        image_folder(str(path), 8).open("train")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.txt", b"notes")
    with pytest.raises(FileNotFoundError, match=r"No picture \(.jpg.*a.zip"):
        image_folder(str(path), 8).open("train")


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    return pytest.importorskip("datasets", reason="needs the extra `datasets`")


def rows(datasets, folder: pathlib.Path, count: int):
    files = [folder / CLASSES[number % 2] / f"{number}.png" for number in range(count)]
    content = {"picture": [{"bytes": f.read_bytes(), "path": None} for f in files]}
    content |= {"kind": [number % 2 for number in range(count)], "id": list(range(count))}
    # Not in the order of the alphabet: a data set says which class has which number.
    kinds = datasets.ClassLabel(names=["zebras", "apes"])
    features = dict(picture=datasets.Image(), kind=kinds, id=datasets.Value("int32"))
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def test_a_data_set_of_the_hub_is_what_was_written(datasets, folder, tmp_path) -> None:
    """One split is cut by a hash of the positions; a split for testing of its own is kept."""
    rows(datasets, folder, 40).save_to_disk(tmp_path / "one")
    expected = [
        image_folder(str(folder / CLASSES[number % 2]), 8, test_fraction=0.0).open("train")
        for number in range(2)
    ]
    found = {
        split: image_folder(f"hf:{tmp_path}/one", 8, test_fraction=0.3, num_classes=2).open(split)
        for split in ("train", "test")
    }
    assert len(found["train"]) + len(found["test"]) == 40 and len(found["test"]) > 3
    images = [r["image"].tobytes() for split in found.values() for r in split]
    assert sorted(images) == sorted(r["image"].tobytes() for part in expected for r in part)
    cats = {r["image"].tobytes() for r in expected[0]}
    assert all((r["image"].tobytes() in cats) == (int(r["label"]) == 0) for r in found["train"])
    assert open_pictures(f"hf:{tmp_path}/one")["train"].classes == ["zebras", "apes"]
    again = pickle.loads(pickle.dumps(found["test"]))
    np.testing.assert_array_equal(again[0]["image"], found["test"][0]["image"])

    both = datasets.DatasetDict(train=rows(datasets, folder, 40), test=rows(datasets, folder, 6))
    both.save_to_disk(tmp_path / "two")
    two = image_folder(f"hf:{tmp_path}/two", 8, test_fraction=0.3)
    assert (len(two.open("train")), len(two.open("test"))) == (40, 6)


def test_what_the_hub_does_not_give_is_said_so(datasets, tmp_path) -> None:
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError, match="path = 'hf:nobody/nothing' cannot be opened"):
        image_folder("hf:nobody/nothing", 8).open("train")
    assert time.monotonic() - begin < 20  # and not after a minute of tries
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(ValueError, match="words has no column of pictures; its columns are text"):
        image_folder(f"hf:{tmp_path}/words", 8).open("train")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[datasets\]'"):
        image_folder("hf:nobody/nothing", 8).open("train")
