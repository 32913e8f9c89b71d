"""Laws of the data sets (every entry of DATASETS) and of the batches."""

import itertools
import pickle

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments.data import celeb_a_hq, digits, fashion_mnist, image_folder, loader
from experiments.data.dataset import (
    SPLITS,
    Dataset,
    InMemory,
    Source,
    fingerprint,
    gather,
    hold_out,
    load_in_memory,
    read_images,
)
from experiments.data.datasets import DATASETS
from tests.experiments import synthetic

NAMES = sorted(DATASETS)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield synthetic.prepare_all(tmp_path_factory.mktemp("data"), monkeypatch)


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest, arguments: dict[str, dict]) -> Dataset:
    return DATASETS[request.param](**arguments[request.param])


def contents(source: Source) -> dict[str, np.ndarray]:
    return read_images(source, 0, len(source))


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


# Every data set.


def test_description_matches_the_images(dataset):
    for split in SPLITS:
        source = dataset.open(split)
        everything = contents(source)
        assert everything["image"].shape == (len(source), *dataset.image_shape)
        assert everything["image"].dtype == np.uint8
        assert everything["label"].dtype == np.int32 and len(everything["label"]) == len(source)
        assert everything["label"].min() >= 0
        assert everything["label"].max() < (dataset.num_classes or 1)


def test_one_image_equals_the_same_among_many(dataset):
    source = dataset.open("train")
    many = gather(source, [3, 0, 3])
    for row, index in enumerate([3, 0, 3]):
        one = source[index]
        assert np.array_equal(one["image"], many["image"][row])
        assert one["image"].dtype == np.uint8 and one["image"].shape == dataset.image_shape
        assert one["label"] == many["label"][row] and one["label"].dtype == np.int32


def test_train_and_test_are_disjoint(dataset):
    train, test = (
        {image.tobytes() for image in contents(dataset.open(split))["image"]} for split in SPLITS
    )
    assert train and test and not train & test


def test_in_memory_equals_on_disk(dataset):
    source = dataset.open("train")
    loaded = load_in_memory(source)
    assert equal(contents(loaded), contents(source))
    assert equal(gather(loaded, [2, 1]), gather(source, [2, 1]))
    assert fingerprint(dataset.name, loaded) == fingerprint(dataset.name, source)


def test_pickling(dataset):
    source = dataset.open("test")
    own = contents(source)
    assert equal(contents(pickle.loads(pickle.dumps(source))), own)  # pickled after reading
    assert equal(contents(pickle.loads(pickle.dumps(dataset)).open("test")), own)


def test_unknown_split(dataset):
    with pytest.raises(ValueError, match="no split 'validation'; the splits are train, test"):
        dataset.open("validation")


def test_names_agree(dataset):
    assert dataset.name in DATASETS


@pytest.mark.parametrize("name", NAMES)
def test_describing_reads_nothing(name, tmp_path):
    absent = str(tmp_path / "absent")
    make = DATASETS[name]
    folder = {"path": absent, "image_size": 8}
    kwargs = folder if synthetic.of_a_folder(make) else {"data_dir": absent}

    def shape():
        return jax.numpy.zeros(make(**kwargs).image_shape)

    assert len(jax.eval_shape(shape).shape) == 3
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(("length", "count"), [(10, 1), (10, 3), (10, 9), (1497, 250)])
def test_held_out_images_are_evenly_spaced_and_nowhere_else(length: int, count: int) -> None:
    images = np.arange(length, dtype=np.uint32).view(np.uint8).reshape(length, 2, 2, 1)
    source = InMemory(images, np.arange(length, dtype=np.int32))
    kept, held = pickle.loads(pickle.dumps(hold_out(source, count)))
    labels = [gather(part, range(len(part)))["label"] for part in (kept, held)]
    assert len(labels[1]) == len(held) == count
    assert sorted(np.concatenate(labels)) == list(range(length))
    assert all((np.diff(part) > 0).all() for part in labels)
    gaps = np.diff([*labels[1], length])
    assert gaps.min() >= length // count and gaps.max() <= -(-length // count)
    for part in (kept, held):  # one by one, all at once, and from memory
        one = part[len(part) - 1]
        for several in (part, load_in_memory(part)):
            last = read_images(several, len(part) - 1, len(part))
            np.testing.assert_array_equal(last["image"][0], one["image"])
            assert last["label"][0] == one["label"]
    assert fingerprint("x", kept) != fingerprint("x", source)


