"""The bound of a VAE over a data set, what importance sampling makes of it, and what z is used for.

Also the bound of a diffusion model on the latents of a VAE, which is of the two together.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import random
from diffusion.vae import (
    LOG_TWO_PI,
    elbo_terms,
    importance_weighted,
    log_importance_weight,
    sum_per_example,
)
from experiments import images
from experiments.experiment import Experiment
from experiments.methods.method import VAE, Latents, chain_of, vae_of
from experiments.metrics import bound
from experiments.metrics.bound import BIT, standard_error
from experiments.metrics.by_image import compiled, measure_images
from experiments.metrics.metric import Context, Result, image_protocol, line, number, which_images

ACTIVE = 0.01  # variance of the mean of q(z | x) over images, above which z_i is used
COLUMNS = ("reconstruction", "kl", "elbo", "iwae", "mean", "squared_error")


def _discrete(vae: VAE, metric: str, name: str) -> None:
    """Refuses bits per dimension of what is no probability of levels; raises ValueError."""
    if not vae.likelihood.discrete:
        raise ValueError(
            f"config.evaluate.metrics: {metric} is in bits per dimension of the data's levels, and "
            f"p(x | z) = {name!r} is a density or a cross entropy, not their probability. Train "
            "with a discretized likelihood, or leave the metric out."
        )


def check(experiment: Experiment) -> None:
    """Refuses a method that is no VAE, and one whose likelihood is none of levels.

    Raises:
        ValueError: naming the field.
    """
    vae = vae_of(experiment.method, "The metric elbo")
    _discrete(vae, "elbo", experiment.config.likelihood.name)


def check_latent(experiment: Experiment) -> None:
    """Refuses a model that is not of latents, and a VAE whose likelihood is none of levels.

    Raises:
        ValueError: naming the field.
    """
    chain_of(experiment.method, "The metric latent_bound")
    _discrete(_latents(experiment).vae, "latent_bound", "of config.encoder")


def _latents(experiment: Experiment) -> Latents:
    if experiment.encoder.latents is None:
        raise ValueError(
            "config.evaluate.metrics: latent_bound is of a model of latents (config.encoder), and "
            "this one is of pixels: choose bpd."
        )
    return experiment.encoder.latents


def evidence_lower_bound(context: Context) -> Result:
    """-ELBO in bits per dimension, term by term, -log p(x) by importance sampling, active units.

    K = config.evaluate.num_importance draws of z an image: their mean is the ELBO, the logarithm of
    their mean weight the bound of Burda et al. (2016), which is nearer to log p(x). A coordinate of
    z is active where the variance over images of its mean exceeds 0.01 (their section 5.2). PSNR is
    of what is decoded from the mean of q(z | x), in decibels.
    """
    experiment, count = context.experiment, context.experiment.config.evaluate.num_importance
    vae, levels = vae_of(experiment.method, "The metric elbo"), experiment.dataset.num_levels

    def terms(params: Any, batch: dict[str, jax.Array], indices: jax.Array) -> tuple[Any, ...]:
        x = images.to_model(batch["image"], levels)
        q = vae.encode(params, x)
        keys = random.per_index(random.stream(experiment.config.seed, "elbo"), indices)

        def decode(z: jax.Array) -> jax.Array:
            return vae.decode(params, z)

        def draw(carry: None, k: jax.Array) -> tuple[None, Any]:
            eps = random.normal(keys, k, vae.latent_shape)
            found = elbo_terms(vae.likelihood, decode, x, q, eps)
            weight = log_importance_weight(vae.likelihood, decode, x, q, eps)
            return carry, (*found, weight)

        _, (reconstruction, kl, weights) = jax.lax.scan(draw, None, jnp.arange(count))
        rebuilt = jnp.clip(vae.likelihood.mean(decode(q.mean)), -1.0, 1.0)
        error = jnp.square(rebuilt - x).reshape(len(x), -1).mean(1)
        elbo = reconstruction + kl
        shares = (reconstruction.mean(0), kl.mean(0), elbo.mean(0), -importance_weighted(weights))
        return (*shares, q.mean.reshape(len(x), -1), error)

    protocol = image_protocol(context) | {
        "quantity": "evidence lower bound of a VAE",
        "likelihood": experiment.config.likelihood.to_dict(),
        "num_importance": count,
    }
    folder = context.folder("elbo", protocol)
    function = compiled(context, terms)
    found = measure_images(context, function, COLUMNS, folder, "ELBO")
    table = {name: value.astype(np.float64) for name, value in zip(COLUMNS, found, strict=True)}
    bits = 1.0 / (BIT * np.prod(experiment.dataset.image_shape))
    means = table["mean"]
    psnr = -10.0 * np.log10(np.maximum(table["squared_error"], 1e-12) / 4.0)
    variances = means.var(axis=0, ddof=1) if len(means) > 1 else np.zeros(means.shape[1])
    values = {
        "bits_per_dim": number((table["elbo"] * bits).mean(), standard_error(table["elbo"] * bits)),
        "iwae_bits_per_dim": number(
            (table["iwae"] * bits).mean(), standard_error(table["iwae"] * bits)
        ),
        "reconstruction": number((table["reconstruction"] * bits).mean()),
        "kl": number((table["kl"] * bits).mean()),
        "nats_per_image": number(table["elbo"].mean(), standard_error(table["elbo"])),
        "active_units": number((variances > ACTIVE).sum(), of=int(means.shape[1])),
        "psnr": number(psnr.mean(), standard_error(psnr)),
    }
    split = " + ".join(
        f"{word} {values[name]['value']:.3f}"
        for word, name in (("reconstruction", "reconstruction"), ("KL", "kl"))
    )
    lines = [
        f"bits/dim  of {which_images(context)}, +- standard error over images",
        line("this model (ELBO)", values["bits_per_dim"], f"  = {split}"),
        line(f"importance, K = {count}", values["iwae_bits_per_dim"]),
        f"  {values['active_units']['value']:.0f} of {means.shape[1]} coordinates of z active",
        line("PSNR in dB", values["psnr"]),
    ]
    return Result(values, protocol, (), lines, (folder,))


def latent_bound(context: Context) -> Result:
    """A bound on -log p(x) of VAE and diffusion together, in bits per dimension of the image.

        E_q(z | x) [-log p(x | z) + log q(z | x)] + E_q(z | x) [the variational bound of -log p(z)]

    The last term is DDPM's Eq. 5 with a density for L_0 (`variances.of_density`). It is the bound
    of a model of images, of which the VAE was trained first and for itself; what it says of the
    diffusion model alone is `latents`.
    """
    experiment, config = context.experiment, context.experiment.config.evaluate
    latents, encoder = _latents(experiment), experiment.encoder
    vae = latents.vae

    def first_stage(params: Any, batch: dict[str, jax.Array], indices: jax.Array) -> tuple:
        keys = random.per_index(random.stream(experiment.config.seed, "encoder"), indices)
        x = images.to_model(batch["image"], experiment.dataset.num_levels)
        z = encoder.draw(encoder.keep(batch["image"]), keys) / latents.scale + latents.shift
        log_prob = vae.likelihood.log_prob(x, vae.decode(latents.params, z))
        # The entropy of q(z | x), as of the shifted and scaled latents that the chain models.
        log_variance = vae.encode(latents.params, x).log_variance + 2.0 * jnp.log(latents.scale)
        entropy = sum_per_example(0.5 * (1.0 + LOG_TWO_PI + log_variance))
        return -sum_per_example(log_prob), entropy

    chain = chain_of(experiment.method, "The metric latent_bound")
    protocol = image_protocol(context) | {
        "quantity": "bound of a VAE and a diffusion model of its latents",
        "num_draws": config.num_draws,
        **encoder.protocol,
    }
    if not chain.process.variance.extra_channels:
        protocol["first_variance"] = "beta_0"  # of L_0, once that of the discretised decoder
    folder = context.folder("latent_bound", protocol)
    function = compiled(context, first_stage)
    columns = ("reconstruction", "entropy")
    found = measure_images(context, function, columns, folder / "vae", "VAE")
    reconstruction, entropy = (value.astype(np.float64) for value in found)
    table = bound.evaluate_bound(
        *(experiment, chain.denoise, context.params, context.source),
        *(context.num_images, context.mesh, folder / "chain"),
    )
    bits = 1.0 / (BIT * np.prod(experiment.dataset.image_shape))
    share = np.prod(encoder.shape) / np.prod(experiment.dataset.image_shape)
    of_latents = table.total * share
    total = of_latents + (reconstruction - entropy) * bits
    values = {
        "bits_per_dim": number(total.mean(), standard_error(total)),
        "reconstruction": number((reconstruction * bits).mean()),
        "latents": number((of_latents - entropy * bits).mean()),
    }
    lines = [
        f"bits/dim  of {which_images(context)}, +- standard error over images",
        line("VAE and diffusion", values["bits_per_dim"], "  (bound of both together)"),
        f"  = reconstruction {values['reconstruction']['value']:.3f} + latents "
        f"{values['latents']['value']:.3f}",
    ]
    return Result(values, protocol, (), lines, (folder,))
