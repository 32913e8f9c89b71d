"""The variational bound of a model on a path, with infinitely many steps of its chain."""

from typing import Any

import jax
import numpy as np

from diffusion import probability_flow, random
from diffusion.continuous_bound import continuous_bound
from experiments.experiment import Experiment
from experiments.methods.method import Chain, chain_of
from experiments.metrics.bound import BIT, check_pixels, standard_error
from experiments.metrics.by_image import compiled, measure_images
from experiments.metrics.metric import Context, Result, image_protocol, line, number, which_images

METRIC = "bpd_continuous"
COLUMNS = ("prior", "kl", "decoder")


def _on_path(experiment: Experiment) -> Chain:
    """The method's process, on a path; raises ValueError for a chain."""
    chain = chain_of(experiment.method, f"The metric {METRIC}")
    if chain.process.path is None:
        raise ValueError(
            f"config.evaluate.metrics: {METRIC} is of continuous time (config.path), and this "
            "model is of a chain (config.schedule), which has its own number of steps: choose bpd."
        )
    return chain


def check(experiment: Experiment) -> None:
    """Refuses a chain, a method without one, and latents; raises ValueError."""
    _on_path(experiment)
    check_pixels(experiment, METRIC)


def continuous_bits_per_dim(context: Context) -> Result:
    """The bound of infinitely many steps, from config.evaluate.num_strata points of the path.

    An estimate without bias for every image, at its own u. Beside the network it depends on the
    ends of the path only, and not on config.path.num_timesteps.
    """
    experiment, config = context.experiment, context.experiment.config
    chain, settings = _on_path(experiment), config.evaluate
    flow = probability_flow.make_flow(chain.apply, chain.process)

    def terms(params: Any, batch: dict[str, jax.Array], indices: jax.Array) -> tuple[Any, ...]:
        inputs = chain.condition(batch["label"])
        found = continuous_bound(
            chain.process,
            lambda x_t, t: chain.denoise(params, x_t, t, **inputs),
            lambda x, u: chain.threshold(flow.estimate(params, x, u, **inputs)),
            experiment.encoder.encode(batch["image"]),
            random.per_index(random.stream(config.seed, "evaluate"), indices),
            num_strata=settings.num_strata,
            decoder=chain.decoder,
        )
        return tuple(found)

    protocol = image_protocol(context) | {
        "quantity": "variational bound of infinitely many steps, estimated from strata of a path",
        "decoder": settings.decoder,
        "clip_denoised": settings.clip_denoised,
        "num_strata": settings.num_strata,
    }
    del protocol["num_timesteps"]
    folder = context.folder(METRIC, protocol)
    found = measure_images(context, compiled(context, terms), COLUMNS, folder, "bits/dim")
    bits = {name: part.astype(np.float64) / BIT for name, part in zip(COLUMNS, found, strict=True)}
    total = sum(bits.values(), np.zeros(context.num_images))
    values = {"bits_per_dim": number(total.mean(), standard_error(total))}
    values |= {name: number(part.mean()) for name, part in bits.items()}
    split = ", ".join(f"{name} {values[name]['value']:.3f}" for name in COLUMNS)
    lines = [
        f"bits/dim  in continuous time, {settings.num_strata} points of {which_images(context)}",
        line("this model (bound)", values["bits_per_dim"], f"  = {split}"),
    ]
    return Result(values, protocol, (), lines, (folder,))
