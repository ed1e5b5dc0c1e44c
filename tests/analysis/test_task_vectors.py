"""Task embeddings from wherever agents are kept: which source counts, and that nothing is dropped without a word."""

import os
from pathlib import Path

import numpy as np
import pytest

from analysis.study import load_study
from analysis.task_vectors import cosine_similarity, load_checkpoints, load_embeddings, nearness
from tdmpc2.tasks import TASKS
from tdmpc2.training.folder import RunFolder

THREE = ["walker-walk", "cup-spin", "mw-door-open"]
ROWS = np.array([[0.5, 0.0], [0.0, 0.25], [0.3, -0.4]])


def write_table(run: Path, tasks=THREE, rows=ROWS) -> Path:
    lines = ["task,domain,embodiment,objective," + ",".join(f"e{i}" for i in range(len(rows[0])))]
    for name, row in zip(tasks, rows, strict=True):
        task = TASKS[name]
        lines.append(",".join([name, task.domain, task.embodiment, task.objective, *map(repr, map(float, row))]))
    path = run / "embeddings.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_cosine_similarity_ignores_lengths_and_gives_zeros_no_direction():
    similarity = cosine_similarity(np.array([[2.0, 0.0], [0.1, 0.1], [0.0, 0.0]]))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(similarity, [[1, half, 0], [half, 1, 0], [0, 0, 1]], atol=1e-12)


def test_nearness_is_the_mean_similarity_to_the_nearest_others():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    half = np.sqrt(0.5)  # of the third to both others; these two are at right angles
    np.testing.assert_allclose(nearness(vectors, k=1), [half, half, half])
    np.testing.assert_allclose(nearness(vectors, k=3), [half / 2, half / 2, half])
    assert np.isnan(nearness(vectors[:1])).all()


def test_embeddings_come_from_the_runs_table_and_only_tasks_of_the_study_are_kept(writer):
    run = writer.add_multi(THREE, 1, [])
    write_table(run)
    writer.add("walker-walk", 1, [(0, 1.0)])  # no agent of several tasks: no embedding, and no complaint
    [agent], problems = load_embeddings(load_study([writer.folder]))
    assert problems == []
    assert (agent.run, agent.kind, agent.size, agent.task_set, agent.seed) == (run.name, "multi", 1, "3 tasks", 1)
    assert agent.tasks == tuple(THREE)
    np.testing.assert_array_equal(agent.vectors, ROWS)
    [agent], _ = load_embeddings(load_study([writer.folder], tasks="mw-door-open,walker-walk"))
    assert agent.tasks == ("walker-walk", "mw-door-open")  # the agent's order
    np.testing.assert_array_equal(agent.vectors, ROWS[[0, 2]])
    assert load_embeddings(load_study([writer.folder], tasks="cup-spin")) == (
        [],
        [f"{run.name} (done): only 1 task of the agent is among those asked for"],
    )


def test_agents_that_are_missing_or_cannot_be_read_are_told_and_the_others_go_on(writer):
    writer.add_multi(THREE, 1, None)
    started = writer.add_multi(THREE, 2, [], state="running")
    damaged = writer.add_multi(THREE, 3, [])
    (damaged / "checkpoint").mkdir()
    (damaged / "checkpoint" / "latest.pt").write_bytes(b"no checkpoint")
    broken = writer.add_multi(THREE, 4, [])
    write_table(broken, rows=np.array([[1.0, np.nan], [1.0, 0.0], [0.0, 1.0]]))
    write_table(writer.add_multi(THREE, 5, []))
    agents, problems = load_embeddings(load_study([writer.folder]))
    assert [agent.seed for agent in agents] == [5]
    assert [problem.split(" ")[0] for problem in problems] == [
        started.name.replace("seed2", "seed1"), started.name, damaged.name, broken.name,
    ]  # fmt: skip
    assert "(not started): no agent yet" in problems[0]
    assert "(running): no agent yet" in problems[1]
    assert "not a checkpoint, or a damaged" in problems[2]
    assert "embeddings.csv: a number is missing or not finite" in problems[3]


def test_the_checkpoint_counts_where_the_table_is_older(writer):
    from tdmpc2.agent import checkpoints
    from tdmpc2.agent.agent import TDMPC2
    from tdmpc2.agent.reference import write_reference
    from tdmpc2.config import Config
    from tdmpc2.spec import AgentSpec

    small = {"model_size": 1, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "device": "cpu", "compile": False}
    agent = TDMPC2(Config(task=",".join(THREE), **small), AgentSpec.from_tasks(THREE))
    run = writer.add_multi(THREE, 1, [])
    (run / "config.yaml").unlink()
    folder = RunFolder(run)
    folder.claim(agent.config)
    folder.release()
    checkpoints.write({"agent": agent.state_dict(), "steps": 0}, folder.checkpoint)
    stored = agent.model._task_emb.detach().numpy().astype(np.float64)  # fresh: all shorter than 1

    table = write_table(run)
    os.utime(table, (1, 1))
    [read], problems = load_embeddings(load_study([writer.folder]))
    assert problems == []
    np.testing.assert_array_equal(read.vectors, stored)
    os.utime(folder.checkpoint, (0, 0))
    [read], _ = load_embeddings(load_study([writer.folder]))
    np.testing.assert_array_equal(read.vectors, ROWS)

    found, problems = load_checkpoints([str(folder.checkpoint), f"{writer.folder}/none.pt::mt30"], list(TASKS))
    np.testing.assert_array_equal(found[0].vectors, stored)
    assert (found[0].kind, found[0].size, found[0].tasks) == ("multi", 1, tuple(THREE))
    assert len(problems) == 1
    assert "no file" in problems[0]

    write_reference(agent, writer.folder / "theirs.pt")  # which names neither tasks nor seed
    [theirs], [refused] = load_checkpoints(
        [f"{writer.folder}/theirs.pt::{','.join(THREE)}", f"{writer.folder}/theirs.pt"], ["walker-walk", "cup-spin"]
    )
    assert (theirs.run, theirs.seed, theirs.task_set) == ("theirs", None, "3 tasks")
    assert theirs.tasks == ("walker-walk", "cup-spin")
    np.testing.assert_array_equal(theirs.vectors, stored[:2])
    assert "does not name its tasks" in refused


def test_finetuned_agents_are_marked(writer):
    run = writer.add("walker-walk", 1, [(0, 1.0)], variant="-finetuned", config={"checkpoint": "a/run"})
    write_table(run)
    [agent], problems = load_embeddings(load_study([writer.folder]))
    assert (agent.kind, agent.task_set, problems) == ("finetuned", "", [])
    assert agent.tasks == tuple(THREE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("cup-spin", "walker-walk"), "a task has two rows"),
        (lambda text: text.replace("cup-spin", "cup-spinn"), "unknown task cup-spinn"),
        (lambda text: text.replace("e0", "x"), "no column e0"),
    ],
)
def test_a_damaged_table_is_refused_with_its_fault(writer, change, message):
    path = write_table(writer.add_multi(THREE, 1, []))
    path.write_text(change(path.read_text()))
    agents, [problem] = load_embeddings(load_study([writer.folder]))
    assert agents == []
    assert message in problem
