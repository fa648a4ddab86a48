"""Tests of fairseq_lnplugin/study/finetuning.py: what checkpoints are worth on MRPC and RTE (figures 5b, 5c, appendix A.3).

Oracles are closed forms, scores whose mean and interval are known, and scikit-learn's F1, which is what fairseq computes.
"""

import math

import pytest
from bert_folders import (
    MRPC_ROWS,
    POST,
    PRE_SETTINGS,
    RTE_ROWS,
    read,
    straight,
    write_accuracies,
    write_result,
    write_run,
)

from fairseq_lnplugin.study.finetuning import Finetuning, by_chance, constant, leads, levels
from fairseq_lnplugin.study.intervals import t_quantile
from fairseq_lnplugin.study.run_folder import RunFolderError


@pytest.fixture
def post(tmp_path):
    """A Post-LN run with three fine-tunings on MRPC in each of two cells."""
    run = write_run(tmp_path, straight(10, 3))
    for seed, plus in ((1, -1), (2, 0), (3, 1)):
        write_result(run, "MRPC", 700, seed, 72 + plus, 81 + plus)
        write_result(run, "MRPC", 700, seed, 70 + plus, 80, lr="1e-4")
    return run


def level_of(run, name=POST, task="MRPC", updates=700):
    """The level of a checkpoint, or None; ``run``: one of the study's folders."""
    found = levels(read(run.parents[1])[1])
    return next((level for level in found if (level.name, level.task, level.updates) == (name, task, updates)), None)


@pytest.mark.parametrize("rows", [MRPC_ROWS, RTE_ROWS, (5, 5)])
@pytest.mark.parametrize("answer", [0, 1])
def test_scores_of_a_constant_answer_are_those_that_scikit_learn_gives(rows, answer):
    """Accuracy and F1 of class 1."""
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [0] * rows[0] + [1] * rows[1]
    f1 = metrics.f1_score(labels, [answer] * sum(rows), zero_division=0)
    assert constant(rows, answer) == pytest.approx((100 * metrics.accuracy_score(labels, [answer] * sum(rows)), 100 * f1))


def test_one_answer_is_told_from_other_predictions():
    """Every number of right and wrong answers 1 on MRPC, in fairseq's rounding: at most 2 rows of a class are overlooked."""
    for right in range(280):  # rows of class 1 answered so
        for wrong in range(130):  # rows of class 0 answered 1
            accuracy, f1 = 100 * (right + 129 - wrong) / 408, 200 * right / (279 + right + wrong)
            item = Finetuning(None, "MRPC", 1, 32, "1e-4", 3, 1, MRPC_ROWS, round(accuracy, 1), round(f1, 1), "")
            expected = {(0, 0): 0, (279, 129): 1}.get((right, wrong))
            if expected is not None or max(279 - right, 129 - wrong) > 2:
                assert item.one_answer == expected


def test_the_majority_class_has_by_chance_what_wilsons_interval_gives():
    """The larger root of (p - 279/408)^2 = z^2 p (1 - p) / 408, z = 1.95996."""
    p, n, z2 = 279 / 408, 408, 1.959964**2
    a, b, c = 1 + z2 / n, -(2 * p + z2 / n), p * p
    assert by_chance(MRPC_ROWS) == pytest.approx(100 * (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a), abs=1e-4)


def test_the_best_cell_has_the_mean_of_all_its_seeds_with_a_t_interval(post):
    """71, 72, 73: mean 72, half-width t(2) / sqrt(3); the other rate, of mean 70, is not chosen."""
    level = level_of(post)
    assert (level.cell, len(level.items), level.searched) == ((32, "5e-5", 3), 3, 2)
    half = t_quantile(2) / math.sqrt(3)
    assert level.accuracy == pytest.approx((72, 72 - half, 72 + half))


def test_each_of_several_pre_trainings_counts_with_its_mean(tmp_path):
    """Means 60 and 70: 65 with the interval of two values, t(1) * sqrt(50 / 2), not that of twelve."""
    for seed, center in (("1", 60), ("2", 70)):
        run = write_run(tmp_path, straight(10, 3), seed=seed)
        write_accuracies(run, "MRPC", 700, [center + plus for plus in (-1, -1, 0, 0, 1, 1)])
    level = level_of(run)
    half = t_quantile(1) * 5
    assert (level.pretrainings, len(level.items)) == (2, 12)
    assert level.accuracy == pytest.approx((65, 65 - half, 65 + half))


