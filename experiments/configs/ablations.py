"""Named changes to any data set's config, as in --config=experiments/configs/cifar10.py:mu_mse.

`python -m experiments.main --list_ablations` prints them; docs/ablations.md explains them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.configs import changes
from experiments.configs.changes import Ablation
from experiments.configs.continuous import CONTINUOUS
from experiments.configs.published import TABLES
from experiments.files import markdown, templates
from experiments.lookup import suggestion

# --- The table ---


class _Published(NamedTuple):
    """Where a published model stands, and its numbers."""

    source: str
    expected: str


def _published(ablation: str) -> _Published:
    """The tables of the paper that have this ablation, and the numbers in the first of them."""
    found = [
        (table, row) for table in TABLES.values() for row in table.rows if row.ablation == ablation
    ]
    numbers = sorted({table.name.removeprefix("table") for table, _ in found})
    table, row = found[0]
    cells = [f"{table.columns[name]} {cell.text}" for name, cell in row.cells.items()]
    unstable = all(cell.value is None for cell in row.cells.values())
    return _Published(
        f"DDPM Table{'s'[: len(numbers) > 1]} {', '.join(numbers)}",
        f"{table.dataset}: {'unstable' if unstable else '; '.join(cells)}",
    )


def _axes(
    words: str, axes: tuple[str, str, str], published: str = "", source: str = ""
) -> Ablation:
    """A choice of (parameterization, loss, variance); `published` is its row in the paper."""
    parameterization, _, variance = axes
    keys: tuple[str, ...] = ("loss", "variance")
    if parameterization != "eps":  # which every data set's config predicts
        keys = ("parameterization", *keys)
    if parameterization == "mu" or variance == "learned":
        keys = (*keys, "train.preview_num_steps")
    known = _published(published) if published else _Published(source, "")
    return Ablation(words, known.source, keys, changes.objective(*axes), known.expected)


_OBJECTIVES = {
    "mu_vlb_learned": _axes(
        "μ̃ prediction, bound L, learned diagonal variance",
        ("mu", "vlb", "learned"),
        published="mu_vlb_learned",
    ),
    "mu_vlb_fixed": _axes(
        "μ̃ prediction, bound L, fixed variance β",
        ("mu", "vlb", "fixed_large"),
        published="mu_vlb_fixed",
    ),
    "mu_vlb_fixed_small": _axes(
        "μ̃ prediction, bound L, fixed variance β̃; the paper does not say which of the two",
        ("mu", "vlb", "fixed_small"),
        published="mu_vlb_fixed",
    ),
    "mu_mse": _axes(
        "μ̃ prediction, unweighted mean squared error, fixed variance β",
        ("mu", "simple", "fixed_large"),
        published="mu_mse",
    ),
    "eps_vlb_learned": _axes(
        "ε prediction, bound L, learned diagonal variance",
        ("eps", "vlb", "learned"),
        published="eps_vlb_learned",
    ),
    "eps_vlb_fixed": _axes(
        "ε prediction, bound L, fixed variance β",
        ("eps", "vlb", "fixed_large"),
        published="eps_vlb_fixed",
    ),
    "eps_vlb_fixed_small": _axes(
        "ε prediction, bound L, fixed variance β̃; the paper does not say which of the two",
        ("eps", "vlb", "fixed_small"),
        published="eps_vlb_fixed",
    ),
    "eps_simple": _axes(
        "ε prediction, L_simple, fixed variance β: the paper's method",
        ("eps", "simple", "fixed_large"),
        published="eps_simple",
    ),
    "x_0_simple": _axes(
        "x_0 prediction, unweighted mean squared error, fixed variance β",
        ("x_0", "simple", "fixed_large"),
        source="DDPM section 3.2",
    ),
    "v_simple": _axes(
        "v prediction, unweighted mean squared error, fixed variance β",
        ("v", "simple", "fixed_large"),
        source="Salimans and Ho 2022, App. D",
    ),
}
# IDDPM's own methods are `iddpm` (L_hybrid, t uniform) and `iddpm_vlb` (L, t by importance).
_IMPROVED = {
    "iddpm": Ablation(
        "cosine schedule, learned_range, L_hybrid, no clipping; rate and dropout stay the config's",
        "IDDPM sections 3.1, 3.2 and its code",
        ("schedule", "loss", "variance", "clip"),
        changes.improved("hybrid", "uniform"),
    ),
    "iddpm_importance": Ablation(
        "iddpm with t drawn by the second moments of its loss, which IDDPM did for L only",
        "IDDPM section 3.3",
        ("schedule", "loss", "variance", "timesteps", "clip"),
        changes.improved("hybrid", "loss_second_moment"),
    ),
    "iddpm_vlb": Ablation(
        "iddpm with the bound L for its loss, t drawn by its second moments",
        "IDDPM section 3.3",
        ("schedule", "loss", "variance", "timesteps", "clip"),
        changes.improved("vlb", "loss_second_moment"),
        "CIFAR-10: bits/dim, test 2.94 with T = 4000",
    ),
    "iddpm_cifar10": Ablation(
        "iddpm with T = 4000, rate 1e-4, dropout 0.3, batch 128, EMA 0.9999, 500,000 steps",
        "IDDPM App. A, for CIFAR-10",
        (
            *("schedule", "loss", "variance", "clip", "optimizer.learning_rate", "model.dropout"),
            *("ema_decay", "train.batch_size", "train.num_steps"),
        ),
        changes.improved_cifar10,
    ),
    "min_snr": Ablation(
        "squared error weighted by min(SNR, 5), within the config's own loss",
        "Hang et al. 2023, Eq. 6",
        ("loss.weighting",),
        changes.min_snr,
    ),
}
_SHAPES = {  # name: (words, source)
    "linear": ("β rises linearly", "DDPM section 4"),
    "quadratic": ("√β rises linearly", "DDPM App. B"),
    "sigmoid": ("β rises along a logistic curve", "DDIM's code"),
    "constant": ("β stays the same", "DDPM App. B"),
    "cosine": ("ᾱ falls as a squared cosine", "IDDPM Eq. 17"),
}
_SCHEDULES = {
    f"{name}_{length}": Ablation(
        f"{words}, T = {length}",
        source,
        ("schedule",),
        changes.schedule(name, length),
    )
    for name, (words, source) in _SHAPES.items()
    for length in (100, 1000)
}
_DROPOUT = {
    f"dropout_{rate}": Ablation(
        f"dropout {rate} in every residual block",
        "DDPM App. B",
        ("model.dropout",),
        changes.dropout(float(rate)),
    )
    for rate in ("0", "0.1", "0.2", "0.3", "0.4")
}
_FLIPS = {
    "flip": Ablation(
        "training images mirrored at random",
        "DDPM App. B",
        ("train.flip",),
        changes.flip(True),
    ),
    "no_flip": Ablation(
        "training images as they are",
        "DDPM App. B",
        ("train.flip",),
        changes.flip(False),
    ),
}
_TRAINING = {
    "faithful": Ablation(
        "the original's updates: gradients clipped per core of 8, its Adam, float32",
        "the original's code",
        ("clip",),
        changes.faithful,
    ),
    "modern": Ablation(
        "today's updates: gradient clipped once, optax's Adam, bfloat16",
        "",
        ("clip", "optimizer.epsilon_hat", "model.dtype"),
        changes.modern,
    ),
    "clip_none": Ablation(
        "gradients as they are, not clipped",
        "IDDPM's code",
        ("clip",),
        changes.clip_none,
    ),
    "rmsprop": Ablation(
        "RMSProp with its standard values, at the config's own learning rate",
        "DDPM App. B",
        ("optimizer",),
        changes.rmsprop,
    ),
    "large": Ablation(
        "width 192 and at most 1.15 million steps: the paper's large network (Bedroom)",
        _published("large").source,
        ("model.channels", "train.num_steps"),
        changes.large,
        _published("large").expected,
    ),
}
ABLATIONS: MappingProxyType[str, Ablation] = MappingProxyType(
    _OBJECTIVES | _IMPROVED | CONTINUOUS | _SCHEDULES | _DROPOUT | _FLIPS | _TRAINING
)


def _rows(table: str) -> tuple[str, ...]:
    return tuple(row.ablation for row in TABLES[table].rows)


GROUPS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "table1": _rows("table1"),
        "table2": _rows("table2"),
        "variances": (
            *("mu_vlb_fixed", "mu_vlb_fixed_small"),
            *("eps_vlb_fixed", "eps_vlb_fixed_small"),
        ),
        "parameterizations": ("mu_mse", "x_0_simple", "eps_simple", "v_simple"),
        "improved": ("iddpm", "iddpm_importance", "iddpm_vlb"),
        "continuous": tuple(CONTINUOUS),
        "schedules": tuple(_SCHEDULES),
        **{name: (f"{name}_100", f"{name}_1000") for name in _SHAPES},
        "dropout": tuple(_DROPOUT),
        "flips": tuple(_FLIPS),
        "updates": ("faithful", "modern", "clip_none", "rmsprop"),
    }
)


# --- Looking them up ---


def _unknown(name: str, known: Mapping[str, object], kind: str) -> ValueError:
    return ValueError(f"there is no {kind} {name!r}. {suggestion(name, known)}")


def apply(config: ConfigDict, ablation: str) -> ConfigDict:
    """`config` with the named ablation applied; unchanged where the name is empty.

    Raises:
        ValueError: for an unknown name, listing those that exist, and for one that changes what the
            config does not have.
    """
    if not ablation:
        return config
    if ablation not in ABLATIONS:
        raise _unknown(ablation, ABLATIONS, "ablation")
    lacking = {key.split(".")[0] for key in ABLATIONS[ablation].keys} - {*config, "path"}
    if lacking:
        raise ValueError(
            f"The ablation {ablation!r} is of diffusion: it changes config."
            f"{', config.'.join(sorted(lacking))}, which this config does not have."
        )
    ABLATIONS[ablation].change(config)
    return config


def names(text: str) -> tuple[str, ...]:
    """The ablations that "table2,cosine_100" asks for: groups expanded, in order, each once.

    Args:
        text: names of groups and ablations, separated by commas; empty for the config itself,
            whose name is "".

    Raises:
        ValueError: for an unknown name, listing those that exist.
    """
    if not text.strip():
        return ("",)
    found: list[str] = []
    for part in map(str.strip, text.split(",")):
        if part not in GROUPS and part not in ABLATIONS:
            raise _unknown(part, {**GROUPS, **ABLATIONS}, "group or ablation")
        found += GROUPS.get(part, (part,))
    return tuple(dict.fromkeys(found))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def listing() -> str:
    """The groups with their members, and every ablation with its line."""
    width = max(map(len, (*GROUPS, *ABLATIONS)))
    groups = [f"  {name:{width}}  {', '.join(members)}\n" for name, members in GROUPS.items()]
    rows = [f"  {name:{width}}  {ablation.summary}\n" for name, ablation in ABLATIONS.items()]
    return "".join(["groups\n", *groups, "\nablations\n", *rows])


def page() -> str:
    """docs/ablations.md."""
    groups = [[f"`{name}`", _names(members)] for name, members in GROUPS.items()]
    rows = [
        [
            f"`{name}`",
            ablation.summary,
            _names(ablation.keys),
            ablation.source or "–",
            ablation.expected or "–",
        ]
        for name, ablation in ABLATIONS.items()
    ]
    return templates.render(
        Path(__file__).with_name("ablations.jinja"),
        groups=markdown.table(["group", "ablations"], groups),
        ablations=markdown.table(["ablation", "what it is", "changes", "from", "published"], rows),
    )


if __name__ == "__main__":
    print(page(), end="")
