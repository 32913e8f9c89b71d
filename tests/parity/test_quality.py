"""FID, IS, KID, precision and recall of two folders of pictures are torch-fidelity's.

Both programs are given the same PNG files and the same file of random Inception weights, and each
reads, resizes, extracts and computes for itself.
"""

import hashlib
import importlib.util
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="comparing with torch-fidelity needs PyTorch")
if importlib.util.find_spec("torch_fidelity") is None:  # not imported: see tests.parity.fidelity
    pytest.skip("torch-fidelity is not installed, see .ci/run", allow_module_level=True)

from experiments import devices  # noqa: E402
from experiments.data import image_folder  # noqa: E402
from experiments.features import frechet, inception_weights, scores  # noqa: E402
from experiments.features.extractors import Features, load_extractor, make_feature_fn  # noqa: E402
from experiments.features.references import real_features, statistics  # noqa: E402
from tests.fixtures.make_inception import random_images, random_state  # noqa: E402
from tests.parity import fidelity  # noqa: E402

pytestmark = pytest.mark.parity

SIZE, BATCH = 64, 8
NUM_FAKE, NUM_REAL = 24, 32
SPLITS, SUBSETS, SUBSET_SIZE, SEED = 3, 4, 16, 2020
TOLERANCE = 1e-4


class Compared(NamedTuple):
    theirs: dict[str, float]
    fake: Features
    real: Features


def write_pictures(folder: pathlib.Path, images: np.ndarray) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return str(folder)


def pictures(seed: int, n: int, darkest: float, brightest: float) -> np.ndarray:
    """Pictures of every contrast in a range, so that their features differ."""
    contrast = np.random.default_rng(seed).uniform(darkest, brightest, (n, 1, 1, 1))
    return (random_images((SIZE, SIZE), seed, n) * contrast).astype(np.uint8)


def write_weights(path: pathlib.Path, images: np.ndarray) -> None:
    """Random weights whose features and classes depend on what distinguishes images.

    Those of random weights hardly do, so that every score of them is a difference of almost equal
    numbers. The last block is normalised by the statistics of `images`, and its outputs are
    amplified and rectified far above their means; the logits are amplified too.
    """
    state = random_state()
    theirs = fidelity.network(state | {"fc.weight": 8 * state["fc.weight"]}, torch.float32)
    block = theirs.Mixed_7c.train()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    fidelity.extract(theirs, images)
    outputs = ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b")
    for name in (*outputs, "branch_pool"):
        norm = getattr(block, name).bn
        norm.weight *= 16
        norm.bias -= 12
    torch.save(theirs.state_dict(), path)


def our_features(folder: str, weights: pathlib.Path) -> Features:
    dataset = image_folder.image_folder(folder, SIZE, test_fraction=0)
    extractor = load_extractor("inception", str(weights), dataset)
    mesh = devices.make_mesh(jax.devices()[:1])
    count = len(dataset.open("train"))
    feature_fn = make_feature_fn(extractor, mesh)
    return real_features(extractor, dataset, "train", count, feature_fn, BATCH, mesh)


def their_metrics(fake: str, real: str, weights: pathlib.Path) -> dict[str, float]:
    return fidelity.package().calculate_metrics(
        input1=fake,
        input2=real,
        **dict(fid=True, isc=True, kid=True, prc=True),
        **dict(isc_splits=SPLITS, samples_shuffle=False),
        **dict(kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, rng_seed=SEED),
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(weights),
        batch_size=BATCH,
        **dict(cuda=False, cache=False, save_cpu_ram=True, verbose=False),
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("quality")
    images = [pictures(1, NUM_FAKE, 0.4, 1.0), pictures(2, NUM_REAL, 0.2, 0.8)]
    folders = [
        write_pictures(folder / name, content)
        for name, content in zip(("fake", "real"), images, strict=True)
    ]
    weights = folder / "weights.pth"
    write_weights(weights, images[1][:BATCH])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_weights, "SHA256_PREFIX", digest[:8])
        patch.setenv("DDPM_CACHE", str(folder / "cache"))
        ours = [our_features(path, weights) for path in folders]
        theirs = their_metrics(*folders, weights)
    for file in (weights, *(folder / "cache").glob("*.safetensors")):  # 95 MB each
        file.unlink()
    return Compared(theirs, *ours)


def test_the_frechet_distance_is_theirs(compared: Compared) -> None:
    gaussians = [statistics(found.features, {})[:2] for found in (compared.fake, compared.real)]
    ours = frechet.frechet_distance(*gaussians[0], *gaussians[1])
    theirs = compared.theirs["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=TOLERANCE) and theirs > 1


def test_the_inception_score_is_theirs(compared: Compared) -> None:
    ours, theirs = scores.inception_score(compared.fake.logits, SPLITS), compared.theirs
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=TOLERANCE)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=TOLERANCE)
    assert ours.mean > 1.1 and ours.std > 0.001


def test_the_kernel_distance_is_theirs_on_the_subsets_that_they_draw(compared: Compared) -> None:
    draw, estimates = np.random.RandomState(SEED), []
    for _ in range(SUBSETS):
        fake, real = (
            found.features[draw.choice(len(found.features), SUBSET_SIZE, replace=False)]
            for found in (compared.fake, compared.real)
        )
        estimates.append(scores.kernel_distance(fake, real, 1, SUBSET_SIZE).mean)
    theirs = compared.theirs
    assert np.mean(estimates) == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=TOLERANCE
    )
    assert np.std(estimates) == pytest.approx(
        theirs["kernel_inception_distance_std"], rel=TOLERANCE
    )


def test_precision_and_recall_are_theirs(compared: Compared) -> None:
    ours = scores.precision_recall(compared.real.features, compared.fake.features, k=3)
    assert ours.precision == pytest.approx(compared.theirs["precision"], rel=TOLERANCE)
    assert ours.recall == pytest.approx(compared.theirs["recall"], rel=TOLERANCE)
    assert 0 < ours.precision < 1 and 0 < ours.recall < 1 and ours.precision != ours.recall
