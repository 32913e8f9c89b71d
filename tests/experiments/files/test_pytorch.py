"""The reader of PyTorch's files: nothing runs, nothing is read that is not there.

The files are made by hand, so that no PyTorch is needed; the one that PyTorch made is the .bin of
the published fixture, and the parity tests compare with PyTorch's own writer.
"""

import collections
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from experiments.files import pytorch
from experiments.files.pickles import UnsafeFile
from experiments.files.pytorch import LEGACY_MAGIC, LEGACY_PROTOCOL, read_torch
from tests.experiments.files.pickles import Call, Global, Reference, dumps

VALUES = np.arange(24, dtype=np.float32)


def storage(key: str = "0", size: int = 24, kind: str = "FloatStorage", *more: Any) -> Reference:
    return Reference(("storage", Global("torch", kind), key, "cpu", size, *more))


def tensor(
    shape: tuple[int, ...] = (4, 6), strides: tuple[int, ...] = (6, 1), offset: int = 0, **kind: Any
) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage(**kind), offset, shape, strides, False, collections.OrderedDict())


def write_zip(
    path: pathlib.Path, content: Any, compression: int = zipfile.ZIP_STORED, **entries: bytes
) -> pathlib.Path:
    entries = {"data.pkl": dumps(content), "data/0": VALUES.tobytes()} | entries
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(f"archive/{name}", value)
    return path


def write_legacy(
    path: pathlib.Path, content: Any, keys: Any = ("0",), sizes: tuple[int, ...] = (24,)
) -> pathlib.Path:
    system = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    parts = [dumps(part) for part in (LEGACY_MAGIC, LEGACY_PROTOCOL, system, content, list(keys))]
    parts += [struct.pack("<q", size) + VALUES.tobytes() for size in sizes]
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "model.pt"


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_tensors_come_back_whatever_their_layout(write, path: pathlib.Path) -> None:
    parameter = Global("torch._utils", "_rebuild_parameter")
    content = {
        "plain": tensor(),
        "transposed": tensor((6, 4), (1, 6)),
        "part": tensor((2, 3), (6, 1), 7),
        "scalar": tensor((), (), 5),
        "empty": tensor((0, 3), (3, 1)),
        "parameter": Call(parameter, tensor(), True, collections.OrderedDict()),
    }
    tensors = read_torch(write(path, content))
    grid = VALUES.reshape(4, 6)
    expected = {
        "plain": grid,
        "transposed": grid.T,
        "part": grid[1:3, 1:4],
        "scalar": VALUES[5],
        "empty": np.empty((0, 3)),
        "parameter": grid,
    }
    assert list(tensors) == list(expected)
    for name, value in tensors.items():
        assert (
            value.dtype == np.float32
            and value.flags.owndata
            and value.shape == (expected[name].shape)
        )
        np.testing.assert_array_equal(value, expected[name])


