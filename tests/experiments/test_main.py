"""The program as a user starts it: its output, its files, its errors."""

import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

from experiments.workdir.lock import only_writer
from tests import started
from tests.experiments.processes import in_processes, processes

pytestmark = pytest.mark.slow

TINY = {
    "config.schedule.num_timesteps": "8",
    "config.schedule.beta_start": "0.02",
    "config.schedule.beta_end": "0.8",
    "config.model.channels": "8",
    "config.model.norm_groups": "4",
    "config.model.channel_multipliers": "(1,)",
    "config.model.attention_resolutions": "()",
    "config.optimizer.warmup_steps": "2",
    "config.train.batch_size": "16",
    "config.train.num_steps": "8",
    "config.train.steps_per_call": "2",
    "config.train.log_every": "4",
    "config.train.preview_every": "8",
    "config.train.preview_images": "4",
    "config.train.preview_num_steps": "4",
    "config.train.checkpoint_every": "4",
    "config.sample.num_images": "6",
    "config.sample.batch_size": "6",
    "config.evaluate.num_images": "6",
    "config.evaluate.batch_size": "6",
}


def program(*arguments: str, code: int = 0, module: str = "main") -> started.CompletedProcess:
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return started.run(command, code, env=environ)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: pathlib.Path) -> tuple:
    """A tiny training from start to end: (its working directory, what it printed)."""
    workdir = tmp_path_factory.mktemp("main") / "run"
    options = [f"--{name}={value}" for name, value in TINY.items()]
    result = program(
        "--config=experiments/configs/digits.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *options,
    )
    shutil.copytree(workdir, workdir.with_name("untouched"))
    return workdir, result


def test_training_ends_in_samples_and_numbers(run: tuple) -> None:
    workdir, result = run
    for name in (
        *("config.json", "results.json", "metrics.jsonl", "bound.csv", "previews/00000008.png"),
        *("samples/samples.png", "samples/samples.npz", "samples/progress.png"),
    ):
        assert (workdir / name).is_file(), name
    assert set(json.loads((workdir / "results.json").read_text())) == {
        *("train", "sample", "bpd", "baselines")
    }
    lines = result.stdout.splitlines()
    assert any(line.startswith("chain     linear, T = 8") for line in lines)
    assert any(line.startswith("step") and "ETA" in line and "images/s" in line for line in lines)
    assert any("this model (bound)" in line for line in lines)
    assert any("histogram per pixel" in line for line in lines)
    assert any(line.startswith("WARNING") and "first 6 of 300 test" in line for line in lines)
    # Off a terminal: plain lines, no bar, no control characters.
    assert "\x1b" not in result.stdout and "━" not in result.stdout


def test_what_is_finished_is_not_done_again(run: tuple, tmp_path: pathlib.Path) -> None:
    """What has changed is: other images are measured, and the same samples stay."""
    workdir = shutil.copytree(run[0].with_name("untouched"), tmp_path / "run")
    result = program(*run[1].args[3:], f"--workdir={workdir}")
    said = " ".join(result.stdout.split())
    for words in ("nothing to train", "sampled nothing: these", "measured bpd, baselines before"):
        assert words in said
    before = (workdir / "results.json").read_bytes()
    assert before == (run[0].with_name("untouched") / "results.json").read_bytes()
    options = (*run[1].args[3:], f"--workdir={workdir}", "--config.evaluate.num_images=5")
    said = program(*options).stdout
    assert "measured" not in said and "first 5 test images" in said
    assert (workdir / "results.json").read_bytes() != before


def test_sampling_needs_only_the_working_directory(run: tuple) -> None:
    workdir, _ = run
    own = (workdir / "samples" / "samples.npz").read_bytes()
    first = program("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=4")
    apart = workdir / "samples" / "step8_seed0_ancestral8"
    four = np.load(apart / "samples.npz")["arr_0"]
    assert four.shape == (4, 8, 8, 1) and "sampled   4 images" in first.stdout
    again = program("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=4")
    assert "already" in again.stdout
    # More of the same replace them, and other ones do not.
    program("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=6")
    six = np.load(apart / "samples.npz")["arr_0"]
    assert six.shape == (6, 8, 8, 1) and abs(six[:4].astype(int) - four).max() <= 1
    program("--mode=sample", f"--workdir={workdir}", "--config.seed=1")
    out = ("--mode=sample", f"--workdir={workdir}", f"--out={apart}", "--config.seed=1")
    refused = program(*out, code=2)
    assert "holds something else" in refused.stderr
    assert (workdir / "samples" / "samples.npz").read_bytes() == own
    np.testing.assert_array_equal(np.load(apart / "samples.npz")["arr_0"], six)
    assert (workdir / "samples" / "step8_seed1_ancestral8" / "samples.png").is_file()
    program("--mode", "evaluate", "--workdir", str(workdir), "--config.evaluate.num_images=5")
    results = json.loads((workdir / "results.json").read_text())
    assert results["bpd"]["protocol"]["num_images"] == 5 and results["sample"]["num_images"] == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.lerning_rate=1"], ["lerning_rate", "Did you mean", "learning_rate"]),
        (["--config.schedule.beta_start=1"], ["config.schedule: beta[0] = 1.0", "(0, 1)"]),
        (["--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate = nan must"]),
        (["--config.train.finish_with=(1,2)"], ["config.train.finish_with = (1, 2) holds 1"]),
        (["--config.schedule.name=liner"], ["config.schedule.name = 'liner'", "'linear'"]),
        (["--config.distributed=yes"], ["config.distributed = 'yes'", "'off', 'auto'"]),
        (
            [
                "--config.data.name=cifar10",
                "--config.data.data_dir=/nowhere/at/all",
                "--config.model.attention_resolutions=(16,)",
            ],
            ["cifar10", "experiments.prepare", "--dataset=cifar10"],
        ),
        (["stray"], ["unexpected arguments ['stray']"]),
    ],
)
def test_errors_are_messages(arguments: list, words: list, tmp_path: pathlib.Path) -> None:
    options = ("--config=experiments/configs/digits.py", f"--workdir={tmp_path}", *arguments)
    result = program(*options, code=2)
    message = result.stdout + result.stderr
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_an_unknown_ablation_lists_the_known_ones(tmp_path: pathlib.Path) -> None:
    result = program(
        "--config=experiments/configs/digits.py:mu_msee", f"--workdir={tmp_path}", code=2
    )
    assert "Did you mean 'mu_mse'" in result.stderr and "eps_simple" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_without_a_run_is_said_so(tmp_path: pathlib.Path) -> None:
    result = program("--mode=evaluate", f"--workdir={tmp_path}", code=2)
    assert "holds no run" in result.stderr and "Train first" in result.stderr
    assert "Traceback" not in result.stderr


