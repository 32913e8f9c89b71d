"""The 1,797 handwritten digits that scikit-learn carries: 8x8 pixels, 17 grey levels."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import prepared
from experiments.data.dataset import Dataset, open_named_split

IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10
NUM_LEVELS = 17
TEST_EVERY = 6  # images 0, 6, 12, ... of scikit-learn's order are the test split


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Train 1,497 and test 300 images, grey levels 0..16 as level * 255 / 16 rounded half up."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels, as scikit-learn carries them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=IMAGE_SHAPE),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        images, labels = load()
        is_test = np.arange(len(images)) % TEST_EVERY == 0
        return {
            "train": self._generate_examples(images, labels, np.flatnonzero(~is_test)),
            "test": self._generate_examples(images, labels, np.flatnonzero(is_test)),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for index in indices.tolist():
            image = prepared.encode_png(images[index])
            yield index, {"image": image, "label": int(labels[index])}


def load() -> tuple[np.ndarray, np.ndarray]:
    """All digits in scikit-learn's order: images uint8[1797, 8, 8, 1] and labels int64[1797]."""
    from sklearn.datasets import load_digits  # a second to import, and used once in a lifetime

    digits = load_digits()
    images = np.floor(digits.images * (255 / (NUM_LEVELS - 1)) + 0.5).astype(np.uint8)
    return images[..., np.newaxis], digits.target


def prepare(source: str | None, data_dir: str | None) -> str:
    """Prepares the digits, offline, and returns the folder; there is no `source` to give."""
    if source:
        raise ValueError(f"digits come with scikit-learn: leave out --from (got {source!r})")
    builder = Digits(data_dir=prepared.resolve_data_dir(data_dir))
    return prepared.write(builder, "digits", data_dir, "scikit-learn")


def open_split(split: str, data_dir: str | None) -> prepared.Prepared:
    """Opens "train" or "test"; the first use prepares the data set."""
    if prepared.find("digits", data_dir) is None:
        tfds.disable_progress_bar()  # it takes a second
        prepare(None, data_dir)
    return prepared.open_prepared("digits", split, IMAGE_SHAPE, data_dir, "")


def digits(data_dir: str | None = None) -> Dataset:
    """scikit-learn's 8x8 digits, 1,497 train and 300 test images (every sixth), prepared offline
    on first use.

    Args:
        data_dir: folder of prepared data sets; None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    return Dataset(
        name="digits",
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        open=partial(open_named_split, open_split, {"data_dir": data_dir}),
        num_levels=NUM_LEVELS,
        prepare=partial(prepare, data_dir=data_dir),
        prepared_from="nothing: they come with scikit-learn",
    )