ATTACKS = {
    "os.system": Call(Global("os", "system"), "touch pwned"),
    "builtins.eval": Call(Global("builtins", "eval"), "open('pwned', 'w')"),
    "builtins.getattr": Call(Global("builtins", "getattr"), tensor(), "x"),
    "a submodule's name": Call(Global("torch._utils", "os.system"), "touch pwned"),
    "torch.load": Call(Global("torch", "load"), "other.pt"),
    "numpy": Call(Global("numpy", "fromfile"), "/etc/passwd"),
    "another storage": tensor(kind="UntypedStorage"),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_is_refused_and_does_not_run(
    attack: str, write, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(UnsafeFile, match=r"asks for .*which a file of weights has no use for"):
        read_torch(write(path, {"w": tensor(), "x": ATTACKS[attack]}))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


IMPOSSIBLE = {
    "beyond the end": tensor((4, 7), (6, 1)),
    "offset": tensor((4, 6), (6, 1), 1),
    "strides": tensor((4, 6), (7, 1)),
    "more than there is": tensor((1000, 1000), (0, 0)),
    "negative stride": tensor((4, 6), (-6, 1), 23),
    "negative shape": tensor((-4, 6), (6, 1)),
    "negative offset": tensor((4, 6), (6, 1), -1),
    "unlike lengths": tensor((4, 6), (1,)),
    "no integers": tensor((4.0, 6), (6, 1)),
    "true": tensor((True, 6), (6, 1)),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_tensor_outside_its_storage_is_refused(case: str, path: pathlib.Path) -> None:
    with pytest.raises(UnsafeFile, match="w of shape .* beyond|w has the impossible layout"):
        read_torch(write_zip(path, {"w": IMPOSSIBLE[case]}))


WRONG = {
    "no dictionary": ([tensor()], "holds a list and not a dictionary"),
    "empty": ({}, "not a dictionary of tensors"),
    "a number": ({"w": tensor(), "epoch": 3}, "entry 'epoch' is a int and not a tensor"),
    "nested": ({"state_dict": {"w": tensor()}}, "entry 'state_dict' is a dict .* alone"),
    "numbered": ({0: tensor()}, "entry 0"),
    "no storage": (
        {"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), 3, 0, (1,), (1,), 0, {})},
        "w has no storage",
    ),
    "absent storage": ({"w": tensor(key="7")}, "storage 7 is not in the archive"),
    "another size": ({"w": tensor(size=25)}, "storage 0 should have 25 numbers"),
    "two kinds": ({"v": tensor(), "w": tensor(kind="IntStorage")}, "one kind as another"),
    "another reference": ({"w": Reference(("module", "x"))}, "refers to something"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_flat_dictionary_of_tensors_is_refused(case: str, path: pathlib.Path) -> None:
    content, message = WRONG[case]
    with pytest.raises(UnsafeFile, match=message):
        read_torch(write_zip(path, content))


def test_other_archives_are_refused(path: pathlib.Path) -> None:
    content = {"w": tensor()}
    with pytest.raises(UnsafeFile, match="compressed"):
        read_torch(write_zip(path, content, zipfile.ZIP_DEFLATED))
    with pytest.raises(UnsafeFile, match="big-endian"):
        read_torch(write_zip(path, content, byteorder=b"big"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme", b"")
    with pytest.raises(UnsafeFile, match=r"not one of PyTorch's"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", dumps(content))
    with pytest.raises(UnsafeFile, match="names one entry twice"):
        read_torch(path)


def test_damaged_sequences_of_pickles_are_refused(path: pathlib.Path) -> None:
    content = {"w": tensor()}
    cases = {
        "list of storages is damaged": dict(keys=("0", "0")),
        "storage 1 belongs to no tensor": dict(keys=("1",)),
        "storage 0 has 23 numbers, not 24": dict(sizes=(23,)),
        "storage 0 is not in the file": dict(keys=()),
    }
    for message, options in cases.items():
        with pytest.raises(UnsafeFile, match=message):
            read_torch(write_legacy(path, content, **options))
    path.write_bytes(dumps(1))
    with pytest.raises(UnsafeFile, match=r"no file of PyTorch's"):
        read_torch(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_every_truncation_is_refused(write, path: pathlib.Path) -> None:
    whole = write(path, {"w": tensor()}).read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UnsafeFile, match="was not read"):
            read_torch(path)


def write_raw(path: pathlib.Path, content: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", VALUES.tobytes())
    return path


def test_a_tensor_stored_negated_is_refused(path: pathlib.Path) -> None:
    """PyTorch keeps the sign of some views beside the numbers; unread, they would be wrong."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    negated = Call(rebuild, storage(), 0, (4,), (1,), False, None, {"neg": True})
    with pytest.raises(UnsafeFile, match="negated or conjugated"):
        read_torch(write_zip(path, {"w": negated}))


def test_a_small_file_cannot_fill_the_memory(path: pathlib.Path) -> None:
    """By a huge index into the pickle's memo, by a size, or by naming one storage many times."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFile):
        read_torch(write_raw(path, b"\x80\x02}r" + struct.pack("<I", 2**28) + b"."))
    with pytest.raises(UnsafeFile, match="instruction newer than pickle's protocol 2"):
        read_torch(write_raw(path, pickle.BYTEARRAY8 + struct.pack("<Q", 2**30) + b"."))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    with pytest.raises(UnsafeFile, match="more than 4 times what the file does"):
        many = {f"w{i}": tensor((100, 100), (100, 1), size=10_000) for i in range(10)}
        read_torch(write_zip(path, many, **{"data/0": bytes(40_000)}))


def test_a_file_cannot_change_the_reader(path: pathlib.Path) -> None:
    attack = b"ctorch._utils\n_rebuild_parameter\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b"
    with pytest.raises(UnsafeFile):
        read_torch(write_raw(path, b"\x80\x02" + attack + b"."))
    assert pytorch._rebuild_parameter.__defaults__ is None
    state = dumps({"w": tensor()})[:-1] + b"}X\x05\x00\x00\x00itemsNsb."
    assert list(read_torch(write_raw(path, state))) == ["w"]