@pytest.mark.parametrize("count", [-1, 0, 10, 11])
def test_not_everything_is_held_out(count: int) -> None:
    source = InMemory(np.zeros((10, 2, 2, 1), np.uint8), np.zeros(10, np.int32))
    with pytest.raises(ValueError, match=f"{count} of 10 images cannot be held out"):
        hold_out(source, count)


def test_fingerprint_tells_data_apart(arguments):
    source = digits.digits(**arguments["digits"]).open("train")
    loaded = load_in_memory(source)
    own = fingerprint("digits", loaded)
    assert own == fingerprint("digits", source) and len(own) == 16
    changed = InMemory(loaded.images.copy(), loaded.labels)
    changed.images[0, 0, 0, 0] ^= 1
    others = {
        fingerprint("letters", loaded),
        fingerprint("digits", changed),
        fingerprint("digits", InMemory(loaded.images[:-1], loaded.labels[:-1])),
        fingerprint("digits", InMemory(loaded.images.reshape(-1, 4, 16, 1),
                                                 loaded.labels)),
    }  # fmt: skip
    assert len(others | {own}) == 5


# Single data sets.


def test_digits_levels(arguments):
    from sklearn.datasets import load_digits

    dataset = digits.digits(**arguments["digits"])
    splits = [contents(dataset.open(split)) for split in SPLITS]
    images = np.concatenate([split["image"] for split in splits])
    assert [len(split["image"]) for split in splits] == [1497, 300]
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.unique(images).tolist() == levels
    original = load_digits()
    scaled = np.asarray(levels, np.uint8)[original.images.astype(int)][..., None]
    for split, wanted in zip(
        splits, (np.arange(1797) % 6 > 0, np.arange(1797) % 6 == 0), strict=True
    ):
        came = sorted(zip((i.tobytes() for i in split["image"]), split["label"], strict=True))
        assert came == sorted(
            zip((i.tobytes() for i in scaled[wanted]), original.target[wanted], strict=True)
        )


def test_fashion_mnist_padding_is_even_and_zero(arguments):
    kwargs = arguments["fashion_mnist"]
    plain = contents(fashion_mnist.fashion_mnist(**kwargs).open("train"))
    padded = contents(fashion_mnist.fashion_mnist(**kwargs, pad_to=32).open("train"))
    assert np.array_equal(padded["image"][:, 2:-2, 2:-2], plain["image"])
    assert padded["image"].sum(dtype=int) == plain["image"].sum(dtype=int)
    assert np.array_equal(padded["label"], plain["label"])


def test_fashion_mnist_padding_refused():
    with pytest.raises(ValueError, match="config.data.pad_to = 31 must be even"):
        fashion_mnist.fashion_mnist(pad_to=31)


def test_celeb_a_hq_held_out_part(arguments):
    kwargs = arguments["celeb_a_hq/256"]
    whole = contents(celeb_a_hq.celeb_a_hq_256(**kwargs, test_fraction=0).open("train"))["image"]
    for fraction, count in ((0.1, 1), (0.3, 3)):
        dataset = celeb_a_hq.celeb_a_hq_256(**kwargs, test_fraction=fraction)
        parts = [contents(dataset.open(split))["image"] for split in SPLITS]
        assert len(parts[1]) == count
        assert np.array_equal(np.concatenate(parts), whole)
    with pytest.raises(ValueError, match="nothing in split 'test'; change test_f.*evaluate.split"):
        celeb_a_hq.celeb_a_hq_256(**kwargs, test_fraction=0).open("test")


