"""The variational bound over a data set: exact term by term, or estimated from some of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion import likelihood, random
from diffusion.reverse import Denoise
from experiments import console, devices
from experiments.data.dataset import Source
from experiments.experiment import Experiment
from experiments.methods.method import chain_of
from experiments.metrics import plots
from experiments.metrics.by_image import padded_batches
from experiments.metrics.metric import Context, Result, image_protocol, line, number, which_images
from experiments.metrics.parts import Parts

BIT = float(np.log(2.0))
TermsFn = Callable[..., tuple[jax.Array, likelihood.Terms]]


class BoundTable(NamedTuple):
    """The bound of every image and of every timestep, float64; bits per dimension.

    `draws` holds the mean over images of the total under each draw of the noise; everything else is
    the mean over the draws.
    """

    prior: np.ndarray  # [N], L_T
    divergence: np.ndarray  # [N], the sum of L_1 .. L_{T-1}
    decoder: np.ndarray  # [N], L_0
    terms: np.ndarray  # [T], means over images
    x_0_mse: np.ndarray  # [T], mean over images of the squared error of the estimate of x_0
    x_0_rmse: np.ndarray  # [T], mean over images of each image's root
    draws: np.ndarray  # [D]

    @property
    def total(self) -> np.ndarray:
        """[N], bits per dimension."""
        return self.prior + self.divergence + self.decoder

    @property
    def rate(self) -> np.ndarray:
        """[T], bits per dimension that have been sent when the receiver holds x_t (DDPM Alg. 4).

        L_T and the terms of all later timesteps; at t = 0 it is the total without L_0.
        """
        later = np.cumsum(self.terms[::-1])[::-1]
        return self.prior.mean() + np.concatenate([later[1:], [0.0]])


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of independent values; None for a single one."""
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None


def make_terms_fn(experiment: Experiment, mesh: Mesh, denoise: Denoise) -> TermsFn:
    """(params, batch, indices i32[B], timesteps i32[S, B], draw) -> (prior f32[B], Terms).

    In nats per dimension; compiled, B over devices. Image i's noise at t is a function of (seed,
    draw, i, t).
    """
    config, chain = experiment.config, chain_of(experiment.method, "The bound")
    schedule, decoder = chain.process.schedule, chain.decoder

    def terms(
        params: Any, batch: dict[str, jax.Array], indices: jax.Array, t: jax.Array, draw: jax.Array
    ) -> tuple[jax.Array, likelihood.Terms]:
        key = jax.random.fold_in(random.stream(config.seed, "evaluate"), draw)
        labels, repeats = batch["label"], config.evaluate.timesteps_at_once
        inputs = chain.condition(jnp.tile(labels, (repeats, *[1] * (labels.ndim - 1))))
        encoder = experiment.encoder
        own = random.stream(config.seed, "encoder")
        if config.evaluate.num_draws > 1:
            own = jax.random.fold_in(own, draw)
        x_0 = encoder.draw(encoder.keep(batch["image"]), random.per_index(own, indices))
        result = likelihood.bound_terms(
            schedule,
            lambda x_t, t: denoise(params, x_t, t, **inputs),
            x_0,
            random.per_index(key, indices),
            t,
            at_once=config.evaluate.timesteps_at_once,
            decoder=decoder,
        )
        return likelihood.prior_term(schedule, x_0, chain.deviation), result

    everywhere, first, second = (
        devices.replicated(mesh),
        devices.sharded(mesh),
        devices.sharded(mesh, axis=1),
    )
    return devices.jit(
        terms,
        precision=devices.REPORTED,
        in_shardings=(everywhere, first, first, second, everywhere),
        out_shardings=everywhere,
    )


