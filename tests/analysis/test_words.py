"""Numbers and tables as text: what people and papers are given."""

import pandas as pd
import pytest

from analysis.words import MISSING, duration, html_table, latex_table, with_interval


def test_latex_table_escapes_text_and_sets_numbers_to_the_right():
    table = pd.DataFrame({"task_name": ["a_b & c%", "{x} ^ ~ # $ \\"], "score": ["97.6 [96.9, 98.2]", MISSING]})
    lines = latex_table(table, "50% of all", label="scores").splitlines()
    assert r"\caption{50\% of all}" in lines
    assert r"\label{tab:scores}" in lines
    assert r"\begin{tabular}{lr}" in lines
    assert r"task\_name & score \\" in lines
    assert r"a\_b \& c\% & 97.6 [96.9, 98.2] \\" in lines
    assert r"\{x\} \textasciicircum  \textasciitilde  \# \$ \textbackslash  & -- \\" in lines


def test_latex_table_that_does_not_fit_a_page_breaks_over_pages():
    assert r"\begin{tabular}" in latex_table(pd.DataFrame({"n": ["1"] * 40}), "", label="short")
    assert r"\begin{longtable}" in latex_table(pd.DataFrame({"n": ["1"] * 41}), "", label="long")


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1,000", "-3.5", MISSING], "number"),
        (["97.6 [96.9, 98.2]", "5 of 6"], "number"),
        (["< 0.001", "83%", "+2.0"], "number"),
        (["walker-walk", "1.0"], "text"),
        ([MISSING, ""], "text"),
        (["a run that ended since its machine was switched off, perhaps"], "long"),
    ],
)
def test_columns_stand_by_what_is_in_them(cells, kind):
    assert f'<th class="{kind}">column</th>' in html_table(pd.DataFrame({"column": cells}))


def test_number_with_its_interval_or_without_one():
    assert with_interval(97.59, 96.91, 98.2) == "97.6 [96.9, 98.2]"
    assert with_interval(0.5, float("nan"), float("nan"), digits=2) == "0.50"
    assert with_interval(float("nan"), 1.0, 2.0) == MISSING


def test_durations_as_people_say_them():
    assert [duration(s) for s in (45.4, 125, 7500)] == ["45 s", "2 min 05 s", "2 h 05 min"]
