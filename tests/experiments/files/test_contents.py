"""A file that lies in the place of another says so, whoever reads it."""

import gzip
import io
import pathlib
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from experiments.data import cifar10, emoji, fashion_mnist
from experiments.features.inception_weights import load_inception
from experiments.files.atomic import read_json
from experiments.files.contents import KINDS, kind_of
from experiments.files.pytorch import read_torch
from experiments.files.tensors import READERS, read_npz
from experiments.weights import sources
from tests.experiments.files.test_pytorch import tensor, write_zip

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 143180316\n" % (
    b"a" * 64
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
Read = Callable[[pathlib.Path], Any]
EVERY: dict[str, Read] = {
    **READERS,
    "config.json": read_json,
    "weights.pth": load_inception,
    "--from": lambda path: sources.read(str(path)),
    "cifar-10-binary.tar.gz": lambda path: cifar10.read_binary_tarball(str(path), "0"),
    "cifar-10-python.tar.gz": lambda path: cifar10.read_python_tarball(str(path), "0"),
    "train-images-idx3-ubyte.gz": lambda path: fashion_mnist.read_verified(str(path), "0"),
    "font.ttf": lambda path: emoji.read_font(str(path)),
}


def _bytes_of(write: Callable[[Any], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def _zip(stream: Any) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")


def _tar(stream: Any) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a"))


SAMPLES = {
    "empty": b"",
    "lfs": POINTER,
    "html": PAGE,
    "zip": _bytes_of(_zip),
    "pickle": b"\x80\x02}q\x00.",
    "safetensors": safetensors.numpy.save({"a": np.zeros(2, np.float32)}),
    "npy": _bytes_of(lambda stream: np.save(stream, np.zeros(2))),
    "gzip": gzip.compress(b"a"),
    "tar": _bytes_of(_tar),
    "packed": b"BZh91AY&SY",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "picture": b"\x89PNG\r\n\x1a\n",
    "text": b"Entry not found\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_known_by_its_first_bytes(kind: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(SAMPLES[kind])
    assert kind_of(tmp_path / "file") == kind


def test_of_other_bytes_nothing_is_said(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).integers(128, 256, 600, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(noise)
    assert kind_of(tmp_path / "file") == ""


@pytest.mark.parametrize("kind", ["lfs", "html", "empty"])
@pytest.mark.parametrize("name", EVERY)
def test_every_reader_tells_what_stands_in_for_its_file(
    name: str, kind: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / ("model.safetensors" if name == "--from" else f"model{name}")
    path.write_bytes(SAMPLES[kind])
    with pytest.raises(ValueError) as error:
        EVERY[name](path)
    message = str(error.value)
    assert message.startswith(str(path)) and f" is {KINDS[kind].called}, and no " in message
    assert message.endswith(KINDS[kind].remedy) and "pickle's protocol" not in message


def test_a_file_under_the_name_of_another_format_is_told_its_own(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    write_zip(path, {"a": tensor((2,), (1,), size=2)}, **{"data/0": bytes(8)})
    with pytest.raises(ValueError, match=r"is a zip archive, and no safetensors.*Name it \.pt if"):
        READERS[".safetensors"](path)
    assert set(READERS[".pt"](path)) == {"a"}
    path.write_bytes(SAMPLES["safetensors"])
    for read in (read_torch, read_npz):
        with pytest.raises(ValueError, match=r"is a safetensors file, and no .*\.safetensors\.$"):
            read(path)
    path.write_bytes(SAMPLES["text"])
    with pytest.raises(ValueError, match="is text, .*It begins with 'Entry not found'"):
        READERS[".safetensors"](path)
