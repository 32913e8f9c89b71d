"""A trained model in Python: arrays in, arrays out.

    import experiments

    model = experiments.load("runs/digits")
    images = model.sample(16, seed=0)

Everything that a program of this package computes, this computes the same: sample i of a seed is
the same image as in `--mode=sample`.
"""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion import random, thresholds
from diffusion.reverse import make_denoise
from diffusion.structs import Schedule
from experiments import devices, images
from experiments.arguments import (
    Image,
    Latent,
    captions_asked,
    images_of,
    in_own_words,
    labels_of,
    latents_of,
    real,
    refuse_ignored,
    whole,
)
from experiments.build import build
from experiments.command_line import spelled_out
from experiments.configs import ranges, saved
from experiments.data.dataset import InMemory
from experiments.drawing import (
    compile_sampling,
    draw,
    requested_labels,
)
from experiments.editing import make_ddim, make_inpaint
from experiments.experiment import Experiment
from experiments.files.atomic import read_json
from experiments.methods.method import chain_of
from experiments.metrics import bound
from experiments.state import load_ema
from experiments.weights.importer import read_weights
from experiments.workdir.checkpoint import NAME
from experiments.workdir.origin import NOTHING, Loaded, Origin


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
        self._sampling: dict[Any, Any] = {}

    def __repr__(self) -> str:
        name, shape = self.experiment.dataset.name, self.experiment.dataset.image_shape
        return f"Model({self.experiment.config.method.name} of {name} {shape}, step {self.step:,})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data set's classes by number; () where they have none."""
        return self.experiment.dataset.classes

    @property
    def schedule(self) -> Schedule:
        """The tables of the chain or of a path's levels, f32[T]; raises ValueError without them."""
        return chain_of(self.experiment.method, "schedule").process.schedule

    def sample(
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        steps: int = 0,
        sampler: str | Mapping[str, Any] | None = None,
        labels: str | int | Sequence[str | int] | np.ndarray = "all",
        prompts: str | Sequence[str] = (),
        guidance: float | None = None,
    ) -> Image:
        """`n` images, uint8[n, H, W, C]; image i is a function of (seed, i) and its label.

        Args:
            n: how many; left out, one for each of the prompts.
            seed: of all noise, 0 to 2^32 - 1.
            steps: of sampling; 0 is the method's own number, every timestep of a chain.
            sampler: a name, "name(option=value)" or {"name": ..., options}; None is the config's.
            labels: of a class-conditional model: "all" in turn, "none", a class by number or name
                (`classes`), or several, of which image i gets number i mod their count.
            prompts: of a model that is told captions: what to draw, a text or several, of which
                image i gets number i mod their count; "@test" the captions of a split; none is
                without a caption.
            guidance: scale of classifier-free guidance: 1 none, 0 as without labels; None is the
                config's.

        Raises:
            ValueError: for a number, sampler, label or prompt that cannot be.
        """
        captions = captions_asked(self.experiment, prompts)
        asked = len(captions) if isinstance(prompts, str) or len(prompts) else 0
        if n is None and not asked:
            raise ValueError("n is missing: say how many images, or name prompts.")
        count = whole(asked if n is None else n, "n", 1)
        seed = whole(seed, "seed", 0, 2**32 - 1)
        if not isinstance(labels, str):
            each = labels if isinstance(labels, list | tuple) else np.atleast_1d(labels)
            labels = [one if isinstance(one, str) else whole(one, "a label", 0) for one in each]
        with in_own_words():
            wanted = requested_labels(labels, self.experiment.method, self.classes)
        wanted = captions if len(captions) else wanted
        compiled = self._compiled(steps, sampler, guidance)
        batch = min(count, self.experiment.config.sample.batch_size)
        drawn = draw(
            lambda params, indices: compiled(params, indices, np.uint32(seed), wanted),
            self.params,
            0,
            count,
            devices.round_up(batch, self._mesh),
            self._mesh,
        )
        drawn.warn()
        return drawn.samples

    def _compiled(self, steps: int, *choice: Any) -> Any:
        """Made once for each sampler, guidance and number of steps, whatever seed and labels."""
        experiment = self._sampled_by(steps, *choice)
        key = experiment.config.sample.to_json_best_effort()
        if key not in self._sampling:
            self._sampling[key] = compile_sampling(experiment, self._mesh, num_steps=steps)
        return self._sampling[key]

    def _sampled_by(
        self, steps: int, sampler: str | Mapping[str, Any] | None, guidance: float | None = None
    ) -> Experiment:
        """The model with these choices in place of its config's."""
        config = self.experiment.config.copy_and_resolve_references()
        method = self.experiment.method
        endless = method.chain is not None and method.chain.process.path is not None
        most = ranges.TIMESTEPS if endless else method.num_steps
        config.sample.num_steps = whole(steps, "steps", 0, most)
        if guidance is not None:
            config.sample.guidance_scale = real(guidance, "guidance")
        if sampler is not None:
            named = isinstance(sampler, str) or (isinstance(sampler, Mapping) and "name" in sampler)
            if not named:
                raise ValueError(
                    f"sampler = {sampler!r} must be a name, or a dict of a name and options."
                )
            spec = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
            config.sample.sampler = ConfigDict(spec)
            if isinstance(sampler, str):
                with in_own_words():
                    spelled_out(config)
        same = config.sample.to_json_best_effort() == (
            self.experiment.config.sample.to_json_best_effort()
        )
        with in_own_words():
            return self.experiment if same else build(config)

    def inpaint(
        self,
        pictures: Image,
        mask: np.ndarray,
        seed: int = 0,
        *,
        steps: int = 0,
        sampler: str | Mapping[str, Any] | None = "ancestral",
        labels: Sequence[int] | None = None,
        jump_length: int = 10,
        resamplings: int = 10,
    ) -> Image:
        """Images that are `pictures` where the mask is 1, exactly, and fit it elsewhere (RePaint).

        Args:
            pictures: uint8[n, H, W, C]; what they hold where the mask is 0 does not matter.
            mask: of zeros and ones, or booleans: [H, W] for all, or [n, H, W].
            seed: image i is a function of (seed, i) and what is known of it.
            steps, sampler: as for `sample`; a sampler without memory of its steps.
            labels: one each, for a class-conditional model.
            jump_length, resamplings: each stretch of so many steps is walked so often.

        Raises:
            ValueError: for another shape, a mask of other numbers, a sampler that remembers its
                steps, and for a method without a chain or that does not model pixels.
        """
        known, count = self.encode(pictures), len(pictures)
        if known.shape[1:] != self.experiment.dataset.image_shape:
            raise ValueError(
                "inpaint needs a model of pixels: what is hidden must be what it draws."
            )
        hidden = np.asarray(mask, np.float32)
        height, width = known.shape[1:3]
        right = hidden.shape in ((height, width), (count, height, width))
        if not right or not np.isin(hidden, (0.0, 1.0)).all():
            raise ValueError(
                f"mask must be [{height}, {width}] or [{count}, {height}, {width}] of zeros and "
                f"ones, 1 where the image is known, not {np.asarray(mask).dtype}"
                f"{list(np.shape(mask))} of {np.unique(hidden)[:4].tolist()}."
            )
        masks = np.broadcast_to(hidden.reshape(-1, height, width, 1), known.shape)
        experiment = self._sampled_by(steps, sampler)
        chain, jumps = chain_of(experiment.method, "inpaint"), (jump_length, resamplings)
        key = ("inpaint", experiment.config.sample.to_json_best_effort(), *jumps)
        if key not in self._sampling:
            self._sampling[key] = make_inpaint(
                *(experiment, chain.sampler, steps),
                jump_length=whole(jump_length, "jump_length", 1),
                resamplings=whole(resamplings, "resamplings", 1),
            )
        stream = random.stream(whole(seed, "seed", 0, 2**32 - 1), "inpaint")
        keys, wanted = (
            random.per_index(stream, jnp.arange(count)),
            labels_of(self.experiment, labels, count),
        )
        return self.decode(self._sampling[key](self.params, known, masks, wanted, keys))

    def encode_noise(
        self, pictures: Image, *, steps: int = 0, labels: Sequence[int] | None = None
    ) -> Latent:
        """x_T of images, f32[n, ...], by DDIM's steps taken backwards; `decode_noise` returns them.

        Args:
            pictures: uint8[n, H, W, C].
            steps: of the respaced chain; 0 is every timestep. More give a smaller error.
            labels: one each, for a class-conditional model.

        Raises:
            ValueError: as `sample`, and for a method without a chain.
        """
        x_0, wanted = self.encode(pictures), labels_of(self.experiment, labels, len(pictures))
        return np.asarray(self._ddim(steps)[0](self.params, x_0, wanted))

    def decode_noise(
        self, x_T: Latent, *, steps: int = 0, labels: Sequence[int] | None = None
    ) -> Image:
        """The images that DDIM, deterministic, makes of x_T; arguments as for `encode_noise`."""
        x = latents_of(self.experiment, x_T, "x_T")
        return self.decode(
            self._ddim(steps)[1](self.params, x, labels_of(self.experiment, labels, len(x)))
        )

    def _ddim(self, steps: int) -> Any:
        """Made once for each number of steps."""
        key = ("ddim", steps)
        if key not in self._sampling:
            self._sampling[key] = make_ddim(self._sampled_by(steps, "ddim"), steps)
        return self._sampling[key]

    def denoise(
        self, x_t: Latent, t: int | Sequence[int], labels: Sequence[int] | None = None
    ) -> Latent:
        """The estimate of x_0 from x_t, f32 of x_t's shape, not clipped to what an image may be.

        Args:
            x_t: f32[n, ...] as `encode` gives it, with the noise of timestep t.
            t: one for all, or one each; 0-based, below the chain's T: a row of `schedule`.
            labels: one each, for a class-conditional model.

        Raises:
            ValueError: for another shape, a timestep or label that cannot be, and for a method
                without a chain.
        """
        x = latents_of(self.experiment, x_t, "x_t")
        last = self.schedule.num_timesteps - 1
        times = np.atleast_1d([t] if isinstance(t, bool | str) or t is None else np.asarray(t))
        if times.ndim != 1 or len(times) not in (1, len(x)):
            raise ValueError(f"t must be one timestep, or {len(x)} of them, one each.")
        times = np.array([whole(value, "t", 0, last) for value in times.tolist()], np.int32)
        wanted = labels_of(self.experiment, labels, len(x))
        times = np.broadcast_to(times, (len(x),))
        return np.asarray(self._denoise_fn(self.params, x, times, wanted))

    @functools.cached_property
    def _denoise_fn(self) -> Any:
        chain = chain_of(self.experiment.method, "denoise")
        unclipped = make_denoise(chain.apply, chain.process, threshold=thresholds.none)

        def denoise(params: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
            return unclipped(params, x, t, **chain.condition(labels)).x_0

        return devices.jit(denoise, precision=devices.REPORTED)

    def encode(self, pictures: Image) -> Latent:
        """What the method models of images: f32[n, ...]; for pixels, the images in [-1, 1].

        Raises:
            ValueError: for anything but uint8 of the data set's image shape.
        """
        encoder = self.experiment.encoder
        return np.asarray(encoder.encode(jnp.asarray(images_of(self.experiment, pictures))))

    def decode(self, x: Latent) -> Image:
        """Images uint8[n, H, W, C] of what the method models, clipped and rounded to the levels.

        Raises:
            ValueError: for another shape.
        """
        decoded = self.experiment.encoder.decode(jnp.asarray(latents_of(self.experiment, x, "x")))
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
        chain, pictures = (
            chain_of(self.experiment.method, "bits_per_dim"),
            images_of(self.experiment, pictures),
        )
        bound.check_pixels(self.experiment, "bits_per_dim")
        source = InMemory(pictures, labels_of(self.experiment, labels, len(pictures)))
        config = self.experiment.config.copy_and_resolve_references()
        size = devices.round_up(min(len(pictures), config.evaluate.batch_size), self._mesh)
        config.evaluate.batch_size = size
        experiment = self.experiment._replace(config=config)
        arguments = (experiment, chain.denoise, self.params, source, len(pictures), self._mesh)
        with tempfile.TemporaryDirectory() as folder:
            return bound.evaluate_bound(*arguments, Path(folder), quiet=True).total


def load(
    where: str | Path,
    *,
    checkpoint: str | None = None,
    config: ConfigDict | None = None,
    weights: str | None = None,
    encoder: str | Path | None = None,
) -> Model:
    """The model of a working directory, or of weights that `experiments.convert` reads.

    Args:
        where: a working directory; or a folder of diffusers, a file of weights, hf:NAME.
        checkpoint: of a working directory, "latest" or "best"; None is what its config says.
        config: of weights, what they do not say, as from experiments.configs.cifar10.get_config().
        encoder: of a working directory whose model is of a VAE's latents and keeps no copy of it,
            as older ones: where that VAE is, if it was moved since.
        weights: of weights in two sets, "ema" or "raw"; None is the average.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for a damaged config, and weights that do not fit or do not say what they are.
        CheckpointError: where there is no checkpoint yet, or it cannot be read.
    """
    if checkpoint not in (None, "latest", "best"):
        raise ValueError(f"checkpoint = {checkpoint!r} must be 'latest', 'best' or None.")
    mesh, path = devices.make_mesh(), Path(where).expanduser()
    if not str(where).startswith("hf:"):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: name the --workdir of a training, or a folder of weights."
            )
        if path.is_dir() and not any(path.iterdir()):
            raise FileNotFoundError(f"{path} is empty: no training has left anything there yet.")
    if _is_workdir(path):
        run = saved.get_config(str(path))
        run.checkpoint = checkpoint or run.checkpoint
        refuse_ignored("a working directory has its own", config=config, weights=weights)
        if "workdir" in run.encoder:
            run.encoder.workdir = run.encoder.workdir if encoder is None else str(encoder)
        else:
            refuse_ignored("is of a model of latents, and this one is of pixels", encoder=encoder)
        experiment = build(run)
        return Model(experiment, load_ema(experiment, path, mesh), mesh)
    refuse_ignored("is of a working directory", checkpoint=checkpoint, encoder=encoder)
    found = read_weights(str(where), config, weights=weights)
    params = jax.device_put(found.ema, devices.replicated(mesh))
    loaded = Loaded(found.step, params, Origin(found.facts["weights"], NOTHING))
    return Model(found.experiment, loaded, mesh)


def _is_workdir(path: Path) -> bool:
    file = path / "config.json"
    return (path / NAME).exists() or (
        file.is_file() and not {"parameterization", "likelihood"}.isdisjoint(read_json(file))
    )
