"""Text as LaTeX: no sign of it is a command, and a compiler shows all of them."""

import pathlib
import re
import shutil

import pytest

from experiments.files import latex
from tests.started import run

EVERY = r"a_b 50% & #1 $2 {x} \y ~ ^ <z> |w| 'q' " + '"r" 28.6 ± 1.3, ≤ 3.75 – ε μ̃ β̃ √β ᾱ × 2'


def test_no_sign_is_left_that_latex_would_read() -> None:
    text = latex.plain(EVERY)
    commands = r"\\[a-zA-Z]+\{\}|\\[&%$#_{}]|\$\\(?:(?:tilde|bar)\\)?[a-zA-Z]+\$"
    rest = re.sub(commands, "", text)
    assert not set(rest) & set('\\{}$&#^_~%<>|"'), rest
    assert rest.isascii()
    assert latex.plain("plain words, 1.5") == "plain words, 1.5"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: texlive-latex-base")
def test_a_compiler_takes_all_signs(tmp_path: pathlib.Path) -> None:
    body = latex.plain(EVERY)
    page = f"\\documentclass{{article}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = run(command, cwd=tmp_path)
    assert "Missing character" not in done.stdout, done.stdout
