"""The ledger has every cell of the paper; a number stands in one only if it is that very number."""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from experiments.configs import ablations, published
from experiments.configs.formulations import FORMULATIONS
from experiments.reports import ledger, paper, report
from experiments.reports.collect import collect
from experiments.workdir import status
from experiments.workdir.status import Status
from tests.experiments.reports import made_runs
from tests.experiments.reports.made_runs import finished, put
from tests.started import ROOT, run

EPS = next(row for row in published.TABLES["table2"].rows if row.ablation == "eps_simple")
FOURTH = published.TABLES["table4"].rows


def as_the_paper(
    sweep: pathlib.Path, seed: int, value: float, fid: float, **protocol: Any
) -> pathlib.Path:
    """A run of CIFAR-10's eps_simple evaluated as the paper does."""
    folder = finished(sweep, "eps_simple", seed, value, config="cifar10")
    content = made_runs.resolved("cifar10", "eps_simple", seed)
    origin = {"provenance": made_runs.provenance(content)}
    fields = {
        "protocol": "paper",
        "num_samples": 50_000,
        "extractor": published.INCEPTION,
    } | protocol
    sections = {
        "bpd": made_runs.bpd(value, content) | origin,
        "samples": made_runs.samples(fid, content, **fields) | origin,
    }
    put(folder / "results.json", sections)
    return folder


def lines(text: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def page(*folders: pathlib.Path) -> str:
    return ledger.document(ledger.load_runs([str(folder) for folder in folders]))


def cell(text: str, *begin: str) -> list[str]:
    (found,) = [row for row in lines(text) if tuple(row[: len(begin)]) == begin]
    return found


def test_every_cell_of_the_paper_has_a_line_and_every_row_its_command() -> None:
    text = page()
    rows = lines(text)
    for table in published.TABLES.values():
        for row in table.rows:
            assert ledger.command(table, row) in text
            for name, printed in row.cells.items():
                config = f"{row.config}:{row.ablation}" if row.ablation else row.config
                line = [row.label, table.columns[name], config, printed.text, "not measured"]
                assert [*line, "–", "–", "–", "–"] in rows
    assert "Nothing was measured." in text


def test_a_formulation_counts_where_its_config_was_trained_and_measured_whole(
    tmp_path: pathlib.Path,
) -> None:
    def told() -> str:
        name = ("VDM", "CIFAR-10", "cifar10:vdm_learned", "bits/dim, test", "2.65")
        return cell(page(tmp_path), *name)[-3]

    for row in FORMULATIONS:
        assert row.ablation in ablations.ABLATIONS and row.text in page()
    content = made_runs.resolved("cifar10", "vdm_learned", 0)
    for seed, (images, expected) in enumerate(((100, "not measured"), (10_000, "**2.7**"))):
        folder = finished(tmp_path, "vdm_learned", seed, 2.7, config="cifar10")
        section = made_runs.bpd(2.7, content, num_images=images, split_images=10_000)
        origin = {"provenance": made_runs.provenance(content)}
        put(folder / "results.json", {"bpd": section | origin})
        assert told() == expected


def test_what_the_paper_quotes_is_shown_as_quoted_and_never_as_not_measured() -> None:
    rows = lines(page())
    for table in published.TABLES.values():
        for row in table.quoted:
            (found,) = [line for line in rows if line[0] == row.label]
            shown = [text.replace("\\*", "*") for text in found[1:] if text != "–"]
            assert shown == [row.cells[name].text for name in table.columns if name in row.cells]


def test_a_command_trains_the_row_that_it_stands_for() -> None:
    for table in published.TABLES.values():
        for row in table.rows:
            words = ledger.command(table, row).split()
            assert words[:3] == ["python", "-m", "experiments.main"]
            path, _, ablation = words[3].removeprefix("--config=").partition(":")
            assert (ROOT / path).is_file() and (pathlib.Path(path).stem, ablation) == (
                row.config,
                row.ablation,
            )


def test_a_number_counts_where_model_and_protocol_are_the_papers(tmp_path: pathlib.Path) -> None:
    fids = [3.1, 3.3]
    for seed, fid in enumerate(fids):
        as_the_paper(tmp_path, seed, 3.7, fid)
    text = page(tmp_path)
    found = cell(text, EPS.label, "FID")
    mean, deviation = np.mean(fids), np.std(fids, ddof=1)
    assert found[3:] == [
        EPS.cells["fid_train"].text,
        f"**{mean:.2f} ± {deviation:.2f}**",
        "0, 1",
        "1 x made (up, 2 cores)",
        "2020-06-19",
        made_runs.COMMIT[:10],
    ]
    assert cell(text, "L_simple", "bits/dim, test")[4] == "**3.7 ± 0**"
    assert cell(text, "L_simple", "bits/dim, train")[4] == "not measured"
    assert cell(text, "μ̃ prediction: mean squared error", "FID")[4] == "not measured"
    assert "Nothing was measured." in text  # beside the cells themselves


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("protocol", "edm"), ("extractor", "cnn"), ("num_steps", 100)),
        ("threshold", {"name": "none"}),
        *(("checkpoint_step", 5_000), ("variance", "fixed_small")),
    ],
)
def test_another_protocol_is_listed_apart(tmp_path: pathlib.Path, field: str, value: Any) -> None:
    as_the_paper(tmp_path, 0, 3.7, 3.1, **{field: value})
    text = page(tmp_path)
    assert cell(text, EPS.label, "FID")[4] == "not measured"
    assert cell(text, "L_simple", "bits/dim, test")[4] == "**3.7**"
    name = "fd_train" if field == "extractor" else "fid_train"
    apart = cell(text, "cifar10", "eps_simple", "1/1 finished", name)
    assert apart[5] == "**3.1**" and f"{field}: " in apart[-1] and str(value) in apart[-1]


