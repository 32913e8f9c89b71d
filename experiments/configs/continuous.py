"""Ablations in continuous time: flow matching, EDM, VDM and others, on a path."""

from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.changes import Ablation

# Exponents of `layers.fourier_features` for data that have not 256 levels.
FEATURES: MappingProxyType[str, tuple[int, ...]] = MappingProxyType({"digits": (3, 4)})


def _continuous(
    words: str,
    source: str,
    expected: str = "",
    *,
    path: dict[str, Any],
    predicts: dict[str, Any],
    times: dict[str, Any],
    loss: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    num_steps: int = 0,
    features: bool = False,
) -> Ablation:
    """A path in place of the chain, with what the network predicts and how u is drawn.

    Args:
        loss: weighting and space of the squared error, where they are not uniform and the output.
        sampler, num_steps: of samples and previews; None leaves the config's.
        features: whether the network is given Fourier features of its input, fit to the levels.
    """

    def change(config: ConfigDict) -> None:
        del config.schedule
        config.path = ConfigDict({**path, "num_timesteps": 1000})
        config.parameterization = ConfigDict(predicts)
        config.timesteps = ConfigDict(times)
        config.variance = ConfigDict(dict(name="fixed_small"))
        compared = dict(weighting=dict(name="uniform"), space=dict(name="output"))
        config.loss = ConfigDict({"name": "simple", **compared, **(loss or {})})
        if sampler is not None:
            config.sample.sampler = ConfigDict(sampler)
            config.sample.num_steps = config.train.preview_num_steps = num_steps
        if features:
            config.model.fourier_features = FEATURES.get(config.data.name, (7, 8))

    keys: tuple[str, ...] = ("schedule", "path", "variance", "loss")
    keys += ("parameterization",) * (predicts["name"] != "eps")  # which every data set's predicts
    keys += ("timesteps",) * (times["name"] != "uniform")  # as they are drawn everywhere
    keys += ("model.fourier_features",) * features
    walked = ("sample.sampler", "sample.num_steps", "train.preview_num_steps")
    return Ablation(words, source, keys + (walked if sampler else ()), change, expected)


_STRAIGHT, _VELOCITY, _UNIFORM = dict(name="straight"), dict(name="velocity"), dict(name="uniform")
_LINEAR_SNR = dict(name="linear_snr", log_snr_min=-5.0, log_snr_max=13.3)
CONTINUOUS: MappingProxyType[str, Ablation] = MappingProxyType(
    {
        "flow": _continuous(
            "flow matching: straight path, velocity, u uniform, Euler's method",
            "Lipman et al. 2023; Liu et al. 2023",
            "CIFAR-10: bits/dim 2.99; FID 6.35 (Lipman et al. Table 1, adaptive solver)",
            path=_STRAIGHT,
            predicts=_VELOCITY,
            times=_UNIFORM,
            sampler=dict(name="euler"),
            num_steps=50,
        ),
        "flow_logit_normal": _continuous(
            "flow with u = sigmoid(n), n standard normal, and a shift for larger images",
            "Esser et al. 2024, Eqs. 19, 23",
            path=_STRAIGHT,
            predicts=_VELOCITY,
            times=dict(name="logit_normal", mean=0.0, std=1.0, shift=1.0),
            sampler=dict(name="euler"),
            num_steps=50,
        ),
        "edm": _continuous(
            "EDM: x_0 + noise, preconditioned network, log-normal noise, Heun on 18 levels",
            "Karras et al. 2022, Table 1",
            "CIFAR-10: FID 1.97 at 35 evaluations (Karras et al. Table 2, unconditional)",
            path=dict(name="edm", noise_min=0.002, noise_max=80.0),
            predicts=dict(name="edm", sigma_data=0.5),
            times=dict(name="log_normal", mean=-1.2, std=1.2),
            sampler=dict(name="heun"),
            num_steps=18,
        ),
        "cosine_v": _continuous(
            "v prediction on the cosine path, in continuous time",
            "Salimans and Ho 2022, App. D; Hoogeboom et al. 2023",
            path=dict(name="cosine"),
            predicts=dict(name="v"),
            times=_UNIFORM,
        ),
        "vp": _continuous(
            "the linear chain's limit in continuous time, ε prediction",
            "Song et al. 2021, Eq. 33",
            path=dict(name="vp"),
            predicts=dict(name="eps"),
            times=_UNIFORM,
        ),
        "vdm": _continuous(
            "the bound in continuous time, log SNR linear in u, antithetic u, Fourier features",
            "Kingma et al. 2021, section 4, App. C",
            path=_LINEAR_SNR,
            predicts=dict(name="eps"),
            times=dict(name="antithetic"),
            loss=dict(weighting=dict(name="vlb")),
            features=True,
        ),
        "vdm_learned": _continuous(
            "vdm with the log SNR learned between its ends, for the least variance of the bound",
            "Kingma et al. 2021, section 5.1",
            "CIFAR-10: bits/dim, test 2.65 (Kingma et al. Table 1)",
            path=_LINEAR_SNR,
            predicts=dict(name="eps"),
            times=dict(name="learned", parts=64, history=16, uniform_share=0.01),
            loss=dict(weighting=dict(name="vlb")),
            features=True,
        ),
        "jit": _continuous(
            "x_0 predicted and velocity compared on the straight path, for large patches of a DiT",
            "Li and He 2025",
            path=_STRAIGHT,
            predicts=dict(name="x_0"),
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            loss=dict(space=dict(name="velocity")),
            sampler=dict(name="heun_u"),
            num_steps=50,
        ),
    }
)
