"""Task embeddings as a table: every number as the model uses it, and no file of anybody's replaced."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.reference import write_reference
from tdmpc2.cli import main
from tdmpc2.config import Config, EmbeddingsConfig
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.training.embeddings import export_embeddings
from tdmpc2.training.folder import RunFolder

TASKS = ["walker-walk", "cup-spin", "mw-door-open"]


def make_run(folder: Path, tasks: list[str]) -> tuple[RunFolder, TDMPC2]:
    agent = TDMPC2(Config(**TINY | {"task": ",".join(tasks)}), AgentSpec.from_tasks(tasks))
    run = RunFolder(folder)
    run.claim(agent.config)
    run.release()
    return run, agent


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose second embedding is longer than 1."""
    folder, agent = make_run(tmp_path / "run", TASKS)
    with torch.no_grad():
        agent.model._task_emb[1] = torch.arange(96) / 100  # norm 5.4
    checkpoints.write({"agent": agent.state_dict(), "steps": 0}, folder.checkpoint)
    write_reference(agent, tmp_path / "theirs.pt")
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str]) -> np.ndarray:
    return np.array([float(row[f"e{i}"]) for i in range(96)])


def test_rows_are_labelled_and_exact_and_shortened_as_the_model_does_it(run):
    path = export_embeddings(EmbeddingsConfig(run=str(run.path)))
    assert path == run.path / "embeddings.csv"
    rows = read(path)
    assert list(rows[0]) == ["task", "domain", "embodiment", "objective", *(f"e{i}" for i in range(96))]
    assert [[row[name] for name in ("task", "domain", "embodiment", "objective")] for row in rows] == [
        ["walker-walk", "dmcontrol", "walker", "walk"],
        ["cup-spin", "dmcontrol", "cup", "spin"],
        ["mw-door-open", "metaworld", "sawyer-door", "open"],
    ]
    stored = checkpoints.read(run.checkpoint)["agent"]["model"]["_task_emb"].numpy()
    np.testing.assert_array_equal(numbers(rows[0]).astype(np.float32), stored[0])  # short: as stored, bit by bit
    np.testing.assert_array_equal(numbers(rows[2]).astype(np.float32), stored[2])
    shortened = numbers(rows[1])
    assert np.linalg.norm(shortened) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(shortened, np.arange(96) / np.sqrt(sum(i * i for i in range(96))), rtol=1e-5)


def test_a_reference_file_gives_the_same_table(run, tmp_path):
    path = export_embeddings(EmbeddingsConfig(run=str(run.path)))
    output = tmp_path / "theirs.csv"
    words = ["embeddings", f"checkpoint={tmp_path / 'theirs.pt'}", f"task={','.join(TASKS)}", f"output={output}"]
    assert main(words) == 0
    assert output.read_bytes() == path.read_bytes()


def test_an_earlier_table_is_replaced_in_the_runs_folder_alone(run, tmp_path):
    path = run.path / "embeddings.csv"
    export_embeddings(EmbeddingsConfig(run=str(run.path)))
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    export_embeddings(EmbeddingsConfig(run=str(run.path)))
    assert path.read_bytes() == whole

    elsewhere = tmp_path / "elsewhere.csv"
    export_embeddings(EmbeddingsConfig(run=str(run.path), output=str(elsewhere)))
    for config in (
        EmbeddingsConfig(run=str(run.path), output=str(elsewhere)),
        EmbeddingsConfig(checkpoint=str(run.checkpoint), output=str(elsewhere)),
        EmbeddingsConfig(checkpoint=str(run.checkpoint), output=str(path)),
        EmbeddingsConfig(run=str(run.path), output=str(run.config_file)),  # in the folder, but not such a table
    ):
        before = Path(str(config.output)).read_bytes()
        with pytest.raises(UserError, match=r"output: .* exists already; name another file"):
            export_embeddings(config)
        assert Path(str(config.output)).read_bytes() == before


def test_an_agent_of_one_task_has_no_embedding(tmp_path):
    folder, agent = make_run(tmp_path / "single", ["pendulum-spin"])
    checkpoints.write({"agent": agent.state_dict(), "steps": 0}, folder.checkpoint)
    with pytest.raises(UserError, match="holds an agent of one task, pendulum-spin, which has no embedding"):
        export_embeddings(EmbeddingsConfig(run=str(folder.path)))
    assert not (folder.path / "embeddings.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("output=a.csv", "run: give run=FOLDER or checkpoint=FILE, one of them"),
        ("run=a checkpoint=b output=a.csv", "run: give run=FOLDER or checkpoint=FILE, one of them"),
        ("checkpoint=b", "output: with checkpoint= it is needed"),
        ("run=a task=mt30", "task: has no meaning with run="),
        ("checkpoint=b output=a.csv task=mt3O", "task: unknown task 'mt3O'; did you mean 'mt30'?"),
        ("run=nowhere", "run: no folder nowhere"),
    ],
)
def test_bad_settings_are_one_line_with_exit_code_2(capsys, words, message):
    assert main(["embeddings", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"tdmpc2: {message}")
    assert captured.err.count("\n") == 1
