"""The program that prepares: what it says, and the sources that it refuses."""

import shutil

import pytest
from PIL import Image

from experiments import prepare
from experiments.data import celeb_a_hq, cifar10, prepared
from experiments.data.datasets import DATASETS
from tests.experiments import synthetic


def test_program_prints_the_folder(tmp_path, idx, capsys):
    options = [f"--from={tmp_path / 'idx'}", f"--data_dir={tmp_path}"]
    assert prepare.main(["--dataset=fashion_mnist", *options]) == 0
    ready = [
        f"fashion_mnist is ready in {tmp_path}/fashion_mnist/3.0.1",
        f"prepared  from {tmp_path / 'idx'}",
    ]
    said = capsys.readouterr()
    assert said.out.splitlines()[-2:] == ready and not said.err
    begins = ("preparing fashion_mnist from", *("   ",) * 9)  # wrapped, and no table of sizes
    assert all(map(str.startswith, said.out.splitlines()[:-2], begins))
    assert prepare.main(["--dataset=fashion_mnist", *options]) == 0  # nothing more to do
    assert capsys.readouterr().out.splitlines() == ready


def test_another_source_than_that_of_a_prepared_folder_is_refused(tmp_path, idx, capsys):
    """Also one that the folder does not tell; without --from what is there is kept."""
    options = ["--dataset=fashion_mnist", f"--data_dir={tmp_path}"]
    shutil.copytree(tmp_path / "idx", tmp_path / "other")
    assert prepare.main([*options, f"--from={tmp_path / 'idx'}"]) == 0
    assert prepare.main([*options, f"--from={tmp_path / 'other'}"]) == 2
    error = capsys.readouterr().err
    assert f"before from {tmp_path / 'idx'}, and {tmp_path / 'other'} was not read" in error
    (tmp_path / "link").symlink_to(tmp_path / "idx")
    assert prepare.main([*options, f"--from={tmp_path / 'link'}"]) == 0
    (tmp_path / "fashion_mnist" / "3.0.1" / prepared.SOURCE).unlink()  # of an older program
    assert prepare.main([*options, f"--from={tmp_path / 'idx'}"]) == 2
    assert "something that it does not tell" in capsys.readouterr().err
    assert prepare.main(options) == 0
    assert "from something that was not recorded then" in capsys.readouterr().out


def test_files_that_are_not_the_published_ones_are_warned_of(tmp_path, few_records, capsys):
    synthetic.cifar_binary(tmp_path / "cifar-10-binary.tar.gz")
    cifar10.prepare(str(tmp_path), str(tmp_path / "cifar"))
    assert "published file has c4a38c50a1bc5f" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "faces" / "1.png")
    celeb_a_hq.prepare(str(tmp_path / "faces"), str(tmp_path / "celeb"))
    assert "holds 1 pictures, the published" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset=cifar10", "--from=absent"], "cifar10 was not prepared. There is no file"),
        (["--dataset=digits", "--from=here"], "digits was not prepared."),
        (["--dataset=digits", "--from=here"], "leave out --from"),
        (["--dataset=digit"], "--dataset=digit is not known. Did you mean 'digits'?"),
        (["--dataset=image_folder"], "image_folder needs no preparing"),
        ([], "--dataset"),
        (["--dataset=digits", "--dir=x"], "unrecognized arguments: --dir=x"),
    ],
)
def test_program_says_what_is_wrong(tmp_path, capsys, options, words):
    assert prepare.main([*options, f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_every_data_set_says_how_it_is_prepared(capsys):
    with pytest.raises(SystemExit) as exit:
        prepare.main(["--help"])
    assert exit.value.code == 0
    told = "".join(capsys.readouterr().out.split())
    for name, make in DATASETS.items():
        if synthetic.of_a_folder(make):
            assert make(path="here", image_size=8).prepare is None
            assert name not in prepare.PREPARED
        else:
            assert prepare.PREPARED[name] is make and make().prepare is not None
            assert "".join(f"{name}: {make().prepared_from}.".split()) in told
