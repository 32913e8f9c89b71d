"""The pickles of cifar-10-python.tar.gz: read as Python reads them, and nothing in them runs."""

import hashlib
import pathlib
import pickle

import numpy as np
import pytest

from experiments.data import cifar10
from tests.experiments import synthetic
from tests.experiments.files import pickles


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", synthetic.CIFAR_RECORDS)


def read(path: pathlib.Path) -> dict:
    return cifar10.read_python_tarball(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_are_read_as_python_reads_them(tmp_path, order):
    planes, labels = synthetic.cifar_batches()["test_batch"]
    rows = np.asarray(planes.reshape(len(planes), -1), order=order)
    content = pickles.dumps({b"data": rows, b"labels": labels.tolist()})
    images, found = read(synthetic.cifar_python(tmp_path / "c.tar.gz", test_batch=content))["test"]
    theirs = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(theirs[b"data"], rows)
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(rows.shape), theirs[b"data"])
    np.testing.assert_array_equal(found, theirs[b"labels"])


ROWS = np.zeros((synthetic.CIFAR_RECORDS, 3072), np.uint8)
LABELS = [3] * synthetic.CIFAR_RECORDS
NO_BATCHES = {
    "os.system": (
        {b"data": pickles.Call(pickles.Global("os", "system"), "touch pwned"), b"labels": LABELS},
        r"asks for os\.system, which a batch of CIFAR-10 has no use for.*cifar-10-binary",
    ),
    "numpy.fromfile": (
        {b"data": pickles.Call(pickles.Global("numpy", "fromfile"), "pwned"), b"labels": LABELS},
        r"asks for numpy\.fromfile",
    ),
    "one row less": ({b"data": ROWS[1:], b"labels": LABELS}, r"shape \(5, 3072\) .*\(6, 3072\)"),
    "transposed": ({b"data": ROWS.T, b"labels": LABELS}, r"shape \(3072, 6\) .*\(6, 3072\)"),
    "more said than there": (
        {b"data": pickles.array(ROWS[1:], shape=ROWS.shape), b"labels": LABELS},
        r"\(6, 3072\) and 15,360 bytes, the format's has \(6, 3072\) and 18,432",
    ),
    "a shape of terabytes": (
        {b"data": pickles.array(ROWS, shape=(2**40, 3072)), b"labels": LABELS},
        r"shape \(1099511627776, 3072\)",
    ),
    "floats": ({b"data": ROWS.astype("f4"), b"labels": LABELS}, "no array of bytes"),
    "no labels": ({b"data": ROWS}, "no array of bytes `data` with a list `labels`"),
    "a list": ([ROWS, LABELS], "no array of bytes"),
    "few labels": ({b"data": ROWS, b"labels": LABELS[1:]}, r"5 labels, 3\.\.3, must be 6 of 0"),
    "a high label": ({b"data": ROWS, b"labels": [10, *LABELS[1:]]}, r"6 labels, 3\.\.10, must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_BATCHES)
def test_what_is_no_batch_is_refused(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, words = NO_BATCHES[case]
    path = synthetic.cifar_python(tmp_path / "c.tar.gz", data_batch_2=pickles.dumps(content))
    with pytest.raises(ValueError, match=rf"(?s)data_batch_2 in .* was not read: .*{words}"):
        read(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_truncated_batch_is_refused(tmp_path):
    whole = pickles.dumps({b"data": ROWS, b"labels": LABELS})
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path = synthetic.cifar_python(tmp_path / "c.tar.gz", data_batch_5=whole[:length])
        with pytest.raises(ValueError, match=r"data_batch_5 in .* was not read: .*damaged"):
            read(path)