def test_folder_round_trip(tmp_path):
    square = synthetic.picture(tmp_path / "b" / "square.png", 8, 8, seed=0)
    wide = synthetic.picture(tmp_path / "wide.png", 12, 8, seed=1)
    tall = synthetic.picture(tmp_path / "a" / "tall.PNG", 8, 14, seed=2)
    (tmp_path / "notes.txt").write_text("no picture")
    images = contents(image_folder.image_folder(str(tmp_path), 8, test_fraction=0).open("train"))[
        "image"
    ]
    assert np.array_equal(images, [tall[3:11], square, wide[:, 2:10]])  # sorted by relative path


def test_folder_resizes_the_shorter_side(tmp_path):
    Image.new("RGB", (200, 100), (10, 20, 30)).save(tmp_path / "a.webp", lossless=True)
    Image.new("RGBA", (9, 30), (10, 20, 30, 255)).save(tmp_path / "b.png")
    Image.new("L", (3, 3), 77).save(tmp_path / "c.jpg", quality=100)
    images = contents(image_folder.image_folder(str(tmp_path), 16, test_fraction=0).open("train"))[
        "image"
    ]
    assert (images[:2] == [10, 20, 30]).all() and (images[2] == 77).all()


def test_folder_split_ignores_the_other_pictures(tmp_path):
    def test_images():
        source = image_folder.image_folder(str(tmp_path), 4, test_fraction=0.5).open("test")
        return {image.tobytes() for image in contents(source)["image"]}

    for i in range(20):
        synthetic.picture(tmp_path / f"{i}.png", 4, 4, seed=i)
    before = test_images()
    for i in range(20, 40):
        synthetic.picture(tmp_path / f"{i}.png", 4, 4, seed=i)
    new = {synthetic.picture(tmp_path / f"{i}.png", 4, 4, seed=i).tobytes() for i in range(20, 40)}
    assert test_images() - new == before and 3 <= len(before) <= 17


def test_folder_errors(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"config\.data\.path = '' must name the pictures: a folder"
    ):
        image_folder.image_folder("", 8).open("train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        image_folder.image_folder(str(tmp_path / "nowhere"), 8).open("train")
    with pytest.raises(FileNotFoundError, match=r"No picture \(.jpg, .*is in .* or below"):
        image_folder.image_folder(str(tmp_path), 8).open("train")
    synthetic.picture(tmp_path / "a.png", 8, 8, seed=0)
    with pytest.raises(
        ValueError, match=r"None of the 1 pictures .*change test_f.*evaluate\.split"
    ):
        image_folder.image_folder(str(tmp_path), 8, test_fraction=0).open("test")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"a\.png cannot be used .*replace or remove it"):
        image_folder.image_folder(str(tmp_path), 8, test_fraction=0).open("train")[0]
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.png cannot be used .*replace or remove it"):
        image_folder.image_folder(str(tmp_path), 8, test_fraction=0).open("train")[0]
    with pytest.raises(ValueError, match=r"config\.data\.channels = 2 must be 3, or 1 for grey"):
        image_folder.image_folder(str(tmp_path), 8, channels=2)
    with pytest.raises(ValueError, match=r"data\.background = 'grey' is not known.*white, black"):
        image_folder.image_folder(str(tmp_path), 8, background="grey")


# Batches.


