"""Tests of fairseq_lnplugin/study/bert.py: the report of figure 5 (sections 4.1 and 4.2, appendix A.3).

Run folders are made up here; oracles are closed forms: straight loss curves, scores whose mean and interval are known, and
scikit-learn's F1, which is what fairseq computes.
"""

import math

import pytest

from fairseq_lnplugin import cli
from fairseq_lnplugin.analysis.intervals import t_quantile
from fairseq_lnplugin.study import bert
from fairseq_lnplugin.study.run_folder import RunFolderError, read_study, read_validations

POST, PRE, HIGH = "bert-post-adam-lr1e-4-warmup10000", "bert-pre-adam-lr3e-4-linear", "bert-post-adam-lr3e-4-warmup10000"
SETTINGS = {
    **{"study": "bert", "run": POST, "figure": "5a,5b,5c", "data": "wikitext-2", "pairs": "", "words": "2450351"},
    **{"unigram_loss": "9.85", "preset": "cpu", "task": "masked_lm", "arch": "bert_ln_study_small", "ln_position": "post"},
    **{"weight_init": "fairseq", "compute_dtype": "bfloat16", "optimizer": "adam", "lr": "1e-4"},
    **{"schedule": "polynomial_decay", "warmup_updates": "24", "decay": "", "dropout": "0.1", "label_smoothing": "0"},
    **{"tokens_per_sample": "128", "max_tokens": "4096", "update_freq": "1", "max_epoch": "", "max_update": "700"},
    **{"seed": "1", "note": "as published"},
}
PRE_SETTINGS = {"run": PRE, "ln_position": "pre", "lr": "3e-4", "schedule": "no_warmup", "warmup_updates": "", "decay": "linear"}
MRPC_ROWS, RTE_ROWS = (129, 279), (131, 146)


def straight(first, last, updates=700, every=100):
    """A loss that falls linearly from ``first`` at update 0 to ``last`` at the last, at each ``every`` updates."""
    return [(u, first + (last - first) * u / updates) for u in range(every, updates + 1, every)]


def write_run(study, losses, done=True, diverged="", **settings):
    """A run folder with a train.log of these validations; returns its path."""
    settings = SETTINGS | settings
    folder = study / settings["run"] / f"seed{settings['seed']}"
    folder.mkdir(parents=True)
    (folder / "settings.tsv").write_text("".join(f"{name}\t{value}\n" for name, value in settings.items()))
    (folder / "environment.json").write_text('{"commit": "0123abc", "dirty": false, "device": "a CPU", "torch": "2.13.0"}')
    (folder / "command.txt").write_text("fairseq-train data/bin\n")
    (folder / "wall_seconds").write_text("2400\n")
    (folder / "train.log").write_text("".join(log_lines(u, loss) for u, loss in losses))
    if diverged:
        (folder / "diverged").write_text(diverged)
    if done:
        (folder / "done").write_text("grid\n")
    return folder


def log_lines(update, loss):
    """What fairseq logs at an update with a validation."""
    inner = f'{{"epoch": 1, "update": 0.5, "loss": "{loss}", "num_updates": "{update}", "lr": "0.0001"}}'
    valid = f'{{"epoch": 1, "valid_loss": "{loss}", "valid_num_updates": "{update}"}}'
    return f"x | INFO | train_inner | {inner}\nx | INFO | valid | {valid}\n"


def write_result(run, task, updates, seed, accuracy, f1, lr="5e-5", rows=None, **more):
    """A result.tsv of a fine-tuning in a run folder."""
    rows = rows or {"MRPC": MRPC_ROWS, "RTE": RTE_ROWS}[task]
    values = {"task": task, "updates": updates, "batch_size": 32, "lr": lr, "epochs": 3, "seed": seed}
    values |= {"rows_of_class_0": rows[0], "rows_of_class_1": rows[1], "accuracy": accuracy, "f1": f1} | more
    path = run / "finetune" / task / f"update{updates}-batch32-lr{lr}-epochs3-seed{seed}" / "result.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{name}\t{value}\n" for name, value in values.items()))
    return path


def report(study):
    """The text of RESULTS.md of a study, and its tables' files."""
    text, _, files = bert.page(read_study(study))
    return text, files


