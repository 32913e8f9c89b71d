"""JSON files that several programs write."""

import pathlib
import subprocess
import sys

from experiments.files.atomic import read_json

ROOT = pathlib.Path(__file__).parents[3]


def test_two_writers_of_one_file_do_not_stumble_over_each_other(tmp_path: pathlib.Path) -> None:
    script = (
        "import pathlib, sys; from experiments.files.atomic import write_json\n"
        "for i in range(2000): write_json(pathlib.Path(sys.argv[1]), {'list': [i] * 100})"
    )
    path = tmp_path / "jobs.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT) for _ in range(2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert read_json(path) == {"list": [1999] * 100}
    assert list(tmp_path.iterdir()) == [path]
