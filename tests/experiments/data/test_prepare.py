"""Preparing data sets: round trips, refusals, and nothing half-prepared left behind."""

import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from experiments.data import celeb_a_hq, cifar10, digits, fashion_mnist, prepared
from experiments.data.dataset import Dataset, read_images
from experiments.data.datasets import DATASETS
from tests.experiments import synthetic


def pairs(images: Iterable[np.ndarray], labels: Iterable[int]) -> list[tuple[bytes, int]]:
    """Sorted (bytes, label): what a data set holds, whatever its order."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def split_pairs(dataset: Dataset, split: str) -> list[tuple[bytes, int]]:
    source = dataset.open(split)
    everything = read_images(source, 0, len(source))
    return pairs(everything["image"], everything["label"])


def assert_nothing_prepared(dataset: str, data_dir: pathlib.Path) -> None:
    assert prepared.find(dataset, str(data_dir)) is None
    assert not list(data_dir.rglob("*.array_record*"))


# Fashion-MNIST.


@pytest.mark.parametrize("gzipped", [True, False])
def test_fashion_mnist_round_trip(tmp_path, idx, gzipped):
    synthetic.idx_files(tmp_path / "source", gzipped)
    data_dir = str(tmp_path / "prepared")
    folder = fashion_mnist.prepare(str(tmp_path / "source"), data_dir)
    assert folder == f"{data_dir}/fashion_mnist/3.0.1"
    for split, prefix in (("train", "train"), ("test", "t10k")):
        original = pairs(idx[f"{prefix}-images-idx3-ubyte"], idx[f"{prefix}-labels-idx1-ubyte"])
        assert split_pairs(fashion_mnist.fashion_mnist(data_dir), split) == original
        stock = tfds.data_source("fashion_mnist", split=split, data_dir=data_dir, download=False)
        assert pairs([r["image"] for r in stock], [r["label"] for r in stock]) == original


def test_fashion_mnist_refuses_other_files(tmp_path, idx):
    data_dir, source = tmp_path / "prepared", tmp_path / "idx"
    labels = source / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()

    labels.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"t10k-labels.* truncated or damaged gzip"):
        fashion_mnist.prepare(str(source), str(data_dir))
    shutil.copy(source / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ValueError, match=r"not the published file: .* SHA-256 \w+, \w+ is needed"):
        fashion_mnist.prepare(str(source), str(data_dir))
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"Neither t10k-labels-idx1-ubyte nor .*\.gz is in"):
        fashion_mnist.prepare(str(source), str(data_dir))
    assert_nothing_prepared("fashion_mnist", data_dir)


def test_idx_header_and_length():
    array = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    content = synthetic.idx_bytes(array)
    assert np.array_equal(fashion_mnist.parse_idx(content, (2, 2)), array)
    for wrong in (content[:3], content[:2] + b"\x0d" + content[3:]):
        with pytest.raises(ValueError, match="not an IDX file"):
            fashion_mnist.parse_idx(wrong, (2, 2))
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.parse_idx(content, (2, 3))
    with pytest.raises(ValueError, match="3 items with 27 bytes is truncated"):
        fashion_mnist.parse_idx(content[:-1], (2, 2))


def test_debian_package_holds_the_published_files():
    if not os.path.isdir(fashion_mnist.DEBIAN_FOLDER):
        pytest.skip(f"Debian's {fashion_mnist.DEBIAN_PACKAGE} is not installed")
    for name, sha256 in fashion_mnist.FashionMNIST.SHA256.items():
        path = os.path.join(fashion_mnist.DEBIAN_FOLDER, f"{name}.gz")
        content = fashion_mnist.read_verified(path, sha256)
        array = fashion_mnist.parse_idx(content, (28, 28) if "images" in name else ())
        assert len(array) == (60_000 if name.startswith("train") else 10_000)


# CIFAR-10.


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("give_folder", [True, False])
def test_cifar10_round_trip(tmp_path, monkeypatch, few_records, kind, give_folder):
    path = tmp_path / f"cifar-10-{kind}.tar.gz"
    getattr(synthetic, f"cifar_{kind}")(path)
    if kind == "python":
        monkeypatch.setattr(
            cifar10.Cifar10, "PYTHON_TARBALL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()
        )
    data_dir = str(tmp_path / "prepared")
    folder = cifar10.prepare(str(tmp_path if give_folder else path), data_dir)
    assert folder == f"{data_dir}/cifar10/3.0.2"
    batches = synthetic.cifar_batches()
    for split, files in (("train", [f"data_batch_{i}" for i in range(1, 6)]),
                         ("test", ["test_batch"])):  # fmt: skip
        planes = np.concatenate([batches[file][0] for file in files])
        labels = np.concatenate([batches[file][1] for file in files])
        images = np.stack([planes[:, 0], planes[:, 1], planes[:, 2]], axis=-1)
        assert split_pairs(cifar10.cifar10(data_dir), split) == pairs(images, labels)
        stock = tfds.data_source("cifar10", split=split, data_dir=data_dir, download=False)
        assert pairs([r["image"] for r in stock], [r["label"] for r in stock]) == pairs(
            images, labels
        )


def test_cifar10_binary_refusals(tmp_path, monkeypatch, few_records):
    data_dir = tmp_path / "prepared"
    path = synthetic.cifar_binary(tmp_path / "c.tar.gz")
    whole = path.read_bytes()

    def refused(words):
        with pytest.raises(ValueError, match=words):
            cifar10.prepare(str(path), str(data_dir))
        assert_nothing_prepared("cifar10", data_dir)

    path.write_bytes(whole[: len(whole) // 2])
    refused(r"c\.tar\.gz is (truncated or|and) no gzipped tar file .*fetch it again")
    path.write_bytes(b"<html>not found</html>")
    refused("(truncated or|and) no gzipped tar file")
    synthetic.write_tarball(path, {"cifar-10-batches-bin/data_batch_1.bin": b""})
    refused(r"lacks cifar-10-batches-bin/data_batch_2\.bin, ")
    path.write_bytes(whole)
    monkeypatch.setattr(cifar10, "NUM_CLASSES", 2)
    refused(r"has label \d, labels are 0\.\.1")
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", 10_000)
    refused(r"has 18,438 bytes, the format has 10,000 records of 3,073 bytes = 30,730,000")


def test_cifar10_reads_only_the_published_file_of_pickles(tmp_path, few_records):
    path = synthetic.cifar_python(tmp_path / cifar10.PYTHON_TARBALL)
    with pytest.raises(ValueError, match=r"has SHA-256 \w+, the published file has 6d958be"):
        cifar10.prepare(str(path), str(tmp_path / "prepared"))
    assert_nothing_prepared("cifar10", tmp_path / "prepared")


def test_cifar10_without_a_tarball(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Neither cifar-10-binary\.tar\.gz nor .* is in"):
        cifar10.prepare(str(tmp_path), str(tmp_path / "prepared"))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*absent"):
        cifar10.prepare(str(tmp_path / "absent"), str(tmp_path / "prepared"))


# CelebA-HQ.


def test_celeb_a_hq_round_trip(tmp_path):
    pixels = [synthetic.picture(tmp_path / "faces" / f"{i}.png", 256, 256, i) for i in range(3)]
    Image.new("RGB", (512, 512), (1, 2, 3)).save(tmp_path / "faces" / "large.png")
    pixels.append(np.full((256, 256, 3), (1, 2, 3), np.uint8))
    data_dir = str(tmp_path / "prepared")
    folder = celeb_a_hq.prepare(str(tmp_path / "faces"), data_dir)
    assert folder == f"{data_dir}/celeb_a_hq/256/2.0.0"
    original = pairs(pixels, [0] * 4)
    assert split_pairs(celeb_a_hq.celeb_a_hq_256(data_dir, test_fraction=0), "train") == original
    stock = tfds.data_source("celeb_a_hq/256", split="train", data_dir=data_dir, download=False)
    assert pairs([record["image"] for record in stock], [0] * 4) == original


def test_celeb_a_hq_refusals(tmp_path):
    data_dir = tmp_path / "prepared"
    with pytest.raises(ValueError, match=r"cannot be downloaded.*--from=FOLDER_OF_IMAGES"):
        celeb_a_hq.prepare(None, str(data_dir))
    (tmp_path / "faces").mkdir()
    with pytest.raises(FileNotFoundError, match="No picture"):
        celeb_a_hq.prepare(str(tmp_path / "faces"), str(data_dir))
    for i in range(3):
        synthetic.picture(tmp_path / "faces" / f"{i}.png", 256, 256, i)
    corrupt = tmp_path / "faces" / "2.png"
    corrupt.write_bytes(corrupt.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"2\.png cannot be used .*replace or remove it"):
        celeb_a_hq.prepare(str(tmp_path / "faces"), str(data_dir))
    assert_nothing_prepared("celeb_a_hq/256", data_dir)


# All of them.


@pytest.fixture
def address(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server of tmp_path / "served"."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_fashion_mnist_downloads(tmp_path, monkeypatch, idx, address):
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "URL", address)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", str(tmp_path / "absent"))
    data_dir = tmp_path / "prepared"
    with pytest.raises(OSError, match=r"Downloading http.* 404.* name them with --from"):
        fashion_mnist.prepare(None, str(data_dir))
    assert_nothing_prepared("fashion_mnist", data_dir)
    synthetic.idx_files(tmp_path / "served")
    fashion_mnist.prepare(None, str(data_dir))
    assert len(fashion_mnist.fashion_mnist(str(data_dir)).open("train")) == 30


def test_cifar10_downloads(tmp_path, monkeypatch, few_records, address):
    info = cifar.CifarInfo("cifar10", f"{address}c.tar.gz", "", [], [], [], [])
    monkeypatch.setattr(cifar10.Cifar10, "_cifar_info", info)
    (tmp_path / "served").mkdir()
    synthetic.cifar_binary(tmp_path / "served" / "c.tar.gz")
    cifar10.prepare(None, str(tmp_path / "prepared"))
    assert len(cifar10.cifar10(str(tmp_path / "prepared")).open("test")) == synthetic.CIFAR_RECORDS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fashion_mnist", "Debian's package dataset-fashion-mnist .*--dataset=fashion_mnist"),
        ("cifar10", r"--dataset=cifar10 --from=cifar-10-binary\.tar\.gz"),
        ("emoji", "package fonts-noto-color-emoji .* --from: .*--dataset=emoji"),
        ("celeb_a_hq/256", "--dataset=celeb_a_hq/256 --from=FOLDER_OF_IMAGES"),
    ],
)
def test_missing_data_set(name, words, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        DATASETS[name](data_dir=str(tmp_path)).open("train")
    message = str(caught.value)
    assert f"The data set '{name}" in message
    assert f"is not prepared: looked for {tmp_path}/{name}" in message
    assert "python -m experiments.prepare " in message and f"--data_dir={tmp_path}" in message
    assert re.search(words, message)


def test_default_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert digits.digits().open("test")[0]["image"].shape == (8, 8, 1)
    assert (tmp_path / "digits" / "1.0.0").is_dir()
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert prepared.resolve_data_dir(None) == os.path.expanduser("~/tensorflow_datasets")
    assert prepared.resolve_data_dir("gs://bucket/data") == "gs://bucket/data"


def test_tfrecord_folder_must_be_prepared_again(tmp_path, idx):
    folder = fashion_mnist.prepare(str(tmp_path / "idx"), str(tmp_path))
    info_path = pathlib.Path(folder) / "dataset_info.json"
    info = json.loads(info_path.read_text())
    info["fileFormat"] = "tfrecord"
    info_path.write_text(json.dumps(info))
    command = "python -m experiments.prepare --dataset=fashion_mnist --data_dir=ANOTHER_FOLDER"
    with pytest.raises(ValueError, match=f"as tfrecord, .*array_record is needed.*{command}"):
        fashion_mnist.fashion_mnist(str(tmp_path)).open("train")
    with pytest.raises(ValueError, match=f"already holds fashion_mnist as tfrecord.*{command}"):
        fashion_mnist.prepare(str(tmp_path / "idx"), str(tmp_path))


def test_folder_of_another_shape(tmp_path, monkeypatch):
    digits.digits(str(tmp_path)).open("train")
    monkeypatch.setattr(digits, "IMAGE_SHAPE", (16, 16, 1))
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), \(16, 16, 1\) is needed"):
        digits.digits(str(tmp_path)).open("train")


def test_unfinished_folder_is_not_found(tmp_path, idx):
    folder = pathlib.Path(fashion_mnist.prepare(str(tmp_path / "idx"), str(tmp_path)))
    folder.rename(folder.with_name("incomplete.ABCDEF_3.0.1"))
    assert prepared.find("fashion_mnist", str(tmp_path)) is None
    with pytest.raises(FileNotFoundError, match="not prepared"):
        fashion_mnist.fashion_mnist(str(tmp_path)).open("train")


def test_the_newest_version_is_read(tmp_path):
    newest = pathlib.Path(digits.prepare(None, str(tmp_path)))
    shutil.copytree(newest, newest.with_name("0.9.0"))
    newest.rename(newest.with_name("0.10.0"))
    found = prepared.find("digits", str(tmp_path))
    assert found is not None and found.name == "0.10.0"


def test_losing_a_race_is_no_error(tmp_path, monkeypatch):
    original = digits.Digits._split_generators

    def overtaken(self, dl_manager):
        monkeypatch.setattr(digits.Digits, "_split_generators", original)
        digits.prepare(None, str(tmp_path))  # another process finishes while this one writes
        return original(self, dl_manager)

    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    folder = pathlib.Path(digits.prepare(None, str(tmp_path)))
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert len(digits.digits(str(tmp_path)).open("train")) == 1497


def test_without_a_network_a_download_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", str(tmp_path / "absent"))
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "URL", "http://127.0.0.1:9/")  # nobody listens
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"Downloading http.*refused.* name them with --from"):
        fashion_mnist.prepare(None, str(tmp_path))
    assert time.monotonic() - begin < 10
    assert_nothing_prepared("fashion_mnist", tmp_path)