def test_two_processes_train_sample_and_evaluate_like_one(
    run: tuple, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    """Each with half of the devices and of the batches; only the first writes."""
    outputs = in_processes(
        2,
        *("-m", "experiments.main", f"--workdir={tmp_path}"),
        *("--config=experiments/configs/digits.py", f"--config.data.data_dir={data_dir}"),
        *(f"--{name}={value}" for name, value in TINY.items()),
    )
    assert "2 process(es)" in outputs[0] and "step" not in outputs[1]

    def read(workdir: pathlib.Path) -> tuple:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        results = json.loads((workdir / "results.json").read_text())
        return [line["loss"] for line in lines], results["bpd"]["values"]

    (losses, bound), (losses_one, bound_one) = read(tmp_path), read(run[0].with_name("untouched"))
    np.testing.assert_allclose(losses, losses_one, rtol=1e-4)
    assert bound["bits_per_dim"] == pytest.approx(bound_one["bits_per_dim"], rel=1e-3)


def test_convert_writes_a_folder_for_diffusers_and_reads_it_again(run, tmp_path) -> None:
    workdir, out, again = run[0].with_name("untouched"), tmp_path / "model", tmp_path / "again"
    result = program(f"--from={workdir}", "--to=diffusers", f"--out={out}", module="convert")
    assert "tensors of step 8 (ema)" in result.stdout
    result = program(f"--from={out}", f"--to={again}", module="convert")
    assert "process   schedule linear, eps" in result.stdout
    program("--mode=sample", f"--workdir={again}", "--config.sample.num_images=6")
    ours, theirs = (
        np.load(folder / "samples.npz", allow_pickle=False)["arr_0"]
        for folder in (
            run[0].with_name("untouched") / "samples",
            again / "samples" / "step8_seed0_ancestral8",
        )
    )
    np.testing.assert_array_equal(ours, theirs)
    for arguments, message in {
        ("--to=diffusers",): "needs --out=FOLDER",
        (f"--to={tmp_path / 'x'}", "--out=y"): "--out goes with --to=",
    }.items():
        result = program(f"--from={out}", *arguments, module="convert", code=2)
        assert message in result.stderr and "Traceback" not in result.stderr


def test_a_second_training_is_refused_and_a_sampling_is_not(
    run: tuple, tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(run[0].with_name("untouched"), tmp_path / "run")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with only_writer(workdir, "training"):
        again = (*run[1].args[3:], f"--workdir={workdir}", "--config.train.num_steps=10")
        refused = program(*again, code=2)
        program("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=4")
    assert f"in use: process {os.getpid()} on" in refused.stderr
    assert all(path.read_bytes() == content for path, content in before.items())
    assert program(*again).stdout.count("resuming") == 1
    assert not (workdir / "lock").exists()


@pytest.mark.parametrize("whom", [(0, 1), (1,)])
def test_ctrl_c_lets_two_processes_agree_save_and_stop(
    whom: tuple[int, ...], tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    """As a terminal sends it, to both, and where only one is reached."""
    options = TINY | {"config.train.num_steps": "100000", "config.train.checkpoint_every": "100000"}
    options["config.train.preview_every"] = "0"
    command = (
        *("-m", "experiments.main", f"--workdir={tmp_path}"),
        *("--config=experiments/configs/digits.py", f"--config.data.data_dir={data_dir}"),
        *(f"--{name}={value}" for name, value in options.items()),
    )
    with processes(2, *command) as both:
        said = iter(both[0].stdout.readline, "")
        assert any(line.startswith("step") for line in said)
        for index in whom:
            both[index].send_signal(signal.SIGINT)
        outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75], "\n".join(outputs)
    assert "which is saved; the same command continues" in outputs[0]
    assert not any("Traceback" in output for output in outputs)
    [step] = (tmp_path / "checkpoints").iterdir()
    assert f"stopped   at step {step.name}," in outputs[0]
