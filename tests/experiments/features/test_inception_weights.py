"""Only the published file is Inception; everything else is refused with what to do.

The files here hold two modules of the network, so that they are small; the mapping of all of them
is what test_inception.py and the parity tests compute with.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from experiments.features import inception_weights
from experiments.features.inception import param_shapes
from experiments.features.inception_weights import (
    FILE,
    PATH_VARIABLE,
    load_inception,
    params_from_state,
    state_shapes,
)
from tests.experiments.files.test_pytorch import tensor, write_legacy, write_zip
from tests.fixtures.make_inception import random_state

MODULES = ("Conv2d_1a_3x3", "fc")
FIRST = "Conv2d_1a_3x3.conv.weight"
COUNTER = "Conv2d_1a_3x3.bn.num_batches_tracked"


@pytest.fixture(autouse=True)
def cut_network(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: param_shapes()[name] for name in MODULES}
    monkeypatch.setattr(inception_weights, "param_shapes", lambda: shapes)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    return tmp_path / "cache"


def write(path: pathlib.Path, **more: np.ndarray) -> str:
    """A file as PyTorch writes it; returns its SHA-256."""
    content, entries = {}, {}
    for i, (name, value) in enumerate((random_state() | more).items()):
        kind = {"f": "FloatStorage", "i": "LongStorage"}[value.dtype.kind]
        strides = tuple(stride // value.itemsize for stride in value.strides)
        content[name] = tensor(value.shape, strides, key=str(i), size=value.size, kind=kind)
        entries[f"data/{i}"] = value.tobytes()
    path.parent.mkdir(exist_ok=True)
    write_zip(path, content, **entries)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def accept(digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception_weights, "SHA256_PREFIX", digest[:8])


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_tensor_has_its_place() -> None:
    state = random_state()
    params = params_from_state(state | {COUNTER: np.array(3)})
    assert {name: value.shape for name, value in state.items()} == state_shapes()
    np.testing.assert_array_equal(
        params["Conv2d_1a_3x3"]["kernel"], state[FIRST].transpose(2, 3, 1, 0)
    )
    leaves = dict(scale="weight", bias="bias", mean="running_mean", variance="running_var")
    for ours, theirs in leaves.items():
        name = f"Conv2d_1a_3x3.bn.{theirs}"
        np.testing.assert_array_equal(params["Conv2d_1a_3x3"][ours], state[name])
    assert set(params["fc"]) == {"kernel"}
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def damaged(value: float) -> np.ndarray:
    array = np.ones(32, np.float32)
    array[5] = value
    return array


WRONG = {
    "extra": ({"aux.weight": np.ones(3, np.float32)}, "1 have no place in it: aux.weight"),
    "kernel's shape": ({FIRST: np.ones((32, 3, 3, 5), np.float32)}, f"{FIRST} is .32, 3, 3, 5."),
    "rank": ({FIRST: np.ones((32, 27), np.float32)}, f"{FIRST} is .32, 27."),
    "bias's shape": ({"fc.bias": np.ones(1000, np.float32)}, "fc.bias is .1000,."),
    "integers": ({"fc.bias": np.ones(1008, np.int64)}, "fc.bias is int64"),
    "infinite": ({"Conv2d_1a_3x3.bn.bias": damaged(np.inf)}, "bn.bias .* not finite"),
    "nan": ({"Conv2d_1a_3x3.bn.running_var": damaged(np.nan)}, "running_var .* not finite"),
    "negative": ({"Conv2d_1a_3x3.bn.running_var": damaged(-0.1)}, "negative variances"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_refused(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        params_from_state(random_state() | change)


@pytest.mark.parametrize("name", ["fc.bias", FIRST])
def test_a_missing_tensor_is_refused(name: str) -> None:
    state = random_state()
    del state[name]
    with pytest.raises(ValueError, match=f"1 tensors are missing: {name}"):
        params_from_state(state)


def test_no_file_says_how_to_get_it(cache: pathlib.Path, monkeypatch) -> None:
    fetch = rf"mkdir -p {cache} && curl -fL -o {cache}/{FILE} https://github.com/\S+/{FILE}\n"
    with pytest.raises(FileNotFoundError, match=rf"{cache}/{FILE} does not exist.*\n.*{fetch}"):
        load_inception()
    monkeypatch.setenv(PATH_VARIABLE, "absent.pth")
    with pytest.raises(FileNotFoundError, match=rf"absent.pth \({PATH_VARIABLE} names it\) does"):
        load_inception()
    with pytest.raises(FileNotFoundError, match="^given.pth does not exist"):
        load_inception("given.pth")
    assert not cache.exists()


def test_a_path_comes_before_the_variable_and_that_before_the_cache(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
) -> None:
    cache.mkdir()
    in_cache, named, given = cache / FILE, tmp_path / "named.pth", tmp_path / "given.pth"
    for path in (in_cache, named, given):
        path.touch()
    assert inception_weights.find(None) == in_cache
    monkeypatch.setenv(PATH_VARIABLE, str(named))
    assert inception_weights.find(None) == named
    assert inception_weights.find(given) == given
    monkeypatch.delenv("DDPM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert inception_weights.cache_folder() == tmp_path / ".cache" / "ddpm-jax"


def test_another_file_is_not_inception(tmp_path: pathlib.Path) -> None:
    digest = write(tmp_path / FILE)
    with pytest.raises(ValueError, match=f"SHA-256 is {digest} and must begin with 6726825d"):
        load_inception(tmp_path / FILE)


def test_weights_are_converted_once(cache: pathlib.Path, monkeypatch) -> None:
    digest = write(cache / FILE, **{COUNTER: np.array(3)})
    accept(digest, monkeypatch)
    params, found = load_inception()
    assert found == digest
    assert_equal(params, params_from_state(random_state()))
    converted = cache / f"inception-{digest}.safetensors"
    assert sorted(cache.iterdir()) == sorted([cache / FILE, converted])

    monkeypatch.setattr(inception_weights, "read_torch", lambda path: pytest.fail("read again"))
    again, found = load_inception(str(cache / FILE))
    assert found == digest
    assert_equal(again, params)

    converted.write_bytes(converted.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{converted}, which .* is damaged; delete it"):
        load_inception()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: pathlib.Path, monkeypatch) -> None:
    accept(write(tmp_path / FILE), monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "file" / "cache"))
    params, _ = load_inception(tmp_path / FILE)
    assert_equal(params, params_from_state(random_state()))


@pytest.mark.parametrize("layout", [write_zip, write_legacy])
def test_a_truncated_file_is_refused(layout: Any, tmp_path: pathlib.Path, monkeypatch) -> None:
    path = tmp_path / FILE
    whole = layout(path, {"fc.weight": tensor()}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not downloaded whole"):
        load_inception(path)
    accept(hashlib.sha256(path.read_bytes()).hexdigest(), monkeypatch)
    with pytest.raises(ValueError, match="was not read"):
        load_inception(path)
    assert not (tmp_path / "cache").exists()
