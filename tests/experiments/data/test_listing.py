"""Each picture below a folder is found once, by its own name; what is left out is counted."""

import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments.data.image_folder import image_folder
from experiments.data.listing import list_archive, list_folder
from experiments.data.pictures import Folder, Zip

HIDDEN = (
    *("._0.png", ".1.png", ".DS_Store", "cats/._2.png", "cats/deep/.ipynb_checkpoints/3.png"),
    *(".ipynb_checkpoints/4.png", "__MACOSX/cats/5.png", "@eaDir/6.png", "cats/.git/x/7.png"),
)
PLAIN = ("0.png", "cats/1.png", "cats/deep/2.JPG", "dogs/3.webp", "dogs/ä 日.gif")
OTHER = ("README", "cats/Thumbs.db", "cats/notes.TXT", "list.txt")


def write(folder: pathlib.Path, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        format = {".jpg": "jpeg", ".webp": "webp", ".gif": "gif"}.get(
            os.path.splitext(name)[1].lower(), "png"
        )
        Image.new("L", (4, 4), 8 * i).save(folder / name, format=format)


def test_what_is_hidden_is_left_out_of_folders_and_archives(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / ".pictures"  # whoever names a hidden folder means it
    write(folder, (*PLAIN, *HIDDEN, *OTHER))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (*PLAIN, *HIDDEN, *OTHER):
            archive.write(folder / name, f"./{name}")
    found = list_folder(str(folder))
    assert found.names == sorted(PLAIN) == list_archive([*PLAIN, *HIDDEN], "a.zip").names
    assert "4 of other kinds (.txt 2, without an ending 1, .db 1)" in found.left_out()
    for there in (Folder(str(folder)), Zip(str(tmp_path / "a.zip"))):
        assert len(there.names) == len(PLAIN) and "9 hidden (" in there.left_out


def test_hidden_folders_are_no_classes(tmp_path: pathlib.Path) -> None:
    write(tmp_path, ("cats/1.png", "dogs/2.png", ".ipynb_checkpoints/0.png", "__MACOSX/3.png"))
    source = image_folder(str(tmp_path), 4, test_fraction=0.0, num_classes=2).open("train")
    assert [int(record["label"]) for record in source] == [0, 1]


def link_at_random(root: pathlib.Path, draw: np.random.Generator) -> list[pathlib.Path]:
    """A tree of pictures in and beside `root`, whose folders hold links to each other."""
    folders = [root]
    for i in range(8):
        parent = folders[draw.integers(len(folders))]
        folders.append(parent / f"{'zmb'[i % 3]}{i}")
    folders += [root.parent / "beside", root.parent / "beside" / "below"]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), i).save(folder / f"{i}.png")
    for i in range(15):
        place, target = (folders[draw.integers(len(folders))] for _ in range(2))
        (place / f"{'ay'[i % 2]}{i}").symlink_to(target)
    return folders


@pytest.mark.parametrize("seed", range(8))
def test_each_folder_is_visited_once_however_it_is_linked(seed: int, tmp_path) -> None:
    """Those below the folder under their own names, those beside it under a link's."""
    root = tmp_path / "root"
    folders = link_at_random(root, np.random.default_rng(seed))
    names = list_folder(str(root)).names
    real = [(root / name).resolve() for name in names]
    assert len(set(real)) == len(real)
    inside = {f / f"{i}.png" for i, f in enumerate(folders) if root in (f, *f.parents)}
    assert {str(path.relative_to(root)) for path in inside} <= set(names)
    linked = {path for path in real if root not in path.parents}
    beside = [f for f in folders if f != root and root not in f.parents]
    reached = [f for f in beside if any(f in path.parents for path in linked)]
    links = [path for path in root.rglob("*") if path.is_symlink()]
    assert bool(reached) == any(link.resolve() in beside for link in links)


def test_a_loop_is_told_and_no_picture_is_on_both_sides(tmp_path: pathlib.Path) -> None:
    for i in range(40):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    dataset = image_folder(str(tmp_path), 4, test_fraction=0.3, channels=1)
    parts = [{r["image"].tobytes() for r in dataset.open(split)} for split in ("train", "test")]
    assert sum(map(len, parts)) == 40 and not parts[0] & parts[1]
    [said] = [line for line in dataset.open("train").remarks() if line.startswith("left out")]
    assert "1 linked to what is read under another name (sub/loop)" in said
    assert "2 of other kinds (without an ending 2)" in said


def test_a_folder_that_cannot_be_opened_is_told(tmp_path: pathlib.Path, monkeypatch) -> None:
    write(tmp_path, ("a.png", "closed/b.png"))
    scandir = os.scandir

    def closed(place: str):
        if os.path.basename(place) == "closed":
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    found = list_folder(str(tmp_path))
    assert found.names == ["a.png"] and "1 that cannot be opened (closed)" in found.left_out()


def test_nothing_but_others_says_what_is_there(tmp_path: pathlib.Path) -> None:
    write(tmp_path, ("a.txt", "b.csv", ".c.png"))
    with pytest.raises(FileNotFoundError, match=r"No picture .* left out were 2 of.*; 1 hidden \("):
        list_folder(str(tmp_path))
