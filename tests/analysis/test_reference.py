import pytest

from analysis.reference import load_reference
from tdmpc2.errors import UserError


def test_published_files_become_a_tidy_table(published):
    folder = published(
        {
            "tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,900,1\n",
            "sac/myo-hand-pose.csv": "step,success,seed\n0,0.0,2\n100000,0.4,2",  # no newline at the end
        }
    )
    reference = load_reference(folder)
    columns = ["task", "algorithm", "kind", "seed", "env_steps", "metric", "value", "score"]
    assert reference.table[columns].to_numpy().tolist() == [
        ["myo-pose", "sac", "published", 2, 0, "success", 0.0, 0.0],
        ["myo-pose", "sac", "published", 2, 100000, "success", 0.4, 40.0],
        ["walker-walk", "tdmpc2", "published", 1, 0, "return", 20.0, 2.0],
        ["walker-walk", "tdmpc2", "published", 1, 100000, "return", 900.0, 90.0],
    ]
    assert reference.table["size"].isna().all()
    assert reference.problems == ()


def test_repeated_seeds_and_unknown_files_are_reported(published):
    folder = published(
        {
            "tdmpc/dog-run.csv": "step,reward,seed\n0,10,1\n0,30,1\n100000,50,1\n",
            "tdmpc/dog-fly.csv": "step,reward,seed\n0,10,1\n",
            "tdmpc/dog-walk.csv": "step,seed\n0,1\n",
            "tdmpc/dog-trot.csv": "step,reward\n0,1\n",
        }
    )
    reference = load_reference(folder)
    assert reference.table["value"].tolist() == [20.0, 50.0]
    assert set(reference.problems) == {
        "tdmpc/dog-fly.csv: unknown task, left out",
        "tdmpc/dog-walk: no reward or success in it",
        "tdmpc/dog-trot.csv: no column seed",
        "tdmpc/dog-run: seed and step repeated in 1 row; averaged",
    }


def test_wrong_reference_folder_says_what_to_give(published):
    folder = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n"})
    with pytest.raises(UserError, match=r"did you mean .*published\?"):
        load_reference(folder / "tdmpc2")
    with pytest.raises(UserError, match=r"no reference folder .*; did you mean .*published\?"):
        load_reference(folder.parent / "publish")