@pytest.fixture
def study(tmp_path):
    """Post-LN falls from 10 to 3 in 700 updates, Pre-LN from 10 to 0.2 and has 3 at update 500; Post-LN at 3e-4 diverged."""
    post = write_run(tmp_path, straight(10, 3))
    pre = write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS)
    write_run(tmp_path, straight(10, 11, 100), run=HIGH, lr="3e-4", figure="5a", diverged="101\tgradients are Nan/Inf\n")
    for run, better in ((post, 0), (pre, 2)):
        for updates in (400, 700):
            for seed, plus in ((1, -1), (2, 0), (3, 1)):
                write_result(run, "MRPC", updates, seed, 72 + better + plus, 81 + better + plus)
                write_result(run, "MRPC", updates, seed, 70 + plus, 80, lr="1e-4")
                write_result(run, "RTE", updates, seed, 55 + better + plus, 50)
    return tmp_path


# -- both positions at one rate --


@pytest.mark.parametrize(("end", "ahead"), [(0.1, "Post-LN"), (0.3, "Pre-LN")])
def test_post_ln_at_pre_lns_rate_is_compared_with_it(tmp_path, end, ahead):
    """Where Post-LN does not diverge and ends lower, the saving against its lower rate is not the position's."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS)
    write_run(tmp_path, straight(10, end), run=HIGH, lr="3e-4", figure="5a")
    text, _ = report(tmp_path)
    assert f"At one rate, 3e-4, Pre-LN ends at 0.200 and Post-LN at {end:.3f}, seed 1" in text
    assert ("the updates saved are the rate's, not the position's" in text) == (ahead == "Post-LN")


def test_a_diverged_run_is_not_compared_at_one_rate(study):
    """It has no end."""
    text, _ = report(study)
    assert "At one rate" not in text


# -- when Pre-LN has Post-LN's loss --


def test_the_paper_is_reproduced_where_curves_are_the_papers():
    """Linear curves through (700, 3) and (500, 3): update 500, 28.6 % of the updates saved, 40 % speed-up."""
    pre = straight(10, 0.2)
    assert bert.reached(pre, 3) == pytest.approx(500)


@pytest.mark.parametrize(
    ("points", "loss", "update"),
    [
        ([(100, 8.0), (200, 6.0)], 7.0, 150),
        ([(100, 8.0), (200, 6.0)], 6.0, 200),
        ([(100, 8.0), (200, 6.0)], 8.5, 100),
        ([(100, 8.0), (200, 6.0)], 5.9, None),
        ([(100, 8.0), (200, 6.0), (300, 9.0), (400, 5.0)], 7.0, 150),
        ([(100, 8.0), (200, math.nan), (300, 6.0)], 7.0, 200),
        ([], 1.0, None),
    ],
)
def test_between_two_validations_the_loss_is_a_straight_line(points, loss, update):
    """First crossing; at the first point it is an upper bound; never is None; NaN is passed over."""
    assert bert.reached(points, loss) == update


def test_saving_and_speed_up_stand_beside_the_papers(study):
    """1 - 500/700 and 700/500 - 1, for us as for the paper."""
    text, _ = report(study)
    assert "| updates at which Pre-LN has it | 500,000 | 500 |" in text
    assert "| updates saved | 28.6 % | 28.6 % |" in text
    assert "Post-LN / Pre-LN - 1 | 40 % | 40 % |" in text
    assert "| 3.000 | 700 | 500 | 28.6 % |" in text


def test_pre_ln_that_never_gets_there_is_said_to_have_never(tmp_path):
    """No saving, no speed-up."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 4), **PRE_SETTINGS)
    text, _ = report(tmp_path)
    assert "| 3.000 | 700 | never | - |" in text


