import pytest

from analysis import style


@pytest.mark.parametrize(
    ("steps", "text"),
    [(0, "0"), (500, "500"), (20_000, "20k"), (1_000_000, "1M"), (1_250_000, "1.25M"), (999_999, "1M"), (14e6, "14M")],
)
def test_steps_are_written_as_people_say_them(steps, text):
    assert style.human_steps(steps) == text


def test_a_series_keeps_its_colour_whatever_stands_beside_it():
    alone = style.series_styles([("tdmpc2", "single", 5, ""), ("tdmpc2 no-mpc", "single", 5, "")])
    among = style.series_styles(
        [("tdmpc2", "single", size, "") for size in (1, 5, 19, 48, 317)]
        + [("tdmpc2 no-mpc", "single", 5, ""), ("sac", "published", None, ""), ("tdmpc2", "published", None, "")]
    )
    for key, look in alone.items():
        assert among[key] == look


def test_series_are_told_apart():
    series = [("tdmpc2", "single", size, "") for size in (1, 5, 19, 48, 317)]
    series += [(name, "published", None, "") for name in ("tdmpc2", "tdmpc2-pixels", "tdmpc", "dreamerv3", "sac")]
    series += [(f"tdmpc2 variant{i}", "single", 5, "") for i in range(6)]
    styles = style.series_styles(series)
    assert len({look.colour for look in styles.values()}) == len(series)
    assert styles["tdmpc2", "single", 5, ""].label == "TD-MPC2 5M"
    assert styles["dreamerv3", "published", None, ""].label == "DreamerV3 (published)"


def test_published_series_have_markers_of_their_own():
    names = ("tdmpc2", "tdmpc2-pixels", "tdmpc", "dreamerv3", "sac")
    styles = style.series_styles([(name, "published", None, "") for name in names])
    assert len({look.marker for look in styles.values()}) == len(names)


def test_multi_task_series_shares_the_colour_but_not_the_line():
    styles = style.series_styles([("tdmpc2", "single", 5, ""), ("tdmpc2", "multi", 5, "")])
    single, multi = styles["tdmpc2", "single", 5, ""], styles["tdmpc2", "multi", 5, ""]
    assert single.colour == multi.colour
    assert single.line != multi.line


def test_long_names_break_after_hyphens():
    assert style.break_name("mw-button-press-topdown-wall", 16) == "mw-button-press-\ntopdown-wall"
    assert style.break_name("walker-walk", 16) == "walker-walk"
