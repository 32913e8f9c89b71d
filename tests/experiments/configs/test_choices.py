"""Every choice of every table, named alone on the command line, builds or says what it needs."""

import re
import shlex

import pytest
from ml_collections import ConfigDict

from diffusion.networks import AUTOENCODERS, NETWORKS
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.variances import VARIANCES
from experiments import lookup
from experiments.build import build
from experiments.command_line import load_config, message
from experiments.configs import digits
from tests.experiments.configs.test_ranges import CHOICES, SUPPLIED

TABLES = {**CHOICES, "parameterization": PARAMETERIZATIONS, "variance": VARIANCES}
NAMED = [(field, name) for field, table in TABLES.items() for name in table]
# What "..." may stand for.
FILLED = {"path": "'pictures'", "image_size": "8", "workdir": "'runs/vae'", "num_timesteps": "8"}
FILLED |= {"betas": "(0.1, 0.2)", "learning_rate": "0.001", "beta": "0.02"}
SMALL = ("patch_size=8", "hidden_size=8", "depth=1", "num_heads=2", "mlp_ratio=1")


def beginning(field: str, name: str) -> list[str]:
    """A config that has the choice; with a small network, unless that is what is chosen."""
    if field == "likelihood" or (field == "model" and name in AUTOENCODERS):
        return ["--config=vae_digits"]
    if field == "model":
        return ["--config=digits_dit" if name == "unet" else "--config=digits"]
    ablation = "flow" if field == "path" else "eps_simple"
    return [f"--config=digits_dit:{ablation}", *(f"--config.model.{size}" for size in SMALL)]


def refusal(*arguments: str) -> str:
    """What `build` says of a command line; "" where it builds."""
    try:
        build(load_config(arguments))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("field", "name"), NAMED)
def test_a_choice_named_alone_builds_or_says_what_it_needs(field: str, name: str) -> None:
    first = beginning(field, name)
    said = refusal(*first, f"--config.{field}={name}")
    given = load_config(first)
    for part in field.split("."):
        given = given[part]
    needs = lookup.required(TABLES[field][name], SUPPLIED.get(field, ()))
    missing = [keyword for keyword in needs if keyword not in given]
    assert not missing or said, "it built without what it needs"
    for keyword in missing:
        assert re.search(rf"\b{keyword}\b", said) or "needs captions" in said, said
    if not said:
        return
    assert "config." in said and "Traceback" not in said
    whole = re.search(rf"--config\.{field}=\S.*$", said)
    assert whole or "does not take" not in said
    if whole is None:
        return
    # What it says to write instead is no longer refused for its keywords.
    [argument] = shlex.split(whole[0])
    for keyword, value in FILLED.items():
        argument = argument.replace(f"{keyword}=...", f"{keyword}={value}")
    assert "..." not in argument
    then = refusal(*first, argument)
    assert not re.search("does not take|which the config does not have", then), then


def test_the_program_s_own_fields_stay_when_a_network_is_replaced_whole() -> None:
    said = refusal("--config=digits", "--config.model=dit", "--config.model.dtype=bfloat16")
    [argument] = shlex.split(said[said.index("--config.model=") :])
    config = load_config(["--config=digits", argument])
    assert config.model.dtype == "bfloat16" and config.model.class_conditional is False
    short = load_config(["--config=digits", "--config.model=dit(patch_size=2, num_heads=2)"])
    assert "dtype" not in short.model
    build(short)


def test_an_optimizer_that_is_named_with_some_of_its_options_has_the_others(tiny) -> None:
    from experiments.optimizers import learning_rate, rate_schedule

    config = tiny()
    config.optimizer = ConfigDict({"name": "rmsprop", "learning_rate": 1e-3})
    for step in (0, 2500, 5000, 9000):  # whose warm-up is 5,000 steps where nothing is told
        assert learning_rate(config.optimizer)(step) == rate_schedule(1e-3, 5000)(step)
    build(config)


ELSEWHERE = [
    (field, ours, theirs)
    for field, names in lookup.ELSEWHERE.items()
    for ours, several in names.items()
    for theirs in several.split()
]


@pytest.mark.parametrize(("field", "ours", "theirs"), ELSEWHERE)
def test_a_name_that_others_use_is_told_ours(field: str, ours: str, theirs: str) -> None:
    table = NETWORKS if field == "model" else TABLES[field]
    assert theirs not in table and ours.partition("(")[0] in table
    for written in (theirs, theirs.upper(), theirs.replace("_", "-")):
        with pytest.raises(ValueError, match=re.escape(f"It is called {ours} here. Choose one of")):
            lookup.choose(table, written, f"{field}.name")


def test_the_best_known_of_them_is_not_taken_for_another() -> None:
    config = digits.get_config()
    config.sample.sampler = ConfigDict({"name": "ddpm"})
    with pytest.raises(ValueError, match=r"'ddpm' is not known\. It is called ancestral here\."):
        build(config)


@pytest.mark.parametrize(
    ("config", "changed", "words"),
    [
        ("digits:flow", "loss.space.name=mu", "`mu` is of single steps.*Choose output or x_0"),
        ("digits:flow", "parameterization=eps", "^config.parameterization: .*none at its end"),
        ("digits:flow", "loss=hybrid(vlb_coefficient=1e-3)", "continuous time has none. Choose `s"),
        ("digits:eps_simple", "parameterization=velocity", "^config.parameterization: .*a path"),
        ("digits", "sample.spacing=karras", "'karras' is of a path.* of a chain.*: auto, uniform"),
        ("digits:flow", "sample.spacing=leading", "'leading' is of a chain.*: auto, uniform, tr"),
        ("digits", "path=straight", "no field path: .* of a chain .*digits.py:flow"),
        ("digits:flow", "schedule.name=linear", "no field schedule: .* of a path .*:eps_simple"),
    ],
)
def test_what_a_path_or_a_chain_does_not_have_is_said(
    config: str, changed: str, words: str
) -> None:
    with pytest.raises((ValueError, AttributeError, KeyError)) as refusal:
        build(load_config([f"--config={config}", f"--config.{changed}"]))
    assert re.search(words, message(refusal.value))
