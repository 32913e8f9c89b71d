"""What a figure is, what it is made of, and how grids of pictures are drawn with words beside
them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from experiments import console, devices, images
from experiments.data.dataset import Source, gather
from experiments.drawing import Drawn, compile_sampling, draw, requested, steps_taken
from experiments.experiment import Experiment
from experiments.methods.method import Chain

Pictures = UInt8[np.ndarray, "n h w c"]
DPI = 110
LONGEST = 24  # letters of a word beside a grid
CELL = 0.72  # inches of the side of a picture in a grid


class Figure(NamedTuple):
    """A picture with what people read below it.

    title, caption: one sentence, and what is seen and how it was made.
    arrays: what the picture was drawn from.
    draw: path -> None, writes the picture.
    suffix: of its file.
    """

    title: str
    caption: str
    arrays: Mapping[str, np.ndarray]
    draw: Callable[[Path], None]
    suffix: str = ".png"


class Need(NamedTuple):
    """What some figures need of a model.

    words: a model that has it, as an error calls it.
    met: whether this one has it.
    """

    words: str
    met: Callable[[Experiment], bool]


CHAIN = Need("the method `diffusion`", lambda model: model.method.chain is not None)
PIXELS = Need("a model of pixels", lambda model: model.encoder.latents is None)
AUTOENCODER = Need(
    "a VAE or a model of its latents",
    lambda model: model.method.vae is not None or model.encoder.latents is not None,
)
CLASSES = Need("a class-conditional model", lambda model: model.method.num_classes > 0)
CAPTIONS = Need("a model that is told captions", lambda model: model.method.tokenizer is not None)


class Maker(NamedTuple):
    """A figure that config.figures.names can name.

    make: makes it.
    needs: what a model must have for it.
    of_images: whether it shows images of the data set, which then have to be there.
    idea: whether it explains an idea, and is no part of "all".
    """

    make: Callable[["Context"], Figure]
    needs: tuple[Need, ...] = ()
    of_images: bool = False
    idea: bool = False


class Context(NamedTuple):
    """What figures are made of.

    chain: the model's, or None.
    real: images of the split of config.evaluate, that were not trained on where there are some.
    """

    experiment: Experiment
    params: Any
    mesh: Mesh
    chain: Chain | None

    @property
    def config(self) -> Any:
        """The section `figures`."""
        return self.experiment.config.figures

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return int(self.experiment.config.seed)

    @property
    def real(self) -> Source:
        """Images that were not trained on, where the data set holds some out."""
        dataset = self.experiment.dataset
        return self.experiment.open("test" if "test" in dataset.splits else "train")

    def samples(
        self, count: int, record: tuple[int, ...] = (), labels: np.ndarray | None = None
    ) -> Drawn:
        """The first samples of the seed, as --mode=sample draws them.

        Args:
            count: how many.
            record: steps whose estimates of x_0 are wanted.
            labels: i32[K, ...], of which sample i gets number i mod K; None is every class in turn,
                or the prompts of config.sample.
        """
        config = self.experiment.config.sample
        compiled = compile_sampling(
            self.experiment, self.mesh, num_steps=config.num_steps, record=record
        )
        wanted = self.labels() if labels is None else labels
        size = devices.round_up(min(config.batch_size, count), self.mesh)
        steps = -(-count // size) * steps_taken(self.experiment, config.num_steps)

        def sample(params: Any, indices: jax.Array, **each: Any) -> Any:
            return compiled(params, indices, np.uint32(self.seed), wanted, **each)

        with console.progress("sampling steps", steps) as each:
            return draw(sample, self.params, 0, count, size, self.mesh, each=each)

    def labels(self) -> np.ndarray:
        """What samples are asked for in turn: every class, or the prompts of config.sample."""
        method = self.experiment.method
        if method.tokenizer is not None:
            return requested(self.experiment)
        return np.arange(max(method.num_classes, 1), dtype=np.int32)

    def encode(self, pictures: Pictures) -> jax.Array:
        """What the method models of images."""
        return self.experiment.encoder.encode(jnp.asarray(pictures))

    def decode(self, x: Any) -> Pictures:
        """Images of [..., *shape of what is modelled], clipped and rounded; the first axes stay."""
        shape = self.experiment.encoder.shape
        flat = np.asarray(x, np.float32).reshape(-1, *shape)
        decoded = self.experiment.encoder.decode(jnp.asarray(np.nan_to_num(flat)))
        found = np.asarray(images.to_uint8(decoded, self.experiment.dataset.num_levels))
        return found.reshape(*np.shape(x)[: -len(shape)], *found.shape[1:])


def real_images(context: Context, count: int) -> dict[str, np.ndarray]:
    """Evenly spaced images that were not trained on, where there are some: image, label."""
    source = context.real
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return gather(source, places.tolist())


def blank(**options: Any) -> Any:
    """An empty matplotlib figure, of whatever backend."""
    from matplotlib.figure import Figure as Canvas  # a second of import

    return Canvas(**options, layout="constrained")


def show_picture(axis: Any, picture: np.ndarray, **options: Any) -> None:
    """One picture, grey where it has one channel, its pixels as squares."""
    options = {"interpolation": "nearest", **options}
    if picture.shape[-1] == 1:
        axis.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=255, **options)
    else:
        axis.imshow(picture, **options)


def _as_label(word: str) -> str:
    """A word, cut where it is long, as matplotlib shows it letter by letter."""
    short = f"{word[: LONGEST - 1]}…" if len(word) > LONGEST else word
    return short.encode(errors="replace").decode().replace("$", r"\$")


def grid(
    pictures: UInt8[np.ndarray, "r k h w c"],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Callable[[Path], None]:
    """Draws R rows of K pictures, with words to the left of rows and above columns."""

    def draw(path: Path) -> None:
        r, k, height, width, _ = pictures.shape
        zoom = max(1, 64 // height)
        tiled = images.tile(pictures.reshape(-1, *pictures.shape[2:]), k)
        tiled = tiled.repeat(zoom, axis=0).repeat(zoom, axis=1)
        canvas = blank(figsize=(CELL * k + 1.0, CELL * r * height / width + 0.4))
        axis = canvas.subplots()
        show_picture(axis, tiled)
        for words, set_ticks, side in (
            (rows, axis.set_yticks, height),
            (columns, axis.set_xticks, width),
        ):
            centres = [zoom * ((i + 0.5) * (side + 1) - 0.5) for i in range(len(words))]
            set_ticks(centres, [_as_label(word) for word in words])
        axis.xaxis.tick_top()
        axis.tick_params(length=0, labelsize=8)
        for side in axis.spines.values():
            side.set_visible(False)
        canvas.savefig(path, dpi=DPI)

    return draw
