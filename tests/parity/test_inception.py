"""The Inception network and torch-fidelity's are the same function of the same weights."""

import hashlib
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with torch-fidelity needs PyTorch")
if importlib.util.find_spec("torch_fidelity") is None:  # not imported: see tests.parity.fidelity
    pytest.skip("torch-fidelity is not installed, see .ci/run", allow_module_level=True)

from experiments.features import inception, inception_weights  # noqa: E402
from tests.fixtures.make_inception import random_images, random_state  # noqa: E402
from tests.parity import fidelity  # noqa: E402

pytestmark = pytest.mark.parity

# Enlarged, left as they are, reduced without antialiasing, of one pixel, not square.
SIZES = ((32, 32), (64, 28), (299, 299), (256, 256), (310, 620), (1, 1), (26, 23))


@pytest.fixture(scope="module")
def params():
    return inception_weights.params_from_state(random_state())


@pytest.fixture(scope="module")
def network():
    return jax.jit(lambda params, x: inception.Inception().apply({"params": params}, x))


@pytest.fixture(scope="module", params=[torch.float32, torch.float64])
def theirs(request):
    return fidelity.network(random_state(), request.param)


@pytest.mark.parametrize("size", SIZES)
def test_features_and_logits_equal_torch_fidelitys(size, theirs, params, network) -> None:
    images = random_images(size, seed=sum(size), n=2)
    outputs = network(params, inception.prepare(images))
    for ours, expected in zip(outputs, fidelity.extract(theirs, images), strict=True):
        assert 0.3 < expected.std() < 3.0
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_inputs_equal_torch_fidelitys(size) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    images = random_images(size, seed=sum(size))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = (resize(x, (299, 299), align_corners=False) - 128) / 128
    np.testing.assert_allclose(
        inception.prepare(images), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_pytorch_wrote_is_read(
    zipped: bool, params, tmp_path: pathlib.Path, monkeypatch
) -> None:
    path = tmp_path / "weights.pth"
    state = fidelity.network(random_state(), torch.float32).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_weights, "SHA256_PREFIX", digest[:8])
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    for _ in range(2):  # the second time from what the first has converted
        read, found = inception_weights.load_inception(path)
        assert found == digest
        jax.tree.map(np.testing.assert_array_equal, read, params)
    for file in tmp_path.iterdir():  # 95 MB each
        file.unlink()
