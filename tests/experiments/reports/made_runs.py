"""Folders as a sweep and experiments.main leave them, made without training."""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import images
from experiments.configs import cifar10, digits
from experiments.workdir import status
from experiments.workdir.status import Status

CONFIGS = {"digits": digits, "cifar10": cifar10}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CNN = "digits-cnn-0badcafe"


def resolved(config: str, ablation: str, seed: int) -> dict[str, Any]:
    """The config as config.json has it."""
    found: ConfigDict = CONFIGS[config].get_config(ablation)
    found.seed = seed
    return json.loads(found.to_json_best_effort())


def provenance(config: dict[str, Any], commit: str = COMMIT) -> dict[str, Any]:
    return {
        "config": config,
        "seed": config["seed"],
        "commit": commit,
        "versions": {"jax": "0.0.0"},
        "hardware": {"devices": "1 x made", "processes": 1, "host": "up, 2 cores"},
        "date": "2020-06-19T00:00:00+00:00",
    }


def timesteps(config: dict[str, Any]) -> int:
    """T of a chain, or of the levels of a path."""
    return int((config.get("schedule") or config["path"])["num_timesteps"])


def bpd(value: float, config: dict[str, Any], **protocol: Any) -> dict[str, Any]:
    """The section "bpd"."""
    fields = {
        "dataset": config["data"]["name"],
        "split": "test",
        "num_images": 100,
        "split_images": 100,
        "weights": "ema",
        "checkpoint": "latest",
        "checkpoint_step": config["train"]["num_steps"],
        "variance": config["variance"]["name"],
        "num_timesteps": timesteps(config),
        "quantity": "variational bound",
        "decoder": "tanh",
        "clip_denoised": True,
        "num_draws": 1,
    }
    return {
        "values": {
            "bits_per_dim": {"value": value, "standard_error": 0.01},
            "rate": {"value": value / 2},
            "distortion": {"value": value / 2},
            "rmse_root_of_mean": {"value": 0.95},
        },
        "protocol": fields | protocol,
        "files": ["bound.csv"],
        "seconds": 1.0,
    }


def samples(value: float, config: dict[str, Any], **protocol: Any) -> dict[str, Any]:
    """The section "samples", under Inception's names only where the extractor is Inception."""
    fields = {
        "dataset": config["data"]["name"],
        "weights": "ema",
        "checkpoint": "latest",
        "checkpoint_step": config["train"]["num_steps"],
        "sampler": {"name": "ancestral"},
        "num_steps": timesteps(config),
        "threshold": {"name": "clip"},
        "variance": config["variance"]["name"],
        "seed": config["seed"],
        "protocol": "custom",
        "num_samples": 1000,
        "extractor": CNN,
    } | protocol
    names = ("fd_train", "classifier_score")
    names = tuple(f"{name}_{fields['extractor']}" for name in names)
    if fields["extractor"].startswith("inception"):
        names = ("fid_train", "is")
    values = {names[0]: {"value": value}, names[1]: {"value": 9.0}}
    return {"values": values, "protocol": fields, "files": [], "seconds": 1.0}


def put(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def log(folder: pathlib.Path, losses: list[float], every: int = 100) -> None:
    """metrics.jsonl with one window for each loss."""
    lines = [json.dumps({"step": every * (i + 1), "loss": x}) for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def waiting(
    sweep: pathlib.Path, ablation: str, seed: int, config: str = "digits", **about: Any
) -> pathlib.Path:
    """A run as the sweep prepares it."""
    overrides = about.pop("overrides", {})
    point = [f"{name}={value}" for name, value in overrides.items()]
    name = "-".join([ablation or config, *point, f"seed{seed}"])
    folder = sweep / "runs" / name
    facts = {
        "name": name,
        "config": f"experiments/configs/{config}.py",
        "ablation": ablation,
        "seed": seed,
        "overrides": overrides,
        "settings": {},
        "num_steps": resolved(config, ablation, seed)["train"]["num_steps"],
    }
    put(folder / "run.json", facts | about)
    planned = sweep / "sweep.json"
    names = json.loads(planned.read_text())["runs"] if planned.is_file() else []
    put(planned, {"runs": list(dict.fromkeys([*names, name]))})
    return folder


def finished(
    sweep: pathlib.Path,
    ablation: str,
    seed: int,
    value: float,
    *,
    config: str = "digits",
    commit: str = COMMIT,
    protocol: dict[str, Any] | None = None,
    **about: Any,
) -> pathlib.Path:
    """A run with everything, its bits/dim `value` and its distance of samples twice that."""
    folder = waiting(sweep, ablation, seed, config, **about)
    content = resolved(config, ablation, seed)
    steps = content["train"]["num_steps"]
    sections = {
        "train": {"state": "finished", "step": steps, "metrics": {"step": steps, "loss": 0.05}},
        "sample": {
            "num_steps": timesteps(content),
            "sampler": {"name": "ancestral"},
        },
        "bpd": bpd(value, content, **(protocol or {})),
        "samples": samples(2 * value, content),
    }
    origin = {"provenance": provenance(content, commit)}
    put(folder / "results.json", {name: part | origin for name, part in sections.items()})
    put(folder / "config.json", content)
    status.write(folder, Status("finished", attempts=({},)))
    log(folder, [1.0 / (seed + i + 1) for i in range(20)])
    pictures = np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 1), np.uint8)
    (folder / "samples").mkdir(exist_ok=True)
    np.savez_compressed(folder / "samples" / "samples.npz", arr_0=pictures)
    images.save(folder / "samples" / "samples.png", images.grid(pictures))
    (folder / "train.log").write_text("done\n")
    return folder


def diverged(sweep: pathlib.Path, ablation: str, seed: int, step: int = 400) -> pathlib.Path:
    """A run that stopped by itself."""
    folder = waiting(sweep, ablation, seed)
    content = resolved("digits", ablation, seed)
    facts = {
        "state": "diverged",
        "step": step,
        "reason": "the loss is nan",
        "metrics": {"step": step - 100, "loss": 3.25},
        "provenance": provenance(content),
    }
    put(folder / "results.json", {"train": facts})
    put(folder / "config.json", content)
    status.write(folder, Status("diverged", attempts=({},), message="diverged"))
    log(folder, [0.5, 1.5, 3.25, float("nan")])
    return folder


def failed(sweep: pathlib.Path, ablation: str, seed: int) -> pathlib.Path:
    """A run that crashed in every attempt."""
    folder = waiting(sweep, ablation, seed)
    lines = ("Traceback (most recent call last):", "MemoryError: <no> room")
    attempts = ({"exit_status": 1}, {"exit_status": 1})
    status.write(folder, Status("failed", attempts, "exit status 1", lines))
    return folder


def half_done(sweep: pathlib.Path) -> None:
    """A sweep of four rows and three seeds, half done."""
    for seed in range(3):
        finished(sweep, "eps_simple", seed, 4.6 + 0.02 * seed)
        diverged(sweep, "mu_mse", seed, 300 + 100 * seed)
    finished(sweep, "eps_vlb_fixed", 0, 4.4)
    finished(sweep, "eps_vlb_fixed", 1, 4.45)
    failed(sweep, "eps_vlb_fixed", 2)
    for seed in range(3):
        waiting(sweep, "mu_vlb_fixed", seed)
