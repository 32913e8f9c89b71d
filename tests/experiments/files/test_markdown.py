"""Tables as Markdown: every line has the cells of the head, and text is no markup."""

from experiments.files import markdown


def test_a_table_has_a_head_a_rule_and_its_rows() -> None:
    text = markdown.table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |", "| 3 | 4 |"]
    assert markdown.table(["a"], []).splitlines() == ["| a |", "| --- |"]


def test_text_is_shown_as_it_is() -> None:
    assert markdown.plain("x | <y>\n *z* [`w`]") == r"x \| \<y\> \*z\* \[\`w\`\]"
    cells = markdown.row([markdown.plain("a|b"), "c"]).replace(r"\|", "")
    assert cells.count("|") == 3
