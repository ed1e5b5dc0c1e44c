import json

import numpy as np
import pytest
import torch
import yaml

from analysis.scaling import text
from analysis.scaling.parameters import count_parameters
from analysis.scaling.published import published_points
from analysis.scaling.series import size_series
from analysis.study import load_study
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import MODEL_SIZES, AgentSpec
from tdmpc2.tasks import TASK_SETS


def expected_parameters(**settings) -> int:
    config = Config(**settings)
    with torch.device("meta"):
        return WorldModel(config, AgentSpec.from_tasks(config.tasks, config.obs)).parameter_counts()["total"]


def run_folder(tmp_path, name, settings) -> str:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / name)


def test_parameters_are_counted_from_the_settings_of_the_run(tmp_path):
    small = {"task": "walker-walk", "model_size": 1}
    folders = [
        run_folder(tmp_path, "small", small),
        run_folder(tmp_path, "wide", {**small, "mlp_dim": 500, "a_setting_of_a_later_version": 3}),
        run_folder(tmp_path, "many", {"task": "mt30", "model_size": 5}),
        run_folder(tmp_path, "unknown-observation", {"task": "pick-ycb", "model_size": 5}),
        run_folder(tmp_path, "damaged", [1, 2]),
        str(tmp_path / "missing"),
    ]
    counts = [count_parameters(folders)[folder] for folder in folders]
    assert counts[0] == expected_parameters(**small)
    assert counts[1] == expected_parameters(**small, mlp_dim=500)
    assert counts[2] == expected_parameters(task="mt30", model_size=5)
    assert counts[3:] == [None, None, None]
    assert 1.1e6 < counts[0] < 1.3e6


def test_sizes_are_compared_on_the_tasks_they_have_in_common(writer):
    for task, sizes in {"walker-walk": (1, 5), "cheetah-run": (1, 5), "dog-run": (1,)}.items():
        for size in sizes:
            for seed in (1, 2):
                writer.add(task, seed, [(0, 10.0), (3000, 100.0 * size + 10 * seed)], size=size)
    writer.add("dog-walk", 1, None, size=5)
    (series,) = size_series(load_study([writer.folder]))
    assert series.name == "TD-MPC2 single-task (2 tasks)"
    assert series.tasks == ("cheetah-run", "walker-walk")
    assert series.left_out == ("dog-run",)
    assert series.sizes == (1, 5)
    assert series.scores.tolist() == [[[11.0, 12.0]] * 2, [[51.0, 52.0]] * 2]
    tasks = ("cheetah-run", "walker-walk")
    means = [np.mean([expected_parameters(task=t, model_size=size) for t in tasks]) / 1e6 for size in (1, 5)]
    assert series.parameters == pytest.approx(means)
    assert series.costs["hours"].to_list() == pytest.approx([2 / 60, 2 / 60])  # a minute a run, one seed of two tasks
    assert set(series.costs["device"]) == {"cpu"}
    assert text.notes(series) == [
        "TD-MPC2 single-task (2 tasks): 1 task left out, without a score at every size: dog-run."
    ]


def test_multi_task_agents_make_a_series_for_each_task_set_and_cost_counts_them_once(writer):
    for size, seed in ((1, 1), (1, 2), (5, 1)):
        points = [(1000, dict.fromkeys(TASK_SETS["mt30"], 0.0)), (2000, dict.fromkeys(TASK_SETS["mt30"], 100.0 * size))]
        writer.add_multi(TASK_SETS["mt30"], seed, points, size=size)
    writer.add_multi(["walker-walk", "mw-reach"], 1, [(2000, {"walker-walk": 300.0, "mw-reach": 0.5})])
    pair, mt30 = size_series(load_study([writer.folder]), ["multi"])
    assert (pair.name, pair.sizes) == ("TD-MPC2 multi-task (2 tasks)", (1,))
    assert (mt30.name, mt30.sizes, len(mt30.tasks)) == ("TD-MPC2 multi-task (mt30)", (1, 5), 30)
    assert mt30.scores.shape == (2, 30, 2)
    assert mt30.scores[0].tolist() == [[10.0, 10.0]] * 30
    assert np.isnan(mt30.scores[1, :, 1]).all()
    assert mt30.costs["hours"].to_list() == pytest.approx([30 / 3600] * 2)
    assert mt30.costs["updates"].to_list() == [2000, 2000]
    assert mt30.slug == "tdmpc2-multi-mt30"


def test_label_stands_in_for_parameters_that_cannot_be_counted(writer):
    for size in (1, 5):
        writer.add("pick-ycb", 1, [(3000, 5.0, 0.5)], size=size)
    (series,) = size_series(load_study([writer.folder]))
    assert series.parameters.tolist() == [1.0, 5.0]
    assert series.nominal == (1, 5)
    assert text.notes(series)[-1].endswith(
        "the parameters of size 1M and 5M could not be counted; the label stands in."
    )
    for size in (1, 5):
        writer.add("lift-cube", 1, [(3000, 5.0, 0.5)], size=size)
    (series,) = size_series(load_study([writer.folder]))
    assert series.parameters[0] == pytest.approx(expected_parameters(task="lift-cube", model_size=1) / 1e6)
    assert (series.nominal, series.uncounted) == ((), ("pick-ycb",))


def test_seed_that_ended_early_does_not_count_and_unequal_training_is_told(writer):
    writer.add("walker-walk", 1, [(3000, 300.0)])
    writer.add("walker-walk", 2, [(1000, 900.0)], state="failed")
    writer.add("walker-walk", 1, [(2000, 500.0)], size=5)
    (series,) = size_series(load_study([writer.folder]))
    assert series.scores[:, 0, 0].tolist() == [30.0, 50.0]
    assert series.uneven == ("walker-walk",)
    assert "were not trained for equally long on walker-walk" in text.notes(series)[0]


def test_a_run_that_did_not_record_its_time_leaves_the_hours_unknown(writer):
    writer.add("walker-walk", 1, [(3000, 300.0)])
    run = writer.add("cheetah-run", 1, [(3000, 300.0)])
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "seconds": None}))
    (series,) = size_series(load_study([writer.folder]))
    assert np.isnan(series.costs["hours"][0])


def test_no_evaluation_and_published_curves_alone_are_told_in_a_sentence(writer, published):
    writer.add("walker-walk", 1, None)
    study = load_study([writer.folder])
    assert size_series(study) == []
    assert "None of the runs looked at has an evaluation yet." in text.headline(study, [], None)
    reference = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})
    alone = load_study([], reference)
    assert size_series(alone) == []
    sentence = text.headline(alone, [], published_points())
    assert "published learning curves alone are of one size each" in sentence
    assert "on mt80 16.0 at 1M and 70.6 at 317M" in sentence


def test_unknown_kind_is_refused_with_the_nearest_one(writer):
    writer.add("walker-walk", 1, None)
    with pytest.raises(UserError, match="kinds: unknown kind 'multy'; did you mean 'multi'"):
        size_series(load_study([writer.folder]), ["multy"])


def test_published_scores_are_of_known_task_sets_and_sizes_and_name_their_source():
    table = published_points()
    assert set(table["task_set"]) <= set(TASK_SETS)
    assert set(table["parameters_millions"]) <= set(MODEL_SIZES)
    assert table["score"].between(0, 100).all()
    assert table["source"].str.contains("arXiv:2310.16828").all()
