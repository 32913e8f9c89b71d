"""The results of DDPM's Tables 1 to 4 as printed: data that reports and the ledger lay beside ours.

A row names the config and the ablation that train its model here; "" is the config as it stands.
What the paper quotes from other work stands apart, has no config and is never ours to measure.
Columns are called as in `results.json`, with the split behind where the paper gives both. CelebA-HQ
has no number in the paper.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class PaperCell(NamedTuple):
    """One number of a table."""

    text: str  # as printed
    value: float | None  # None where there is none: the run was unstable


class PaperRow(NamedTuple):
    """One line of a table."""

    label: str
    config: str  # experiments/configs/NAME.py
    ablation: str  # a name of `ablations.ABLATIONS`, or ""
    cells: Mapping[str, PaperCell]  # column -> what stands there


class Quoted(NamedTuple):
    """One line of a table that the paper took from other work."""

    label: str
    cells: Mapping[str, PaperCell]  # a star in a text: reported by StyleGAN2 as a baseline


class PaperTable(NamedTuple):
    """One table of the paper."""

    name: str
    title: str
    dataset: str  # as people call it
    columns: Mapping[str, str]  # column -> heading
    rows: tuple[PaperRow, ...]
    quoted: tuple[Quoted, ...] = ()


_UNSTABLE = PaperCell("unstable", None)


def _quoted(label: str, **texts: str) -> Quoted:
    """A line from its numbers as printed, such as "8.87 ± 0.12", "≤ 5.40" or "4.21*"."""
    values = {name: text.removeprefix("≤ ").split()[0].rstrip("*") for name, text in texts.items()}
    return Quoted(
        label, {name: PaperCell(text, float(values[name])) for name, text in texts.items()}
    )


def _sampler(label: str, score: str, fid: str) -> Quoted:
    """A line of Table 1 that has IS and FID only."""
    return _quoted(label, **{"is": score, "fid_train": fid})


# Columns.
_IS = {"is": "IS"}
_FID = {"fid_train": "FID"}
_RATE = {"rate": "rate (bits/dim)", "distortion": "distortion (bits/dim)", "rmse": "RMSE of 255"}

# Samples of the two models that Tables 1 and 2 share.
_BOUND_SAMPLES = {"is": PaperCell("7.67 ± 0.13", 7.67), "fid_train": PaperCell("13.51", 13.51)}
_SIMPLE_SAMPLES = {"is": PaperCell("9.46 ± 0.11", 9.46), "fid_train": PaperCell("3.17", 3.17)}

TABLE_1 = PaperTable(
    name="table1",
    title="Sample quality and likelihood",
    dataset="CIFAR-10",
    columns={
        **_IS,
        **_FID,
        "fid_test": "FID, test",
        "bits_per_dim_test": "bits/dim, test",
        "bits_per_dim_train": "bits/dim, train",
    },
    rows=(
        PaperRow(
            "L, fixed isotropic Σ",
            *("cifar10", "eps_vlb_fixed"),
            {
                **_BOUND_SAMPLES,
                "bits_per_dim_test": PaperCell("≤ 3.70", 3.70),
                "bits_per_dim_train": PaperCell("3.69", 3.69),
            },
        ),
        PaperRow(
            "L_simple",
            *("cifar10", "eps_simple"),
            {
                **_SIMPLE_SAMPLES,
                "fid_test": PaperCell("5.24", 5.24),
                "bits_per_dim_test": PaperCell("≤ 3.75", 3.75),
                "bits_per_dim_train": PaperCell("3.72", 3.72),
            },
        ),
    ),
    quoted=(
        _sampler("EBM (conditional)", "8.30", "37.9"),
        _sampler("JEM (conditional)", "8.76", "38.4"),
        _sampler("BigGAN (conditional)", "9.22", "14.73"),
        _sampler("StyleGAN2 + ADA, v1 (conditional)", "10.06", "2.67"),
        _quoted("Diffusion (original)", bits_per_dim_test="≤ 5.40"),
        _quoted(
            "Gated PixelCNN",
            **{"is": "4.60"},
            fid_train="65.93",
            bits_per_dim_test="3.03",
            bits_per_dim_train="2.90",
        ),
        _quoted("Sparse Transformer", bits_per_dim_test="2.80"),
        _sampler("PixelIQN", "5.29", "49.46"),
        _sampler("EBM", "6.78", "38.2"),
        _quoted("NCSNv2", fid_train="31.75"),
        _sampler("NCSN", "8.87 ± 0.12", "25.32"),
        _sampler("SNGAN", "8.22 ± 0.05", "21.7"),
        _sampler("SNGAN-DDLS", "9.09 ± 0.10", "15.42"),
        _sampler("StyleGAN2 + ADA, v1", "9.74 ± 0.05", "3.26"),
    ),
)

TABLE_2 = PaperTable(
    name="table2",
    title="What the network predicts, and the objective",
    dataset="CIFAR-10",
    columns={**_IS, **_FID},
    rows=(
        PaperRow(
            "μ̃ prediction: L, learned diagonal Σ",
            *("cifar10", "mu_vlb_learned"),
            {"is": PaperCell("7.28 ± 0.10", 7.28), "fid_train": PaperCell("23.69", 23.69)},
        ),
        PaperRow(
            "μ̃ prediction: L, fixed isotropic Σ",
            *("cifar10", "mu_vlb_fixed"),
            {"is": PaperCell("8.06 ± 0.09", 8.06), "fid_train": PaperCell("13.22", 13.22)},
        ),
        PaperRow(
            "μ̃ prediction: mean squared error",
            *("cifar10", "mu_mse"),
            {"is": _UNSTABLE, "fid_train": _UNSTABLE},
        ),
        PaperRow(
            "ε prediction: L, learned diagonal Σ",
            *("cifar10", "eps_vlb_learned"),
            {"is": _UNSTABLE, "fid_train": _UNSTABLE},
        ),
        PaperRow("ε prediction: L, fixed isotropic Σ", "cifar10", "eps_vlb_fixed", _BOUND_SAMPLES),
        PaperRow("ε prediction: L_simple", "cifar10", "eps_simple", _SIMPLE_SAMPLES),
    ),
)

TABLE_3 = PaperTable(
    name="table3",
    title="Sample quality at 256x256",
    dataset="LSUN",
    columns=_FID,
    rows=(
        PaperRow("Bedroom", "lsun_bedroom", "", {"fid_train": PaperCell("6.36", 6.36)}),
        PaperRow(
            "Bedroom, large network",
            "lsun_bedroom",
            "large",
            {"fid_train": PaperCell("4.90", 4.90)},
        ),
        PaperRow("Church", "lsun_church", "", {"fid_train": PaperCell("7.89", 7.89)}),
        PaperRow("Cat", "lsun_cat", "", {"fid_train": PaperCell("19.75", 19.75)}),
    ),
    quoted=(
        _quoted("Bedroom, ProgressiveGAN", fid_train="8.34"),
        _quoted("Bedroom, StyleGAN", fid_train="2.65"),
        _quoted("Church, ProgressiveGAN", fid_train="6.42"),
        _quoted("Church, StyleGAN", fid_train="4.21*"),
        _quoted("Church, StyleGAN2", fid_train="3.86"),
        _quoted("Cat, ProgressiveGAN", fid_train="37.52"),
        _quoted("Cat, StyleGAN", fid_train="8.53*"),
        _quoted("Cat, StyleGAN2", fid_train="6.93"),
    ),
)


def _sent(reverse_time: int, rate: str, rmse: str) -> PaperRow:
    cells = {"rate": PaperCell(rate, float(rate)), "rmse": PaperCell(rmse, float(rmse))}
    return PaperRow(f"reverse time {reverse_time}", "cifar10", "eps_simple", cells)


TABLE_4 = PaperTable(
    name="table4",
    title="Progressive lossy compression: rate and distortion (Table 4 and section 4.3)",
    dataset="CIFAR-10, test",
    columns=_RATE,
    rows=(
        _sent(1000, "1.77581", "0.95136"),
        _sent(900, "0.11994", "12.02277"),
        _sent(800, "0.05415", "18.47482"),
        _sent(700, "0.02866", "24.43656"),
        _sent(600, "0.01507", "30.80948"),
        _sent(500, "0.00716", "38.03236"),
        _sent(400, "0.00282", "46.12765"),
        _sent(300, "0.00081", "54.18826"),
        _sent(200, "0.00013", "60.97170"),
        _sent(100, "0.00000", "67.60125"),
        PaperRow(
            "rate + distortion",
            *("cifar10", "eps_simple"),
            {
                "rate": PaperCell("1.78", 1.78),
                "distortion": PaperCell("1.97", 1.97),
                "rmse": PaperCell("0.95", 0.95),
            },
        ),
    ),
)

TABLES: MappingProxyType[str, PaperTable] = MappingProxyType(
    {table.name: table for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4)}
)


# --- Where results.json has the same quantities ---

INCEPTION = "inception-2015-12-05"
REVERSE_TIME = "reverse time "  # begins the labels of Table 4's rows


class PaperColumn(NamedTuple):
    """Where results.json has what a column of the paper is about.

    quantities: as Inception's is called, and as another extractor's.
    protocol: what the paper's protocol has in the section.
    estimate: (section, quantity) that estimates the same number.
    """

    section: str
    quantities: tuple[str, ...]
    protocol: Mapping[str, Any]
    estimate: tuple[str, str] | None = None

    def holds(self, section: str, quantity: str) -> bool:
        """Whether the quantity is the column's, by another extractor or estimated as it may be."""
        own = section == self.section and quantity in self.quantities
        return own or (section, quantity) == self.estimate