@pytest.mark.parametrize("field", ["train.num_steps", "model.channels", "ema_decay"])
def test_another_model_is_listed_apart(tmp_path: pathlib.Path, field: str) -> None:
    folder = as_the_paper(tmp_path, 0, 3.7, 3.1)
    content = made_runs.resolved("cifar10", "eps_simple", 0)
    *above, last = field.split(".")
    inner = content[above[0]] if above else content
    inner[last] = inner[last] / 2
    put(folder / "config.json", content)
    text = page(tmp_path)
    assert cell(text, EPS.label, "FID")[4] == "not measured"
    assert f"{field}: " in cell(text, "cifar10", "eps_simple", "1/1 finished", "is")[-1]


def test_a_run_that_no_sweep_began_is_known_by_its_config(tmp_path: pathlib.Path) -> None:
    folder = as_the_paper(tmp_path, 0, 3.7, 3.1)
    for name in ("run.json", "status.json"):
        (folder / name).unlink()
    (tmp_path / "sweep.json").unlink()
    assert cell(page(tmp_path), EPS.label, "FID")[4] == "**3.1**"


def test_points_of_the_chain_come_from_the_bounds_terms(tmp_path: pathlib.Path) -> None:
    folder = as_the_paper(tmp_path, 0, 3.7, 3.1)
    head = "t,reverse_time,bits_per_dim,rate,rmse_root_of_mean,rmse_mean_of_roots\n"
    rows = [f"{t},{1000 - t},0,{(1000 - t) / 1000},{t},{t}\n" for t in range(1000)]
    (folder / "bound.csv").write_text(head + "".join(rows))
    report.write(tmp_path, tmp_path / "report")
    for text in (page(tmp_path), page(tmp_path / "report" / "summary.json")):
        for row in FOURTH:
            point = paper.reverse_time(row)
            if point is not None:
                rate = float(cell(text, row.label, "rate (bits/dim)")[4].strip("*"))
                assert rate == pytest.approx(int(point) / 1000)
                error = float(cell(text, row.label, "RMSE of 255")[4].strip("*"))
                assert error == 1000 - int(point)


def test_other_data_stand_apart_with_the_papers_cell(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.5)
    made_runs.diverged(tmp_path, "mu_mse", 0)
    finished(tmp_path, "v_simple", 0, 4.4)  # no row of the paper
    text = page(tmp_path)
    assert cell(text, EPS.label, "FID")[4] == "not measured"
    found = cell(text, "digits", "eps_simple", "1/1 finished", "bits_per_dim")
    assert found[4:7] == ["≤ 3.75", "**4.5**", "4,000"] and found[-1] == "other data"
    assert cell(text, "digits", "mu_mse", "0/1 finished, 1 diverged")[-1] == "other data"
    assert "v_simple" not in text


def test_an_estimate_stands_beside_the_cell_and_not_in_it(tmp_path: pathlib.Path) -> None:
    folder = as_the_paper(tmp_path, 0, 3.7, 3.1)
    results = json.loads((folder / "results.json").read_text())
    estimate = results.pop("bpd")
    estimate["values"] = {"bits_per_dim_estimate": {"value": 3.6}}
    put(folder / "results.json", results | {"bpd_fast": estimate})
    text = page(tmp_path)
    assert cell(text, "L_simple", "bits/dim, test")[4] == "not measured"
    found = cell(text, "cifar10", "eps_simple", "1/1 finished", "bits_per_dim_estimate")
    assert (found[4], found[5], found[-1]) == ("≤ 3.75", "**3.6**", "an estimate")


