"""A run of this program as a folder that diffusers opens, with a card that says what it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from experiments import console, devices
from experiments.experiment import Experiment
from experiments.files import markdown, templates
from experiments.files.atomic import check_new, whole_folder
from experiments.files.parameters import tensors_from_params
from experiments.methods.method import chain_of
from experiments.state import load_ema, load_raw
from experiments.weights import diffusers_config
from experiments.weights.sources import RUN, WEIGHTS
from experiments.weights.unet_names import NAMINGS, as_unet
from experiments.workdir.config import config_to_dict
from experiments.workdir.origin import AS_PUBLISHED, EMA, RAW
from experiments.workdir.results import Section, measured, read_results

SAID = MappingProxyType(
    {
        EMA: "these are the EMA weights",
        RAW: "these are the raw weights",
        AS_PUBLISHED: "these are weights as published, of which it is not known whether they are "
        "an average (EMA) or raw",
    }
)


def _results_table(sections: Mapping[str, Section]) -> str:
    """Every measured value of results.json."""
    rows = []
    for name, section in sections.items():
        for quantity, number in section.values.items():
            error = number.get("standard_error")
            spread = "" if error is None else f" ± {error:.4f}"
            rows.append([name, quantity, f"{number['value']:.4f}{spread}"])
    return markdown.table(["section", "quantity", "value"], rows)


def _public_config(experiment: Experiment) -> dict[str, Any]:
    """The config without the folders of this machine."""
    config = config_to_dict(experiment.config)
    for name, nowhere in (("data_dir", None), ("path", "")):
        if name in config["data"]:
            config["data"][name] = nowhere
    return config


def card(experiment: Experiment, name: str, step: int, weights: str, workdir: Path) -> str:
    """README.md of the folder: what the model is, how to open it, its numbers and their origin."""
    results = read_results(workdir)
    height, width, channels = experiment.dataset.image_shape
    sections, _ = measured(results)
    return templates.render(
        Path(__file__).with_name("card.jinja"),
        title=name,
        size=f"{height}×{width}×{channels}",
        data=experiment.dataset.name,
        behind=f"trained for {step:,} steps" if step else "training steps not recorded",
        weights=SAID[weights],
        steps=experiment.method.num_steps,
        results=_results_table(sections) if sections else "",
        sections=sections,
        origins={name: content["provenance"] for name, content in results.items()},
        run=RUN,
    )


def _load(experiment: Experiment, workdir: Path, weights: str) -> tuple[int, Any, str]:
    """The newest checkpoint's step, its EMA or RAW parameters, and what these are.

    Converted weights may be one set, taken for both, which is one of `origin.KINDS` either way.
    """
    mesh = devices.make_mesh()
    step, ema, origin = load_ema(experiment, workdir, mesh)
    if weights == EMA:
        return step, ema, origin.weights
    raw = load_raw(experiment, workdir, step, mesh)
    one = jax.tree.all(jax.tree.map(np.array_equal, ema, raw))
    return step, raw, origin.weights if one else RAW


def write_diffusers(experiment: Experiment, workdir: Path, out: Path, weights: str) -> None:
    """Writes `out`, which DDPMPipeline.from_pretrained opens, from the newest checkpoint.

    Args:
        weights: EMA or RAW.

    Raises:
        ValueError: if `out` is neither new nor empty, or diffusers has no such model.
        CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    check_new(out, "--out")
    chain = chain_of(experiment.method, "--to=diffusers")
    if experiment.encoder.latents is not None or experiment.method.tokenizer is not None:
        raise ValueError(
            "--to=diffusers: DDPMPipeline is of pixels and told no words, and this model is of "
            "latents (config.encoder) or of captions (config.text), so that it cannot be written."
        )
    network = as_unet(chain.network, experiment.config.model.name)
    shape = experiment.dataset.image_shape
    unet = diffusers_config.unet_config(network, shape)
    scheduler = diffusers_config.scheduler_config(experiment.config)
    step, params, kind = _load(experiment, workdir, weights)
    levels = len(network.channel_multipliers)
    tensors = tensors_from_params(jax.device_get(params), NAMINGS["diffusers"], levels)

    text = card(experiment, out.name, step, kind, workdir)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers_config.DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    run = {"config": _public_config(experiment), "step": step, "weights": kind}
    with whole_folder(out) as folder:
        for name in ("unet", "scheduler"):
            (folder / name).mkdir()
        safetensors.numpy.save_file(tensors, folder / "unet" / WEIGHTS[0], {"format": "pt"})
        for path, content in {
            "unet/config.json": unet,
            "scheduler/scheduler_config.json": scheduler,
            RUN: run,
            "model_index.json": index,
        }.items():
            (folder / path).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(text)
    console.log(f"written   {out}: {len(tensors)} tensors of step {step:,} ({kind})")
