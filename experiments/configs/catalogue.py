"""What --list_ablations prints, and the page docs/ablations.md.

python -m experiments.configs.catalogue > docs/ablations.md
"""

from collections.abc import Sequence

from experiments.configs.ablations import ABLATIONS, GROUPS

INTRODUCTION = """\
# Ablations

An ablation is a named change to the config of any data set, in
[ablations.py](../experiments/configs/ablations.py); its name follows the config's after a colon.

```bash
python -m experiments.main --list_ablations
python -m experiments.main --config=experiments/configs/cifar10.py:mu_vlb_fixed --workdir=runs/mu
```

This page is written by `python -m experiments.configs.catalogue > docs/ablations.md`. Published
numbers are those of the papers, for the data set that stands with them, and hold for no other. The
fields under "changes" are all that differs from a data set's own config; in some data sets fewer
do: the config of CIFAR-10 already is `eps_simple`, the one of the digits is not.

- **Fixed variance.** β is `fixed_large`, β̃ is `fixed_small`. The paper does not say which of them
  the rows of Table 2 with the bound and a fixed variance have: both are here, beside the same
  published numbers.
- **Single steps.** A network that predicts μ̃ or a `learned` variance knows single steps of the
  chain only, so that the previews of its training take all of them.
- **Schedules.** Betas meant for T = 1000 are multiplied by 1000 / T, so that every chain ends in
  noise. `constant` has the last beta of `linear`. Nothing else is adapted to T: a chain of 100
  steps is also sampled in 100.
- **IDDPM.** `iddpm` (L_hybrid, t uniform) and `iddpm_vlb` (the bound, t by importance) are that
  paper's two methods; it drew t by importance for the bound only. None of them clips gradients, as
  its code does not. T, learning rate, dropout, batch, EMA and steps stay those of the config;
  `iddpm_cifar10` takes the values that the paper trained CIFAR-10 with. All keep the config's
  network, warm-up and form of Adam.
- **min-SNR.** The weighting only: parameterization, variance and loss stay those of the config.
- **Updates.** `faithful` clips as on the original's 8 cores, an eighth of the batch on each. The
  configs of CIFAR-10 and of the 256×256 models have it already; those of the digits and of
  Fashion-MNIST clip the gradient of the whole batch. `rmsprop` is what the authors tried beside
  Adam, as TensorFlow 1 has it: decay 0.9, no momentum, ε = 1e-10 inside the root.
- **Flips.** `flip` mirrors digits and clothes too, whose configs do not (see there why): it is for
  comparison.
"""


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join([head, "|---" * len(rows[0]) + "|\n", *rest])


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
    sections = [
        INTRODUCTION,
        "## Groups\n",
        _table([["group", "ablations"], *groups]),
        "## All of them\n",
        _table([["ablation", "what it is", "changes", "from", "published"], *rows]),
    ]
    return "\n".join(sections)


if __name__ == "__main__":
    print(page(), end="")