def test_pre_ln_is_compared_with_the_baseline_of_its_seed_alone(tmp_path):
    """Not with Post-LN at 3e-4, nor with another seed."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 9), run=HIGH, lr="3e-4", figure="5a")
    write_run(tmp_path, straight(10, 5), seed="2")
    for seed in "12":
        write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS, seed=seed)
    runs = read_study(tmp_path)
    losses = {run.folder: read_validations(run.folder / "train.log") for run in runs}
    found = [(race.post.name, race.post.seed, race.pre.seed, race.loss) for race in bert.races(runs, losses)]
    assert found == [(POST, 1, 1, 3.0), (POST, 2, 2, 5.0)]


def test_validations_inside_an_epoch_count_and_a_resume_replaces_what_came_after(tmp_path):
    """Read_log keeps one an epoch; here each update has its own, and a sitting from update 150 on wins."""
    (tmp_path / "train.log").write_text("".join(map(log_lines, (100, 200, 300), (8, 7, 6))) + log_lines(200, 7.5))
    assert read_validations(tmp_path / "train.log") == [(100, 8.0), (200, 7.5)]


# -- fine-tunings --


@pytest.mark.parametrize("rows", [MRPC_ROWS, RTE_ROWS, (5, 5)])
@pytest.mark.parametrize("answer", [0, 1])
def test_scores_of_a_constant_answer_are_those_that_scikit_learn_gives(rows, answer):
    """Accuracy and F1 of class 1."""
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [0] * rows[0] + [1] * rows[1]
    f1 = metrics.f1_score(labels, [answer] * sum(rows), zero_division=0)
    assert bert.constant(rows, answer) == pytest.approx((100 * metrics.accuracy_score(labels, [answer] * sum(rows)), 100 * f1))


def test_one_answer_is_told_from_other_predictions():
    """Every number of right and wrong answers 1 on MRPC, in fairseq's rounding: at most 2 rows of a class are overlooked."""
    for right in range(280):  # rows of class 1 answered so
        for wrong in range(130):  # rows of class 0 answered 1
            accuracy, f1 = 100 * (right + 129 - wrong) / 408, 200 * right / (279 + right + wrong)
            item = bert.Finetuning(None, "MRPC", 1, 32, "1e-4", 3, 1, MRPC_ROWS, round(accuracy, 1), round(f1, 1))
            expected = {(0, 0): 0, (279, 129): 1}.get((right, wrong))
            if expected is not None or max(279 - right, 129 - wrong) > 2:
                assert item.one_answer == expected


def test_the_best_cell_has_the_mean_of_all_its_seeds_with_a_t_interval(study):
    """71, 72, 73: mean 72, half-width t(2) / sqrt(3); the other rate, of mean 70, is not chosen."""
    finetunings = [item for run in read_study(study) for item in bert.read_finetunings(run)]
    level = next(level for level in bert.levels(finetunings) if (level.name, level.task, level.updates) == (POST, "MRPC", 700))
    assert (level.cell, level.count, level.searched) == ((32, "5e-5", 3), 3, 2)
    half = t_quantile(2) / math.sqrt(3)
    assert level.accuracy == pytest.approx((72, 72 - half, 72 + half))


def test_a_cell_of_which_a_seed_diverged_is_not_chosen_and_named(study):
    """No seed is dropped: the better cell loses its mean, the other one is shown."""
    path = study / POST / "seed1" / "finetune" / "MRPC" / "update700-batch32-lr5e-5-epochs3-seed2" / "result.tsv"
    path.write_text(path.read_text().replace("accuracy\t72\n", "accuracy\t\n").replace("f1\t81\n", "f1\t\n"))
    text, _ = report(study)
    line = next(line for line in text.splitlines() if line.startswith(f"| {POST} | 700 | 32, 1e-4, 3"))
    assert "32, 5e-5, 3: seed 2 diverged" in line and "70.0 (" in line


def test_a_cell_that_lacks_a_seed_is_not_chosen(study):
    """Two of three seeds are no mean of three."""
    folder = study / PRE / "seed1" / "finetune" / "RTE" / "update400-batch32-lr5e-5-epochs3-seed2"
    (folder / "result.tsv").unlink()
    write_result(study / PRE / "seed1", "RTE", 400, 2, 50, 50, lr="1e-4")
    finetunings = [item for run in read_study(study) for item in bert.read_finetunings(run)]
    assert not [level for level in bert.levels(finetunings) if (level.name, level.task, level.updates) == (PRE, "RTE", 400)]


def test_runs_stuck_at_the_majority_class_are_counted_and_named(study):
    """279 of 408 rows are 68.4 % and F1 81.2; answering 0 on RTE is the minority: 47.3 % and F1 0."""
    write_result(study / PRE / "seed1", "MRPC", 700, 7, 68.4, 81.2, lr="2e-5")
    write_result(study / PRE / "seed1", "RTE", 700, 8, 47.3, 0, lr="2e-5")
    text, files = report(study)
    assert "2 of 38 fine-tunings give the same answer for every row of dev, as far as scores with one decimal tell" in text
    assert f"- MRPC, {PRE} seed 1, update 700, the majority class: 32, 2e-5, 3 with seed 7" in text
    assert f"- RTE, {PRE} seed 1, update 700, the minority class: 32, 2e-5, 3 with seed 8" in text
    rows = [line.split("\t") for line in files["finetunings.tsv"].decode().splitlines()]
    assert [row[-1] for row in rows if row[-1] in ("0", "1")] == ["1", "0"] and len(rows) == 39


