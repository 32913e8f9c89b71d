"""A report says what the runs have, in means over seeds, and what is missing and why."""

import csv
import hashlib
import json
import pathlib
import re
import shutil
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from experiments.configs.published import TABLES
from experiments.reports import report
from experiments.reports.averages import plus_minus
from experiments.reports.collect import collect, read_summary
from experiments.workdir import status
from experiments.workdir.protocols import training_fields
from experiments.workdir.status import Status
from launch.report import main
from tests.experiments.reports import made_runs
from tests.experiments.reports.made_runs import finished, half_done, put
from tests.started import ROOT


def written(workdir: pathlib.Path, out: pathlib.Path, links: bool = True) -> str:
    report.write(workdir, out, links)
    return (out / "report.md").read_text()


def numbers(out: pathlib.Path) -> list[dict[str, str]]:
    with (out / "numbers.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def number(out: pathlib.Path, row: str, quantity: str) -> dict[str, str]:
    (found,) = [n for n in numbers(out) if (n["row"], n["quantity"]) == (row, quantity)]
    return found


def tree(folder: pathlib.Path) -> dict[str, Any]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_means_and_deviations_are_those_of_the_seeds(tmp_path: pathlib.Path) -> None:
    values = [4.61, 4.58, 4.7]
    for seed, value in enumerate(values):
        finished(tmp_path, "eps_simple", seed, value)
    text = written(tmp_path, tmp_path / "report")
    found = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert float(found["mean"]) == pytest.approx(np.mean(values))
    assert float(found["deviation"]) == pytest.approx(np.std(values, ddof=1))
    assert (found["seeds"], found["runs"]) == ("3", "3")
    assert found["text"] in text and "Warnings" not in text
    twice = number(tmp_path / "report", "eps_simple", "fd_train")
    assert float(twice["mean"]) == pytest.approx(2 * np.mean(values))


def test_a_deviation_is_shown_to_two_digits() -> None:
    assert plus_minus(4.63, 0.0624) == "4.630 ± 0.062"
    assert plus_minus(123.4, 15.2) == "123 ± 15"
    assert plus_minus(4.5, 0.0) == "4.5 ± 0" == plus_minus(4.5, 1e-17)


def test_the_papers_cell_stands_beside_with_its_data(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    text = written(tmp_path, tmp_path / "report")
    row = next(row for row in TABLES["table1"].rows if row.ablation == "eps_simple")
    found = number(tmp_path / "report", "eps_simple", "fd_train")
    assert found["paper"] == row.cells["fid_train"].text
    assert found["paper_heading"] == "paper: FID, CIFAR-10"
    assert "of other data" in text and "not comparable with FID" in text
    bits = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert bits["paper"] == row.cells["bits_per_dim_test"].text
    own = finished(tmp_path / "other", "", 0, 4.3)  # the digits' config is no row of the paper
    assert own.is_dir()
    written(tmp_path / "other", tmp_path / "other" / "report")
    assert number(tmp_path / "other" / "report", "digits", "fd_train")["paper"] == ""


def test_a_half_done_sweep_is_reported_as_it_is(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "mu_vlb_fixed-seed2")  # in sweep.json only
    text = written(tmp_path, tmp_path / "report")
    assert "5 of 12 runs finished" in text
    for words in ("3/3 finished", "0/3 finished, 3 diverged", "2/3 finished, 1 failed"):
        assert words in text
    assert "mu_mse, seed 1: diverged at step 400: the loss is nan" in text
    assert "step 300 of 4,000, loss 3.25" in text  # the last that was in order
    assert "eps_vlb_fixed, seed 2: failed after 2 attempts: exit status 1" in text
    assert "MemoryError: <no> room" in text
    assert "mu_vlb_fixed, seed 0, 1: waiting\n" in text
    assert "mu_vlb_fixed, seed 2: waiting: its folder is not here" in text
    assert "none: seed 0 is diverged" in text
    assert "unlike numbers of seeds: eps_vlb_fixed 2, eps_simple 3" in text
    assert number(tmp_path / "report", "eps_vlb_fixed", "bits_per_dim")["text"].endswith("(n = 2)")
    states = [row["state"] for row in csv.DictReader((tmp_path / "report/runs.csv").open())]
    assert len(states) == 12 and states.count("waiting") == 3
    unstable = next(line for line in text.splitlines() if line.startswith("| mu_mse | 0/3"))
    assert "| diverged | unstable |" in unstable  # ours, and the paper's beside it


def test_the_runs_are_left_as_they_are(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path / "sweep")
    before = tree(tmp_path / "sweep")
    written(tmp_path / "sweep", tmp_path / "out")
    assert tree(tmp_path / "sweep") == before
    inside = tmp_path / "sweep" / "runs" / "eps_simple-seed0" / "report"
    with pytest.raises(ValueError, match="lies in the run .*choose another --out"):
        report.write(tmp_path / "sweep", inside)
    assert tree(tmp_path / "sweep") == before


def test_a_report_inside_the_sweep_is_no_run_of_the_next(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path)
    first = written(tmp_path, tmp_path / "report")
    assert written(tmp_path, tmp_path / "report") == first


@pytest.mark.parametrize("field", ["num_images", "split", "decoder"])
def test_unlike_protocols_are_pointed_out(tmp_path: pathlib.Path, field: str) -> None:
    other = {"num_images": 50, "split": "train", "decoder": "exact"}[field]
    for seed in (0, 1):
        finished(tmp_path, "eps_simple", seed, 4.6)
        finished(tmp_path, "mu_mse", seed, 4.9, protocol={field: other})
        finished(tmp_path, "eps_vlb_fixed", seed, 4.5)
    text = written(tmp_path, tmp_path / "report")
    assert f"bpd: mu_mse: not comparable, {field} = {other}, in most rows" in text
    assert f"{field} = {other}" in number(tmp_path / "report", "mu_mse", "bits_per_dim")["notes"]
    assert number(tmp_path / "report", "mu_mse", "fd_train")["notes"] == ""


def test_results_older_than_a_field_are_as_it_says_of_them(tmp_path: pathlib.Path) -> None:
    """What a checkpoint was selected on was not recorded where nothing was selected."""
    for seed, fields in ((0, {}), (1, {"selected_on": "nothing"})):
        finished(tmp_path, "eps_simple", seed, 4.6, protocol=fields)
        finished(tmp_path, "mu_mse", seed, 4.9, protocol={"selected_on": "x of 9 images"})
    text = written(tmp_path, tmp_path / "report")
    found = [number(tmp_path / "report", row, "bits_per_dim") for row in ("eps_simple", "mu_mse")]
    assert [float(cell["mean"]) for cell in found] == [4.6, 4.9]
    assert not any("not averaged" in cell["notes"] for cell in found)
    assert "not comparable, selected_on = " in text


def test_within_a_row_they_are_not_averaged(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.5)
    finished(tmp_path, "eps_simple", 1, 4.7, protocol={"num_images": 50})
    text = written(tmp_path, tmp_path / "report")
    found = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert (found["mean"], found["text"]) == ("", "4.5 / 4.7")
    assert "not averaged: num_images: 100 / 50" in found["notes"] and "num_images: 100 / 50" in text
    assert number(tmp_path / "report", "eps_simple", "fd_train")["mean"] != ""


def test_seeds_of_unlike_models_are_not_averaged(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.5)
    path = finished(tmp_path, "eps_simple", 1, 4.7) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["channels"] *= 2
    put(path, config)
    written(tmp_path, tmp_path / "report")
    found = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert found["mean"] == "" and "model.channels: 32 / 64" in found["notes"]


def test_the_best_mean_is_bold_where_all_may_be_compared(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    finished(tmp_path, "mu_mse", 0, 4.9)
    text = written(tmp_path, tmp_path / "report")
    assert "**4.6**" in text and "**9.2**" in text and "**9.8**" not in text
    assert "**9**" not in text  # the score, which is equal
    finished(tmp_path, "eps_vlb_fixed", 0, 3.0, protocol={"num_images": 1})
    text = written(tmp_path, tmp_path / "report")
    assert "**4.6**" not in text and "**3**" not in text and "**6**" in text


def test_versions_of_the_code_are_pointed_out(tmp_path: pathlib.Path) -> None:
    for seed in (0, 1):
        finished(tmp_path, "eps_simple", seed, 4.6)
        finished(tmp_path, "mu_mse", seed, 4.9, commit="f" * 40 + "-dirty" * seed)
    text = written(tmp_path, tmp_path / "report")
    named = "ffffffffff, ffffffffff-dirty, 0123456789"
    assert f"bpd, samples: numbers of 3 versions of the code: {named}." in text
    assert "uncommitted changes" in text
    notes = number(tmp_path / "report", "mu_mse", "bits_per_dim")["notes"]
    assert notes == "code ffffffffff and ffffffffff-dirty, mostly 0123456789"
    assert number(tmp_path / "report", "eps_simple", "bits_per_dim")["notes"] == ""


def test_data_sets_have_tables_of_their_own(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    finished(tmp_path / "b", "eps_simple", 0, 3.9, config="cifar10")
    text = written(tmp_path, tmp_path / "report")
    assert "of 2 data sets (digits, cifar10)" in text or "(cifar10, digits)" in text
    assert "## digits" in text and "## cifar10" in text
    found = {n["data"]: n["mean"] for n in numbers(tmp_path / "report") if n["quantity"] == "rate"}
    assert found == {"digits": "2.3", "cifar10": "1.95"}


def test_machines_that_ran_the_same_seed_are_shown_apart(tmp_path: pathlib.Path) -> None:
    finished(tmp_path / "a", "eps_simple", 0, 4.5)
    finished(tmp_path / "b", "eps_simple", 0, 4.7)
    finished(tmp_path / "b", "eps_simple", 1, 4.8)
    text = written(tmp_path, tmp_path / "report")
    assert "eps_simple: seed 0 is there more than once" in text
    rows = {n["row"]: n for n in numbers(tmp_path / "report") if n["quantity"] == "bits_per_dim"}
    assert set(rows) == {"eps_simple (in a/runs)", "eps_simple (in b/runs)"}
    assert rows["eps_simple (in a/runs)"]["mean"] == "4.5"
    assert float(rows["eps_simple (in b/runs)"]["mean"]) == pytest.approx(4.75)


def test_a_copy_counts_once_and_other_machines_seeds_join(tmp_path: pathlib.Path) -> None:
    finished(tmp_path / "a", "eps_simple", 0, 4.5)
    made_runs.waiting(tmp_path / "a", "eps_simple", 1)  # which the other machine has done
    finished(tmp_path / "b", "eps_simple", 1, 4.7)
    shutil.copytree(tmp_path / "a" / "runs" / "eps_simple-seed0", tmp_path / "c" / "copied")
    text = written(tmp_path, tmp_path / "report")
    found = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert float(found["mean"]) == pytest.approx(4.6) and found["seeds"] == "2"
    assert "c/copied is a copy of a/runs/eps_simple-seed0 and counted once" in text
    assert "b/runs/eps_simple-seed1 stands for it" in text


def test_damaged_files_are_named_and_the_rest_goes_on(tmp_path: pathlib.Path) -> None:
    for seed in range(3):
        finished(tmp_path, "eps_simple", seed, 4.6 + seed)
    runs = tmp_path / "runs"
    (runs / "eps_simple-seed0" / "results.json").write_text('{"bpd": {"values"')
    (runs / "eps_simple-seed1" / "metrics.jsonl").write_text("{]\n" * 3 + '{"step": 1, "lo')
    (runs / "eps_simple-seed1" / "samples" / "samples.npz").write_bytes(b"PK\x03\x04 no")
    (runs / "eps_simple-seed0" / "samples" / "samples.npz").unlink()
    (runs / "eps_simple-seed2" / "samples" / "samples.npz").unlink()
    text = written(tmp_path, tmp_path / "report")
    assert "runs/eps_simple-seed0/results.json: is truncated or no JSON" in text
    assert "runs/eps_simple-seed1/metrics.jsonl: 3 lines cannot be read" in text
    assert "samples.npz of seed 1 cannot be read" in text
    assert number(tmp_path / "report", "eps_simple", "bits_per_dim")["text"].endswith("(n = 2)")
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "results",
    ['{"bpd": 3}', '{"bpd": {"values": [1]}}', '{"train": 1}', '{"bpd": {"values": {"x": 1}}}'],
)
def test_results_of_another_shape_are_survived(tmp_path: pathlib.Path, results: str) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    path = finished(tmp_path, "eps_simple", 1, 4.7) / "results.json"
    path.write_text(results)
    written(tmp_path, tmp_path / "report")
    assert float(number(tmp_path / "report", "eps_simple", "bits_per_dim")["mean"]) == 4.6


def test_what_is_not_finite_is_not_averaged_away(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    finished(tmp_path, "eps_simple", 1, float("nan"))
    written(tmp_path, tmp_path / "report")
    found = number(tmp_path / "report", "eps_simple", "bits_per_dim")
    assert (found["text"], found["mean"]) == ("not finite (1 of 2)", "")


def test_grid_points_and_settings_are_rows_of_their_own(tmp_path: pathlib.Path) -> None:
    for rate, value in (("1e-4", 4.5), ("2e-4", 4.6)):
        overrides = {"optimizer.learning_rate": rate}
        finished(tmp_path / "a", "eps_simple", 0, value, overrides=overrides)
    finished(tmp_path / "b", "eps_simple", 0, 4.7, settings={"train.num_steps": "10"})
    written(tmp_path, tmp_path / "report")
    rows = {n["row"]: n["mean"] for n in numbers(tmp_path / "report") if n["quantity"] == "rate"}
    assert rows == {
        "eps_simple, optimizer.learning_rate=1e-4": "2.25",
        "eps_simple, optimizer.learning_rate=2e-4": "2.3",
        "eps_simple, train.num_steps=10": "2.35",
    }


def test_samples_of_all_rows_are_of_one_seed_and_in_their_order(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.6)
    for seed in (0, 1):
        finished(tmp_path, "eps_vlb_fixed", seed, 4.6)
    text = written(tmp_path, tmp_path / "report")
    assert "The first 16 samples of seed 0 in every row" in text
    for number_, name in enumerate(("eps_vlb_fixed", "eps_simple")):
        folder = tmp_path / "runs" / f"{name}-seed0"
        with np.load(folder / "samples" / "samples.npz") as stored:
            images = stored["arr_0"]
        strip = np.asarray(Image.open(tmp_path / "report" / f"samples{number_}.png"))
        for i in range(16):
            left = i * (48 + 2)
            np.testing.assert_array_equal(
                strip[::6, left : left + 48 : 6], images[i, :, :, 0], str((name, i))
            )


def test_links_lead_to_the_runs_or_are_left_out(tmp_path: pathlib.Path) -> None:
    sweep = tmp_path / "a sweep (of #2, 50%)"
    half_done(sweep)
    text = written(sweep, tmp_path / "docs" / "out")
    targets = re.findall(r"\]\(([^\s]+?)\)", text)
    local = [target for target in targets if not target.startswith("https:")]
    assert any(target.endswith("samples/samples.png") for target in local)
    assert any(target.endswith("train.log") for target in local)
    for target in local:
        assert (tmp_path / "docs" / "out" / unquote(target)).is_file(), target
    alone = written(sweep, tmp_path / "docs" / "alone", links=False)
    for target in re.findall(r"\]\(([^()\s]+)\)", alone):
        assert target.startswith("https://arxiv.org") or "/" not in target


def test_the_page_needs_nothing_else(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path)
    written(tmp_path, tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    sources = re.findall(r'\bsrc="([^"]*)"', html)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    outside = re.findall(r'\bhref="((?:https?:)?//[^"]*)"', html)
    assert outside == ["https://arxiv.org/abs/2006.11239"]
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert "MemoryError: &lt;no&gt; room" in html  # a log is text, not markup


def test_the_summary_holds_the_runs_and_no_paths(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path / "sweep")
    place = {"data.data_dir": str(tmp_path / "data")}
    finished(tmp_path / "sweep", "v_simple", 0, 4.5, settings=place)
    text = written(tmp_path / "sweep", tmp_path / "out")
    assert "Settings of the sweep" not in text and str(tmp_path) not in text
    found = read_summary(tmp_path / "out" / "summary.json")
    before = collect(tmp_path / "sweep")
    for run, other in zip(found.runs, before.runs, strict=True):
        for name in ("name", "place", "ablation", "seed", "state", "sections", "training", "bound"):
            assert getattr(run, name) == getattr(other, name)
    assert str(tmp_path) not in (tmp_path / "out" / "summary.json").read_text()
    (tmp_path / "out" / "summary.json").write_text('{"runs": [{"a": 1}], "problems": []}')
    with pytest.raises(ValueError, match=r"no summary of a report.*launch\.report writes one"):
        read_summary(tmp_path / "out" / "summary.json")


def test_folders_without_runs_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder in it has one of run\.json.*sweep"):
        report.write(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    with pytest.raises(
        FileNotFoundError, match=r"does not exist: name a summary\.json, or a folder of runs"
    ):
        report.write(tmp_path / "none", tmp_path / "report")


def test_a_run_being_written_is_read(tmp_path: pathlib.Path) -> None:
    folder = made_runs.waiting(tmp_path, "eps_simple", 0)
    (folder / "metrics.jsonl").write_text('{"step": 100, "loss": 0.5}\n{"step": 200, "lo')
    (run,) = collect(tmp_path).runs
    assert run.last_window == {"step": 100, "loss": 0.5}
    status.write(folder, Status("running", attempts=({},)))
    assert "eps_simple, seed 0: running" in written(tmp_path, tmp_path / "report")


def test_what_defines_a_training_leaves_places_and_the_seed_out() -> None:
    config = made_runs.resolved("digits", "eps_simple", 3)
    fields = training_fields(config)
    assert fields["data.name"] == "digits" and fields["train.num_steps"] == 4000
    assert fields["schedule.num_timesteps"] == 1000 and fields["model.channels"] == 32
    assert not {"seed", "data.data_dir", "train.log_every", "sample.num_images"} & set(fields)


def test_the_command_says_where_the_report_is_and_what_is_wrong(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    half_done(tmp_path / "sweep")
    assert main([str(tmp_path / "sweep"), f"--out={tmp_path / 'out'}", "--nolinks"]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert "train.log" not in (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "sweep" / "report").exists()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "or a folder of runs" in capsys.readouterr().err
    assert main([]) == 2


def test_a_damaged_status_is_named(tmp_path: pathlib.Path) -> None:
    folder = finished(tmp_path, "eps_simple", 0, 4.6)
    (folder / "status.json").write_text('{"state": "lost"}')
    text = written(tmp_path, tmp_path / "report")
    assert "runs/eps_simple-seed0/status.json: is no status of a run" in text
    assert number(tmp_path / "report", "eps_simple", "bits_per_dim")["mean"] == "4.6"


def test_a_summary_writes_the_report_anew_without_the_runs(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path / "sweep")
    written(tmp_path / "sweep", tmp_path / "out", links=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "sweep")
    report.write(tmp_path / "out" / "summary.json", tmp_path / "out")
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert before.keys() == after.keys()
    unlike = [name for name in before if before[name] != after[name]]
    assert set(unlike) <= {"report.md", "report.html"}  # which have the ends of logs
    assert before["report.md"].startswith(after["report.md"].partition(b"## Samples")[0][:-1])


def test_the_committed_report_is_that_of_the_committed_summary(tmp_path: pathlib.Path) -> None:
    for summary in ROOT.glob("docs/*/summary.json"):
        out = tmp_path / summary.parent.name
        shutil.copytree(summary.parent, out)
        report.write(out / "summary.json", out)
        for path in out.iterdir():
            committed = summary.parent / path.name
            hint = f"run: python -m launch.report {summary.relative_to(ROOT)}"
            assert path.read_bytes() == committed.read_bytes(), (path.name, hint)
