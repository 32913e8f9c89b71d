"""The variational autoencoder (Kingma and Welling 2014) as a method: config.method, likelihood
and model.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion import random
from diffusion.networks import AUTOENCODERS
from diffusion.structs import Gaussian, Likelihood
from diffusion.vae import LIKELIHOODS, Terms, elbo_terms
from experiments.data.dataset import Dataset
from experiments.lookup import choose, lookup, naming_field
from experiments.methods.method import (
    DTYPES,
    VAE,
    Encoder,
    Keys,
    Method,
    at_once,
    count_parameters,
    dtype_of,
)

HEEDS = ("likelihood", "evaluate.num_importance")  # of a config, and not every other method
SUPPLIED = ("out_channels", "dtype", "parent", "name")  # of a network, from here


class Examples(NamedTuple):
    """A batch with the draws behind z."""

    x: jax.Array  # f32[B, H, W, C]
    eps: jax.Array  # f32[B, *latent_shape]
    kl_weight: jax.Array  # f32[B]


def _check(config: ConfigDict, encoder: Encoder) -> None:
    """Refuses latents, which have an autoencoder already."""
    if encoder.latents is not None:
        raise ValueError(
            f"config.encoder = {config.encoder.name!r} is for the method `diffusion`: a VAE is "
            "trained on pixels. Choose the encoder `pixels`."
        )


def make_vae(
    config: ConfigDict, image_shape: tuple[int, int, int], num_levels: int
) -> tuple[VAE, Any]:
    """The autoencoder of config.model and config.likelihood, and its network.

    Raises:
        ValueError: for an unknown name, a stale keyword or an impossible size.
    """
    likelihood: Likelihood = lookup(LIKELIHOODS, config.likelihood, "likelihood")(num_levels)
    dtype = choose(DTYPES, dtype_of(config), "model.dtype")
    network = lookup(AUTOENCODERS, config.model.to_dict(), "model", SUPPLIED, ("dtype",))(
        out_channels=image_shape[-1] * likelihood.outputs, dtype=dtype
    )
    with naming_field("model"):
        network.check(image_shape)

    def encode(params: Any, x: jax.Array, **how: Any) -> Gaussian:
        found: Gaussian = network.apply({"params": params}, x, method="encode", **how)
        return found

    def decode(params: Any, z: jax.Array, **how: Any) -> jax.Array:
        output: jax.Array = network.apply(
            {"params": params}, z, image_shape, method="decode", **how
        )
        return output

    return VAE(network.latent_shape(image_shape), encode, decode, likelihood), network


def initial(network: Any, image_shape: tuple[int, ...], key: jax.Array) -> Any:
    """The network's parameters before training."""
    return network.init(key, jnp.zeros((1, *image_shape)))["params"]


def vae(
    config: ConfigDict,
    dataset: Dataset,
    encoder: Encoder,
    /,
    kl_weight: float = 1.0,
    kl_warmup_steps: int = 0,
) -> Method:
    """-ELBO with its divergence weighed: (reconstruction + kl_weight * KL) / values of an image.

    Args:
        kl_weight: 1 is the bound; beta of the beta-VAE (Higgins et al. 2017).
        kl_warmup_steps: over which the weight grows to that, evenly from 0 (Bowman et al. 2016).

    Raises:
        ValueError: for an unknown name, a stale keyword, an impossible size, and for latents.
    """
    _check(config, encoder)
    model, network = make_vae(config, dataset.image_shape, dataset.num_levels)
    values = float(math.prod(dataset.image_shape))

    @jax.jit  # within devices.jit, or for shapes: traced once, however often it is asked
    def init(key: jax.Array) -> Any:
        return initial(network, dataset.image_shape, key)

    def draw(steps_done: jax.Array, x: jax.Array, labels: jax.Array, keys: Keys) -> Examples:
        eps = random.normal(keys("latent"), 0, model.latent_shape)
        risen = jnp.minimum(1.0, (steps_done + 1.0) / max(kl_warmup_steps, 1))
        return Examples(x, eps, jnp.broadcast_to(kl_weight * risen, x.shape[:1]))

    def losses(params: Any, examples: Examples, key: jax.Array) -> tuple[jax.Array, Terms]:
        to_latent, to_pixels = jax.random.split(key)
        q = model.encode(params, examples.x, train=True, rngs={"dropout": to_latent})

        def decode(z: jax.Array) -> jax.Array:
            return model.decode(params, z, train=True, rngs={"dropout": to_pixels})

        found = elbo_terms(model.likelihood, decode, examples.x, q, examples.eps)
        terms = Terms(*(term / values for term in found))
        return terms.reconstruction + examples.kl_weight * terms.kl, terms

    def sample(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        z = random.normal(keys, 0, model.latent_shape)
        return model.likelihood.mean(model.decode(params, z))

    def summary(examples: Examples, terms: Terms) -> dict[str, tuple[jax.Array, jax.Array]]:
        count = jnp.asarray(len(examples.x), jnp.float32)
        return {name: (jnp.sum(term), count) for name, term in terms._asdict().items()}

    latent = "x".join(map(str, model.latent_shape))
    return Method(
        init=init,
        memory=lambda: jnp.zeros((), jnp.int32),
        draw=draw,
        losses=losses,
        remember=lambda steps_done, examples, terms: steps_done + 1,
        summary=summary,
        sampling=at_once(sample),
        num_steps=1,
        num_classes=0,
        null_class=False,
        protocol={"sampler": {"name": "mean_of_decoder"}},
        description=(
            f"model     {config.model.name}, {count_parameters(init):,} parameters, latents "
            f"{latent}, p(x | z) {config.likelihood.name}, KL weight {kl_weight:g}",
        ),
        vae=model,
    )
