"""A trained model in Python: arrays in, arrays out.

    import experiments

    model = experiments.load("runs/digits")
    images = model.sample(16, seed=0)

Everything that a program of this package computes, this computes the same: sample i of a seed is
the same image as in `--mode=sample`.
"""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from diffusion.reverse import make_denoise
from experiments import devices, images
from experiments.build import Experiment, build
from experiments.configs import saved
from experiments.data.dataset import InMemory
from experiments.files.atomic import read_json
from experiments.methods.method import chain_of
from experiments.metrics import bound
from experiments.sample import SampleFn, draw, make_sample_fn
from experiments.state import load_ema
from experiments.weights.importer import import_weights
from experiments.workdir.checkpoint import Loaded

Image = UInt8[np.ndarray, "n h w c"]
Latent = Float[np.ndarray, "n ..."]


class Model:
    """A trained model with its EMA parameters on the devices that are there.

    experiment: what its config means.
    step: training steps behind the parameters.
    params: a pytree, float32.
    """

    def __init__(self, experiment: Experiment, loaded: Loaded, mesh: jax.sharding.Mesh) -> None:
        self.experiment = experiment
        self.step, self.params, self.origin = loaded
        self._mesh = mesh
        self._sample_fns: dict[str, SampleFn] = {}

    def __repr__(self) -> str:
        name, shape = self.experiment.dataset.name, self.experiment.dataset.image_shape
        return f"Model({self.experiment.config.method.name} of {name} {shape}, step {self.step:,})"

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        steps: int = 0,
        sampler: str | dict[str, Any] | None = None,
        labels: str | int | Sequence[int] = "all",
    ) -> Image:
        """`n` images, uint8[n, H, W, C]; image i is a function of (seed, i) and its label.

        Args:
            n: how many.
            seed: of all noise.
            steps: of sampling; 0 is the method's own number, every timestep of a chain.
            sampler: a name, or {"name": ..., options}; None is the config's.
            labels: as config.sample.labels, or numbers; what there are of them is used in turn.

        Raises:
            ValueError: for a number, sampler or label that cannot be.
        """
        count = _whole(n, "n", 1)
        if isinstance(labels, Sequence) and not isinstance(labels, str):
            labels = ",".join(str(_whole(label, "a label", 0)) for label in labels)
        config = self.experiment.config.copy_and_resolve_references()
        config.seed = _whole(seed, "seed", 0)
        config.sample.num_steps, config.sample.labels = _whole(steps, "steps", 0), str(labels)
        if sampler is not None:
            spec = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
            config.sample.sampler = ConfigDict(spec)
        sample_fn = self._sample_fn(config)
        batch = devices.round_up(min(count, config.sample.batch_size), self._mesh)
        drawn = draw(sample_fn, self.params, 0, count, batch, self._mesh)
        drawn.warn()
        return drawn.samples

    def _sample_fn(self, config: ConfigDict) -> SampleFn:
        """Compiled once for each way to sample."""
        key = config.to_json_best_effort()
        if key not in self._sample_fns:
            fn = make_sample_fn(build(config), self._mesh, num_steps=config.sample.num_steps)
            self._sample_fns[key] = fn
        return self._sample_fns[key]

    def denoise(
        self, x_t: Latent, t: int | Sequence[int], labels: Sequence[int] | None = None
    ) -> Latent:
        """The estimate of x_0 from x_t, f32 of x_t's shape, not clipped to what an image may be.

        Args:
            x_t: f32[n, ...] as `encode` gives it, with the noise of timestep t.
            t: one for all, or one each; 0-based, below the chain's T.
            labels: one each, for a class-conditional model.

        Raises:
            ValueError: for another shape, a timestep or label that cannot be, and for a method
                without a chain.
        """
        chain = chain_of(self.experiment.method, "denoise")
        x = self._latents(x_t, "x_t")
        times = np.broadcast_to(np.asarray(t, np.int64), (len(x),))
        last = chain.process.schedule.num_timesteps - 1
        if times.min() < 0 or times.max() > last:
            raise ValueError(f"t = {t} must be 0 to {last}, the timesteps of this chain.")
        wanted = self._labels(labels, len(x))
        return np.asarray(self._denoise_fn(self.params, x, times.astype(np.int32), wanted))

    @functools.cached_property
    def _denoise_fn(self) -> Any:
        chain = chain_of(self.experiment.method, "denoise")
        unclipped = make_denoise(chain.apply, chain.process, clip=False)

        def denoise(params: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
            return unclipped(params, x, t, **chain.condition(labels)).x_0

        return devices.jit(denoise, precision=devices.REPORTED)

    def encode(self, pictures: Image) -> Latent:
        """What the method models of images: f32[n, ...]; for pixels, the images in [-1, 1].

        Raises:
            ValueError: for anything but uint8 of the data set's image shape.
        """
        encoder = self.experiment.encoder
        return np.asarray(encoder.encode(jnp.asarray(self._images(pictures))))

    def decode(self, x: Latent) -> Image:
        """Images uint8[n, H, W, C] of what the method models, clipped and rounded to the levels.

        Raises:
            ValueError: for another shape.
        """
        decoded = self.experiment.encoder.decode(jnp.asarray(self._latents(x, "x")))
        levels = self.experiment.dataset.num_levels
        return np.asarray(images.to_uint8(decoded, levels))

    def bits_per_dim(
        self, pictures: Image, labels: Sequence[int] | None = None
    ) -> Float[np.ndarray, " n"]:
        """The variational bound of each image in bits per dimension, f64[n] (DDPM Eq. 5).

        All T terms, under the decoder and the clipping of config.evaluate.

        Raises:
            ValueError: for images of another shape or dtype, and for a method without a chain.
        """
        chain, pictures = chain_of(self.experiment.method, "bits_per_dim"), self._images(pictures)
        source = InMemory(pictures, self._labels(labels, len(pictures)))
        config = self.experiment.config.copy_and_resolve_references()
        size = devices.round_up(min(len(pictures), config.evaluate.batch_size), self._mesh)
        config.evaluate.batch_size = size
        experiment = self.experiment._replace(config=config)
        arguments = (experiment, chain.denoise, self.params, source, len(pictures), self._mesh)
        with tempfile.TemporaryDirectory() as folder:
            return bound.evaluate_bound(*arguments, Path(folder)).total

    def _images(self, pictures: Any) -> Image:
        shape, found = self.experiment.dataset.image_shape, np.asarray(pictures)
        if found.dtype != np.uint8 or found.shape[1:] != shape or not len(found):
            raise ValueError(
                f"images must be uint8[n, {', '.join(map(str, shape))}], with n at least 1, not "
                f"{found.dtype}{list(found.shape)}."
            )
        return found

    def _latents(self, x: Any, name: str) -> Latent:
        shape, found = self.experiment.encoder.shape, np.asarray(x, np.float32)
        if found.shape[1:] != shape or not len(found):
            raise ValueError(
                f"{name} must be float32[n, {', '.join(map(str, shape))}], with n at least 1, not "
                f"{list(found.shape)}."
            )
        return found

    def _labels(self, labels: Sequence[int] | None, count: int) -> Int[np.ndarray, " n"]:
        method = self.experiment.method
        if labels is None:
            if method.num_classes and not method.null_class:
                raise ValueError(
                    f"this model is class-conditional: give one label an image, from 0 to "
                    f"{method.num_classes - 1}."
                )
            return np.full(count, method.num_classes, np.int32)
        found = np.asarray(labels)
        most = method.num_classes - 1 + method.null_class
        whole = np.issubdtype(found.dtype, np.integer) and found.shape == (count,)
        if not whole or found.min() < 0 or found.max() > most:
            raise ValueError(
                f"labels = {labels!r} must be {count} whole numbers from 0 to {most}."
                if method.num_classes
                else "labels are for class-conditional models, and this is none."
            )
        return found.astype(np.int32)


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} = {value!r} must be a whole number of at least {least}.")
    return int(value)


def load(where: str | Path, *, checkpoint: str | None = None) -> Model:
    """The model of a working directory, or of weights that `experiments.convert` reads.

    Args:
        where: a working directory, a folder of diffusers, or a file of weights.
        checkpoint: of a working directory, "latest" or "best"; None is what its config says.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for a damaged config, and weights that do not fit or do not say what they are.
        CheckpointError: where there is no checkpoint yet, or it cannot be read.
    """
    path = Path(where).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: name the --workdir of a training, or a folder of weights."
        )
    if not _is_workdir(path):
        with tempfile.TemporaryDirectory() as folder:
            import_weights(str(path), Path(folder) / "run", None, None)
            return _from_workdir(Path(folder) / "run", checkpoint)
    return _from_workdir(path, checkpoint)


def _is_workdir(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or "parameterization" in (
        read_json(path / "config.json") if (path / "config.json").is_file() else {}
    )


def _from_workdir(workdir: Path, checkpoint: str | None) -> Model:
    config = saved.get_config(str(workdir))
    config.checkpoint = checkpoint or config.checkpoint
    experiment, mesh = build(config), devices.make_mesh()
    return Model(experiment, load_ema(experiment, workdir, mesh), mesh)