def test_the_majority_class_and_the_search_are_told_with_each_task(study):
    """Scores of the majority, grid, seeds."""
    text, _ = report(study)
    assert "On the 408 rows of dev" in text and "accuracy 68.4, F1 81.2" in text
    assert "lr 5e-5/1e-4, epochs 3, 3 seeds each (1, 2, 3)" in text


def test_pre_ln_s_lead_is_told_at_equal_updates(study):
    """2 points at both checkpoints."""
    text, _ = report(study)
    assert "| MRPC, accuracy of Pre-LN less Post-LN's by updates | Pre-LN ahead | 400: +2.0; 700: +2.0 |" in text


# -- the report as a whole --


def test_the_first_line_has_the_size_of_the_text_beside_the_papers(study):
    """2,450,351 of 3.4B words are 0.072 %."""
    text, _ = report(study)
    assert text.splitlines()[0] == (
        "# Figure 5 (BERT): wikitext-2, 2,450,351 words of text against the paper's 3.4B (0.072 %), preset cpu"
    )
    assert "**No reproduction**: preset cpu" in text


def test_a_run_no_better_than_frequencies_is_named(study):
    """Post-LN at 3e-4 ends at 11 bits, where frequencies alone give 9.85; it also diverged."""
    text, _ = report(study)
    assert f"**No better than the subwords' frequencies**: {HIGH} seed 1." in text
    assert "| Post-LN at lr 3e-4, seed 1 | diverged | diverged, last validation loss 11.000 |" in text


def test_the_cost_of_pre_training_is_its_seconds_over_its_updates(study):
    """Two runs of 700 updates and one of 100, 2,400 s each."""
    assert "- training: 1,500 updates in 2 h 00 min, 4.80 s an update with its validations\n" in report(study)[0]


def test_a_study_under_way_is_reported_with_what_there_is(tmp_path):
    """No log yet, no fine-tuning: no figure, and said so."""
    folder = write_run(tmp_path, [], done=False)
    (folder / "train.log").unlink()
    text, drawings, _ = bert.page(read_study(tmp_path))
    assert f"**Not finished**: {POST} seed 1" in text
    assert drawings == [] and "Validation loss against updates (figure 5a)" in text and "nothing to draw yet" in text


def test_results_tsv_has_a_row_a_run(study):
    """Columns of the run, its last and its best loss."""
    _, files = report(study)
    header, *rows = [line.split("\t") for line in files["results.tsv"].decode().splitlines()]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(table) == sorted([POST, PRE, HIGH])
    assert (table[POST]["valid_loss"], table[POST]["updates"], table[POST]["state"]) == ("3", "700", "finished")


def test_the_command_writes_tables_and_figures_twice_the_same(study, tmp_path, capsys):
    """Fairseq-ln report: RESULTS.md, two tables, two figures in two forms; the same bytes each time."""
    contents = []
    for name in "ab":
        assert cli.main(["report", str(study), "--out", str(tmp_path / name)]) == 0
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert {str(path) for path in contents[0]} == {
        *("RESULTS.md", "RESULTS.html", "results.tsv", "finetunings.tsv"),
        *(f"figures/{name}.{kind}" for name in ("valid_loss", "finetuning") for kind in ("png", "svg")),
    }
    assert "3 runs, 2 figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("accuracy\t72\n", "accuracy\t172\n", "a value is no number"),
        ("epochs\t3\n", "epochs\tthree\n", "a value is no number"),
        ("task\tMRPC\n", "task\tCOLA\n", "a value is no number"),
        ("f1\t81\n", "", "it lacks f1"),
    ],
)
def test_a_damaged_result_is_refused_with_its_file(study, old, new, words):
    """One sentence: which file, what is wrong, what to do."""
    path = study / POST / "seed1" / "finetune" / "MRPC" / "update700-batch32-lr5e-5-epochs3-seed2" / "result.tsv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunFolderError, match=words) as error:
        report(study)
    assert str(path) in str(error.value) and "run" in str(error.value)
