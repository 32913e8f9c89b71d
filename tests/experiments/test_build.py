import itertools
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from diffusion import samplers
from diffusion.samplers import SAMPLERS
from diffusion.structs import Levels, Sampler
from experiments import main
from experiments.build import build
from experiments.configs import ablations, base, digits, fashion_mnist, ranges
from experiments.data.datasets import DATASETS
from experiments.experiment import Experiment
from experiments.lookup import lookup
from tests.experiments.catalog import (
    DATA,
    LATENTS,
    OTHER_NETWORKS,
    PIXELS,
    VAES,
    covers,
    get,
    read_by_build,
)

DIT = dict(
    **dict(name="dit", patch_size=2, hidden_size=16, depth=1, num_heads=2),
    **dict(class_conditional=False, dtype="float32"),
)


# Parameters of the paper's networks, (config, ablation) -> how many.
PUBLISHED = {("cifar10", ""): 35_746_307, ("cifar10", "mu_vlb_learned"): 35_749_766} | {
    (name, ""): 113_673_219 for name in ("celebahq256", "lsun_bedroom", "lsun_church", "lsun_cat")
}
COUNTS: dict[str, int] = {}  # parameters of the configs that were built, by what a build reads


def test_there_are_configs_of_every_kind() -> None:
    assert {"digits", "cifar10", "celebahq256", "lsun_bedroom", "image_folder"} <= set(DATA)
    assert {"vae_digits"} <= set(VAES) and {"latent_emoji", "text_emoji"} <= set(LATENTS)
    assert {"digits_dit": "digits", "cifar10_dit": "cifar10"}.items() <= OTHER_NETWORKS.items()


@pytest.mark.parametrize(
    ("name", "ablation"),
    [(name, "") for name in PIXELS]
    + [("digits", ablation) for ablation in (*ablations.GROUPS["table2"], "iddpm")]
    + [("cifar10", "mu_vlb_learned"), ("digits_dit", "mu_vlb_learned")],
)
def test_every_config_builds_without_data_and_without_memory(name: str, ablation: str) -> None:
    """Once where configs differ in their files and the length of their training alone."""
    config = get(name, ablation)
    ranges.check(config)
    dataset = lookup(DATASETS, config.data, "data")()
    facts = dataset._replace(name="", open=None, prepare=None, prepared_from="", subject_of=None)
    read = {k: v for k, v in read_by_build(config).items() if not covers("data", k)}
    key = json.dumps([facts, read], sort_keys=True)
    if key not in COUNTS:
        experiment = build(config)
        params = jax.eval_shape(experiment.method.init, jax.random.key(0))
        COUNTS[key] = sum(leaf.size for leaf in jax.tree.leaves(params))
        method = experiment.method
        assert (method.vae is not None and method.chain is None) == (name in VAES)
        if method.chain is not None:
            check_respacing(experiment, params)
    assert COUNTS[key] == PUBLISHED.get((name, ablation), COUNTS[key])
    assert 10_000 < COUNTS[key] < (2e6 if name in VAES else 2e8)


