"""A small sweep as it stands on disk when it is done, with a report on it, made without training or notebooks."""

from __future__ import annotations

from pathlib import Path

from scripted_training import write_status

from analysis.report_folder import Part, Record, publish
from analysis.sources import read_sources
from analysis.study import load_study
from tdmpc2.config import Config
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.provenance import begin_process, end_process

EVAL = "env_steps,agent_steps,updates,seconds,task,episodes,return,return_std,success,episode_length"
TRAIN = "env_steps,agent_steps,updates,seconds,task,episode,episode_length,return,success,terminated"
TABLE = "task,env_steps,updates,metric,value,run,sweep"
STEPS = 100
"""Agent steps of a run; its task repeats each action twice."""


def make_sweep(results: Path, states: tuple[str, ...] = ("done", "done")) -> SweepFolder:
    """Runs of seeds 1, 2, ... in these states; one that is not done has come to half of its steps."""
    sweep = SweepFolder(results, "kept")
    entries = []
    for seed, state in enumerate(states, start=1):
        config = Config(
            task="cup-spin", seed=seed, steps=STEPS, model_size=1, results_dir=str(results), exp_name="kept"
        )
        entries.append(PlanEntry.of(config))
        folder = RunFolder.of(config)
        folder.claim(config)
        begin_process(folder.path)
        came_to = STEPS if state == "done" else STEPS // 2
        steps = range(0, came_to + 1, 50)
        rows = [f"{2 * step},{step},{step},1.0,cup-spin,2,{10 * seed + step},0.5,,500" for step in steps]
        folder.eval_csv.write_text("\n".join([EVAL, *rows]) + "\n")
        rows = [f"{2 * step},{step},{step},1.0,cup-spin,{i},50,3.5,,0" for i, step in enumerate(steps[1:])]
        folder.train_csv.write_text("\n".join([TRAIN, *rows]) + "\n")
        end_process(folder.path, state)
        write_status(folder, config, state, came_to)
        folder.release()
    sweep.write_plan(entries, "tasks: [cup-spin]\n")
    return sweep


def make_report(sweep: SweepFolder) -> Path:
    """A report with one page and one table of every evaluation; returns its folder."""
    output = sweep.path / "reports"
    staging = output / ".making"
    (staging / "tables").mkdir(parents=True)
    study = load_study([sweep.path])
    rows = [
        f"{row['task']},{row['env_steps']},{row['updates']},{row['metric']},{row['value']},{row['run']},kept"
        for row in study.table.to_dict("records")
    ]
    (staging / "tables" / "aggregate_evaluations.csv").write_text("\n".join([TABLE, *rows]) + "\n")
    (staging / "index.html").write_text("<p>scores</p>")
    part = Part("done", files=("tables/aggregate_evaluations.csv",))
    source = {**read_sources(study, output), "parts": ["aggregate_scores"], "changed": []}
    publish(staging, output, Record({}, {"aggregate_scores": part}, ("index.html",), (source,)), Record())
    return output
