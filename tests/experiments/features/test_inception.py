"""The Inception network answers as torch-fidelity's does, and no network close to it passes.

The reference is made by tests.fixtures.make_inception; the weights follow from their names.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.features import inception
from experiments.features.inception_weights import params_from_state
from tests.fixtures import make_inception

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
INDICES = range(len(make_inception.SIZES))
Outputs = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def params() -> Any:
    return params_from_state(make_inception.random_state())


@pytest.fixture(scope="module")
def reference() -> Any:
    with np.load(make_inception.PATH, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network() -> Any:
    return compiled()


def compiled() -> Any:
    """The network as the module's functions are now."""
    return jax.jit(lambda params, x: inception.Inception().apply({"params": params}, x))


def inputs(reference: Any) -> jax.Array:
    return jnp.concatenate([inception.prepare(reference[f"images{i}"]) for i in INDICES])


def expected(reference: Any) -> Outputs:
    features = np.concatenate([reference[f"features{i}"] for i in INDICES])
    return features, np.concatenate([reference[f"logits{i}"] for i in INDICES])


def differences(outputs: Any, reference: Any) -> list[float]:
    """Of features and logits, the largest difference in units of what is tolerated."""
    return [
        np.max(np.abs(ours - theirs) / (TOLERANCE["atol"] + TOLERANCE["rtol"] * np.abs(theirs)))
        for ours, theirs in zip(outputs, expected(reference), strict=True)
    ]


def test_features_and_logits_equal_torch_fidelitys(params, reference, network) -> None:
    for i, size in enumerate(make_inception.SIZES):
        images = make_inception.random_images(size, seed=i)
        np.testing.assert_array_equal(images, reference[f"images{i}"])
    features, logits = network(params, inputs(reference))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == np.float32
    for ours, theirs in zip((features, logits), expected(reference), strict=True):
        assert 0.3 < theirs.std() < 3.0
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


INPUT_MUTANTS = {
    "the model's range": ("scale", lambda x: x / 127.5 - 1),
    "half-pixel offset": (
        "source_positions",
        lambda size_in, size_out: np.maximum(
            (np.arange(size_out, dtype=np.float32) + 0.5) * np.float32(size_in / size_out) - 0.5, 0
        ),
    ),
}


@pytest.mark.parametrize("mutant", INPUT_MUTANTS)
def test_another_input_fails(mutant: str, params, reference, network, monkeypatch) -> None:
    monkeypatch.setattr(inception, *INPUT_MUTANTS[mutant])
    assert min(differences(network(params, inputs(reference)), reference)) > 50


NETWORK_MUTANTS = {
    "padding counted": ("average_pool", lambda x: nn.avg_pool(x, (3, 3), padding="SAME")),
    "Mixed_7c averages": ("max_pool", inception.average_pool),
    "PyTorch's epsilon": ("EPSILON", 1e-5),
}


@pytest.mark.parametrize("mutant", NETWORK_MUTANTS)
def test_another_network_fails(mutant: str, params, reference, monkeypatch) -> None:
    monkeypatch.setattr(inception, *NETWORK_MUTANTS[mutant])
    assert min(differences(compiled()(params, inputs(reference)), reference)) > 50


def test_precision_is_the_highest_whatever_the_global_setting() -> None:
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    with jax.default_matmul_precision("bfloat16"):
        lowered = jax.jit(inception.extract).lower(inception.param_shapes(), images)
    lines = lowered.as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert len(convolutions) == 94 and len(products) == 3
    assert all(line.count("HIGHEST") == 2 for line in convolutions + products)


def test_one_channel_counts_three_times() -> None:
    grey = make_inception.random_images((8, 8), seed=7)[..., :1]
    np.testing.assert_array_equal(
        inception.prepare(grey), inception.prepare(np.repeat(grey, 3, axis=-1))
    )


def test_images_of_the_networks_size_are_only_scaled() -> None:
    images = make_inception.random_images((299, 299), seed=8)
    expected = (images.astype(np.float32) - 128) / 128
    np.testing.assert_array_equal(inception.prepare(images), expected)


def test_interpolation_reads_at_i_in_over_out() -> None:
    expected = [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    np.testing.assert_array_equal(inception.interpolation(2, 4), expected)
    np.testing.assert_array_equal(inception.interpolation(1, 3), np.ones((3, 1)))
    for size in (1, 8, 32, 299, 1000):
        matrix = inception.interpolation(size, 299)
        assert (matrix >= 0).all() and ((matrix != 0).sum(1) <= 2).all()
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.int32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
    ],
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 or float32 images of shape \[B, H, W, 3\]"):
        inception.prepare(images)
