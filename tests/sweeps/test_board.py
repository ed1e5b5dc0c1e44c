"""The web page of a sweep: what is read and said, without Streamlit; then the page itself, and the server."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_training import write_status
from streamlit.testing.v1 import AppTest

from tdmpc2.cli import main
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.sweeps import serve
from tdmpc2.sweeps.board import contents, curves, reading
from tdmpc2.sweeps.board.reading import Evaluation, Snapshot, SweepReader, read_evaluations, read_tail
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.sweeps.progress import RunView
from tdmpc2.training.folder import RunFolder

HEADER = "env_steps,agent_steps,updates,seconds,task,episodes,return,return_std,success,episode_length\n"
NOW = 1_800_000_000.0


def config(results: Path, seed: int, task: str = "walker-walk", **settings: object) -> Config:
    values = {"task": task, "model_size": 1, "seed": seed, "steps": 100, "results_dir": str(results), "exp_name": "s"}
    return Config(**(values | settings))  # type: ignore[arg-type]


def make_sweep(results: Path) -> SweepFolder:
    """Six runs of walker-walk: done, failed, given up, with a half-written status, interrupted, not begun."""
    folder = SweepFolder(results, "s")
    configs = {seed: config(results, seed) for seed in range(1, 7)}
    folder.write_plan([PlanEntry.of(each, gpus=0.5) for each in configs.values()], "tasks: walker-walk\n")
    runs = {seed: RunFolder.of(each) for seed, each in configs.items()}
    write_status(runs[1], configs[1], "done", 100)
    write_status(runs[2], configs[2], "failed", 40, "RuntimeError: *no* luck\nwith a second line")
    write_status(runs[3], configs[3], "running", 40)  # and no process on it
    write_status(runs[4], configs[4], "running", 40)
    runs[4].status_file.write_text('{"state": "runn')
    write_status(runs[5], configs[5], "interrupted", 40, "stopped on request")
    (runs[2].path / "run.log").write_text("first line\nepisode 7 went wrong\n")
    runs[1].eval_csv.write_text(HEADER + "0,0,0,1,walker-walk,2,10,0,,500\n200,100,100,9,walker-walk,2,30,0,,500\n")
    return folder


def view(name: str, state: str, size: int = 1, **values: object) -> RunView:
    kind, gpus = values.pop("kind", "online"), values.pop("gpus", 0.0)
    entry = PlanEntry(name, "walker-walk", size, 1, 100, 200, 100, kind, gpus)  # type: ignore[arg-type]
    return RunView(entry, state, **values)  # type: ignore[arg-type]


def test_half_written_status_is_shown_as_such_and_a_run_not_begun_as_waiting(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    snapshot = SweepReader(tmp_path, "s").snapshot()
    states = [contents.shown_state(each, snapshot) for each in snapshot.views]
    assert states == ["done", "failed", "killed", "damaged", "interrupted", "waiting"]


def test_damaged_plan_is_told_instead_of_raised(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    folder.plan_file.write_text("{")
    snapshot = SweepReader(tmp_path, "s").snapshot()
    assert "plan.json: damaged" in snapshot.fault
    assert snapshot.views == ()


def test_states_are_read_again_only_after_a_while_and_longer_where_reading_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, reads = [100.0], []

    def read(folder: SweepFolder) -> list[RunView]:
        reads.append(clock[0])
        clock[0] += 1.0  # a second's work
        return [view("a-1M-seed1", "waiting")]

    monkeypatch.setattr(reading, "view_sweep", read)
    monkeypatch.setattr(reading.time, "monotonic", lambda: clock[0])
    reader = SweepReader(tmp_path, "s")
    for clock[0] in (100.0, 105.0, 110.9, 111.1, 115.0):
        reader.snapshot()
    assert reads == [100.0, 111.1]  # ten times as long as it took passes in between


def test_evaluations_take_the_metric_of_each_task_and_leave_out_a_line_being_written(tmp_path: Path) -> None:
    file = tmp_path / "eval.csv"
    file.write_text(
        HEADER
        + "0,0,0,1,walker-walk,2,10.5,0,,500\n"
        + ",,20,1,mw-reach,2,900,0,0.25,100\n"
        + "40,20,20,1,walker-walk,2,,0,,500\n"  # the return was not a number
        + "60,30,30,1,walker-walk,2,9"
    )
    log = read_evaluations(file)
    assert log.evaluations == (Evaluation("walker-walk", 0, 0, 10.5), Evaluation("mw-reach", None, 20, 0.25))
    assert log.fault == ""


def test_damaged_lines_of_evaluations_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    file = tmp_path / "eval.csv"
    file.write_text(HEADER + "0,0,0,1,walker-walk,2,10,0,,500\nx,0,0,1,walker-walk,2,10,0,,500\n\0\0\nshort\n")
    log = read_evaluations(file)
    assert [each.score for each in log.evaluations] == [10.0]
    assert log.fault == f"{file}: 3 of its lines cannot be read, the first of them line 3"


def test_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    file, reads = tmp_path / "f", []

    def read(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    cache = reading.FileCache(read, "absent", str)
    assert cache.get(file) == "absent"
    file.write_text("a")
    assert [cache.get(file), cache.get(file), len(reads)] == ["a", "a", 1]
    file.write_text("ab")
    assert [cache.get(file), len(reads)] == ["ab", 2]
    assert "Is a directory" in reading.FileCache(Path.read_text, "", str).get(tmp_path)


def test_log_tail_holds_the_last_lines_without_a_terminals_codes(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(5000)) + b"10%\r\x1b[31m99%\x1b[0m\r\nend \xff\n")
    lines = read_tail(log).split("\n")
    assert lines[-2:] == ["99%", "end �"]
    assert lines[0] == f"line {5000 - (reading.TAIL_LINES - 2)}"


def test_failures_are_grouped_by_reason_the_most_frequent_first() -> None:
    snapshot = Snapshot(
        (
            view("a", "failed", message="rare"),
            view("b", "failed", message="frequent\nits traceback"),
            view("c", "killed"),
            view("d", "failed", message="frequent"),
            view("e", "interrupted", message="stopped on request"),
            view("f", "done"),
        )
    )
    found = [(each.state, each.reason.partition(";")[0], each.runs) for each in contents.troubles(snapshot)]
    assert found == [
        ("failed", "frequent", ("b", "d")),
        ("failed", "rare", ("a",)),
        ("killed", "its process is gone", ("c",)),
    ]


def test_figures_count_runs_steps_hours_and_gpu_hours_so_far_and_to_come() -> None:
    snapshot = Snapshot(
        (
            view("a", "done", env_steps=200, updates=100, seconds=7200.0, gpus=0.5),
            view("b", "running", env_steps=100, updates=50, seconds=3600.0, seconds_left=3600.0, gpus=0.5),
            view("c", "waiting", gpus=0.5),
        )
    )
    figures = {figure.label: (figure.value, figure.note) for figure in contents.overview(snapshot, NOW)}
    assert figures["Runs done"] == ("1 of 3", "1 running")
    assert figures["Environment steps"] == ("300", "of 600")
    assert figures["Updates"] == ("150", "of 300")
    # Both runs take 72 s an update: one hour is left of b, and two of c.
    assert figures["Run time"] == ("3.0 h", "3.0 h to come")
    assert figures["GPU-hours"] == ("1.5", "1.5 to come")
    assert figures["Time left"][0] == "3 h 00 min"


def test_time_left_is_unknown_while_nothing_runs_and_cost_to_come_while_nothing_was_measured() -> None:
    figures = {figure.label: figure for figure in contents.overview(Snapshot((view("a", "waiting"),)), NOW)}
    assert (figures["Time left"].value, figures["Time left"].note) == ("unknown", "no run is under way")
    assert figures["Run time"].note == "to come: not known yet"
    assert "GPU-hours" not in figures


def test_cost_is_told_by_stage_and_size() -> None:
    rows = contents.cost_rows(
        [
            view("a", "done", size=5, updates=100, seconds=50.0),
            view("b", "waiting", size=5),
            view("c", "waiting", kind="offline"),
        ]
    )
    assert [(row["stage"], row["size"], row["runs"], row["speed"]) for row in rows] == [
        ("single-task", "5M", "1 of 2", 500.0),
        ("multi-task", "1M", "0 of 1", None),
    ]
    assert [(row["spent"], row["to come"]) for row in rows] == [
        ("50 s", "50 s"),
        ("0 s", "unknown until one has been measured"),
    ]


def test_table_begins_with_what_runs_and_what_failed_and_can_be_narrowed_down() -> None:
    names = {"walker-walk-1M": "done", "walker-run-5M": "failed", "cup-catch-1M": "waiting", "walker-run-1M": "running"}
    snapshot = Snapshot(tuple(view(name, state) for name, state in names.items()))

    def chosen(*args: object) -> list[str]:
        return [each.entry.name for each in contents.choose_runs(snapshot, *args)]  # type: ignore[arg-type]

    assert chosen() == ["walker-run-1M", "walker-run-5M", "cup-catch-1M", "walker-walk-1M"]
    assert chosen((), "Walker 1m") == ["walker-run-1M", "walker-walk-1M"]
    assert chosen(("failed", "done")) == ["walker-run-5M", "walker-walk-1M"]


def test_rows_say_in_which_steps_a_run_counts() -> None:
    online = view("a", "running", agent_steps=50, env_steps=100, updates=40, seconds_left=60.0, phase="learning")
    offline = view("b", "interrupted", kind="offline", updates=25, message="stopped on request", planned=False)
    rows = [contents.run_row(each, Snapshot((online, offline))) for each in (online, offline)]
    assert [row["steps"] for row in rows] == ["100 of 200 environment steps", "25 of 100 updates"]
    assert [row["progress"] for row in rows] == [45.0, 25.0]  # 50% of the agent steps and 40% of the updates
    assert [row["left"] for row in rows] == ["60 s", ""]
    assert [row["note"] for row in rows] == ["learning", "stopped on request; not in the plan"]


def test_series_are_told_apart_by_size_label_and_data_set() -> None:
    def entry(name: str, size: int, data: str = "") -> PlanEntry:
        return PlanEntry(name, "walker-walk", size, 1, 100, 200, data=data)

    entries = [
        entry("w-1M-seed1", 1),
        entry("w-1M-seed2", 1),
        entry("w-rgb-5M-seed1", 5),
        entry("w-5M-no-mpc-seed1", 5),
    ]
    assert list(curves.series_names(entries).values()) == ["1M", "1M", "5M rgb", "5M no-mpc"]
    several = [entry("m-5M-seed1", 5, "small"), entry("m-5M-b-seed1", 5, "large")]
    assert list(curves.series_names(several).values()) == ["5M (small)", "5M b (large)"]
    looks = curves.series_looks(["5M rgb", "1M", "5M no-mpc", "1M"])
    assert [(each.name, each.colour) for each in looks] == [
        ("1M", "#E69F00"),
        ("5M no-mpc", "#0072B2"),
        ("5M rgb", "#0072B2"),
    ]
    assert looks[1].dash != looks[2].dash


def test_seeds_together_are_mean_and_range_at_each_place() -> None:
    points = [
        {"at": 0, "score": 1.0, "series": "1M", "seed": 1},
        {"at": 0, "score": 4.0, "series": "1M", "seed": 2},
        {"at": 10, "score": 6.0, "series": "1M", "seed": 1},
        {"at": 0, "score": 9.0, "series": "5M", "seed": 1},
    ]
    assert curves.over_seeds(points) == [
        {"at": 0, "series": "1M", "score": 2.5, "low": 1.0, "high": 4.0, "seeds": 2},
        {"at": 10, "series": "1M", "score": 6.0, "low": 6.0, "high": 6.0, "seeds": 1},
        {"at": 0, "series": "5M", "score": 9.0, "low": 9.0, "high": 9.0, "seeds": 1},
    ]


def test_curves_are_over_environment_steps_and_on_a_data_set_over_updates(tmp_path: Path) -> None:
    online = PlanEntry("walker-walk-1M-seed1", "walker-walk", 1, 1, 100, 200, 100)
    offline = PlanEntry("mt30-1M-seed1", "mt30", 1, 1, 0, 0, 100, "offline", 0.0, "mt30")
    reader = SweepReader(tmp_path, "s")
    for entry, line in ((online, "80,40,30,1"), (offline, ",,50,1")):
        file = reader.folder.run(entry.name).eval_csv
        file.parent.mkdir(parents=True)
        file.write_text(HEADER + f"{line},walker-walk,2,10,0,,500\n")
    for entry, at, axis in ((online, 80, "environment steps"), (offline, 50, "updates")):
        points, faults = curves.points_by_task(reader, [entry], ["walker-walk"], curves.series_names([entry]))
        assert points == {"walker-walk": [{"at": at, "score": 10.0, "series": "1M", "seed": 1}]}
        assert faults == []
        spec = curves.panel_spec("walker-walk", entry.kind, curves.series_looks(["1M"]), together=True, dots=True)
        assert spec["layer"][-1]["encoding"]["x"]["title"] == axis


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit puts its script in the place of the main module, from which processes of later tests would begin."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def page(results: Path) -> AppTest:
    def script(results_dir: str, name: str) -> None:
        from tdmpc2.sweeps.board.page import draw

        draw(results_dir, name)

    return AppTest.from_function(script, args=(str(results), "s"), default_timeout=60)


def shown(app: AppTest) -> str:
    """All text on the page."""
    elements = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.code, *app.info, *app.error, *app.warning]
    return "\n".join(str(element.value) for element in elements)


def test_page_shows_states_failures_with_their_log_curves_and_cost(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    app = page(tmp_path).run()
    assert not app.exception
    text = shown(app)
    assert "**failed, 1 run:** RuntimeError\\: \\*no\\* luck" in text
    assert "status unreadable, 1 run" in text
    assert "episode 7 went wrong" in text
    assert {metric.label: metric.value for metric in app.metric}["Runs done"] == "1 of 6"
    runs, cost = (frame.value for frame in app.dataframe)
    assert dict(zip(runs["run"], (words[0] for words in runs["state"]), strict=True)) == {
        "walker-walk-1M-seed2": "failed",
        "walker-walk-1M-seed4": "status unreadable",
        "walker-walk-1M-seed3": "killed; will resume",
        "walker-walk-1M-seed5": "interrupted; will resume",
        "walker-walk-1M-seed6": "waiting",
        "walker-walk-1M-seed1": "done",
    }
    assert list(cost["runs"]) == ["1 of 6"]


def test_page_keeps_what_was_chosen_when_it_is_drawn_again(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    app = page(tmp_path).run()
    app.selectbox(key="log").select("walker-walk-1M-seed3").run()
    app.text_input(key="words").set_value("seed1").run()
    app.pills(key="states-chosen").select("done").run()
    write_status(folder.run("walker-walk-1M-seed2"), config(tmp_path, 2), "done", 100)  # one failure less to choose
    reading_again = time.monotonic() + 3 * reading.LEAST_SECONDS
    while "failed, 1 run" in shown(app) and time.monotonic() < reading_again:
        time.sleep(0.2)
        app.run()
    assert not app.exception
    assert "failed, 1 run" not in shown(app)
    assert app.selectbox(key="log").value == "walker-walk-1M-seed3"
    assert app.pills(key="states-chosen").value == ["done"]  # of which there are now two
    assert list(app.dataframe[0].value["run"]) == ["walker-walk-1M-seed1"]


def test_page_of_a_sweep_that_was_not_started_or_cannot_be_read_says_so(tmp_path: Path) -> None:
    app = page(tmp_path / "empty").run()
    assert not app.exception
    assert "Not started" in shown(app)
    assert "tdmpc2 sweep run s" in shown(app)
    make_sweep(tmp_path / "damaged").plan_file.write_text("{")
    app = page(tmp_path / "damaged").run()
    assert not app.exception
    assert "plan.json\\: damaged" in shown(app)


def test_unknown_sweep_is_refused_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path / "r")
    (tmp_path / "r" / "s").rename(tmp_path / "r" / "quickish")
    assert main(["sweep", "serve", "quikish", "--results", str(tmp_path / "r")]) == 2
    assert "did you mean 'quickish'?" in capsys.readouterr().err


def test_taken_port_is_refused_by_number_and_passed_over_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve.listen(serve.LOOPBACK, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} \(Address already in use.*--port"):
            serve.listen(serve.LOOPBACK, port)
        monkeypatch.setattr(serve, "PORT", port)
        with serve.listen(serve.LOOPBACK, None) as other:
            assert port < other.getsockname()[1] < port + serve.PORTS_TRIED
    with pytest.raises(UserError, match="70000"):
        serve.listen(serve.LOOPBACK, 70000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_says_its_address_answers_its_own_page_alone_and_ends_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    make_sweep(tmp_path)
    code = "import sys; from tdmpc2.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["sweep", "serve", "s", "--results", str(tmp_path), "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("s: http://127.0.0.1:")
        port = int(line.split(":")[3].split()[0])

        def status(**headers: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/_stcore/health", headers=headers)
            return connection.getresponse().status

        assert status() == 200
        assert status(Origin=f"http://127.0.0.1:{port}") == 200
        assert status(Origin="http://elsewhere.example") == 403
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)  # loopback too, but not asked for
        server.send_signal(number)
        rest, _ = server.communicate(timeout=30)
        assert rest == ""
        assert server.returncode == 0
    finally:
        server.kill()
        server.wait()
