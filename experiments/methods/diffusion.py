"""Denoising diffusion (Ho et al. 2020) as a method: what the config's choices mean together."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion import likelihood, losses, random, thresholds, walk
from diffusion.guidance import classifier_free
from diffusion.networks import NETWORKS
from diffusion.networks.network import Network
from diffusion.probability_flow import make_flow
from diffusion.reverse import make_denoise
from diffusion.structs import Path, Times
from diffusion.times import TIMES
from diffusion.vae import normal_log_density
from experiments.data.dataset import Dataset
from experiments.lookup import choose, lookup, naming_field
from experiments.methods.condition import Condition, condition_of
from experiments.methods.end_of_chain import ENOUGH_NOISE, largest_prior_term, noisier
from experiments.methods.method import (
    DTYPES,
    Chain,
    Encoder,
    Keys,
    Method,
    Sampling,
    count_parameters,
    dtype_of,
)
from experiments.methods.sampler_model import model_for
from experiments.methods.walks import respaced, walks_of

# Of a config, what this method heeds and not every other.
HEEDS = (
    *("schedule", "path", "parameterization", "variance", "loss", "timesteps", "text"),
    *("sample.sampler", "sample.num_steps", "sample.spacing", "sample.threshold"),
    *("sample.guidance_scale", "sample.guidance_interval", "train.preview_num_steps"),
    *("evaluate.clip_denoised", "evaluate.decoder", "evaluate.num_draws", "evaluate.num_strata"),
    *("evaluate.timesteps_per_call", "evaluate.timesteps_at_once", "evaluate.chain_points"),
    *("evaluate.ode_dequantization", "evaluate.ode_tolerance", "evaluate.ode_probes"),
    *("evaluate.ode_max_steps", "figures.resamplings"),
)
# Of a network, from here.
SUPPLIED = ("out_channels", "dtype", "num_classes", "text", "parent", "name")


class Examples(NamedTuple):
    """A batch with the noise that its loss is taken at."""

    x_0: jax.Array  # f32[B, ...]
    t: jax.Array  # i32[B], or the u of a path, f32[B]
    eps: jax.Array  # f32[B, ...]
    weight: jax.Array  # f32[B], of each example's loss in the mean
    labels: jax.Array  # i32[B, ...]


def _network(
    config: ConfigDict, condition: Condition, shape: tuple[int, ...], outputs: int
) -> Network:
    """The network of config.model, for `outputs` values a channel of what is modelled."""
    dtype = choose(DTYPES, dtype_of(config), "model.dtype")
    spec, beside = config.model.to_dict(), ("class_conditional", "dtype")
    network = lookup(NETWORKS, spec, "model", SUPPLIED, beside)(
        out_channels=shape[-1] * outputs,
        dtype=dtype,
        num_classes=condition.num_classes or None,
        text=condition.text,
    )
    with naming_field("model"):
        network.check(shape)
    return network


def _loss(config: ConfigDict) -> Callable[..., jax.Array]:
    """The loss of config.loss, its weighting and space bound."""
    spec = config.loss.to_dict()
    found: Callable[..., jax.Array] = lookup(losses.LOSSES, spec, "loss")
    if "weighting" in spec:
        weighting = lookup(losses.WEIGHTINGS, spec["weighting"], "loss.weighting")
        found = functools.partial(found, weighting=weighting)
    if "space" in spec:
        space = lookup(losses.SPACES, spec["space"], "loss.space")
        found = functools.partial(found, space=space)
    return found


def _knows_nothing(network: Network, condition: Condition) -> bool:
    """Whether the network was trained without its condition too."""
    dropout = network.label_dropout if condition.text is None else condition.text.dropout
    return dropout > 0


def _guided(
    config: ConfigDict,
    network: Network,
    condition: Condition,
    apply: Callable[..., jax.Array],
    channels: int,
    path: Path | None,
) -> Callable[..., jax.Array]:
    """`apply` under the guidance of config.sample, for sampling.

    Raises:
        ValueError: for guidance of a network that was not trained with and without its condition,
            and an interval that is none.
    """
    scale, interval = config.sample.guidance_scale, tuple(config.sample.guidance_interval)
    if scale == 1.0:
        return apply
    if not _knows_nothing(network, condition):
        raise ValueError(
            f"config.sample.guidance_scale = {scale:g} needs a network that was trained with and "
            "without labels or captions (config.model.class_conditional = True and label_dropout "
            "above 0, or config.text with dropout above 0). Choose 1, no guidance, for this one."
        )
    if len(interval) not in (0, 2) or list(interval) != sorted(interval):
        raise ValueError(
            f"config.sample.guidance_interval = {interval} must be (first, last), timesteps, or u "
            "of a path, at which it guides, or () for all of them."
        )
    within = (interval[0], interval[1]) if interval else None
    if within and path is not None:
        with jax.ensure_compile_time_eval():
            first, last = (float(path.told(jnp.asarray(u, jnp.float32))) for u in within)
        within = (first, last)
    return classifier_free(apply, condition.without, float(scale), within, channels=channels)


def _decoder(config: ConfigDict, dataset: Dataset, encoder: Encoder, name: str) -> Any:
    """-L_0 (DDPM Eq. 13): of levels for pixels; of latents, which have none, a density."""
    if encoder.latents is not None:
        return normal_log_density
    decoder = choose(likelihood.DECODERS, name, "evaluate.decoder")
    return functools.partial(decoder, num_levels=dataset.num_levels)


def _check_latents(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Refuses what is meant for pixels in [-1, 1], and latents that are no image.

    Raises:
        ValueError: naming the field.
    """
    if len(shape) != 3:
        raise ValueError(
            f"config.encoder gives latents of shape {shape}, a vector, and the networks of "
            "diffusion take images: train a `conv_vae` for it."
        )
    for field in ("sample.threshold.name", "evaluate.clip_denoised"):
        value = functools.reduce(lambda section, name: section[name], field.split("."), config)
        neutral = "none" if field == "sample.threshold.name" else False
        if value != neutral:
            raise ValueError(
                f"config.{field} = {value!r} keeps estimates within [-1, 1], where latents do not "
                f"stay: set it to {neutral!r}."
            )