def test_a_divergence_is_a_result(tmp_path: pathlib.Path) -> None:
    folder = made_runs.waiting(tmp_path, "mu_mse", 0, "cifar10")
    put(folder / "config.json", made_runs.resolved("cifar10", "mu_mse", 0))
    status.write(folder, Status("diverged", message="the loss is nan"))
    found = cell(page(tmp_path), "μ̃ prediction: mean squared error", "FID")
    assert found[3:5] == ["unstable", "**0/1 finished, 1 diverged**"]


def test_a_seed_that_was_run_twice_is_no_second_seed(tmp_path: pathlib.Path) -> None:
    as_the_paper(tmp_path / "one", 0, 3.7, 3.1)
    as_the_paper(tmp_path / "two", 0, 3.7, 3.3)
    text = page(tmp_path)
    assert cell(text, EPS.label, "FID")[4:6] == ["**3.1 / 3.3**<sup>1</sup>", "0"]
    assert "not averaged: a seed is there more than once" in text
    assert cell(text, "L_simple", "bits/dim, test")[4] == "**3.7**"  # the same, and counted once


def test_seeds_that_diverged_are_named_beside_the_mean_of_the_others(
    tmp_path: pathlib.Path,
) -> None:
    as_the_paper(tmp_path, 0, 3.7, 3.1)
    lost = as_the_paper(tmp_path, 1, 3.7, 3.3)
    put(lost / "results.json", {"train": {"state": "diverged", "step": 100}})
    status.write(lost, Status("diverged"))
    text = page(tmp_path)
    assert cell(text, EPS.label, "FID")[4:6] == ["**3.1**<sup>1</sup>", "0"]
    assert "1 of 2 runs diverged" in text


def test_pictures_of_a_folder_count_only_under_the_rows_own_config(tmp_path: pathlib.Path) -> None:
    finished(tmp_path, "eps_simple", 0, 4.5)
    (run,) = collect(tmp_path).runs
    church = published.TABLES["table3"].rows[2]
    fields = dict(paper.expected_training(church.config, church.ablation))
    own = run._replace(training=fields, config=f"experiments/configs/{church.config}.py")
    assert paper.is_row(own, church)
    assert not paper.is_row(own._replace(config="experiments/configs/mine.py"), church)


def test_the_committed_ledger_is_that_of_the_committed_results() -> None:
    summaries = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*/summary.json"))]
    command = [sys.executable, "-m", "launch.ledger", *summaries]
    done = run(command)
    hint = f"python -m launch.ledger {' '.join(summaries)} > docs/ledger.md"
    assert (ROOT / "docs" / "ledger.md").read_text() == done.stdout, f"run: {hint}"


def test_what_is_no_summary_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"name a summary\.json, or a folder of runs"):
        ledger.load_runs([str(tmp_path / "none.json")])


def test_fast_samplers_stand_beside_what_was_published(tmp_path: pathlib.Path) -> None:
    """A number counts under its sampler, spacing, steps and, where it is used, variance alone."""
    text = page()
    for table in published.SAMPLING:
        assert table.title.replace("η", "η") in text
        for row in table.rows:
            for steps, printed in row.fid.items():
                assert [row.label, row.spacing, str(steps), printed, "not measured", "–", "–"] in (
                    lines(text)
                )
    ddim = {"sampler": {"name": "ddim", "eta": 0.0}, "variance": "not used", "num_steps": 50}
    as_the_paper(tmp_path, 0, 3.7, 4.5, **ddim, spacing={"name": "quadratic"})
    as_the_paper(tmp_path, 1, 3.7, 4.7, **ddim, spacing={"name": "quadratic"})
    as_the_paper(tmp_path, 2, 3.7, 9.9, **ddim, spacing={"name": "uniform"}, guidance={"scale": 2})
    text = page(tmp_path)
    assert cell(text, "DDIM, η = 0", "quadratic", "50")[4].startswith("**4.6")
    assert cell(text, "DDIM, η = 0", "uniform", "50")[4] == "not measured"
    assert cell(text, "DDIM, η = 1", "quadratic", "50")[4] == "not measured"
    assert cell(text, "DDIM, η = 0", "quadratic", "100")[4] == "not measured"
