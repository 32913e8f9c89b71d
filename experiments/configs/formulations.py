"""Published numbers of formulations in continuous time, each from its own paper."""

from typing import NamedTuple


class FormulationRow(NamedTuple):
    """A formulation's published number on a data set, by its own network and training.

    config, ablation: what trains it here; "" where no config of that data set is here.
    section, quantity: where results.json has the same of ours.
    """

    label: str
    dataset: str
    config: str
    ablation: str
    heading: str
    section: str
    quantity: str
    text: str
    source: str


_FLOW = ("flow matching", "CIFAR-10", "cifar10", "flow")
_FID_OF = ("FID", "samples", "fid_train")
FORMULATIONS = (
    FormulationRow(*_FLOW, *_FID_OF, "6.35", "Lipman et al. 2023, Table 1, 142 evaluations"),
    FormulationRow(
        *(*_FLOW, "bits/dim, test", "ode", "flow_bits_per_dim", "2.99"),
        "Lipman et al. 2023, Table 1",
    ),
    FormulationRow(
        *("EDM", "CIFAR-10", "cifar10", "edm", *_FID_OF, "1.97"),
        "Karras et al. 2022, Table 2, unconditional VP, 35 evaluations",
    ),
    FormulationRow(
        *("VDM", "CIFAR-10", "cifar10", "vdm_learned"),
        *("bits/dim, test", "bpd", "bits_per_dim", "2.65"),
        "Kingma et al. 2021, Table 1",
    ),
    FormulationRow(
        *("JiT-G/16", "ImageNet 256×256", "", "jit", *_FID_OF, "1.82"),
        "Li and He 2025",
    ),
)