_SAMPLES = {
    "protocol": "paper",
    "extractor": INCEPTION,
    "sampler": {"name": "ancestral"},
    "threshold": {"name": "clip"},
    "guidance": {"scale": 1.0},
}
_BOUND = {"decoder": "tanh", "split": "test", "clip_denoised": True}
_ESTIMATE = ("bpd_fast", "bits_per_dim_estimate")
COMMON = {"weights": "ema", "held_out": 0}
COLUMNS: MappingProxyType[str, PaperColumn] = MappingProxyType(
    {
        "is": PaperColumn("samples", ("is", "classifier_score"), _SAMPLES),
        "fid_train": PaperColumn("samples", ("fid_train", "fd_train"), _SAMPLES),
        "fid_test": PaperColumn("samples", ("fid_test", "fd_test"), _SAMPLES),
        "bits_per_dim_test": PaperColumn("bpd", ("bits_per_dim",), _BOUND, _ESTIMATE),
        "bits_per_dim_train": PaperColumn(
            "bpd", ("bits_per_dim",), _BOUND | {"split": "train"}, _ESTIMATE
        ),
        "rate": PaperColumn("bpd", ("rate",), _BOUND),
        "distortion": PaperColumn("bpd", ("distortion",), _BOUND),
        "rmse": PaperColumn("bpd", ("rmse_root_of_mean",), _BOUND),
    }
)