def test_a_cell_of_which_a_seed_diverged_is_not_chosen_and_named(post):
    """No seed is dropped: the better cell loses its mean, the other one is shown."""
    path = post / "finetune" / "MRPC" / "update700-batch32-lr5e-5-epochs3-seed2" / "result.tsv"
    path.write_text(path.read_text().replace("accuracy\t72\n", "accuracy\t\n").replace("f1\t81\n", "f1\t\n"))
    level = level_of(post)
    assert (level.cell, level.left_out) == ((32, "1e-4", 3), ["32, 5e-5, 3: seed 2 diverged"])


def test_a_cell_that_lacks_a_seed_is_not_chosen(post):
    """Two of three seeds are no mean of three."""
    for lr in ("5e-5", "1e-4"):
        (post / "finetune" / "MRPC" / f"update700-batch32-lr{lr}-epochs3-seed{2 if lr == '5e-5' else 3}" / "result.tsv").unlink()
    assert level_of(post) is None


def test_fine_tunings_of_a_run_under_way_make_no_level(tmp_path):
    """Two seeds of six so far are not what the checkpoint is worth."""
    run = write_run(tmp_path, straight(10, 3), done=False, trained=True)
    write_accuracies(run, "MRPC", 700, [72, 73])
    assert level_of(run) is None


def lead_of(study, post, pre, end=3.0):
    """The one lead on MRPC, of these accuracies of a Post-LN and a Pre-LN run that end at this loss."""
    for accuracies, more in ((post, {}), (pre, PRE_SETTINGS)):
        write_accuracies(write_run(study, straight(10, end), **more), "MRPC", 700, accuracies)
    (lead,) = leads("MRPC", levels(read(study)[1]))
    return lead


def test_the_lead_has_the_t_interval_of_the_differences_at_equal_seeds(tmp_path):
    """Differences 1, 2, 3: mean 2, half-width t(2) / sqrt(3), though the scores themselves are 10 apart."""
    half = t_quantile(2) / math.sqrt(3)
    assert lead_of(tmp_path, [75, 80, 85], [76, 82, 88]).difference == pytest.approx((2, 2 - half, 2 + half))


def test_a_lead_is_of_checkpoints_of_equal_updates(tmp_path):
    """Not of 400 and 700."""
    write_accuracies(write_run(tmp_path, straight(10, 3)), "MRPC", 400, [80, 81])
    write_accuracies(write_run(tmp_path, straight(10, 3), **PRE_SETTINGS), "MRPC", 700, [80, 81])
    assert leads("MRPC", levels(read(tmp_path)[1])) == []


def test_pre_training_seeds_on_different_texts_have_no_mean(tmp_path):
    """Seed 2 had twice the words."""
    for seed, words in (("1", "1000"), ("2", "2000")):
        write_accuracies(write_run(tmp_path, straight(10, 3), seed=seed, words=words), "MRPC", 700, [70 + int(seed)])
    assert [level.accuracy.value for level in levels(read(tmp_path)[1])] == [71, 72]


def test_a_lead_of_models_that_learned_both_says_something(tmp_path):
    """3 bits, and above the 72.7 that the majority class may have by chance."""
    assert lead_of(tmp_path, [75, 76], [77, 78]).faults == []


def test_a_lead_says_nothing_where_no_accuracy_is_better_than_the_majority_class_s(tmp_path):
    """68.4 is the majority class's, 72.7 the end of its interval."""
    assert lead_of(tmp_path, [68, 69], [72, 73]).faults == ["neither accuracy is better than the majority class's"]


def test_a_lead_says_nothing_where_no_pre_training_has_learned(tmp_path):
    """9 bits are 0.85 below the frequencies."""
    assert lead_of(tmp_path, [75, 76], [77, 78], end=9.0).faults == ["neither pre-training has learned"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("accuracy\t72\n", "accuracy\t172\n", "a value is no number"),
        ("epochs\t3\n", "epochs\tthree\n", "a value is no number"),
        ("task\tMRPC\n", "task\tCOLA\n", "a value is no number"),
        ("f1\t81\n", "", "it lacks f1"),
    ],
)
def test_a_damaged_result_is_refused_with_its_file(post, old, new, words):
    """One sentence: which file, what is wrong, what to do."""
    path = post / "finetune" / "MRPC" / "update700-batch32-lr5e-5-epochs3-seed2" / "result.tsv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunFolderError, match=words) as error:
        read(post.parents[1])
    assert str(path) in str(error.value) and "run" in str(error.value)
