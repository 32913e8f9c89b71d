"""What a report says of single runs: speed and cost, numbers that mean little, like failures."""

import csv
import json
import pathlib

import pytest

from experiments.reports import report
from experiments.workdir.run import read_run
from launch.report import main
from tests.experiments.reports import made_runs
from tests.experiments.reports.made_runs import failed, finished, half_done


def written(workdir: pathlib.Path, **options: str) -> str:
    report.write(workdir, workdir / "report", **options)
    return (workdir / "report" / "report.md").read_text()


def rows(text: str) -> list[str]:
    """The rows of the first table, in their order."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| row"))
    table = [line for line in lines[begin + 2 :] if line.startswith("|") or not line]
    return [line.split("|")[1].strip() for line in table[: table.index("")]]


def test_speed_and_cost_are_those_of_the_windows(tmp_path: pathlib.Path) -> None:
    """Half of the images at 50 a second and half at 100: not the median's time."""
    folder = finished(tmp_path, "eps_simple", 0, 4.6)
    content = json.loads((folder / "config.json").read_text())
    batch = content["train"]["batch_size"]
    rates = [50.0, 100.0, 50.0, 100.0, 100.0, 50.0]
    lines = [
        {"step": 100 * (i + 1), "loss": 1.0, "images_per_second": rate}
        for i, rate in enumerate(rates)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run, problems = read_run(folder, "here")
    assert not problems and run.images_per_second == 75
    seconds = sum(100 * batch / rate for rate in rates)
    assert run.training_seconds == pytest.approx(seconds)
    assert run.device_hours == pytest.approx(seconds / 3600)
    written(tmp_path)
    with (tmp_path / "report" / "runs.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert float(line["images_per_second"]) == 75
    assert float(line["training_hours"]) == pytest.approx(seconds / 3600)
    made_runs.log(folder, [1.0, 0.5])  # of an older program, without rates
    old, _ = read_run(folder, "here")
    assert old.images_per_second is old.training_seconds is old.device_hours is None


@pytest.mark.parametrize(("bits", "levels", "marked"), [(8.5, 256, True), (7.9, 256, False)])
def test_more_bits_than_a_guess_takes_are_marked(tmp_path, bits, levels, marked) -> None:
    for seed in (0, 1):
        finished(tmp_path, "eps_simple", seed, bits, protocol={"num_levels": levels})
        finished(tmp_path, "mu_mse", seed, 4.2, protocol={"num_levels": levels})
    text = written(tmp_path)
    assert ("above the 8 bits/dim of a uniform guess" in text) == marked
    assert (f"| {bits} ± 0<sup>" in text) == marked and "**4.2 ± 0**" in text
    sixteen = tmp_path / "of 16 levels"
    finished(sixteen, "eps_simple", 0, 4.2, protocol={"num_levels": 16})
    assert "above the 4 bits/dim of a uniform guess" in written(sixteen)


def test_rows_are_ordered_by_a_quantity_the_best_first(tmp_path: pathlib.Path) -> None:
    """Whichever end is the better one; rows without it come last."""
    for ablation, bits in (("mu_mse", 4.9), ("eps_simple", 4.1), ("eps_vlb_fixed", 4.5)):
        finished(tmp_path, ablation, 0, bits)
    failed(tmp_path, "mu_vlb_fixed", 0)
    as_listed = rows(written(tmp_path))
    by_bits = ["eps_simple", "eps_vlb_fixed", "mu_mse", "mu_vlb_fixed"]
    assert rows(written(tmp_path, sort="bits_per_dim")) == by_bits != as_listed
    path = tmp_path / "runs" / "mu_mse-seed0" / "results.json"
    content = json.loads(path.read_text())
    for name, number in content["samples"]["values"].items():
        number["value"] = 20.0 if name.startswith("classifier_score") else number["value"]
    path.write_text(json.dumps(content))
    assert rows(written(tmp_path, sort="classifier_score"))[0] == "mu_mse"
    with pytest.raises(ValueError, match=r"--sort=bits_per_dm: no row of .* 'bits_per_dim'"):
        written(tmp_path, sort="bits_per_dm")


def test_like_failures_are_told_once(tmp_path: pathlib.Path) -> None:
    for ablation in ("mu_mse", "eps_simple"):
        for seed in (0, 1):
            failed(tmp_path, ablation, seed)
    finished(tmp_path, "eps_vlb_fixed", 0, 4.5)
    text = written(tmp_path)
    assert text.count("    MemoryError: <no> room\n") == 1
    assert "mu_mse, seed 0, 1; eps_simple, seed 0, 1: failed" in text
    assert "alike: mu_mse-seed1, eps_simple-seed0, eps_simple-seed1" in text


def test_a_run_by_itself_is_reported_in_its_own_folder(tmp_path: pathlib.Path) -> None:
    """Also one that is not over; its links lead to its files, and nothing else in it changes."""
    half_done(tmp_path)
    for name in ("eps_simple-seed0", "mu_mse-seed0"):
        run = tmp_path / "runs" / name
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main([str(run)]) == 0
        text = (run / "report" / "report.md").read_text()
        assert "1 runs" in text
        assert all(path.read_bytes() == content for path, content in before.items())
    text = (tmp_path / "runs" / "eps_simple-seed0" / "report" / "report.md").read_text()
    assert "](../samples/samples.png)" in text and "| eps_simple-seed0 | finished" in text
    alone = tmp_path / "alone"
    alone.mkdir()
    made_runs.log(alone, [1.0, 0.5])  # a training under way, and nothing else
    assert main([str(alone)]) == 0
    assert "alone, seed unknown: unfinished" in (alone / "report" / "report.md").read_text()


def test_a_training_that_went_on_as_another_one_is_marked(tmp_path: pathlib.Path) -> None:
    folder = finished(tmp_path, "eps_simple", 0, 4.6)
    path = folder / "results.json"
    content = json.loads(path.read_text())
    past = [
        {"step": 40, "diverged_at": 48, "reason": "the loss is nan", "changed": {}},
        {"step": 80, "other_images": "names or sizes of files are not what they were"},
        "of another program",
    ]
    content.setdefault("train", {})["continued"] = past
    path.write_text(json.dumps(content))
    said = "continued after it diverged at step 48 from step 40, continued with other images from"
    assert f"seed 0: {said} step 80" in written(tmp_path)
    assert said in (tmp_path / "report" / "runs.csv").read_text()