# --- Fast samplers on CIFAR-10, one model's FID against its steps ---


class SamplingRow(NamedTuple):
    """A way to sample a model, and what it gave by number of steps.

    variance: of the model, None where the sampler does not use it.
    fid: steps -> FID to the train split as printed, 50,000 samples.
    """

    label: str
    sampler: Mapping[str, Any]
    spacing: str
    fid: Mapping[int, str]
    variance: str | None = None


class SamplingTable(NamedTuple):
    """Published numbers of several samplers on one network."""

    title: str
    source: str
    rows: tuple[SamplingRow, ...]


_DDIM = MappingProxyType({"name": "ddim", "eta": 0.0})
_STEPS = (1000, 100, 50, 20, 10)


def _by_steps(*texts: str, steps: tuple[int, ...] = _STEPS) -> dict[int, str]:
    return dict(zip(steps, texts, strict=True))


SAMPLING = (
    SamplingTable(
        "One DDPM of xyfJASON/Diffusion-Models-Implementations, uniform spacing",
        "read in that repository",
        (
            SamplingRow(
                "ancestral, fixed_large",
                {"name": "ancestral"},
                "uniform",
                _by_steps("3.05", "46.5", "85.2", "183", "267"),
                "fixed_large",
            ),
            SamplingRow(
                "ancestral, fixed_small",
                {"name": "ancestral"},
                "uniform",
                _by_steps("5.37", "11.2", "15.0", "24.5", "41.0"),
                "fixed_small",
            ),
            SamplingRow(
                *("DDIM, η = 0", _DDIM, "uniform"),
                _by_steps("4.19", "6.05", "7.70", "11.65", "18.96"),
            ),
            SamplingRow(
                *("Heun, 2 steps - 1 evaluations", {"name": "heun"}, "uniform"),
                _by_steps("4.00", "3.47", "5.88", "29.6", "82", steps=(500, 50, 25, 10, 5)),
            ),
        ),
    ),
    SamplingTable(
        "DDPM's own checkpoint in the DDIM paper, quadratic spacing",
        "Song, Meng and Ermon (2021), as commonly cited",
        (
            SamplingRow(
                *("DDIM, η = 0", _DDIM, "quadratic"),
                _by_steps("4.04", "4.16", "4.67", "6.84", "13.36"),
            ),
            SamplingRow(
                *("DDIM, η = 1", {"name": "ddim", "eta": 1.0}, "quadratic"),
                _by_steps("4.73", "5.78", "8.01", "18.36", "41.07"),
            ),
            SamplingRow(
                *("ancestral, fixed_large (their σ̂)", {"name": "ancestral"}, "quadratic"),
                _by_steps("3.17", "9.99", "32.7", "133", "367"),
                "fixed_large",
            ),
        ),
    ),
)