def _chain(config: ConfigDict, dataset: Dataset, encoder: Encoder, condition: Condition) -> Chain:
    """The network of the config on its process, to be walked as config.sample says."""
    walks = walks_of(config, encoder)
    process = walks.process
    network = _network(config, condition, encoder.shape, 1 + process.variance.extra_channels)

    def apply(params: Any, x_t: jax.Array, t: jax.Array, **condition: Any) -> Any:
        return network.apply({"params": params}, x_t, t, **condition)

    threshold = thresholds.clip if config.evaluate.clip_denoised else thresholds.none
    guided = _guided(config, network, condition, apply, encoder.shape[-1], process.path)
    chain = Chain(
        process=process,
        network=network,
        apply=apply,
        guided=guided,
        condition=condition.inputs,
        threshold=threshold,
        denoise=make_denoise(apply, process, threshold=threshold),
        decoder=_decoder(config, dataset, encoder, config.evaluate.decoder),
        levels=walks.whole,
        sampler=walks.sampler,
        flags=walks.flags,
        spacing=walks.spacing,
        deviation=1.0 if process.path is None else process.path.deviation,
        respaced=respaced(guided, walks),
    )
    if walks.flags.continuous:
        with naming_field("sample.sampler"):
            make_flow(guided, process)
    train = config.train
    previews = train.preview_every or (train.validate_every and train.validate_with == "samples")
    with naming_field("sample.num_steps"):
        chain.respaced(config.sample.num_steps)
    if previews:
        with naming_field("train.preview_num_steps"):
            chain.respaced(train.preview_num_steps)
    return chain


def _summary(chain: Chain, examples: Examples, details: jax.Array) -> dict[str, Any]:
    """The loss in each quarter of the chain, over the examples whose t was drawn there.

    Of a path, in each quarter of its log SNR, for many draws of u some of them empty.
    Not weighted: where t is drawn by importance, they are of the drawn t.
    """
    t, total = examples.t, chain.levels.num_steps
    if chain.process.path is not None:
        t = jnp.searchsorted(jnp.asarray(chain.levels.time[2:], jnp.float32), t)
    quarter = t * 4 // total
    sums = jax.ops.segment_sum(details, quarter, 4)
    return {"loss_q": (sums, jax.ops.segment_sum(jnp.ones_like(details), quarter, 4))}


