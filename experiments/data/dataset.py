"""What a data set is: a description that reads nothing, and a source of images that does."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from experiments import console

SPLITS = ("train", "test")
NAMED = 50  # images at most that an error names

PAD, START = 0, 1  # behind a caption, and in front of it: alone it says "no caption"
FIRST_WORD = 2
WORD = re.compile(r"[^\W_]+")


class FileFacts(NamedTuple):
    """Of a file that images are read from, or of an entry of an archive.

    size: in bytes; or whatever says more of what is in it, such as a checksum.
    time: when it was last changed, in nanoseconds; 0 where nobody says.
    """

    name: str
    size: Any
    time: int


class Source(Protocol):
    """Picklable random access: [i] is {"image": uint8[H, W, C], "label": int32[]}.

    Where captions are the labels, a label is a row of them, int32[L]; where a data set has captions
    its source has `text(index)`.

    A source that reads many at once faster also has `gather`, see the function of that name; one
    that reads files has `files`, see `files_of`; one of pictures of one's own has `remarks`.
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
    num_levels: how many values a pixel can have, 2 to 256. Fewer than 256 are stored spread over
        0..255, see `images.to_model`; decoder, dequantization, rounding and baselines follow it.
    prepare: what `experiments.prepare --from` names, or None where it is left out -> the prepared
        folder; None where nothing is to be prepared. Raises OSError or ValueError, saying what is
        needed.
    prepared_from: what `prepare` takes, and what it does without, as the help of --from says it.
    has_captions: whether `text(index)` of its sources is the caption of an image.
    subject_of: a caption -> what the image shows, the same for all variants of a thing.
    classes: names of the classes, in the order of their numbers; () where they have none.
    find_classes: () -> `classes`, where those are to be read from where the images lie; then one is
        made anew with them. Raises as `open` does.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int | None
    open: Callable[[str], Source]
    splits: tuple[str, ...] = SPLITS
    num_levels: int = 256
    prepare: Callable[[str | None], str] | None = None
    prepared_from: str = ""
    has_captions: bool = False
    subject_of: Callable[[str], str] | None = None
    classes: tuple[str, ...] = ()
    find_classes: Callable[[], tuple[str, ...]] | None = None


def open_named_split(open_split: Callable[..., Source], kwargs: dict, split: str) -> Source:
    """`open_split(split, **kwargs)` for one of SPLITS.

    Raises:
            ValueError: for another name.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
    return open_split(split, **kwargs)


class InMemory:
    """A Source over images uint8[N, H, W, C] and labels int32[N, ...]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"uint8[N, H, W, C] is needed, got {images.dtype}{images.shape}")
        if labels.dtype != np.int32 or labels.shape[:1] != images.shape[:1]:
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


class Encoded(InMemory):
    """As InMemory, of what an encoder keeps of images: float32[N, ...] in their place."""

    def __init__(self, found: np.ndarray, labels: np.ndarray):
        self.images = found
        self.labels = labels


