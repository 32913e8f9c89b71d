"""The likelihood of the probability-flow ODE."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion import probability_flow, random
from diffusion.forward import q_sample
from experiments import devices
from experiments.experiment import Experiment
from experiments.lookup import naming_field
from experiments.methods.method import chain_of
from experiments.metrics import bound
from experiments.metrics.by_image import measure_images
from experiments.metrics.metric import Context, Result, image_protocol, line, number, which_images

DEQUANTIZATIONS = MappingProxyType(  # name -> the quantity, as protocols call it
    {
        "uniform": "likelihood of the probability-flow ODE, uniform dequantization",
        "decoder": "bound of the probability-flow ODE through the chain's decoder",
    }
)


def flow_bits_per_dim(context: Context) -> Result:
    """The likelihood of the probability-flow ODE (Song et al. 2021), another model than the chain.

    Its samples are drawn by the ODE, so that neither it nor the variational bound of the stochastic
    chain bounds the other. With config.evaluate.ode_dequantization = "uniform" it is that of images
    with uniform noise inside their levels, an upper limit of the bits of the images themselves,
    which charges at least 1.7 bits for a pixel that is certain (256 levels, beta_0 = 1e-4). With
    "decoder" it is the bound of the flow that ends in the chain's discretized decoder, without that
    floor.
    """
    config = context.experiment.config.evaluate
    protocol = image_protocol(context) | {
        "quantity": DEQUANTIZATIONS[config.ode_dequantization],
        "tolerance": config.ode_tolerance,
        "num_probes": config.ode_probes,
    }
    if config.ode_dequantization == "decoder":
        protocol |= {"decoder": config.decoder, "clip_denoised": config.clip_denoised}
    folder = context.folder("ode", protocol | {"max_steps": config.ode_max_steps})
    flow_fn = make_flow_fn(context.experiment, context.mesh)
    columns = ("bits", "evaluations", "success")
    found = measure_images(context, flow_fn, columns, folder, "bits/dim of the flow")
    bits, evaluations, solved = found
    total = bits.astype(np.float64)
    if not solved.any():
        raise ValueError(
            f"no image's flow was solved in config.evaluate.ode_max_steps = {config.ode_max_steps} "
            "steps. Allow more, or a larger ode_tolerance."
        )
    protocol["solved_images"] = int(solved.sum())
    name = "flow_bits_per_dim" if config.ode_dequantization == "uniform" else "flow_bound"
    values = {
        name: number(total[solved].mean(), bound.standard_error(total[solved])),
        "flow_evaluations": number(evaluations.mean()),
        "flow_unsolved_images": number((~solved).sum()),
    }
    nfe = values["flow_evaluations"]["value"]
    lines = [
        f"bits/dim  of the probability-flow ODE, another model: {which_images(context)}",
        line(
            f"flow ({config.ode_dequantization})", values[name], f"  {nfe:.0f} evaluations an image"
        ),
    ]
    if not solved.all():
        lines.append(f"  WARNING {(~solved).sum()} images were not solved and are left out.")
    return Result(values, protocol, (), lines, (folder,))


def make_flow_fn(experiment: Experiment, mesh: Mesh) -> Callable[..., Any]:
    """(params, batch, indices) -> (bits/dim f32[B], evaluations i32[B], success bool[B]), compiled.

    Raises:
        ValueError: for a network that predicts the mean of single steps (mu), which has no flow.
    """
    config, num_levels = experiment.config, experiment.dataset.num_levels
    chain = chain_of(experiment.method, "The metric ode")
    schedule = chain.process.schedule
    flow = probability_flow.make_flow(chain.apply, chain.process)
    uniform = config.evaluate.ode_dequantization == "uniform"

    def bits(params: Any, batch: dict[str, Any], indices: Any) -> tuple[Any, Any, Any]:
        def keys(name: str) -> Any:
            return random.per_index(random.stream(config.seed, name), indices)

        x_0 = experiment.encoder.encode(batch["image"])
        inputs = chain.condition(batch["label"])
        first = jnp.zeros((), jnp.int32)
        if uniform:
            x = probability_flow.dequantize(x_0, keys("dequantize"), num_levels)
        else:
            noise = random.normal(keys("dequantize"), first, x_0.shape[1:])
            x = q_sample(schedule, x_0, first, noise)
        found = probability_flow.likelihood(
            flow,
            params,
            x,
            keys("probes"),
            num_probes=config.evaluate.ode_probes,
            rtol=config.evaluate.ode_tolerance,
            atol=config.evaluate.ode_tolerance,
            max_steps=config.evaluate.ode_max_steps,
            **inputs,
        )
        if uniform:
            value = found.bits_per_dim(num_levels)
        else:
            value = probability_flow.decoded_bits_per_dim(
                schedule,
                found,
                chain.denoise(params, x, first, **inputs),
                x_0,
                x,
                chain.decoder,
            )
        return value, found.evaluations, found.success

    everywhere, by_image = devices.replicated(mesh), devices.sharded(mesh)
    return devices.jit(
        bits,
        precision=devices.REPORTED,
        in_shardings=(everywhere, by_image, by_image),
        out_shardings=everywhere,
    )


def check(experiment: Experiment) -> None:
    """Refuses what has no probability flow.

    Raises:
        ValueError: naming the field.
    """
    bound.check_pixels(experiment, "ode")
    with naming_field("evaluate.metrics"):
        make_flow_fn(experiment, devices.make_mesh())
