"""The files for clouds, read by the engines that would carry them out; nothing is started."""

import json
import os
import pathlib
import shutil
import sys

import pytest
import yaml
from ml_collections import ConfigDict

from experiments.command_line import load_config
from tests.started import ROOT, CompletedProcess, run

CLUSTERS = ROOT / "launch" / "clusters"

# SkyPilot's pins exclude the project's, so that it lives in an environment of its own; this runs
# there.
READ = """
import json, sys, sky, yaml
envs = [("BUCKET", "some-bucket")]
task = sky.Task.from_yaml_config(yaml.safe_load(sys.stdin), env_overrides=envs)
print("ANSWER", json.dumps({
    "accelerators": sorted(r.accelerators.popitem() for r in task.resources),
    "spot": [r.use_spot for r in task.resources],
    "recovery": [r.job_recovery["recover_on_exit_codes"] for r in task.resources],
    "mounts": {path: storage.name for path, storage in task.storage_mounts.items()},
    "envs": task.envs,
    "setup": task.setup,
    "run": task.run,
}))
"""


def skypilot(text: str, home: pathlib.Path) -> CompletedProcess:
    """SkyPilot's reading of a task, offline and with nothing reported to its makers."""
    program = shutil.which("sky")
    if program is None:
        pytest.skip("no SkyPilot: no `sky` in PATH (pipx install skypilot)")
    return run(
        [pathlib.Path(program).resolve().parent / "python", "-c", READ],
        **dict(code=None, input=text),
        env=os.environ | {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accelerators"),
    [
        ("tpu_pod", [["tpu-v6e-16", 1]]),
        ("gpu_node", [["A100", 8], ["A100-80GB", 8], ["H100", 8]]),
    ],
)
def test_skypilot_reads_the_tasks(name: str, accelerators: list, tmp_path: pathlib.Path) -> None:
    text = (CLUSTERS / f"{name}.yaml").read_text()
    result = skypilot(text, tmp_path)
    assert result.returncode == 0, result.stderr
    task = json.loads(result.stdout.partition("ANSWER ")[2])
    assert task["accelerators"] == accelerators
    assert all(task["spot"]) and set(task["recovery"]) == {75}
    assert task["mounts"] == {"/bucket": "some-bucket"}
    assert "--workdir=/bucket/" in task["run"]
    for part in ("setup", "run"):
        run(["bash", "-n"], input=task[part])


@pytest.mark.slow
def test_skypilot_refuses_what_it_does_not_know(tmp_path: pathlib.Path) -> None:
    text = (CLUSTERS / "tpu_pod.yaml").read_text().replace("use_spot", "use_spots")
    result = skypilot(text, tmp_path)
    assert result.returncode != 0 and "use_spots" in result.stderr


def config_of(words: list[str]) -> ConfigDict:
    """What experiments.main makes of its arguments."""
    assert words[:2] == ["-m", "experiments.main"]
    return load_config([word for word in words[2:] if not word.startswith("--workdir=")])


@pytest.mark.parametrize(
    ("name", "distributed", "extra"), [("tpu_pod", "auto", "tpu"), ("gpu_node", "off", "cuda")]
)
def test_tasks_start_runs_that_exist(name: str, distributed: str, extra: str) -> None:
    task = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    command = task["run"].replace("exec ~/ddpm/bin/python", "printf '%s\\n'")
    environ = task["envs"] | {"OPTIONS": "--config.seed=3", "BUCKET": "some-bucket"}
    words = run(["bash", "-c", command], env=os.environ | environ).stdout.split()
    config = config_of(words)
    assert (config.distributed, config.seed) == (distributed, 3)
    assert config.data.name == task["envs"]["DATASET"]
    assert f"'.[{extra}]'" in task["setup"]


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (76, False)])
def test_the_slurm_example_goes_on_with_what_was_stopped(
    code: int, again: bool, tmp_path: pathlib.Path
) -> None:
    bodies = {"srun": f"printf '%s\\n' \"$@\"; exit {code}", "scontrol": "echo scontrol $*"}
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    result = run(
        ["bash", CLUSTERS / "slurm.sbatch", "--config=experiments/configs/cifar10.py"],
        code,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
    )
    lines = result.stdout.splitlines()
    assert ("scontrol requeue 7" in lines) == again
    config = config_of([line for line in lines[1:] if not line.startswith("scontrol")])
    assert config.distributed == "auto"


# In place of gcloud: writes down how it was called, and answers what the test has laid out.
GCLOUD = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / "answers").read_text())
words = sys.argv[1:]
kind = "describe" if "describe" in words else "run" if "experiments.main" in words[-1] else ""
if kind:
    answer = answers[kind].pop(0)
    (folder / "answers").write_text(json.dumps(answers))
    if kind == "run" or answer == "NONE":
        sys.exit(answer if kind == "run" else 1)
    print(answer)
"""


def gcloud_calls(
    folder: pathlib.Path, states: list[str], exits: list[int]
) -> tuple[int, list[str], list[list[str]]]:
    """tpu_pod.sh's exit status, its deeds and its calls, where gcloud and the runs answer so."""
    (folder / "answers").write_text(json.dumps({"describe": states, "run": exits}))
    program = folder / "gcloud"
    program.write_text(GCLOUD.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "NFS": "10.0.0.2:/share", "POLL": "0"}
    result = run(
        [CLUSTERS / "tpu_pod.sh", "--config.model.channel_multipliers=(1, 2)"],
        **dict(code=None, env=os.environ | environ, timeout=60),
    )
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    assert json.loads((folder / "answers").read_text()) == {"describe": [], "run": []}, result
    done = []
    for words in calls:
        if "describe" not in words:
            done.append("run" if "experiments.main" in words[-1] else words[3])
    return result.returncode, done, calls


ONCE = ["create", "scp", "ssh", "run"]


def test_gcloud_asks_again_for_a_slice_that_was_taken_away(tmp_path: pathlib.Path) -> None:
    states = ["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    states += ["SUSPENDED", "SUSPENDED", "ACTIVE"]
    code, done, calls = gcloud_calls(tmp_path, states, [255, 0])
    assert (code, done) == (0, [*ONCE, "delete", *ONCE, "delete"])
    runs = [words for words in calls if "experiments.main" in words[-1]]
    assert runs[0] == runs[1] and "--worker=all" in runs[0]
    # The options arrive as they were given, through two shells.
    command = runs[0][-1].removeprefix("--command=").replace("cd ddpm", "true")
    command = command.replace("exec ~/ddpm-venv/bin/python", "printf '%s\\n'")
    said = run(["bash", "-c", command])
    config = config_of(said.stdout.splitlines())
    assert config.distributed == "auto" and config.model.channel_multipliers == (1, 2)


@pytest.mark.parametrize(
    ("states", "exits", "done"),
    [
        (["ACTIVE", "ACTIVE", "ACTIVE"], [76], ["scp", "ssh", "run"]),
        (["NONE", "FAILED"], [], ["create"]),
    ],
)
def test_gcloud_keeps_what_failed(
    states: list, exits: list, done: list, tmp_path: pathlib.Path
) -> None:
    assert gcloud_calls(tmp_path, states, exits)[:2] == (1, done)
