"""Data sets by name, and batches of them: everything random is a function of (seed, step)."""

import hashlib
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

import grain
import numpy as np

from experiments.datasets import celeb_a_hq as _celeb_a_hq
from experiments.datasets import cifar10 as _cifar10
from experiments.datasets import digits as _digits
from experiments.datasets import fashion_mnist as _fashion_mnist
from experiments.datasets import image_folder as _image_folder

SPLITS = ("train", "test")


class Source(Protocol):
    """Picklable random access: [i] is {"image": uint8[H, W, C], "label": int32[]}.

    A source that reads many at once faster also has `gather`, see the function of that name.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]: ...


class Dataset(NamedTuple):
    """Description of a data set; making one reads no data.

    name: its key in DATASETS.
    image_shape: H, W, C.
    num_classes: labels are 0..num_classes - 1; None where every label is 0.
    open: "train" | "test" -> Source; the two are disjoint. Raises FileNotFoundError where the
      data is missing and ValueError for another split, or one without an image.
    splits: the splits that have images; ("train",) where nothing is held out.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int | None
    open: Callable[[str], Source]
    splits: tuple[str, ...] = SPLITS


def _open(open_split: Callable[..., Source], kwargs: dict, split: str) -> Source:
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
    return open_split(split, **kwargs)


def _check_fraction(test_fraction: float) -> None:
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; it must be in [0, 1).")