def _chunks(num_timesteps: int, per_call: int, at_once: int) -> list[tuple[np.ndarray, int]]:
    """Rows of timesteps of one length, each with how many of its rows count."""
    size = -(-min(per_call, num_timesteps) // at_once) * at_once
    result = []
    for first in range(0, num_timesteps, size):
        t = np.arange(first, first + size)
        result.append((np.minimum(t, num_timesteps - 1), int((t < num_timesteps).sum())))
    return result


def _add(total: dict[str, Any], part: dict[str, np.ndarray], t: np.ndarray, draws: int) -> None:
    """Puts one chunk of one batch (nats, mse f32[S, n]) into the sums over images and timesteps."""
    nats, mse = part["nats"].astype(np.float64) / BIT, part["mse"].astype(np.float64)
    total["terms"][t] += nats.sum(axis=1) / draws
    total["x_0_mse"][t] += mse.sum(axis=1) / draws
    total["x_0_rmse"][t] += np.sqrt(mse).sum(axis=1) / draws


def evaluate_bound(
    experiment: Experiment,
    denoise: Denoise,
    params: Any,
    source: Source,
    num_images: int,
    mesh: Mesh,
    folder: Path,
    quiet: bool = False,
) -> BoundTable:
    """All T terms for the first `num_images` of `source`, resumed from the parts in `folder`.

    T evaluations of the network for each image and draw of the noise; memory for one batch. The
    parts stay, for the caller to remove when the result is kept. `quiet` shows no progress.
    """
    config = experiment.config.evaluate
    num_timesteps = experiment.method.num_steps
    batch_size = devices.round_up(config.batch_size, mesh)
    chunks = _chunks(num_timesteps, config.timesteps_per_call, config.timesteps_at_once)
    batches = list(padded_batches(source, num_images, batch_size))
    work = [
        (f"draw{draw}_images{first}+{count}_t{t[0]}+{rows}", draw, (first, count, read), t, rows)
        for draw in range(config.num_draws)
        for first, count, read in batches
        for t, rows in chunks
    ]
    parts = Parts(folder, [name for name, *_ in work])
    terms_fn = make_terms_fn(experiment, mesh, denoise)
    sums: dict[str, Any] = {
        name: np.zeros(num_timesteps) for name in ("terms", "x_0_mse", "x_0_rmse")
    }
    prior, divergence, decoder = np.zeros((3, num_images))
    totals = np.zeros((config.num_draws, num_images))
    arguments: tuple[int, Any] = (-1, None)  # the batch that lies on the devices
    for name, draw, (first, count, read), t, rows in (
        work if quiet else console.track(work, "bits/dim")
    ):
        if name in parts:
            part = parts.read(name)
        else:
            if arguments[0] != first:
                indices = np.arange(first, first + batch_size, dtype=np.int32)
                arguments = first, devices.put_global((read(), indices), devices.sharded(mesh))
            timesteps = devices.put_global(
                t[:, None].repeat(batch_size, 1).astype(np.int32), devices.sharded(mesh, axis=1)
            )
            found = terms_fn(params, *arguments[1], timesteps, np.int32(draw))
            prior_nats, found = devices.fetch(found)
            part = {
                "prior": prior_nats[:count],
                "nats": found.nats[:rows, :count],
                "mse": found.x_0_mse[:rows, :count],
            }
            parts.write(name, part)
        chosen, bits = slice(first, first + count), part["nats"].astype(np.float64) / BIT
        _add(sums, part, t[:rows], config.num_draws)
        start = int(t[0] == 0)
        if start:  # every chunk of a draw tells L_T
            own = part["prior"].astype(np.float64) / BIT
            prior[chosen] += own / config.num_draws
            totals[draw, chosen] += own
        divergence[chosen] += bits[start:].sum(axis=0) / config.num_draws
        decoder[chosen] += bits[:start].sum(axis=0) / config.num_draws
        totals[draw, chosen] += bits.sum(axis=0)
    means = {name: values / num_images for name, values in sums.items()}
    return BoundTable(prior, divergence, decoder, **means, draws=totals.mean(1))


def make_estimate(
    experiment: Experiment, source: Source, num_images: int, mesh: Mesh, quiet: bool = False
) -> Callable[[Any], np.ndarray]:
    """params -> an unbiased estimate of each image's bound, bits per dimension f64[N].

    The decoder's term, the prior's, and one term out of each of config.evaluate.num_strata parts
    of the chain, drawn anew for every image; the same draws for whatever parameters. `quiet` shows
    no progress, for use inside a training, which shows its own.
    """
    config = experiment.config.evaluate
    batch_size = devices.round_up(config.batch_size, mesh)
    denoise = chain_of(experiment.method, "An estimate of the bound").denoise
    terms_fn = make_terms_fn(experiment, mesh, denoise)
    num_timesteps = experiment.method.num_steps
    rows = 1 + min(config.num_strata, num_timesteps - 1)
    padding = -rows % config.timesteps_at_once
    by_image, by_column = devices.sharded(mesh), devices.sharded(mesh, axis=1)

    def draw(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = random.stream(experiment.config.seed, "strata")
        t, sizes = likelihood.stratified_timesteps(
            random.per_index(key, indices), num_timesteps, rows - 1
        )
        t = jnp.pad(t, ((1, padding), (0, 0)))
        return t, jnp.pad(jnp.concatenate([jnp.ones(1), sizes]), (0, padding))

    draw_fn = devices.jit(
        draw,
        precision=devices.REPORTED,
        in_shardings=by_image,
        out_shardings=(by_column, None),
    )
    batches = list(padded_batches(source, num_images, batch_size))

    def estimate(params: Any) -> np.ndarray:
        bits = []
        for first, count, read in batches if quiet else console.track(batches, "estimate"):
            indices = np.arange(first, first + batch_size, dtype=np.int32)
            batch, indices = devices.put_global((read(), indices), by_image)
            t, weights = draw_fn(indices)
            prior, terms = devices.fetch(terms_fn(params, batch, indices, t, np.int32(0)))
            weights = np.asarray(weights, np.float64)[:, None]
            bits.append((prior + (weights * terms.nats).sum(axis=0))[:count] / BIT)
        return np.concatenate(bits)

    return estimate


def bits_per_dim(context: Context) -> Result:
    """The variational bound with all T terms, and the rate-distortion curve that they are.

    Writes bound.csv (every timestep) and rate_distortion.png.
    """
    experiment, config = context.experiment, context.experiment.config.evaluate
    protocol = image_protocol(context) | {
        "quantity": "variational bound",
        "decoder": config.decoder,
        "clip_denoised": config.clip_denoised,
        "num_draws": config.num_draws,
    }

    folder = context.folder("bpd", protocol)
    denoise = chain_of(experiment.method, "The metric bpd").denoise
    table = evaluate_bound(
        experiment,
        denoise,
        context.params,
        context.source,
        context.num_images,
        context.mesh,
        folder,
    )
    draws = {}
    if config.num_draws > 1:
        error = standard_error(table.draws)
        draws = {"standard_error_over_draws": error}
    total = table.total
    rmse_of_mean = 127.5 * np.sqrt(table.x_0_mse)
    values = {
        "bits_per_dim": number(total.mean(), standard_error(total), **draws),
        "rate": number(table.rate[0]),
        "distortion": number(table.decoder.mean()),
        "prior": number(table.prior.mean()),
        "kl": number(table.divergence.mean()),
        "decoder": number(table.decoder.mean()),
        "rmse_root_of_mean": number(rmse_of_mean[0]),
        "rmse_mean_of_roots": number(127.5 * table.x_0_rmse[0]),
    }
    if devices.is_main_process():
        write_terms(context.workdir / "bound.csv", table)
        title = f"{experiment.dataset.name}, {which_images(context)}, step {context.step:,}"
        plots.rate_distortion(
            context.workdir / "rate_distortion.png", table.rate, rmse_of_mean, title
        )
    split = ", ".join(f"{name} {values[name]['value']:.3f}" for name in ("prior", "kl", "decoder"))
    lines = [
        f"bits/dim  of {which_images(context)}, +- standard error over images",
        line("this model (bound)", values["bits_per_dim"], f"  = {split}"),
        f"  rate {values['rate']['value']:.3f} + distortion {values['distortion']['value']:.3f} "
        f"bits/dim, RMSE {values['rmse_root_of_mean']['value']:.2f} of 255",
    ]
    return Result(values, protocol, ("bound.csv", "rate_distortion.png"), lines, (folder,))


def write_terms(path: Path, table: BoundTable) -> None:
    """The bound by timestep as CSV: the term, the rate so far, RMSE on [0, 255] averaged two ways.

    The root of the mean over images, and the mean over images of each one's root (DDPM Table 4 does
    not say which it gives).
    """
    names = "t,reverse_time,bits_per_dim,rate,rmse_root_of_mean,rmse_mean_of_roots\n"
    columns = (table.terms, table.rate, 127.5 * np.sqrt(table.x_0_mse), 127.5 * table.x_0_rmse)
    rows = zip(*columns, strict=True)
    last = len(table.terms)
    text = "".join(
        f"{t},{last - t}," + ",".join(f"{value:.8g}" for value in row) + "\n"
        for t, row in enumerate(rows)
    )
    path.write_text(names + text)


def estimated_bits_per_dim(context: Context) -> Result:
    """The same bound from a few timesteps of each image, drawn anew for every image: unbiased."""
    experiment, config = context.experiment, context.experiment.config.evaluate
    estimate = make_estimate(experiment, context.source, context.num_images, context.mesh)
    bits = estimate(context.params)
    protocol = image_protocol(context) | {
        "quantity": "variational bound, estimated from strata of timesteps",
        "decoder": config.decoder,
        "clip_denoised": config.clip_denoised,
        "num_strata": config.num_strata,
    }
    values = {"bits_per_dim_estimate": number(bits.mean(), standard_error(bits))}
    lines = [
        f"bits/dim  estimated from {config.num_strata + 1} timesteps of {which_images(context)}",
        line("this model (estimate)", values["bits_per_dim_estimate"]),
    ]
    return Result(values, protocol, (), lines)


def check(experiment: Experiment) -> None:
    """Refuses a method without a bound, and latents; raises ValueError."""
    chain_of(experiment.method, "The metric bpd")
    check_pixels(experiment, "bpd")


def check_pixels(experiment: Experiment, metric: str) -> None:
    """Refuses bits per dimension of what is no image.

    Raises:
        ValueError: naming the metric that is of latents.
    """
    if experiment.encoder.latents is not None:
        raise ValueError(
            f"config.evaluate.metrics: {metric} is of the levels of pixels, and this model is of "
            "the latents of a VAE (config.encoder). Choose latent_bound, the bound of both."
        )


def check_estimate(experiment: Experiment) -> None:
    """Refuses a method without a bound, and more strata than there are timesteps.

    Raises:
        ValueError: naming the field.
    """
    chain_of(experiment.method, "The metric bpd_fast")
    check_pixels(experiment, "bpd_fast")
    strata, last = experiment.config.evaluate.num_strata, experiment.method.num_steps - 1
    if strata > last:
        raise ValueError(
            f"config.evaluate.num_strata = {strata} must be 1 to {last}, the timesteps that there "
            "are beside 0."
        )