def _description(config: ConfigDict, chain: Chain, init: Callable[..., Any]) -> tuple[str, ...]:
    """The model and its process, with a warning where that is cut short."""
    count, levels = count_parameters(init), chain.levels
    prior = largest_prior_term(levels, chain.deviation)
    snr = np.exp(2.0 * levels.log_ratio[[1, -1]])
    ends = f"L_T <= {prior:.3g} bits/dim, SNR {snr[0]:.3g} to {snr[1]:.3g}"
    predicts = f"predicts {config.parameterization.name}, variance {config.variance.name}"
    lines = [
        f"model     {config.model.name}, {count:,} parameters, {predicts}, loss {config.loss.name}"
    ]
    if (path := chain.process.path) is not None:
        lines.append(
            f"path      {config.path.name}, u from {path.start:.3g} to {path.end:g}, {ends}; "
            f"{levels.num_steps} levels of it for the bound"
        )
        better = ["another end of the path (" + ", ".join(config.path) + ")"]
    else:
        lines.append(
            f"chain     {config.schedule.name}, T = {levels.num_steps}, "
            f"alpha_bar_T = {np.asarray(chain.process.schedule.alpha_bar)[-1]:.3g}, {ends}"
        )
        better = noisier(config.schedule.to_dict()) if prior > ENOUGH_NOISE else []
    if prior > ENOUGH_NOISE:
        lines.append(
            f"WARNING   this {lines[1].split()[0]} does not end in noise: L_T is up to "
            f"{prior:.3g} bits/dim and should be near 0. Samples start from N(0, "
            f"{chain.deviation:g}² I), which training then never sees. Choose {' or '.join(better)}"
        )
    return tuple(lines)


def _protocol(config: ConfigDict, chain: Chain) -> dict[str, Any]:
    """What samples depend on, but for parameters, seed, labels and number of steps."""
    guidance = {"scale": config.sample.guidance_scale}
    if config.sample.guidance_interval:
        guidance["interval"] = list(config.sample.guidance_interval)
    return {
        "sampler": config.sample.sampler.to_dict(),
        "spacing": chain.spacing,
        "last_step": "x_0",  # where all samplers here end: at no noise, not at the first timestep's
        "threshold": config.sample.threshold.to_dict(),
        "guidance": guidance,
        "variance": config.variance.name if chain.flags.uses_variance else "not used",
    }


def diffusion(config: ConfigDict, dataset: Dataset, encoder: Encoder, /) -> Method:
    """The method that config.schedule, parameterization, variance, loss and model describe.

    Raises:
        ValueError: for an unknown name, a stale keyword, an impossible size, or a combination of
            choices that has no meaning.
    """
    condition = condition_of(config, dataset)
    if encoder.latents is not None:
        _check_latents(config, encoder.shape)
    chain = _chain(config, dataset, encoder, condition)
    process, network = chain.process, chain.network
    with naming_field("timesteps"):
        times: Times = lookup(TIMES, config.timesteps, "timesteps")(process)
    # The original's decoder in training, whichever one evaluation asks for.
    decoder = _decoder(config, dataset, encoder, "tanh")
    loss_fn = losses.make_loss_fn(chain.apply, process, _loss(config), decoder)

    @jax.jit  # within devices.jit, or for shapes: traced once, however often it is asked
    def init(key: jax.Array) -> Any:
        example = jnp.zeros((1, *encoder.shape))
        labels = jnp.zeros((1, *condition.shape), jnp.int32)
        inputs = condition.inputs(labels) if condition.tokenizer else {}
        return network.init(key, example, jnp.zeros(1, jnp.int32), **inputs)["params"]

    def draw(memory: Any, x_0: jax.Array, labels: jax.Array, keys: Keys) -> Examples:
        t, weight = times.sample(memory, keys("timestep"))
        return Examples(x_0, t, random.normal(keys("noise"), 0, x_0.shape[1:]), weight, labels)

    def weighted(params: Any, examples: Examples, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_0, t, eps, weight, labels = examples
        inputs = chain.condition(labels)
        with naming_field("loss"):  # where it does not go with the variance
            found = loss_fn(params, x_0, t, eps, train=True, rngs={"dropout": key}, **inputs)
        return weight * found, found

    def sampling(steps: int, record: tuple[int, ...]) -> Sampling:
        _, denoise, levels = chain.respaced(steps)
        sampler = chain.sampler(levels)
        model = model_for(sampler, chain, denoise)

        def advance(
            params: Any, keys: jax.Array, labels: jax.Array, state: walk.Walk, t: jax.Array
        ) -> walk.Walk:
            bound = model(params, labels)
            return walk.walk(sampler, bound, keys, state, timesteps=t, record=record)

        def begin(params: Any, keys: jax.Array, labels: jax.Array) -> walk.Walk:
            return walk.begin(sampler, keys, encoder.shape, len(record), chain.deviation)

        return Sampling(sampler.num_steps, begin, advance, walk.end)

    return Method(
        init=init,
        memory=times.init,
        draw=draw,
        losses=weighted,
        remember=lambda memory, examples, found: times.update(memory, examples.t, found),
        summary=functools.partial(_summary, chain),
        sampling=sampling,
        num_steps=chain.levels.num_steps,
        num_classes=condition.num_classes,
        null_class=_knows_nothing(network, condition),
        protocol={**_protocol(config, chain), **encoder.protocol},
        description=_description(config, chain, init),
        chain=chain,
        tokenizer=condition.tokenizer,
    )
