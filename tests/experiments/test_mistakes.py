"""What a mistake is answered with: words and a status, and never a traceback."""

import errno
import pathlib
import shutil
import sys
from collections import namedtuple

import jax.numpy as jnp
import pytest

from experiments import command_line, devices, hooks
from experiments.build import build
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.outcome import Outcome
from tests.started import ROOT, run

# Arguments -> words of the message; all of them end the program before anything is computed.
CONFIGS = {
    "--config=digitz": "there is no file digitz. Did you mean 'digits'",
    "--config=experiments/configs/cifar.py": "Did you mean 'cifar10'",
    "--config=digits:cosin": "there is no ablation 'cosin'. Did you mean 'cosine",
    "--config=digits --config.seed=-1": "config.seed = -1 must be an integer of at least 0",
    "--config=digits --config.seed=one": "config.seed = one must be an integer of at least 0",
    "--config=digits --config.seeed=1": 'Did you mean "seed"',
    "--config=digits --config.train.num_steps=0.5": "num_steps = 0.5 must be an integer of at",
    "--config=digits --config.schedule.beta_end=0.1 --config.schedule=cosine(num_timesteps=8)": (
        "cosine(num_timesteps=8) replaces the whole choice, and --config.schedule.beta_end with it"
    ),
    "--config=digits --config.model.dropout=a": "config.model.dropout = a must be a number of at",
    "--config=digits --config.train.flip=perhaps": "config.train.flip = perhaps must be True or",
    "--config=digits --config.train.num_steps=1e20": "config.train.num_steps = 1000000000000000",
    "--config=digits --config.train.batchsize=3": 'Did you mean "batch_size"',
    "--config=digits --config.model.dropout=2": "config.model.dropout = 2.0 must be",
    "--config=digits --config.ema_decay=1": "config.ema_decay = 1.0 must be",
    "--config=digits --config.evaluate.metrics=bdp": "'bdp'",
    "--config=digits --config.evaluate.metrics=fid": "'fid' is part of 'samples': choose that",
    "--config=digits --config.evaluate.metrics=bpd,kid": "'kid', which is part of 'samples'",
    "--config=digits --config.evaluate.split=valid": "Choose one of: train, test",
    "--config=digits --config.precision=half": "Choose one of: default, high, highest",
    "--config=digits --config.train.log_to=board": "Choose one of: , tensorboard, wandb",
    "--config=digits --config.sample.sampler.name=ddim(eta)": "is not understood: write a name",
    "--config=digits --config.sample.sampler.name=ddim(0.5)": "'ddim(0.5)' is not understood",
    "--config=digits --config.sample.sampler.name=ddim(eta=2)": "config.sample.sampler.eta = 2",
    "--config=image_folder": "config.data.image_size = None: say how large",
    "--config=image_folder --config.data.image_size=0": "config.data.image_size = 0",
    "--config=image_folder --config.data.image_size=(16,32)": "image_size = (16,32) must be an "
    "integer of at least 1 and at most 8,192, the side of a square in pixels.",
    "--config=emoji --config.data.image_sise=32": 'Did you mean "image_size"',
}


@pytest.mark.parametrize("arguments", CONFIGS)
def test_a_mistake_in_a_config_is_a_message(arguments: str) -> None:
    with pytest.raises(ValueError) as raised:
        command_line.load_config(arguments.split())
    assert CONFIGS[arguments] in str(raised.value) and "\n  File" not in str(raised.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("--config=digits", f"--config={ROOT}/experiments/configs/digits.py"),
        ("--config=digits:cosine", f"--config={ROOT}/experiments/configs/digits.py:cosine"),
        ("--config=experiments/configs/digits.py", "--config=experiments/configs/digits.py"),
        ("--config.train.num_steps=1e3", "--config.train.num_steps=1000"),
        ("--config.train.num_steps=1.5e5", "--config.train.num_steps=150000"),
        ("--config.optimizer.learning_rate=2e-4", "--config.optimizer.learning_rate=2e-4"),
        ("--config.data.path=1e3/a", "--config.data.path=1e3/a"),
        ("--workdir=1e3", "--workdir=1e3"),
    ],
)
def test_short_forms_mean_what_they_say(written: str, meant: str) -> None:
    assert command_line.as_meant([written]) == [meant]
    name, _, value = written.partition("=")
    if name == "--config":
        assert command_line.as_meant([name, value]) == [name, meant.partition("=")[2]]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--config.sample.prompts=red apple,smiling cat"], 2),
        (["--config.sample.prompts", "red apple; a cat, asleep; "], 2),
        (["--config.sample.prompts=@test"], None),
        (["--config.sample.prompts="], None),
        (["--config.sample.prompts=a,b", "--config.sample.num_images=7"], None),
        (["--config.sample.prompts=a,b", "--seeds", "3-9"], None),
        (["--config.sample.labels=3"], None),
    ],
)
def test_prompts_say_how_many_samples_unless_something_else_does(words, count) -> None:
    argv = ["main", "--mode=sample", *words]
    added = [] if count is None else [f"--config.sample.num_images={count}"]
    assert command_line.with_a_sample_for_each_prompt(argv) == argv + added