def numbered(count: int) -> InMemory:
    """A source whose image i and label i carry the number i."""
    numbers = np.arange(count, dtype=np.int32)
    images = np.stack([numbers % 256, numbers // 256], axis=-1).astype(np.uint8)
    return InMemory(images.reshape(count, 1, 1, 2), numbers)


def take(count: int, source: Source, **kwargs: int) -> dict[str, np.ndarray]:
    """The first `count` items, joined along steps: arrays [count * k, B, ...]."""
    iterator = loader.batches(source, **kwargs)
    items = list(itertools.islice(iterator, count))
    iterator.close()
    return {key: np.concatenate([item[key] for item in items]) for key in ("image", "label")}


def test_images_keep_their_labels():
    batch = take(9, numbered(300), seed=0, batch_size=32)
    assert batch["image"].shape == (9, 32, 1, 1, 2) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (9, 32) and batch["label"].dtype == np.int32
    assert np.array_equal(batch["image"][..., 0, 0, :] @ np.array([1, 256]), batch["label"])


@pytest.mark.parametrize("batch_size", [1, 5, 7, 64])
def test_every_epoch_is_a_permutation(batch_size):
    count = 23
    stream = take(-(-5 * count // batch_size), numbered(count), seed=1, batch_size=batch_size)
    epochs = stream["label"].ravel()[: 5 * count].reshape(5, count)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (5, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 5


def test_the_seed_decides():
    streams = [take(6, numbered(50), seed=seed, batch_size=8)["label"] for seed in (0, 0, 1)]
    assert np.array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_processes_joined_are_one_process(process_count, steps_per_call):
    kwargs = {"seed": 2, "batch_size": 8, "start_step": 5, "steps_per_call": steps_per_call}
    whole = take(4, numbered(37), **kwargs)
    parts = [
        take(4, numbered(37), **kwargs, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    joined = {key: np.concatenate([part[key] for part in parts], axis=1) for key in whole}
    assert equal(joined, whole)


@pytest.mark.parametrize("start_step", [0, 1, 7, 20])
def test_restart_equals_the_tail(start_step):
    whole = take(24, numbered(37), seed=3, batch_size=8)
    tail = take(24 - start_step, numbered(37), seed=3, batch_size=8, start_step=start_step)
    assert equal(tail, {key: value[start_step:] for key, value in whole.items()})


@pytest.mark.parametrize("steps_per_call", [2, 5])
def test_steps_per_call_stacks_single_steps(steps_per_call):
    singles = take(10, numbered(37), seed=4, batch_size=6, start_step=3)
    stacked = take(
        10 // steps_per_call,
        numbered(37),
        seed=4,
        batch_size=6,
        start_step=3,
        steps_per_call=steps_per_call,
    )
    assert equal(stacked, singles)


@pytest.mark.parametrize("num_threads", [0, 1, 8])
def test_threads_change_nothing(num_threads, arguments):
    source = digits.digits(**arguments["digits"]).open("train")
    kwargs = {"seed": 5, "batch_size": 16}
    assert equal(take(8, source, **kwargs, num_threads=num_threads, prefetch=8),
                 take(8, load_in_memory(source, num_threads), **kwargs))  # fmt: skip


@pytest.mark.slow
def test_workers_change_nothing(arguments):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags where it starts workers
    source = digits.digits(**arguments["digits"]).open("train")
    kwargs = {"seed": 6, "batch_size": 16, "start_step": 2, "steps_per_call": 2}
    assert equal(take(5, source, **kwargs, num_workers=2), take(5, source, **kwargs))
    assert equal(take(5, source, **kwargs, num_workers=1, prefetch=0), take(5, source, **kwargs))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size = 6 .*number of processes, 4"),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 is not in 0\.\.1"),
        ({"start_step": -1}, "start_step -1 must be >= 0"),
    ],
)
def test_batches_refuses(kwargs, words):
    with pytest.raises(ValueError, match=words):
        loader.batches(numbered(10), **{"seed": 0, "batch_size": 4, **kwargs})


def test_empty_source_refused():
    empty = InMemory(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="source is empty"):
        loader.batches(empty, seed=0, batch_size=1)


def test_read_is_consecutive_and_bounded():
    source = numbered(10)
    assert read_images(source, 2, 5)["label"].tolist() == [2, 3, 4]
    for start, stop in ((0, 11), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="is not a part of the 10 images"):
            read_images(source, start, stop)


def test_in_memory_refuses_other_arrays():
    with pytest.raises(ValueError, match=r"uint8\[N, H, W, C\] is needed, got float32"):
        InMemory(np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"int32\[2\] is needed, got int64"):
        InMemory(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int64))
