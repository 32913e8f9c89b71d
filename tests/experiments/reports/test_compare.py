"""Side by side stand only numbers of one protocol; the others are named with the reason."""

import json
import pathlib
from typing import Any

import pytest

from experiments.compare import main
from experiments.reports import compare as comparing
from experiments.reports.compare import read
from experiments.workdir.protocols import differences, written
from experiments.workdir.results import measured


def section(value: float, **protocol: Any) -> dict[str, Any]:
    fields = {"dataset": "digits", "split": "test", "num_images": 100, "checkpoint_step": 5}
    fields["decoder"] = "tanh"
    return {"values": {"bits_per_dim": {"value": value}}, "protocol": fields | protocol}


def compare(names: list[str], runs: list[dict[str, Any]]) -> str:
    return comparing.compare(names, [measured(run)[0] for run in runs])


def row(text: str, quantity: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {quantity} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_like_protocols_are_compared() -> None:
    runs = [{"bpd": section(4.3)}, {"bpd": section(4.5, checkpoint_step=9)}]
    text = compare(["a", "b"], runs)
    assert row(text, "bpd.bits_per_dim") == ["bpd.bits_per_dim", "4.3", "4.5", ""]
    assert "bpd: checkpoint_step = 5 / 9" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_images", 50), ("split", "train"), ("dataset", "cifar10"), ("decoder", "exact")],
)
def test_unlike_protocols_are_not(field: str, value: Any) -> None:
    runs = [{"bpd": section(4.3)}, {"bpd": section(4.5, **{field: value})}]
    verdict = row(compare(["a", "b"], runs), "bpd.bits_per_dim")[-1]
    assert (
        verdict.startswith("NOT comparable") and f"{field}: " in verdict and str(value) in verdict
    )


def test_a_checkpoint_chosen_by_another_number_is_not_compared() -> None:
    """A section without the field is older than it, and of the newest checkpoint."""
    plain, latest = section(4.3), section(4.4, selected_on="nothing", weights="raw")
    best = section(4.2, selected_on="bits/dim of 9 images held out of train")
    text = compare(["a", "b"], [{"bpd": plain}, {"bpd": latest}])
    assert row(text, "bpd.bits_per_dim")[-1] == "" and "bpd: weights = – / raw" in text
    for other in (plain, latest):
        text = compare(["a", "b"], [{"bpd": other}, {"bpd": best}])
        verdict = row(text, "bpd.bits_per_dim")[-1]
        assert verdict.startswith("NOT comparable: selected_on: nothing / bits/dim of 9")


def test_a_number_that_one_run_lacks_is_no_comparison() -> None:
    other = section(1.0)
    other["values"] = {"rate": {"value": 1.0, "standard_error": 0.25}}
    cells = row(compare(["a", "b"], [{"bpd": section(4.3)}, {"bpd": other}]), "bpd.rate")
    assert cells == ["bpd.rate", "–", "1 ± 0.25", "only one run has it"]
    text = compare(["a", "b"], [{"bpd": section(4.3)}, {"samples": other}])
    assert row(text, "bpd.bits_per_dim")[-1] == "only one run has it"


def test_of_three_runs_the_odd_one_is_seen() -> None:
    protocols = [section(1)["protocol"], None, section(1, split="train")["protocol"]]
    assert differences(protocols) == {"split": ["test", None, "train"]}


def test_files_and_folders_are_read_and_others_refused(tmp_path: pathlib.Path, capsys) -> None:
    content = {"bpd": section(4.3), "convert": {"from": "x"}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert list(read(tmp_path)) == ["bpd"] == list(read(tmp_path / "results.json"))
    assert main([str(tmp_path), str(tmp_path)]) == 0
    assert "bits_per_dim" in capsys.readouterr().out
    assert main([str(tmp_path), str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "no measured values yet" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "two results.json files or more" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"bpd": {"values": {"x": 1}, "protocol": {"a": 1}}}')
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "x cannot be read" in capsys.readouterr().err


def test_older_protocols_are_read_as_what_they_meant() -> None:
    old = {"sampler": "ancestral", "weights": "ema", "checkpoint": "latest"}
    new = {
        **{"sampler": {"name": "ancestral"}, "spacing": "even", "precision": "default"},
        **{"weights": "ema", "checkpoint": "latest", "selected_on": "nothing", "held_out": 0},
    }
    assert differences([old, new], free=()) == {}
    # The best checkpoint was chosen on the test split, which the protocol did not say.
    best = differences([old | {"checkpoint": "best"}, new])
    assert best == {"selected_on": ["not recorded", "nothing"]}
    bound = {"decoder": "tanh", "checkpoint": "latest"}
    assert differences([bound, bound | {"num_levels": 17}]) == {"num_levels": [256, 17]}
    assert differences([bound, bound | {"num_levels": 256}]) == {}
    assert differences([new, new | {"held_out": 250}]) == {"held_out": [0, 250]}


def test_numbers_of_unlike_precision_of_the_network_stand_with_a_word() -> None:
    """An older section is of the dtype of the config it was measured under, or of float32."""
    old, half = section(1.84535), section(1.84587, dtype="bfloat16")
    assert "bpd: dtype = float32 / bfloat16" in compare(["a", "b"], [{"bpd": old}, {"bpd": half}])
    known = {"provenance": {"config": {"model": {"dtype": "bfloat16"}}, "seed": 3}}
    protocol = measured({"bpd": old | known})[0]["bpd"].protocol
    assert protocol["dtype"] == "bfloat16" and protocol["seed"] == 3
    assert "dtype" not in compare(["a", "b"], [{"bpd": old | known}, {"bpd": half}])


def test_a_choice_of_code_is_written_by_its_name() -> None:
    assert written({"name": "ancestral"}) == "ancestral"
    assert written({"name": "ddim", "eta": 0.5}) == "ddim(eta=0.5)"
    assert written(1000) == "1000"


def test_bounds_of_unlike_models_stand_in_one_row_where_their_images_agree() -> None:
    """A VAE's ELBO beside a chain's bound; not where either is of other images."""
    runs = [{"bpd": section(1.9)}, {"elbo": section(2.1, likelihood="logistic")}]
    label = "bits_per_dim (bpd or elbo)"
    text = compare(["a", "b"], runs)
    cells = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    assert [cell.strip() for cell in cells.strip("|").split("|")] == [
        *(label, "1.9", "2.1", "bounds of models")
    ]
    runs[1]["elbo"]["protocol"]["num_images"] = 50
    assert "NOT comparable: num_images: 100 / 50" in compare(["a", "b"], runs)
    assert "bpd or" not in compare(["a", "b"], [runs[0], runs[0]])