def check_respacing(experiment: Experiment, params: Any) -> None:
    """A chain is respaced where what the network was taught is not of single steps alone."""
    chain = experiment.method.chain
    assert chain is not None
    parameterization, variance = chain.process.parameterization, chain.process.variance
    one_step = parameterization.predicts_mean or variance.one_step
    if one_step:
        with pytest.raises(ValueError, match="5 steps instead of 1000 are not possible"):
            chain.respaced(5)
    schedule, denoise, _ = chain.respaced(0 if one_step else 5)
    images = jax.ShapeDtypeStruct((2, *experiment.dataset.image_shape), jnp.float32)
    prediction = jax.eval_shape(denoise, params, images, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert schedule.num_timesteps == (1000 if one_step else 5)
    assert prediction.mean.shape == images.shape


@pytest.mark.parametrize("name", ["digits", "vae_digits"])
def test_a_build_reads_no_more_than_it_is_taken_to_read(name: str) -> None:
    """What tests leave out because it would build the same experiment again relies on it."""
    config = get(name)
    leaves = {tuple(k.split(".")): v for k, v in read_by_build(config).items()}
    rest = ConfigDict(flax.traverse_util.unflatten_dict(leaves))
    assert "ema_decay" in config and "ema_decay" not in rest and "num_steps" not in rest.train
    assert build(rest).method.num_steps == build(config).method.num_steps


@pytest.mark.parametrize("parameterization, possible", [("eps", True), ("mu", False)])
def test_whether_a_learned_variance_forbids_longer_steps_is_the_samplers_to_say(
    parameterization: str, possible: bool, monkeypatch
) -> None:
    def blind(levels: Levels, /) -> Sampler:
        return SAMPLERS["ancestral"](levels)._replace(uses_variance=False)

    monkeypatch.setattr(samplers, "SAMPLERS", {**SAMPLERS, "blind": blind})
    config = get("digits", f"{parameterization}_vlb_learned")
    with pytest.raises(ValueError, match="5 steps instead of 1000 are not possible"):
        build(config).method.chain.respaced(5)
    config.sample.sampler = {"name": "blind"}
    experiment = build(config)
    if possible:
        assert experiment.method.chain.respaced(5)[0].num_timesteps == 5
    else:
        with pytest.raises(ValueError, match="the mean"):
            experiment.method.chain.respaced(5)


def test_every_field_of_the_base_config_has_a_comment() -> None:
    lines = pathlib.Path(base.__file__).read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line.strip().startswith("config.") and "ConfigDict" not in line:
            assert "#" in line or before.strip().startswith("#"), line


def test_the_papers_rows_are_the_base_config() -> None:
    """The values of fidelity that a careless edit would change."""
    cifar = get("cifar10")
    assert (cifar.optimizer.learning_rate, cifar.optimizer.warmup_steps) == (2e-4, 5000)
    assert cifar.optimizer.epsilon_hat and cifar.clip.to_dict() == dict(
        name="per_core", max_norm=1.0, num_cores=8
    )
    assert (cifar.train.batch_size, cifar.train.num_steps, cifar.ema_decay) == (
        128,
        800_000,
        0.9999,
    )
    assert cifar.variance.name == "fixed_large" and cifar.model.dropout == 0.1
    faces = get("celebahq256")
    assert faces.variance.name == "fixed_small" and faces.model.dropout == 0.0
    assert (faces.optimizer.learning_rate, faces.train.batch_size) == (2e-5, 64)
    assert not get("lsun_bedroom").train.flip and get("lsun_church").train.flip


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "schedule",
            dict(name="liner"),
            ["config.schedule.name = 'liner'", "mean 'linear'", "jsd"],
        ),
        (
            "schedule",
            dict(name="cosine", num_timesteps=10, beta_start=1e-4),
            ["config.schedule has 'beta_start'", "'cosine' does not take", "offset, beta_max"],
        ),
        (
            "schedule",
            dict(name="linear", num_timesteps=10, beta_start=1.0),
            ["config.schedule: beta[0] = 1.0"],
        ),
        (
            "parameterization",
            dict(name="-"),
            ["config.parameterization.name", "mu, x_0, eps"],
        ),
        ("parameterization", dict(name="eps", scale=2), ["'eps' does not take", "no keyword"]),
        ("loss", dict(name="simple"), ["loss `simple`", "vlb with any variance"]),
        ("variance", dict(name="fixed_large"), ["loss `hybrid`", "has none"]),
        ("loss", dict(name="vlb", weighting=dict(name="uniform")), ["has 'weighting'", "scale"]),
        ("loss", dict(name="simple", weighting=dict(name="-")), ["config.loss.weighting.name"]),
        ("timesteps", dict(name="-"), ["config.timesteps.name", "loss_second_moment"]),
        ("optimizer", dict(name="adam", learning_rate=1.0, beta1=0.9), ["'beta1'", "b1"]),
        ("clip", dict(name="-"), ["config.clip.name", "global, per_core, none"]),
        ("sample.sampler", dict(name="dddim"), ["config.sample.sampler.name", "mean 'ddim'"]),
        ("sample.sampler", dict(name="ddim", order=2), ["config.sample.sampler", "'order'", "eta"]),
        ("sample.sampler", dict(name="dpm_solver_pp", order=1), ["config.sample.sampler: order"]),
        ("sample.spacing", dict(name="-"), ["config.sample.spacing.name", "uniform"]),
        ("sample.spacing", dict(name="leading", offset=5), ["config.sample.spacing: offset = 5"]),
        ("sample.threshold", dict(name="-"), ["config.sample.threshold.name", "percentile"]),
        ("sample.guidance_scale", 2.0, ["guidance_scale = 2 needs", "label_dropout"]),
        ("sample.num_steps", 2000, ["num_steps = 2000", "1 to 1000"]),
        ("evaluate.decoder", "tahn", ["config.evaluate.decoder = 'tahn'", "mean 'tanh'"]),
        ("model.dtype", "float16", ["config.model.dtype", "float32, bfloat16"]),
        ("model.channels", 40, ["40 channels", "norm_groups = 32"]),
        ("model.depth", 3, ["config.model has 'depth'", "channel_multipliers"]),
        ("model.label_dropout", 0.1, ["config.model: label_dropout = 0.1", "class_conditional"]),
        ("model", dict(DIT, patch_size=3), ["config.model: patch_size = 3", "8x8 image"]),
        ("model", dict(DIT, num_heads=5), ["config.model: hidden_size = 16", "num_heads = 5"]),
        ("model", dict(DIT, channels=8), ["config.model has 'channels'", "patch_size, hidden"]),
        ("data.name", "digit", ["config.data.name = 'digit'", "mean 'digits'"]),
        ("data.path", "x", ["config.data has 'path'", "data_dir"]),
    ],
)
def test_wrong_choices_say_what_came_what_is_allowed_and_where(path: str, value, words) -> None:
    config = digits.get_config()
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError) as error:
        build(config)
    assert all(word in str(error.value) for word in words), error.value


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    config = fashion_mnist.get_config()
    config.data.pad_to = 30
    config.model.channel_multipliers = (1, 1, 1, 1)
    with pytest.raises(ValueError, match="30x30 image cannot be halved 3 times.*multiples of 8"):
        build(config)


