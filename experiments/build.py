"""From a config to code. The only file that turns names into functions."""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from diffusion import likelihood, losses, samplers, schedules
from diffusion.networks import NETWORKS
from diffusion.networks.network import Network
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.reverse import Denoise, check_signal, make_denoise
from diffusion.structs import Process, Sampler, Schedule, TimestepSampler
from diffusion.variances import VARIANCES
from experiments.configs import ranges
from experiments.data.dataset import Dataset
from experiments.data.datasets import DATASETS
from experiments.lookup import choose, lookup, naming_field
from experiments.optimizers import CLIPS, OPTIMIZERS, GradientFn

SUPPLIED = ("out_channels", "dtype", "num_classes", "parent", "name")  # of a network, by `build`
DTYPES = MappingProxyType({"float32": jnp.float32, "bfloat16": jnp.bfloat16})


class Experiment(NamedTuple):
    """Everything that a config means. Building one allocates no parameters and reads no data."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    network: Network
    model: Process
    loss_fn: Callable[..., jax.Array]  # (params, x_0, t, eps, **inputs) -> f32[B]
    timesteps: TimestepSampler
    optimizer: optax.GradientTransformation
    gradients: GradientFn
    denoise: Denoise  # the reverse process on the full chain, for likelihoods
    untrained_denoise: Denoise  # the same for a network that returns zeros, as it does at first
    decoder: likelihood.Decoder
    sampler: Sampler
    sampling_chain: Callable[[int], tuple[Schedule, Denoise]]  # num_steps (0: all) -> chain to walk

    def init_params(self, key: jax.Array) -> Any:
        """Parameters of the network, float32, drawn from `key`."""
        image = jnp.zeros((1, *self.dataset.image_shape))
        return self.network.init(key, image, jnp.zeros(1, jnp.int32))["params"]

    def labels(self, labels: jax.Array) -> dict[str, jax.Array]:
        """The network's inputs beside x_t and t: labels where it is class-conditional."""
        return {} if self.network.num_classes is None else {"labels": labels}


def _network(config: ml_collections.ConfigDict, dataset: Dataset, extra_channels: int) -> Network:
    spec = config.model.to_dict()
    dtype = choose(DTYPES, spec.pop("dtype"), "model.dtype")
    conditional = spec.pop("class_conditional")
    if conditional and dataset.num_classes is None:
        raise ValueError(
            f"config.model.class_conditional is True, but {dataset.name!r} has no labels. "
            "Set it to False, or choose a data set with classes."
        )
    network = lookup(NETWORKS, spec, "model", SUPPLIED)(
        out_channels=dataset.image_shape[-1] * (1 + extra_channels),
        dtype=dtype,
        num_classes=dataset.num_classes if conditional else None,
    )
    with naming_field("model"):
        network.check(dataset.image_shape)
    return network


def _loss(config: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
    spec = config.loss.to_dict()
    if "weighting" in spec:
        spec["weighting"] = lookup(losses.WEIGHTINGS, spec["weighting"], "loss.weighting")
    return lookup(losses.LOSSES, spec, "loss")


def build(config: ml_collections.ConfigDict) -> Experiment:
    """The experiment that `config` describes.

    Raises:
        ValueError: for a value out of its range, an unknown name, a stale keyword, an impossible
            size, or a combination of choices that has no meaning; before anything is compiled.
    """
    ranges.check(config)
    dataset = lookup(DATASETS, config.data, "data")()
    with naming_field("schedule"):
        betas = lookup(schedules.BETAS, config.schedule, "schedule")()
        schedule = schedules.from_betas(betas)
    parameterization = lookup(PARAMETERIZATIONS, config.parameterization, "parameterization")
    variance = lookup(VARIANCES, config.variance, "variance")
    with naming_field("schedule"):
        check_signal(schedule, parameterization)
    model = Process(schedule, parameterization, variance)
    network = _network(config, dataset, variance.extra_channels)

    def apply(params: Any, x_t: jax.Array, t: jax.Array, **inputs: Any) -> Any:
        return network.apply({"params": params}, x_t, t, **inputs)

    def untrained(params: Any, x_t: jax.Array, t: jax.Array, **inputs: Any) -> jax.Array:
        return jnp.zeros((*x_t.shape[:-1], network.out_channels))

    def sampling_chain(num_steps: int) -> tuple[Schedule, Denoise]:
        keep = schedules.evenly_spaced(len(betas), num_steps or len(betas))
        if len(keep) < len(betas) and (parameterization.predicts_mean or variance.one_step):
            raise ValueError(
                f"{num_steps} steps instead of {len(betas)} are not possible here: this network "
                "was taught the mean (mu) or the variance (learned) of single steps, which longer "
                "steps do not have. Choose 0 (every timestep)."
            )
        chain = schedules.respace(betas, keep)
        clip = config.sample.clip_denoised
        return chain, make_denoise(apply, chain, parameterization, variance, clip=clip)

    clip = config.evaluate.clip_denoised
    decoder = choose(likelihood.DECODERS, config.evaluate.decoder, "evaluate.decoder")
    # The original's decoder in training, whichever one evaluation asks for.
    trained_decoder = functools.partial(likelihood.tanh_decoder, num_levels=dataset.num_levels)
    experiment = Experiment(
        config=config,
        dataset=dataset,
        network=network,
        model=model,
        loss_fn=losses.make_loss_fn(apply, model, _loss(config), trained_decoder),
        timesteps=lookup(losses.TIMESTEP_SAMPLERS, config.timesteps, "timesteps")(
            schedule.num_timesteps
        ),
        optimizer=lookup(OPTIMIZERS, config.optimizer, "optimizer")(),
        gradients=lookup(CLIPS, config.clip, "clip")(),
        denoise=make_denoise(apply, *model, clip=clip),
        untrained_denoise=make_denoise(untrained, *model, clip=clip),
        decoder=functools.partial(decoder, num_levels=dataset.num_levels),
        sampler=lookup(samplers.SAMPLERS, config.sample.sampler, "sample.sampler")(),
        sampling_chain=sampling_chain,
    )
    with naming_field("sample.num_steps"):
        sampling_chain(config.sample.num_steps)
    with naming_field("train.preview_num_steps"):
        sampling_chain(config.train.preview_num_steps)
    jax.eval_shape(lambda: _one_loss(experiment))  # refuses combinations that have no meaning
    return experiment


def _one_loss(experiment: Experiment) -> jax.Array:
    """The loss of one image of zeros, to be traced only."""
    x_0 = jnp.zeros((1, *experiment.dataset.image_shape))
    t, labels = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
    params = experiment.init_params(jax.random.key(0))
    return experiment.loss_fn(params, x_0, t, x_0, **experiment.labels(labels))