def gather(source: Source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The images at `indices`: {"image": uint8[N, H, W, C], "label": int32[N]}."""
    if hasattr(source, "gather"):
        return source.gather(indices)
    records = [source[index] for index in indices]
    return {key: np.stack([record[key] for record in records]) for key in ("image", "label")}


class Subset:
    """The images of a source at `indices` int[N], in this order; picklable where the source is."""

    def __init__(self, source: Any, indices: np.ndarray):
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.source[int(self.indices[index])]

    def text(self, index: int) -> str:
        """The caption of an image, where the source has captions."""
        return self.source.text(int(self.indices[index]))

    def gather(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several at once: {"image": uint8[N, H, W, C], "label": int32[N]}."""
        return gather(self.source, self.indices[np.asarray(indices, int)].tolist())

    def files(self) -> list[FileFacts]:
        """Those of the whole source, and which images are in here."""
        return [*files_of(self.source), FileFacts("subset", self.indices.tolist(), 0)]

    def remarks(self) -> list[str]:
        """Those on the whole source."""
        return remarks_on(self.source)


def hold_out(source: Source, count: int) -> tuple[Subset, Subset]:
    """All images but `count` evenly spaced ones, and these; each in the order of `source`.

    Raises:
        ValueError: not 0 < count < len(source).
    """
    if not 0 < count < len(source):
        raise ValueError(f"{count} of {len(source)} images cannot be held out.")
    every = np.arange(len(source))
    chosen = np.arange(count) * len(source) // count
    return Subset(source, np.setdiff1d(every, chosen)), Subset(source, chosen)


def _shapes(source: Source) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of image and label of the first image that can be decoded; () where none can."""
    for index in range(len(source)):
        with contextlib.suppress(ValueError):
            record = source[index]
            return record["image"].shape, record["label"].shape
    return (), ()


def load_in_memory(source: Source, num_threads: int = 4) -> InMemory:
    """Decodes every image of `source` once, into one array of N * H * W * C bytes.

    Args:
        num_threads: that decode; there is one at least.

    Raises:
        ValueError: naming all images that cannot be decoded, where there are some.
    """
    image_shape, label_shape = _shapes(source)
    images = np.empty((len(source), *image_shape), np.uint8)
    labels = np.empty((len(source), *label_shape), np.int32)
    chunk = 128

    def fill(start: int) -> list[str]:
        """Decodes a chunk; what is wrong with each image of it that cannot be."""
        part = range(start, min(start + chunk, len(source)))
        if hasattr(source, "gather"):
            records = source.gather(part)
            images[part.start : part.stop] = records["image"]
            labels[part.start : part.stop] = records["label"]
            return []
        wrong = []
        for index in part:
            try:
                record = source[index]
            except ValueError as error:
                wrong.append(str(error))
            else:
                images[index], labels[index] = record["image"], record["label"]
        return wrong

    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        starts = range(0, len(source), chunk)
        parts = zip(console.track(starts, "reading images"), pool.map(fill, starts), strict=True)
        wrong = [text for _, part in parts for text in part]
    if wrong:
        more = f"\n... and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        listed = "\n".join(wrong[:NAMED])
        raise ValueError(f"{len(wrong)} of {len(source)} images are unusable:\n{listed}{more}")
    return InMemory(images, labels)


def read_images(source: Source, start: int, stop: int) -> dict[str, np.ndarray]:
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


def files_of(source: Source) -> list[FileFacts]:
    """What is known of the files that a source reads, without reading them; [] where nothing is."""
    found: list[FileFacts] = source.files() if hasattr(source, "files") else []
    return found


def remarks_on(source: Source) -> list[str]:
    """Lines for the user on what a source reads, such as what it leaves out."""
    found: list[str] = source.remarks() if hasattr(source, "remarks") else []
    return found


def contents(source: Source) -> dict[str, str]:
    """What tells all images of a source from others; empty where nothing is known.

    Of images in memory "bytes", a hash of all pixels and labels. Of those that are read from files
    "files", a hash of all names and sizes (in an archive: checksums), and "times", one of when they
    were last changed, which copying changes too.
    """
    if isinstance(source, InMemory):
        digest = hashlib.sha256(np.ascontiguousarray(source.images).data)
        digest.update(np.ascontiguousarray(source.labels).data)
        return {"bytes": digest.hexdigest()[:32]}
    files = files_of(source)
    if not files:
        return {}
    facts = {"files": [(name, size) for name, size, _ in files], "times": [f.time for f in files]}
    return {
        name: hashlib.sha256(repr(values).encode()).hexdigest()[:32]
        for name, values in facts.items()
    }


def words_of(text: str) -> list[str]:
    """Letters and digits in lower case, without what stands between them: the words of a text."""
    return WORD.findall(text.lower())


class Tokenizer(NamedTuple):
    """Words to numbers, from FIRST_WORD on in the order of the vocabulary.

    words: word -> number.
    length: of a row, with START; longer captions are cut.
    """

    words: dict[str, int]
    length: int

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return FIRST_WORD + len(self.words)

    def rows(self, texts: Sequence[str]) -> Int[np.ndarray, "n l"]:
        """int32[n, length]: START, the words that are known, and PAD to the end."""
        found = np.full((len(texts), self.length), PAD, np.int32)
        found[:, 0] = START
        for row, text in zip(found, texts, strict=True):
            known = [self.words[word] for word in words_of(text) if word in self.words]
            known = known[: self.length - 1]
            row[1 : 1 + len(known)] = known
        return found

    def nothing(self, count: int) -> Int[np.ndarray, "n l"]:
        """Rows that say nothing."""
        return self.rows([""] * count)