def test_labels_need_a_data_set_with_classes() -> None:
    config = get("celebahq256")
    config.model.class_conditional = True
    with pytest.raises(ValueError, match="'celeb_a_hq/256' has no labels"):
        build(config)
    config = digits.get_config()
    config.model.class_conditional = True
    assert build(config).method.chain.network.num_classes == 10


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_another_network_has_the_fields_that_all_share(name: str) -> None:
    shared = {"dropout", "class_conditional", "label_dropout", "remat", "dtype"}
    assert shared <= set(get(name).model)


def test_unknown_ablations_list_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="no ablation 'mu_msee'. Did you mean 'mu_mse'.*eps_simple"
    ):
        get("digits", "mu_msee")


def test_the_config_cannot_set_what_the_program_supplies() -> None:
    def entry(given: int, /, option: int = 1) -> int:
        return given + option

    assert lookup({"entry": entry}, {"name": "entry", "option": 5}, "place")(2) == 7
    with pytest.raises(ValueError, match="config.place has 'given'.*It accepts: option"):
        lookup({"entry": entry}, {"name": "entry", "given": 3}, "place")


def test_the_start_up_lines_warn_of_a_chain_cut_short() -> None:
    config = digits.get_config("linear_1000")  # the paper's chain
    good = main.describe_start(build(config))
    assert not any("WARNING" in line for line in good)
    assert any("alpha_bar_T = 4.04e-05" in line for line in good)
    config.schedule.num_timesteps = 100
    bad = main.describe_start(build(config))
    assert any(line.startswith("WARNING") and "not end in noise" in line for line in bad)


@pytest.mark.parametrize("name", VAES)
def test_a_config_of_a_vae_has_no_chain(name: str) -> None:
    config = get(name)
    assert config.method.name == "vae"
    assert not {"schedule", "parameterization", "variance", "loss", "timesteps"} & set(config)


@pytest.mark.parametrize("name", LATENTS)
def test_configs_of_latents_say_how_their_vae_is_trained(name: str, tmp_path: pathlib.Path) -> None:
    config = get(name)
    config.encoder.workdir = str(tmp_path)
    if config.text.name == "words":
        config.text.vocabulary = "one two"
    with pytest.raises(ValueError, match=r"Train one first, such as python -m experiments.main"):
        build(config)