def test_options_in_parentheses_make_a_whole_choice() -> None:
    """Nothing of the choice before stays, at any depth, and what has none is left alone."""
    config = command_line.load_config(
        [
            "--config=digits:eps_simple",
            "--config.sample.sampler.name=dpm_solver_pp(order=3)",
            "--config.loss.weighting=min_snr(gamma=4.0)",
            "--config.schedule=cosine(num_timesteps=200)",
        ]
    )
    assert config.sample.sampler.to_dict() == {"name": "dpm_solver_pp", "order": 3}
    assert config.loss.weighting.to_dict() == {"name": "min_snr", "gamma": 4.0}
    assert config.schedule.to_dict() == {"name": "cosine", "num_timesteps": 200}
    assert config.sample.spacing.to_dict() == {"name": "auto"}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["experiments.main", "experiments.convert"])
def test_without_arguments_a_program_says_how_it_is_used(module: str) -> None:
    command = [sys.executable, "-m", module]
    bare, asked = run(command, code=2), run([*command, "--help"])
    for said in (bare.stderr, asked.stdout):
        assert f"python -m {module} --" in said and "Traceback" not in said
    assert "--workdir" in asked.stdout or "--to" in asked.stdout


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"--workdir=.* cannot be written to \("):
            command_line.check_writable(place, make=True)
    command_line.check_writable(tmp_path / "absent", make=False)
    assert not (tmp_path / "absent").exists()
    command_line.check_writable(tmp_path / "new", make=True)
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())


def test_a_platform_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more")

    monkeypatch.setattr("jax.devices", missing)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match=r"JAX_PLATFORMS=cuda .*'cuda' Install .*\[cuda\]"):
        devices.check_backend()


def test_a_full_disk_is_told_before_a_save_and_costs_none(tmp_path, monkeypatch, capsys) -> None:
    tree = {"w": jnp.ones(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, tree, {})
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 2**20))
        with pytest.raises(OSError, match=r"a checkpoint needs 1\.0 MiB, and 1\.0 are") as raised:
            checkpoints.save(2, tree, tree, {})
        assert checkpoints.steps() == [1]
    assert raised.value.errno == errno.ENOSPC
    wrapped = ValueError("a library's")
    wrapped.__cause__ = raised.value
    assert command_line.disk_is_full(wrapped) and not command_line.disk_is_full(ValueError("no"))
    assert command_line.fail_of_full_disk(raised.value) == 75
    assert "start the same command again" in capsys.readouterr().err


def test_a_finished_training_says_that_there_is_nothing_to_do(plain, tmp_path, capsys) -> None:
    config = plain()
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    capsys.readouterr()
    config.train.num_steps = config.train.checkpoint_every = 4
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    said = " ".join(capsys.readouterr().out.split())
    assert "8 steps before" in said and "num_steps = 4: nothing to train" in said
    assert "resuming" not in said


def test_a_choice_with_options_reaches_the_program(tmp_path: pathlib.Path) -> None:
    """ml_collections finds the flags of a config in sys.argv, which has to say what was meant."""
    choice = ("--config.sample.sampler=ddim(etta=0.5)", f"--workdir={tmp_path}")
    done = run([sys.executable, "-m", "experiments.main", "--config=digits", *choice], code=2)
    assert "sample.sampler" in done.stderr and "etta" in done.stderr