def digits(data_dir: str | None = None) -> Dataset:
    """scikit-learn's 8x8 digits, 1,497 train and 300 test images (every sixth), prepared offline
    on first use.

    Args:
      data_dir: folder of prepared data sets; None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    return Dataset(
        name="digits",
        image_shape=_digits.IMAGE_SHAPE,
        num_classes=_digits.NUM_CLASSES,
        open=partial(_open, _digits.open_split, {"data_dir": data_dir}),
    )


def fashion_mnist(data_dir: str | None = None, pad_to: int = 28) -> Dataset:
    """Fashion-MNIST, 60,000 train and 10,000 test images of 28x28 pixels.

    Args:
      data_dir: as in `digits`, or a gs:// address.
      pad_to: side in pixels; above 28, zeros are added evenly on all sides.
    Raises:
      ValueError: pad_to is below 28 or odd.
    """
    side = _fashion_mnist.IMAGE_SHAPE[0]
    if pad_to < side or pad_to % 2:
        raise ValueError(f"pad_to is {pad_to}; it must be {side} or a larger even number.")
    return Dataset(
        name="fashion_mnist",
        image_shape=(pad_to, pad_to, 1),
        num_classes=_fashion_mnist.NUM_CLASSES,
        open=partial(_open, _fashion_mnist.open_split, {"data_dir": data_dir, "pad_to": pad_to}),
    )


def cifar10(data_dir: str | None = None) -> Dataset:
    """CIFAR-10, 50,000 train and 10,000 test images of 32x32 pixels.

    Args:
      data_dir: as in `digits`, or a gs:// address.
    """
    return Dataset(
        name="cifar10",
        image_shape=_cifar10.IMAGE_SHAPE,
        num_classes=_cifar10.NUM_CLASSES,
        open=partial(_open, _cifar10.open_split, {"data_dir": data_dir}),
    )


def celeb_a_hq_256(data_dir: str | None = None, test_fraction: float = 0.1) -> Dataset:
    """CelebA-HQ at 256x256 pixels; of its one split of 30,000 images the last part is held out.

    Args:
      data_dir: as in `digits`, or a gs:// address.
      test_fraction: part held out, in [0, 1); 0.1 gives 27,000 and 3,000 images, 0 trains on all.
    Raises:
      ValueError: test_fraction is out of range.
    """
    _check_fraction(test_fraction)
    kwargs = {"data_dir": data_dir, "test_fraction": test_fraction}
    return Dataset(
        name="celeb_a_hq/256",
        image_shape=_celeb_a_hq.IMAGE_SHAPE,
        num_classes=None,
        open=partial(_open, _celeb_a_hq.open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
    )


def image_folder(path: str, image_size: int, test_fraction: float = 0.05) -> Dataset:
    """The jpg, png and webp pictures in a local folder and below, as RGB squares.

    The shorter side is resized to image_size and the longer one cropped centrally. A hash of its
    relative path decides whether a picture is held out, so adding pictures moves no other.

    Args:
      path: the folder, e.g. an LSUN category exported to files.
      image_size: side in pixels.
      test_fraction: expected part held out, in [0, 1); 0 trains on all.
    Raises:
      ValueError: image_size or test_fraction is out of range.
    """
    _check_fraction(test_fraction)
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be positive.")
    kwargs = {"path": path, "image_size": image_size, "test_fraction": test_fraction}
    return Dataset(
        name="image_folder",
        image_shape=(image_size, image_size, 3),
        num_classes=None,
        open=partial(_open, _image_folder.open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
    )


class InMemory:
    """A Source over images uint8[N, H, W, C] and labels int32[N]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"uint8[N, H, W, C] is needed, got {images.dtype}{images.shape}")
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise ValueError(f"int32[{len(images)}] is needed, got {labels.dtype}{labels.shape}")
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}

    def gather(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several at once: {"image": uint8[N, H, W, C], "label": int32[N]}."""
        return {"image": self.images[indices], "label": self.labels[indices]}


def gather(source: Source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The images at `indices`: {"image": uint8[N, H, W, C], "label": int32[N]}."""
    if hasattr(source, "gather"):
        return source.gather(indices)
    records = [source[index] for index in indices]
    return {key: np.stack([record[key] for record in records]) for key in ("image", "label")}


def load_in_memory(source: Source, num_threads: int = 4) -> InMemory:
    """Decodes every image of `source` once, into one array of N * H * W * C bytes."""
    images = np.empty((len(source), *source[0]["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    chunk = 128

    def fill(start: int) -> None:
        part = slice(start, min(start + chunk, len(source)))
        records = gather(source, range(part.start, part.stop))
        images[part], labels[part] = records["image"], records["label"]

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(fill, range(0, len(source), chunk)))  # list: raise what a thread raised
    return InMemory(images, labels)


def _gather_steps(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Indices int[k, B] to {"image": uint8[k, B, H, W, C], "label": int32[k, B]}."""
    flat = gather(source, indices.ravel().tolist())
    return {key: value.reshape(*indices.shape, *value.shape[1:]) for key, value in flat.items()}


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    steps_per_call: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 4,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Endless shuffled batches; the n-th item holds training steps start_step + n * k ... + k - 1.

    The images form one stream, every epoch a fresh permutation of the data set, and step i takes
    images i * batch_size ... of it (a batch may straddle two epochs). So a run resumed at
    start_step goes on exactly, and the batches of processes 0, 1, ... concatenated are the
    one-process batch, in its order.

    Args:
      seed: 0 <= seed < 2**32; decides the whole stream.
      batch_size: images per training step over all processes (B below).
      start_step: first training step (0-based) to deliver.
      steps_per_call: training steps in one item (k below).
      process_index, process_count: which part of each batch this process gets.
      num_workers: processes that read and decode; 0 uses threads only. Each gets a pickled copy
        of `source`; the program needs a `__main__` guard and must have parsed its absl flags.
      num_threads: reading threads, in each worker if there are any; 0 reads when asked.
      prefetch: items read ahead, in each worker if there are any.
    Returns:
      Iterator of {"image": uint8[k, B / process_count, H, W, C], "label": int32[k, B /
      process_count]}; its `close()` stops the threads and workers.
    Raises:
      ValueError: an argument is out of range, or batch_size is not divisible by process_count.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the number of processes, "
            f"{process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}.")
    if start_step < 0 or steps_per_call < 1:
        raise ValueError(
            f"start_step {start_step} must be >= 0 and steps_per_call {steps_per_call} >= 1."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} must be in 0..2**32 - 1.")
    if len(source) == 0:
        raise ValueError("The source is empty: there is nothing to batch.")
    stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    shares = stream.batch(batch_size // process_count, drop_remainder=True)
    mine = shares[start_step * process_count + process_index :: process_count]
    items = mine.batch(steps_per_call, drop_remainder=True).map(partial(_gather_steps, source))
    items = items.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    )
    if num_workers:
        items = items.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch),
            worker_init_fn=_ignore_interrupts,
        )
    return iter(items)


def _ignore_interrupts(worker_index: int, worker_count: int) -> None:
    """Ctrl-C reaches the whole process group, but ending the workers is the program's to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read(source: Source, start: int, stop: int) -> dict[str, np.ndarray]:
    """Images start ... stop - 1 of `source`: {"image": uint8[N, H, W, C], "label": int32[N]}.

    Raises:
      ValueError: not 0 <= start < stop <= len(source).
    """
    if not 0 <= start < stop <= len(source):
        raise ValueError(f"[{start}:{stop}] is not a part of the {len(source)} images.")
    return gather(source, range(start, stop))


def fingerprint(dataset_name: str, source: Source) -> str:
    """16 hex digits over name, length, image shape and 16 evenly spaced images with labels."""
    indices = np.unique(np.linspace(0, len(source) - 1, 16).round().astype(int)).tolist()
    records = gather(source, indices)
    digest = hashlib.sha256()
    digest.update(repr((dataset_name, len(source), records["image"].shape[1:])).encode())
    digest.update(records["image"].astype(np.uint8).tobytes())
    digest.update(records["label"].astype("<i4").tobytes())
    return digest.hexdigest()[:16]


DATASETS: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": digits,
        "fashion_mnist": fashion_mnist,
        "cifar10": cifar10,
        "celeb_a_hq/256": celeb_a_hq_256,
        "image_folder": image_folder,
    }
)
