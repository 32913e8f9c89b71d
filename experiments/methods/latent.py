"""Diffusion in the latent space of a trained VAE (Rombach et al. 2022): the encoder of a config.

A model of the latents is any model of images, on x_0 = (z - shift) * scale with z ~ q(z | x), whose
coordinates have mean 0 and variance 1 over the data; what it draws is decoded.
"""

import contextlib
import functools
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion import random
from diffusion.structs import Gaussian
from diffusion.vae import reparameterize
from experiments import console, devices, images
from experiments.data.dataset import Dataset, Encoded, Source, Subset, fingerprint, gather
from experiments.files.atomic import digest, read_json, write_json
from experiments.methods.method import VAE, Encoder, Latents, pixels
from experiments.methods.vae import initial, make_vae
from experiments.workdir.autoencoder import copied, copy_of, write_facts
from experiments.workdir.checkpoint import NAME, CheckpointError, Checkpoints, crc32s
from experiments.workdir.config import read_config, write_config

MEASURED = "latents.json"  # in the working directory of a VAE: its latents over a data set
# Configs of VAEs by the data that they are of.
VAES = MappingProxyType(
    {
        ("digits", (8, 8, 1)): "vae_digits",
        ("fashion_mnist", (28, 28, 1)): "vae_fashion",
        ("emoji", (32, 32, 3)): "vae_emoji",
    }
)
MOST = 10_000  # images that they are measured on
BATCH = 100
OF_THE_COPY = ("layout", "checksums")  # what a checkpoint says of its own arrays


class Trained(NamedTuple):
    """A VAE as a step in its working directory has it."""

    vae: VAE
    params: Any  # averaged, on the devices
    identity: str  # hash of the parameters
    config: ConfigDict
    meta: dict[str, Any]  # of the checkpoint


def read_vae(workdir: str, dataset: Dataset, checkpoint: int = 0, identity: str = "") -> Trained:
    """Averaged parameters of the VAE in `workdir`, for images of `dataset`.

    Args:
        checkpoint: a step; 0 is the newest, or the newest that has the identity.
        identity: of a VAE that a model was made with; "" is of none yet.

    Raises:
        ValueError: where there is none, saying how one is trained if there never was one, for one
            of other images, and for one of another identity.
        CheckpointError: where there is no such checkpoint, or it cannot be read.
    """
    folder = Path(workdir).expanduser()
    _check_there(folder, workdir, dataset, identity)
    config = read_config(folder)
    if config.method.name != "vae":
        raise ValueError(
            f"config.encoder.workdir = {workdir!r} holds a model of the method "
            f"{config.method.name!r}, and the encoder must be one of the method 'vae'."
        )
    if config.data.name != dataset.name:
        raise ValueError(
            f"config.encoder.workdir = {workdir!r} holds a VAE of {config.data.name!r}, and "
            f"config.data.name is {dataset.name!r}: they must be the same."
        )
    with Checkpoints(folder) as checkpoints:
        steps = checkpoints.steps()[::-1]
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint yet: wait for the first one.")
    if checkpoint and checkpoint not in steps:
        raise CheckpointError(
            f"config.encoder.checkpoint = {checkpoint}, and {folder} has {steps[::-1]}. Choose one "
            "of them, or 0 for the newest; config.train.keep_every keeps some for good."
        )
    changed = (folder / NAME).stat().st_mtime
    found = [checkpoint] if checkpoint else steps if identity else steps[:1]
    others = []
    for step in found:
        trained = _read(folder, step, changed, dataset.image_shape, dataset.num_levels)
        if identity in ("", trained.identity):
            return trained
        others.append(trained.identity)
    raise ValueError(
        f"config.encoder.identity = {identity!r} is of the VAE that this model was made with, and "
        f"config.encoder.workdir = {workdir!r} holds {', '.join(others)}. Name the folder that "
        "holds that one (--config.encoder.workdir=...), or train anew in another --workdir."
    )


