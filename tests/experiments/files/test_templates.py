"""Templates: what they are given appears as text, and what nobody gave is an error."""

import pathlib

import jinja2
import pytest

from experiments.files import templates


def test_a_template_is_filled_and_an_unknown_name_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "letter.txt.jinja"
    path.write_text("{% if name %}\nDear {{ name }},\n{% endif %}\n{{ text | plain }}\n")
    assert templates.render(path, name="A", text="a*b") == "Dear A,\na\\*b\n"
    with pytest.raises(jinja2.UndefinedError, match="text"):
        templates.render(path, name="A")


def test_markup_is_text_in_a_page_of_html(tmp_path: pathlib.Path) -> None:
    (tmp_path / "page.jinja").write_text("<p>{{ text }}</p>")
    page = templates.environment(tmp_path, escape_html=True).get_template("page.jinja")
    assert page.render(text="<b>&") == "<p>&lt;b&gt;&amp;</p>"