def _check_there(folder: Path, workdir: str, dataset: Dataset, identity: str) -> None:
    """Refuses a folder without a training, with what to do."""
    if (folder / "config.json").is_file() and (folder / NAME).exists():
        return
    none = f"config.encoder.workdir = {workdir!r} holds no trained VAE"
    if identity:
        raise ValueError(
            f"{none}, and this model was made with one, {identity}, of which it has no copy. Name "
            "the folder that holds that one now (--config.encoder.workdir=...): a VAE that is "
            "trained anew is another."
        )
    if (folder / "config.json").is_file() or (folder / NAME).exists():
        missing = NAME if (folder / "config.json").is_file() else "config.json"
        raise CheckpointError(
            f"{none} that is whole: {folder / missing} is not there. Wait for the first checkpoint "
            "where one is being trained, or put back what was taken away."
        )
    example = VAES.get((dataset.name, dataset.image_shape))
    how = "as experiments/configs/vae_digits.py does of other data."
    if example is not None:
        how = (
            f"such as python -m experiments.main --config=experiments/configs/{example}.py "
            f"--workdir={shlex.quote(workdir)}"
        )
    raise ValueError(f"{none}: name the working directory of one. Train one first, {how}")


@functools.lru_cache(maxsize=4)
def _read(
    folder: Path, step: int, changed: object, image_shape: tuple[int, int, int], num_levels: int
) -> Trained:
    """A checkpoint in `folder`, read once for each time that the folder changed."""
    config = read_config(folder)
    with Checkpoints(folder) as checkpoints:
        meta = checkpoints.meta(step)
        shape = tuple(meta["image_shape"])
        if shape != image_shape:
            raise ValueError(
                f"config.encoder.workdir = {str(folder)!r} holds a VAE of images {shape}, and "
                f"config.data describes {image_shape}."
            )
        model, network = make_vae(config, image_shape, num_levels)
        abstract = devices.abstract_like(
            lambda: initial(network, image_shape, jax.random.key(0)),
            devices.replicated(devices.make_mesh()),
        )
        params = checkpoints.restore(step, "ema", abstract)
    return Trained(model, params, digest(crc32s(params)), config, meta)


def keep(encoder: ConfigDict, dataset: Dataset, workdir: Path) -> None:
    """Copies the VAE of a run's latents into its working directory, where it is not there yet.

    From then on the run needs the VAE's own folder no more. Nothing is copied into a run that was
    made with another VAE, nor where nothing can be written.

    Args:
        encoder: the section of the config, filled.
        dataset: of the run.
        workdir: of the run.
    """
    if encoder.name != "vae" or (workdir.exists() and not os.access(workdir, os.W_OK)):
        return
    known, folder = copied(workdir), copy_of(workdir)
    with contextlib.suppress(FileNotFoundError):
        before = read_config(workdir).encoder.get("identity")
        if (workdir / NAME).exists() and before != encoder.identity:
            return
    if known is not None and known["identity"] == encoder.identity:
        return
    trained = read_vae(encoder.workdir, dataset, encoder.get("checkpoint", 0), encoder.identity)
    if devices.is_main_process():
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was cut short, or another VAE
        write_config(folder, trained.config)
    devices.all_agree(True)  # none looks before that is done
    step = trained.meta["step"]
    meta = {name: fact for name, fact in trained.meta.items() if name not in OF_THE_COPY}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, {"step": jnp.int32(step)}, trained.params, meta)
    if devices.is_main_process():
        write_facts(workdir, encoder.to_dict())
        console.log(f"kept      the autoencoder, step {step:,} of {encoder.workdir}: {folder}")


def moments(trained: Trained, num_levels: int) -> Callable[[Any], jax.Array]:
    """uint8[B, H, W, C] -> f32[B, ..., 2k], means and log-variances of q(z | x)."""

    def encode(image: jax.Array) -> jax.Array:
        q = trained.vae.encode(trained.params, images.to_model(image, num_levels))
        return jnp.concatenate([q.mean, q.log_variance], axis=-1)

    return encode


def kept(encode: Callable[[Any], jax.Array], source: Source) -> np.ndarray:
    """f32[N, ...]: what training needs of the images of a source, a batch at a time."""
    compiled = devices.jit(encode, precision=devices.REPORTED)
    parts = []
    for first in console.track(range(0, len(source), BATCH), "latents"):
        found = gather(source, range(first, min(first + BATCH, len(source))))["image"]
        padded = np.resize(found, (BATCH, *found.shape[1:]))
        parts.append(np.asarray(compiled(padded))[: len(found)])
    return np.concatenate(parts)


def measure(workdir: str, dataset: Dataset, checkpoint: int = 0) -> dict[str, Any]:
    """Identity of a VAE, and shift and scale of its latents over the train split.

    Every coordinate of a latent vector, or channel of a latent image, has its own. They are kept in
    the VAE's folder, so that a training that goes on finds the same.

    Raises:
        ValueError, CheckpointError: as `read_vae`.
        FileNotFoundError: where the data set is missing.
    """
    trained, source = read_vae(workdir, dataset, checkpoint), dataset.open("train")
    of = {"identity": trained.identity, "fingerprint": fingerprint(dataset.name, source)}
    path = Path(workdir).expanduser() / MEASURED
    if path.is_file():
        known = read_json(path)
        if known.get("of") == of:
            return known["found"]
    console.log(f"latents   measuring those of {workdir}")
    places = np.unique(np.linspace(0, len(source) - 1, min(len(source), MOST)).astype(int))
    found = kept(moments(trained, dataset.num_levels), Subset(source, places)).astype(np.float64)
    mean, log_variance = np.split(found, 2, axis=-1)
    axes = tuple(range(mean.ndim - 1))
    shift = mean.mean(axes)
    deviation = np.sqrt((np.square(mean - shift) + np.exp(log_variance)).mean(axes))
    result = {
        "identity": trained.identity,
        "shift": [float(f"{value:.6g}") for value in shift],
        "scale": [float(f"{value:.6g}") for value in 1.0 / deviation],
    }
    if devices.is_main_process() and os.access(path.parent, os.W_OK):
        write_json(path, {"of": of, "found": result, "images": len(places)})
    return result


def fill(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config with identity, shift and scale of its encoder, where it names a VAE without.

    Raises:
        ValueError, CheckpointError, FileNotFoundError: as `measure`.
    """
    if config.encoder.name != "vae" or config.encoder.get("identity"):
        return config
    config = config.copy_and_resolve_references()
    found = measure(config.encoder.workdir, dataset, config.encoder.get("checkpoint", 0))
    with config.unlocked():
        for name, value in found.items():
            config.encoder[name] = tuple(value) if isinstance(value, list) else value
    return config


def latents(
    dataset: Dataset,
    /,
    workdir: str,
    checkpoint: int = 0,
    identity: str = "",
    shift: Sequence[float] = (),
    scale: Sequence[float] = (),
) -> Encoder:
    """The latents of a trained VAE, shifted and scaled.

    Args:
        workdir: of the VAE's training.
        checkpoint: its step; 0 is the newest, or once the identity is known the one that has it.
        identity: hash of its parameters, which `fill` finds; "" is before that, and leaves latents
            as they are.
        shift, scale: of the latents' last axis, likewise.

    Raises:
        ValueError, CheckpointError: as `read_vae`.
    """
    trained = read_vae(workdir, dataset, checkpoint, identity)
    channels = trained.vae.latent_shape[-1]
    if not identity:
        shift, scale = (0.0,) * channels, (1.0,) * channels
    for name, values in (("shift", shift), ("scale", scale)):
        if len(values) != channels:
            raise ValueError(
                f"config.encoder.{name} = {tuple(values)} must have {channels} values, one for "
                "each channel of the latents; identity = '' has them measured."
            )
    model, params = trained.vae, trained.params
    minus, times = jnp.asarray(shift, jnp.float32), jnp.asarray(scale, jnp.float32)
    encode = moments(trained, dataset.num_levels)

    def read(found: jax.Array) -> Gaussian:
        mean, log_variance = jnp.split(found, 2, axis=-1)
        return Gaussian((mean - minus) * times, log_variance + 2.0 * jnp.log(times))

    def draw(found: jax.Array, keys: jax.Array) -> jax.Array:
        return reparameterize(read(found), random.normal(keys, 0, model.latent_shape))

    return Encoder(
        shape=model.latent_shape,
        keep=encode,
        draw=draw,
        encode=lambda image: read(encode(image)).mean,
        decode=lambda x: model.likelihood.mean(model.decode(params, x / times + minus)),
        in_memory=lambda source: Encoded(kept(encode, source), source.labels),
        protocol={"encoder": {"name": "vae", "identity": identity}},
        latents=Latents(model, params, minus, times),
    )


# name -> (dataset, **options) -> Encoder
ENCODERS: MappingProxyType[str, Any] = MappingProxyType({"pixels": pixels, "vae": latents})
