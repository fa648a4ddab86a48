"""Tests of fairseq_lnplugin/study/{run_folder,tables,plots,page,report,wording}.py: the report of figures 2, 4 and 6."""

import io
import math
import re
import shutil

import pytest
from run_folders import (
    BLEU,
    EPOCHS,
    POST,
    PRE,
    PRE_SETTINGS,
    SACREBLEU,
    SCORES,
    SETTINGS,
    inner,
    table,
    train,
    valid,
    write_run,
)
from sentences import sentence_of

from fairseq_lnplugin import cli
from fairseq_lnplugin.study import claims, plots, tables
from fairseq_lnplugin.study.intervals import Estimate
from fairseq_lnplugin.study.page import page
from fairseq_lnplugin.study.run_folder import RunFolderError, number, read_plan, read_run, read_study
from fairseq_lnplugin.study.wording import schedule


def report(study):
    """The texts of a report without figures and claims: RESULTS.md, and the rows of results.tsv."""
    runs = read_study(study)
    header, *rows = (line.split("\t") for line in tables.tsv(tables.results(runs)).splitlines())
    return page(runs, [], [], ([], []))[0], [dict(zip(header, row, strict=True)) for row in rows]


def write_report(study, *flags):
    """Run ``fairseq-ln report``."""
    assert cli.main(["report", str(study), *map(str, flags)]) == 0


def refusal(study, *flags):
    """The sentence with which ``fairseq-ln report`` ends."""
    return sentence_of(cli.main, ["report", str(study), *map(str, flags)], begins="fairseq-ln report: ")


@pytest.fixture
def study(tmp_path):
    """A study's folder of two finished runs with one seed each."""
    write_run(tmp_path / "study")
    write_run(tmp_path / "study", **PRE_SETTINGS)
    return tmp_path / "study"


# -- run_folder.py --


def test_settings_are_read_as_they_were_written(tmp_path):
    """settings.tsv is a table of names and texts, an empty text is kept."""
    settings = read_run(write_run(tmp_path)).settings
    assert settings == SETTINGS


def test_losses_of_an_epoch_are_those_of_its_log_lines(tmp_path):
    """Texts in fairseq's JSON become numbers; train_loss and wall come from the line after the validation."""
    assert read_run(write_run(tmp_path)).epochs[1] == (2, 200, 7.5, 5.25, 4.0, 20.0)


def test_points_are_the_train_inner_lines(tmp_path):
    """Update, epochs so far, learning rate, loss and gradient norm, in the order of updates."""
    points = read_run(write_run(tmp_path)).points
    assert [point.update for point in points] == [50, 100, 150, 200, 250, 300]
    assert points[0][1:] == (0.5, 0.0005, 8.5, 1.2)


def test_a_resumed_run_replaces_what_came_after_the_checkpoint_it_went_on_from(tmp_path):
    """A sitting from update 100 on makes all later records of the one before void, repeated or not."""
    first = inner(100) + valid(1, 100) + train(1, 100) + inner(150, loss="1") + inner(200) + valid(2, 200, "1")
    run = read_run(write_run(tmp_path, log=first + "restart\n" + inner(120, loss="3"), done=False))
    assert [(point.update, point.loss) for point in run.points] == [(100, 8.5), (120, 3.0)]
    assert [epoch.epoch for epoch in run.epochs] == [1]


def test_of_a_repeated_update_the_later_sitting_counts(tmp_path):
    """Update 150 is logged twice, as 9 and as 4."""
    run = read_run(write_run(tmp_path, log=inner(150, loss="9") + inner(150, loss="4"), done=False))
    assert [point.loss for point in run.points] == [4.0]


def test_of_a_repeated_epoch_the_later_sitting_counts(tmp_path):
    """Epoch 2 is validated twice, as 5 and as 4, with its own train line each time."""
    log = valid(1, 100) + valid(2, 200, "5") + train(2, 200, "9") + inner(150) + valid(2, 200, "4") + train(2, 200, "8")
    epochs = read_run(write_run(tmp_path, log=log, done=False)).epochs
    assert [(epoch.epoch, epoch.valid_loss, epoch.train_loss) for epoch in epochs][1:] == [(2, 4.0, 8.0)]


@pytest.mark.parametrize("torn", ["\n", "", "2026-01-01 00:00:00 | INFO | restart\n", inner(80)])
def test_a_torn_line_is_passed_over(tmp_path, torn):
    """The last line of a killed training ends anywhere, and the next sitting's first line may follow in the same."""
    log = inner(50) + inner(60)[:-30] + torn
    points = read_run(write_run(tmp_path, log=log, done=False)).points
    assert [point.update for point in points] == [50, 80] if torn == inner(80) else [50]


def test_carriage_returns_and_other_lines_do_no_harm(tmp_path):
    """Lines end in CR LF or CR, and some are no JSON or no UTF-8."""
    folder = write_run(tmp_path, done=False)
    log = inner(50).replace("\n", "\r\n") + "| train_inner | {no json}\r| valid | []\n| valid | {}\n" + inner(100)
    (folder / "train.log").write_bytes(b"\xff\xfe gr\xfc\xdft\n" + log.encode())
    assert [point.update for point in read_run(folder).points] == [50, 100]


@pytest.mark.parametrize("value, kept", [("inf", math.inf), ("5.25", 5.25), (3, 3.0)])
def test_numbers_are_read_from_texts_and_numbers(value, kept):
    """In its JSON fairseq writes most numbers as texts."""
    assert number(value) == kept


@pytest.mark.parametrize("value", ["nan", "NaN", None, "-", math.nan])
def test_what_is_no_number_is_nan(value):
    """Null stands for a meter without values."""
    assert math.isnan(number(value))


def test_nan_and_infinity_as_bare_words_are_read(tmp_path):
    """Python's json writes NaN and Infinity, which are no JSON."""
    line = '| valid | {"epoch": 1, "valid_loss": NaN, "valid_nll_loss": Infinity, "valid_num_updates": 10}\n'
    epoch = read_run(write_run(tmp_path, log=line, done=False)).epochs[0]
    assert math.isnan(epoch.valid_loss) and epoch.valid_nll_loss == math.inf


def test_the_best_epoch_has_the_lowest_finite_validation_loss(tmp_path):
    """NaN never is the best, and of equals the earlier one is, as in the recipe's choice."""
    losses = [("nan", 1, 1, None), (6.0, 1, 1, None), (5.0, 1, 1, 20), (5.0, 1, 1, None)]
    assert read_run(write_run(tmp_path, epochs=losses)).best.epoch == 3


def test_only_the_first_logged_update_gives_gradient_norms(tmp_path):
    """grad_norm.tsv holds updates 1 and 100; the embedding's row has no layer."""
    norms = read_run(write_run(tmp_path)).grad_norms
    assert {norm.update for norm in norms} == {1} and len(norms) == 13 and norms[0].layer is None


def test_a_torn_last_row_of_gradient_norms_is_passed_over(tmp_path):
    """A row under way has no line feed yet."""
    folder = write_run(tmp_path, done=False)
    (folder / "checkpoints" / "grad_norm.tsv").write_text("update\tstack\tlayer\tmatrix\tnorm\n1\tencoder\t1\tfc1.we")
    assert read_run(folder).grad_norms == []


def test_a_run_just_begun_can_be_read(tmp_path):
    """settings.tsv is there before all else."""
    folder = write_run(tmp_path, done=False)
    shutil.rmtree(folder / "checkpoints")
    for name in ("environment.json", "command.txt", "train.log", "wall_seconds"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.epochs, run.points, run.wall_seconds, run.updates, run.done) == ([], [], None, 0, False)


@pytest.mark.parametrize("name", ["settings.tsv", "environment.json", "command.txt", "train.log", "scores.tsv"])
def test_a_missing_file_of_a_finished_run_is_named(study, name):
    """Nothing of a finished run is left out in silence, and nothing is written."""
    (study / POST / "seed1" / name).unlink()
    assert re.search(rf"there is no \S*{name}; delete|{name} cannot be read \(No such file.*delete", refusal(study))
    assert not (study / "RESULTS.md").exists()


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("settings.tsv", "study iwslt14\n", "line 1 has no tab"),
        ("settings.tsv", "study\tiwslt14\n", "it lacks run, figure"),
        ("settings.tsv", "study\ta\nstudy\tb\n", "study is there twice"),
        ("settings.tsv", b"study\t\xff\n", "byte 6 is not UTF-8"),
        ("environment.json", "{", "no JSON"),
        ("environment.json", "[]", "no JSON object"),
        ("scores.tsv", "epoch\tbleu\n", "its first line is not the columns"),
        ("scores.tsv", "\t".join(SCORES) + "\n1\t2\n", "line 2 is no row of scores"),
        ("checkpoints/grad_norm.tsv", "update\tnorm\n", "its first line is not the columns"),
        ("checkpoints/grad_norm.tsv", "update\tstack\tlayer\tmatrix\tnorm\n1\tx\n", "line 2 is no row"),
        ("wall_seconds", "soon\n", "'soon' is no number of seconds"),
        ("diverged", "it did\n", "it does not begin with an update number"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(study, name, content, what):
    """One sentence: the file, the fault, the way out."""
    path = study / POST / "seed1" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = refusal(study)
    assert f"{path} is damaged ({what}" in sentence and "; put it right, or" in sentence


def test_a_run_folder_under_another_name_is_refused(study):
    """A copy of seed 1 as seed 2 would count one training twice."""
    shutil.copytree(study / POST / "seed1", study / POST / "seed2")
    assert f"is of {POST}/seed1" in refusal(study)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """The sentence names it."""
    assert f"there is no folder {tmp_path / 'no'}" in refusal(tmp_path / "no")


def test_a_folder_without_runs_is_refused(tmp_path):
    """No empty report is written."""
    assert "holds no run folders <run>/seed<k>" in refusal(tmp_path)


def test_the_folder_above_a_study_is_refused_with_the_studys_name(study):
    """``runs`` instead of ``runs/iwslt14-cpu``."""
    assert f"give one of {study}" in refusal(study.parent)


def test_the_folder_of_one_run_is_refused_with_the_studys_name(study):
    """``runs/iwslt14-cpu/<run>/seed1`` instead of ``runs/iwslt14-cpu``."""
    with pytest.raises(RunFolderError, match=re.escape(f"give the study's, {study}")):
        read_study(study / POST / "seed1")


# -- results.tsv --


def test_results_begin_with_the_agreed_columns(study):
    """Readers of results.tsv may count on their order."""
    columns = list(report(study)[1][0])
    agreed = (
        "run figure data pairs preset arch ln_position weight_init compute_dtype optimizer lr warmup_updates schedule"
        " seed epochs updates valid_loss valid_nll_loss bleu sacrebleu signature diverged_at wall_seconds commit"
    )
    assert columns[:24] == agreed.split()


def test_each_run_and_seed_has_a_row(study):
    """Ordered by run, then by seed as a number."""
    for seed in (10, 9):
        write_run(study, seed=seed)
    _, rows = report(study)
    assert [(row["run"], row["seed"]) for row in rows] == [(POST, "1"), (POST, "9"), (POST, "10"), (PRE, "1")]


def test_scores_are_of_the_best_epoch_and_the_last_ones_stand_beside(study):
    """Epoch 2 has the best validation loss; the run's length is that of all three epochs."""
    row = report(study)[1][0]
    assert (row["best_epoch"], row["valid_loss"], row["valid_nll_loss"], row["bleu"]) == ("2", "5.25", "4", "29.75")
    assert (row["epochs"], row["updates"], row["last_bleu"], row["sacrebleu"]) == ("3", "300", "28.5", "28.75")


def test_a_commit_with_changes_is_marked_dirty(tmp_path):
    """In results.tsv and in RESULTS.md."""
    write_run(tmp_path, environment={"dirty": True})
    text, rows = report(tmp_path)
    assert rows[0]["commit"] == "0123abc-dirty" and "- commit: 0123abc-dirty" in text


def test_the_commit_of_the_scoring_stands_beside_that_of_the_training(tmp_path):
    """In results.tsv and under the figure; where the folder does not tell, only the training's is there."""
    folder = write_run(tmp_path)
    text, rows = report(tmp_path)
    assert "trained at commit 0123abc." in text and rows[0]["scored_commit"] == ""
    (folder / "scored_with.json").write_text('{"commit": "4567def", "dirty": true}')
    text, rows = report(tmp_path)
    assert "trained at commit 0123abc, scored at commit 4567def-dirty." in text
    assert "- commit of the scoring: 4567def-dirty\n" in text
    assert (rows[0]["commit"], rows[0]["scored_commit"]) == ("0123abc", "4567def-dirty")
    write_run(tmp_path, **PRE_SETTINGS)
    assert "scored at commit 4567def-dirty, unknown." in report(tmp_path)[0]


def test_a_run_scored_by_two_commits_names_both(tmp_path):
    """An average was scored later, by newer code; scored_with.1.json is the first scoring's."""
    folder = write_run(tmp_path)
    (folder / "scored_with.1.json").write_text('{"commit": "4567def"}')
    (folder / "scored_with.json").write_text('{"commit": "89ab012"}')
    text, rows = report(tmp_path)
    assert "scored at commit 4567def, 89ab012." in text
    assert rows[0]["scored_commit"] == "4567def, 89ab012"


def test_each_row_of_results_has_the_command_of_its_training(study):
    """As command.txt has it."""
    commands = [row["command"] for row in report(study)[1]]
    assert commands == [(study / name / "seed1" / "command.txt").read_text().strip() for name in (POST, PRE)]


def test_a_tab_in_a_value_does_not_break_the_table(tmp_path):
    """Whatever a device is called, a row has as many cells as the header."""
    write_run(tmp_path, environment={"device": "a\tCPU\n"})
    assert report(tmp_path)[1][0]["device"] == "a CPU"


# -- RESULTS.md --


def test_part_of_iwslt14_is_named_in_title_and_table_heading(study):
    """40,653 of the 160,239 pairs that fairseq's preparation makes."""
    text, _ = report(study)
    assert text.startswith("# iwslt14: iwslt14-de-en, 40,653 of 160,239 pairs, preset cpu\n")
    assert "\n## Every run and seed (40,653 of 160,239 pairs)\n" in text


@pytest.mark.parametrize("settings", [{"pairs": "160239"}, {"data": "libreoffice-help"}])
def test_all_pairs_and_other_corpora_are_not_called_a_part(tmp_path, settings):
    """Only a part of IWSLT14 is a part of IWSLT14."""
    write_run(tmp_path, **settings)
    assert " of 160,239 pairs" not in report(tmp_path)[0]


def test_made_up_text_is_called_made_up(tmp_path):
    """The corpus of recipes/corpora/grammar.py is named so before any number."""
    write_run(tmp_path, data="grammar")
    text, _ = report(tmp_path)
    assert text.index("> **MADE-UP text**") < text.index("## What was run") and "`grammar` (MADE-UP text)" in text


def test_real_text_is_not_called_made_up(study):
    """The warning is for the grammar only."""
    assert "MADE-UP" not in report(study)[0]


def test_the_first_runs_command_is_there_in_full(study):
    """command.txt, letter by letter."""
    assert "\n```\nfairseq-train data/bin --adam-betas \\(0.9\\,0.98\\) --seed 1\n```\n" in report(study)[0]


def test_what_was_run_names_versions_device_and_threads(study):
    """All of environment.json."""
    text, _ = report(study)
    for line in ("torch: 2.5.1", "sacrebleu: 2.6.0", "device: a CPU with AMX", "threads: 2", "preset: cpu"):
        assert f"\n- {line}\n" in text


def test_runs_from_different_machines_are_listed_with_their_values(study):
    """Where a value differs between runs, each stands with its runs."""
    write_run(study, seed=2, environment={"device": "a GPU"})
    line = f"- device: a CPU with AMX ({POST} seed 1, {PRE} seed 1); a GPU ({POST} seed 2)\n"
    assert line in report(study)[0]


def test_settings_that_differ_are_columns_and_the_others_stand_above(study):
    """ln_position differs between the runs, lr does not, max_update does not apply to any."""
    text, _ = report(study)
    row = table(text, "## Every run and seed")[0]
    assert row["ln_position"] == "post" and "lr" not in row and "max_update" not in row
    assert "Settings of all runs:" in text and "lr 5e-4," in text


def test_the_table_says_which_loss_and_which_bleu_it_has(study):
    """Base 2, with smoothing; perplexity is 2 to the nll loss (4.0), BLEU is lower-case by its signature."""
    row = table(report(study)[0], "## Every run and seed")[0]
    assert row["best validation loss (base 2, label-smoothed 0.1)"] == "5.250"
    assert (row["perplexity (2^nll)"], row["BLEU (tokenized, lower-case)"]) == ("16.00", "29.75")


def test_a_figures_numbers_have_their_source(study):
    """Data, size, test set, preset, seeds, commit, signatures."""
    text, _ = report(study)
    source = text[text.index("Source: ") :].split("\n")[0]
    facts = ("`iwslt14-de-en`", "40,653 of 160,239 pairs", "6,750 lines", "preset cpu", "seed 1;", "commit 0123abc")
    assert all(fact in source for fact in (*facts, f"BLEU: `{BLEU}`", f"sacreBLEU: `{SACREBLEU}`"))


def test_a_run_not_finished_is_shown_as_such(study):
    """It stands in the table with its epochs so far, and in the warning on top."""
    write_run(study, epochs=EPOCHS[:1], done=False, seed=2)
    text, rows = report(study)
    row = next(row for row in table(text, "## Every run and seed") if row["seed"] == "2")
    assert (row["state"], row["epochs"], row["BLEU (tokenized, lower-case)"]) == ("not finished", "1 of 3", "-")
    assert f"**1 of 3 runs not finished**: {POST} seed 2" in text and rows[1]["state"] == "not finished"


def test_another_score_of_the_test_set_stands_in_the_remarks(tmp_path):
    """Such as that of averaged checkpoints."""
    path = write_run(tmp_path) / "scores.tsv"
    path.write_text(path.read_text() + f"3\t300\ttest-average2\t6750\t31.5\t{BLEU}\t30.25\t{SACREBLEU}\taverage2.pt\n")
    line = f"- {POST} seed 1, test-average2, epoch 3, average2.pt, 6,750 lines: BLEU 31.50, sacreBLEU 30.25\n"
    assert line in report(tmp_path)[0]


def test_the_column_of_bleu_says_what_all_signatures_say(tmp_path):
    """Lower case, and words taken apart at their hyphens."""
    path = write_run(tmp_path) / "scores.tsv"
    path.write_text(path.read_text().replace(BLEU, f"{BLEU}|compounds:split"))
    row = table(report(tmp_path)[0], "## Every run and seed")[0]
    assert row["BLEU (tokenized, lower-case, compounds split)"] == "29.75"


def test_a_diverged_run_without_scores_is_a_result(study):
    """Update, message and no numbers; no scores.tsv is needed."""
    log = inner(50, loss="nan", gnorm="inf")
    write_run(study, epochs=[], log=log, diverged="51\tFloatingPointError: gradients are Nan/Inf\n", seed=2)
    text, rows = report(study)
    assert (rows[1]["state"], rows[1]["diverged_at"], rows[1]["bleu"]) == ("diverged", "51", "")
    assert f"{POST} seed 2 diverged at update 51: FloatingPointError: gradients are Nan/Inf" in text


def test_a_diverged_pre_ln_run_is_called_unexpected(tmp_path):
    """Pre-LN needs no warm-up (section 4)."""
    write_run(tmp_path, **PRE_SETTINGS, diverged="7\tMinimum loss scale reached\n")
    assert "**Pre-LN diverged**, which is not expected" in report(tmp_path)[0]


def test_runs_on_different_data_are_said_not_to_compare(study):
    """A folder may hold runs of two presets."""
    write_run(study, seed=2, preset="smoke", pairs="400")
    text, _ = report(study)
    assert "**Different presets** (cpu, smoke)" in text and "400 to 40,653 of 160,239 pairs" in text


def test_a_warm_up_that_the_preset_scaled_is_explained(study):
    """The run is called warmup4000, as the paper's, and has 1000."""
    assert "Run names tell the paper's warm-up" in report(study)[0]


def test_a_warm_up_as_its_name_says_needs_no_explanation(tmp_path):
    """With preset paper, name and setting agree."""
    write_run(tmp_path, warmup_updates="4000")
    assert "Run names tell" not in report(tmp_path)[0]


def test_a_cell_with_a_bar_does_not_break_the_table(tmp_path):
    """Every row has as many cells as the header, bars are escaped."""
    write_run(tmp_path, paper_bleu="34 | 35")
    assert table(report(tmp_path)[0], "## Every run and seed")[0]["paper's BLEU"] == "34 \\| 35"


def test_the_cost_of_all_trainings_is_their_seconds_over_their_updates(study):
    """Two runs of 300 updates and 7,500 s each."""
    assert "- training: 600 updates in 4 h 10 min, 25.00 s an update with its validations\n" in report(study)[0]


def test_wall_time_is_in_hours_and_minutes(study):
    """7,500 seconds."""
    assert table(report(study)[0], "## Every run and seed")[0]["wall time"] == "2 h 05 min"


# -- figure by figure --


def test_runs_of_different_lengths_are_said_not_to_compare(tmp_path):
    """Within a figure; figure 6 has a length of its own."""
    write_run(tmp_path, figure="2")
    write_run(tmp_path, seed=2, figure="2")
    write_run(tmp_path, **PRE_SETTINGS | {"figure": "6", "max_epoch": "27"})
    assert "Different lengths" not in report(tmp_path)[0]
    write_run(tmp_path, seed=3, figure="2", max_epoch="2", max_update="1500")
    words = "**Different lengths in figure 2** (at most 3 epochs; at most 2 epochs, 1,500 updates): such runs cannot be compared."
    assert words in report(tmp_path)[0]


def test_a_run_stands_in_each_of_its_figures(study):
    """The baseline is in figures 2 and 4, Pre-LN in 4 only."""
    text, _ = report(study)
    figure2, figure4 = (table(text, f"## Figure {number}") for number in (2, 4))
    assert [row["run"] for row in figure2] == [POST.removeprefix("iwslt14-")]
    assert [row["position"] for row in figure4] == ["Post-LN", "Pre-LN"]


def test_runs_of_no_figure_have_their_own_section(tmp_path):
    """Such as the quick start's."""
    write_run(tmp_path, figure="", paper_bleu="")
    assert table(report(tmp_path)[0], "## Runs that no figure of the paper has")[0]["BLEU (tokenized, lower-case)"] == "29.75"


def test_means_over_seeds_have_the_t_interval(tmp_path):
    """BLEU 20, 23, 26: mean 23, deviation 3, so 23 +- 4.30265 * 3 / sqrt(3) with 2 degrees of freedom."""
    for seed, bleu in enumerate((20, 23, 26), 1):
        write_run(tmp_path, epochs=[(5.0, 4.0, 10.0, bleu)], seed=seed)
    half = 4.302652729911275 * 3 / math.sqrt(3)
    estimate = tables.means(read_study(tmp_path))[0].bleu
    assert estimate == pytest.approx((23, 23 - half, 23 + half), rel=1e-9)
    cell = table(report(tmp_path)[0], "## Figure 2")[0]["BLEU (tokenized, lower-case)"]
    assert cell == f"23.00 ({23 - half:.2f} to {23 + half:.2f})"


def test_one_seed_has_no_interval(study):
    """An interval needs two."""
    assert table(report(study)[0], "## Figure 2")[0]["BLEU (tokenized, lower-case)"] == "29.75"


def test_one_seed_each_is_said_and_several_have_their_interval_named(study):
    """Under the claims and under each figure, whichever it is."""
    write_report(study)
    text = (study / "RESULTS.md").read_text()
    assert text.count("there is one seed of each, so how far seeds differ is not known") == 3 and "t-interval" not in text
    write_run(study, seed=2)
    write_report(study)
    text = (study / "RESULTS.md").read_text()
    assert text.count("those of runs with several seeds are means over them, with the 95 % t-interval") == 2
    assert text.count("; each is a mean over its seeds, with the 95 % t-interval") == 1  # figure 2 has one run


def test_a_seed_that_is_not_finished_makes_no_mean(tmp_path):
    """Neither are there intervals, nor is it among the seeds of the source."""
    write_run(tmp_path)
    write_run(tmp_path, done=False, seed=2)
    text, _ = report(tmp_path)
    assert "t-interval" not in text and "; seed 1; trained at commit" in text


def test_a_run_that_is_trained_and_not_scored_is_called_so(tmp_path):
    """It is not finished, and has no more epochs to come."""
    write_run(tmp_path)
    (write_run(tmp_path, done=False, seed=2) / "trained").write_text("x\n")
    assert report(tmp_path)[1][1]["state"] == "trained, not scored"


def test_a_run_that_diverged_after_an_epoch_and_is_not_scored_is_called_so(tmp_path):
    """Its scores are still to come."""
    write_run(tmp_path, epochs=EPOCHS[:1], done=False, diverged="151\tFloatingPointError: gradients are Nan/Inf\n")
    assert report(tmp_path)[1][0]["state"] == "diverged, not scored"


def test_what_scoring_took_stands_beside_the_training(tmp_path):
    """Of the runs that have it: 30 s of 150 s; an older run has none."""
    write_run(tmp_path)
    folder = write_run(tmp_path, seed=2)
    (folder / "wall_seconds").write_text("150\n")
    (folder / "score_seconds").write_text("30\n")
    assert "- scoring of 1 run: 30 s, 20 % of the time of the training" in report(tmp_path)[0]


def test_the_papers_losses_are_drawn_across_the_losses(tmp_path):
    """Of the runs of the figure, each once: about 4, and 4.3."""
    write_run(tmp_path, figure="2", paper_loss="about 4")
    write_run(tmp_path, figure="2", paper_loss="about 4", seed=2)
    write_run(tmp_path, figure="2", run=f"{POST}-low", paper_loss="about 4.3")
    _, drawings = page(read_study(tmp_path), [], [], ([], []))
    (drawing,) = (drawing for drawing in drawings if drawing.function == "by_epoch")
    figure = plots.by_epoch(*drawing.arguments, plots.styles([run.name for run in drawing.runs]))
    dashed = [line.get_ydata()[0] for line in figure.axes[0].get_lines() if line.get_label() == "the paper's"]
    assert dashed == [4.0, 4.3] and drawing.caption.endswith("dashed: the loss that the paper's text gives")
    assert not any(line.get_label() == "the paper's" for axes in figure.axes[1:] for line in axes.get_lines())


def test_radam_stands_in_the_heading_of_figure_4_where_it_was_run(tmp_path):
    """WMT14 has none."""
    write_run(tmp_path, figure="4")
    assert "## Figure 4: Pre-LN without warm-up\n" in report(tmp_path)[0]
    write_run(tmp_path, figure="4", run="iwslt14-post-radam-lr5e-4-linear", optimizer="radam")
    assert "## Figure 4: Pre-LN without warm-up, and RAdam\n" in report(tmp_path)[0]


def test_the_whole_newstest2014_is_named(tmp_path):
    """3,003 lines; fewer are some other set."""
    write_run(tmp_path, data="wmt14-en-de", lines=3003)
    assert "test set newstest2014 of 3,003 lines" in report(tmp_path)[0]
    write_run(tmp_path / "part", data="wmt14-en-de", lines=2737)
    assert "test set of 2,737 lines" in report(tmp_path / "part")[0]


def test_seeds_left_out_of_a_mean_are_named(tmp_path):
    """A run not finished and one that diverged in its first epoch give no number."""
    write_run(tmp_path)
    write_run(tmp_path, done=False, seed=2)
    write_run(tmp_path, epochs=[], diverged="51\tNan\n", seed=3)
    row = table(report(tmp_path)[0], "## Figure 2")[0]
    assert (row["seeds"], row["remarks"]) == ("1 of 3", "seed 2 not finished; seed 3 diverged")
    assert row["BLEU (tokenized, lower-case)"] == "29.75"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "warm-up 1000, then 1/sqrt(t)"),
        ({"warmup_updates": "1"}, "warm-up 1: 1/sqrt(t)"),
        (PRE_SETTINGS, "held 2 epochs, then x 0.1 once"),
        ({"schedule": "no_warmup", "warmup_updates": "", "decay": "none"}, "held, no warm-up"),
        ({"schedule": "no_warmup", "warmup_updates": "", "decay": "linear"}, "linear to 0"),
        ({"schedule": "no_warmup", "hold_epochs": "5", "decay": "inverse_sqrt"}, "held 5 epochs, then 1/sqrt(t)"),
        ({"schedule": "polynomial_decay", "warmup_updates": "100"}, "polynomial_decay, warm-up 100"),
    ],
)
def test_a_schedule_is_said_in_words(settings, words):
    """As section 3.2 and 4.1 of the paper would."""
    assert schedule({**SETTINGS, **settings}) == words


def beside(tmp_path, paper, bleu=29.75, **more):
    """The row beside the paper's number."""
    write_run(tmp_path, epochs=[(5.0, 4.0, 10.0, bleu)], paper_bleu=paper, **more)
    return table(report(tmp_path)[0], "## Figure 2")[0]["ours - paper's"]


def test_the_difference_to_the_paper_is_signed(tmp_path):
    """29.75 beside about 34."""
    assert beside(tmp_path, "about 34") == "-4.25"


@pytest.mark.parametrize("bleu, words", [(8.46, "+0.01, above its best"), (8.45, "+0.00, not above its best")])
def test_a_bound_of_the_paper_is_held_by_a_smaller_number(tmp_path, bleu, words):
    """The paper's runs without warm-up reach 8.45 at best."""
    assert beside(tmp_path, "8.45 at best", bleu) == words


@pytest.mark.parametrize("paper", ["well below Adam", "34 to 35"])
def test_words_of_the_paper_without_one_number_give_no_difference(tmp_path, paper):
    """The words stand there."""
    assert beside(tmp_path, paper) == "-"


def test_a_run_not_finished_is_not_compared_with_the_paper(tmp_path):
    """Its best epoch may still come."""
    assert beside(tmp_path, "about 34", done=False) == "-"


def test_a_smaller_study_is_no_reproduction(study):
    """The sentence lists what differs: pairs, preset, epochs."""
    text, _ = report(study)
    assert "**No reproduction**" in text and "(40,653 of 160,239 pairs, the paper says about 153K; preset cpu" in text
    assert "at most 3 epochs, the paper 15" in text


def test_the_papers_settings_with_all_pairs_are_not_called_different(tmp_path):
    """Preset paper, 160,239 pairs, 15 epochs, 4096 tokens."""
    write_run(tmp_path, preset="paper", pairs="160239", max_epoch="15")
    assert "No reproduction" not in report(tmp_path)[0]


@pytest.mark.parametrize(
    "settings, phrases",
    [
        ({"pairs": "4500966", "max_tokens": "131072", "preset": "paper"}, []),
        ({"pairs": "3900000", "max_tokens": "131072", "preset": "paper"}, ["3,900,000 of about 4,500,000 pairs"]),
        ({"pairs": "4500966", "max_tokens": "8192", "preset": "paper"}, ["8,192 tokens an update, the paper 131,072"]),
        ({"pairs": "4500966", "max_tokens": "131072", "preset": "paper", "dropout": "0.3"}, ["dropout 0.3, the paper 0.1"]),
        ({"pairs": "4500966", "max_tokens": "131072", "preset": "paper", "max_epoch": "1"}, ["at most 1 epochs, the plan 15"]),
        ({"pairs": "4500966", "max_tokens": "131072", "preset": "paper", "max_update": "500"}, ["at most 500 updates"]),
    ],
)
def test_wmt14_is_held_against_the_papers_size_and_batch(tmp_path, settings, phrases):
    """About 4.5M pairs, and 8192 tokens on each of 16 GPUs (appendix A.1)."""
    write_run(tmp_path, data="wmt14-en-de", **{"max_epoch": "15"} | settings)
    assert tables.not_the_papers(read_study(tmp_path)) == phrases


def test_a_study_that_the_paper_has_not_is_not_compared(tmp_path):
    """The quick start is in no figure, and has no number of the paper."""
    write_run(tmp_path, paper_bleu="", figure="")
    text, _ = report(tmp_path)
    assert "paper's BLEU" not in text


# -- the plan --

PLAN = """# a comment
study\tfigure\trun\tln_position\toptimizer\tlr\tschedule\twarmup_updates\tdecay\tpaper_bleu
iwslt14\t4\tiwslt14-pre-adam-lr5e-4-step\tpre\tadam\t5e-4\tno_warmup\t-\tstep\tabout 34
iwslt14\t2\tiwslt14-post-adam-lr5e-4-warmup500\tpost\tadam\t5e-4\twarmup_inverse_sqrt\t500\t-\t31.16
iwslt14\t2,4\tiwslt14-post-adam-lr5e-4-warmup4000\tpost\tadam\t5e-4\twarmup_inverse_sqrt\t4000\t-\tabout 34
other\t-\tother-run\tpre\tadam\t5e-4\tno_warmup\t-\tnone\t-
"""


def planned(study, plan=PLAN):
    """RESULTS.md with a plan."""
    (study.parent / "plan.tsv").write_text(plan)
    write_report(study, "--plan", study.parent / "plan.tsv", "--out", study.parent / "out")
    return (study.parent / "out" / "RESULTS.md").read_text()


def test_runs_of_the_plan_that_are_not_there_are_named(study):
    """In the warning, in the table of their figure, with the paper's number, and under Missing; not those of other studies."""
    text = planned(study)
    assert "**1 of 3 runs of the plan not trained**" in text and "other-run" not in text
    row = next(row for row in table(text, "## Figure 2") if row["run"] == "post-adam-lr5e-4-warmup500")
    remark = "not trained; rate and schedule are the paper's"
    assert (row["remarks"], row["paper's BLEU"], row["BLEU (tokenized, lower-case)"]) == (remark, "31.16", "-")
    assert "## Missing\n\n- iwslt14-post-adam-lr5e-4-warmup500: not trained\n" in text


def test_two_scales_of_one_length_are_both_told(tmp_path):
    """The preset was changed between two runs."""
    write_run(tmp_path / "study")
    write_run(tmp_path / "study", run=POST + "-too", warmup_updates="900")
    plan = PLAN.replace(POST, POST + "-too", 1) + "\n".join(line for line in PLAN.splitlines() if POST in line) + "\n"
    assert "4000 is 900, 4000 is 1,000 updates" in planned(tmp_path / "study", plan)


def test_a_seed_that_was_to_be_trained_is_missing(tmp_path):
    """The recipe was told of two and has begun one."""
    folder = write_run(tmp_path / "study")
    (tmp_path / "study" / "chosen").write_text(f"{POST}\t1\n{POST}\t2\n")
    cli.main(["report", str(folder.parents[1])])
    assert f"## Missing\n\n- {POST} seed 2: not trained\n" in (tmp_path / "study" / "RESULTS.md").read_text()


def test_a_figure_of_which_nothing_is_run_yet_has_its_table(study):
    """With what the paper says, and without curves."""
    low = "iwslt14\t6\tiwslt14-post-adam-lr1e-4-held\tpost\tadam\t1e-4\tno_warmup\t-\tnone\t-\n"
    text = planned(study, PLAN + low)
    section = text[text.index("## Figure 6") : text.index("## Gradient norms")]
    assert table(section, "## Figure 6")[0]["remarks"].startswith("not trained") and "figures/" not in section


def test_a_warm_up_that_the_preset_scaled_is_said_at_the_top(study):
    """The plan has 4000 updates, and the run had 1000."""
    assert "> **Warm-up is scaled** with the length of the training: 4000 is 1,000 updates." in planned(study)
    assert "Warm-up is scaled" not in planned(study, PLAN.replace("4000\t-\tabout", "1000\t-\tabout"))


def test_a_hold_that_the_preset_scaled_is_said_at_the_top(study):
    """The plan holds for 7 epochs, and the run did for 2."""
    names, values = PLAN.splitlines()[1:3]
    told = "> **The hold of the rate is scaled** with the length of the training: 7 is 2 epochs."
    assert told in planned(study, f"{names}\thold_epochs\n{values}\t7\n")
    assert "The hold of the rate" not in planned(study, f"{names}\thold_epochs\n{values}\t2\n")


def test_the_plan_has_the_last_word_on_what_the_paper_says(study):
    """The run's folder says about 34, as it was known when it was trained."""
    names, values = PLAN.splitlines()[1], PLAN.splitlines()[4]
    plan = f"{names}\tpaper_loss\n{values.replace('about 34', '33.5')}\tabout 4\n"
    row = table(planned(study, plan), "## Figure 2")[0]
    assert (row["paper's BLEU"], row["paper's validation loss"]) == ("33.5", "about 4")


def test_the_plan_orders_the_runs(study):
    """Its third row comes after its first, whatever their names."""
    names = [row["run"] for row in table(planned(study), "## Every run and seed")]
    assert names == [PRE, POST]


def test_a_run_not_finished_or_not_scored_is_missing(study):
    """Without a plan too."""
    write_run(study, epochs=EPOCHS[:1], done=False, seed=2)
    (write_run(study, done=False, seed=3) / "trained").write_text("2026-01-01T00:00:00Z\n")
    write_run(study, epochs=[(6.5, 5.5, 10.0, None)], seed=4)
    text, _ = report(study)
    missing = text[text.index("## Missing") :].split("\n\n")[1].splitlines()
    assert missing == [
        f"- {POST} seed 2: 1 of 3 epochs trained",
        f"- {POST} seed 3: trained, not scored",
        f"- {POST} seed 4: no score on the test set at its best epoch, 1",
    ]


def test_a_whole_plan_is_said_to_be_whole(study):
    """All two of its rows are there."""
    plan = "".join(line for line in PLAN.splitlines(keepends=True) if "warmup500" not in line)
    assert "Nothing: all 2 runs of the plan are trained and scored." in planned(study, plan)


@pytest.mark.parametrize(
    "text, what",
    [
        (None, "there is no "),
        ("study\trun\n", "lacks the columns figure, ln_position"),
        ("", "lacks the columns study, run"),
        (PLAN + "iwslt14\t2\n", "line 7: 2 cells for 10 columns"),
    ],
)
def test_a_plan_that_is_none_is_refused(study, tmp_path, text, what):
    """One sentence with the file; nothing is written."""
    if text is not None:
        (tmp_path / "plan.tsv").write_text(text)
    sentence = refusal(study, "--plan", tmp_path / "plan.tsv")
    assert f"{tmp_path / 'plan.tsv'}" in sentence and what in sentence
    assert not (study / "RESULTS.md").exists()


def test_the_recipes_table_of_runs_is_a_plan(repo_root):
    """What recipes/common.sh passes: figures 2, 4 and 6 of IWSLT14."""
    rows = read_plan(repo_root / "recipes" / "runs.tsv", {"iwslt14"})
    assert {row["figure"] for row in rows} >= {"2", "2,4", "4", "6"}


# -- figures --

NAMES = ("figure2", "figure2-paper", "figure4", "figure4-paper", "grad_norm_first_update")


def test_all_figures_are_written_and_linked(study, capsys):
    """PNG and SVG of each, and nothing else; standard output says how many."""
    write_run(study, epochs=EPOCHS[:1], done=False, seed=2)
    write_report(study)
    text = (study / "RESULTS.md").read_text()
    files = {path.name for path in (study / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    assert all(f"(figures/{name}.png)" in text and f"(figures/{name}.svg)" in text for name in NAMES)
    assert capsys.readouterr().out == f"{study / 'RESULTS.md'}: 3 runs (1 not finished), 5 figures\n"


def test_two_reports_are_equal_byte_for_byte_and_change_no_run_folder(study, tmp_path):
    """No date, no random ids, no order of a file system, nothing temporary left."""
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for out in ("one", "two"):
        write_report(study, "--out", tmp_path / out)
    one, two = (
        {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        for out in ("one", "two")
    )
    assert one == two and len(one) == 3 + 2 * len(NAMES)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_figures_of_the_report_before_go(tmp_path):
    """Those that its RESULTS.md shows and the new one does not; a file that is not ours stays."""
    write_run(tmp_path / "study", log="", epochs=[], done=False, paper_bleu="")
    (tmp_path / "figures").mkdir()
    for name in ("valid_loss.png", "valid_loss.svg", "mine.png"):
        (tmp_path / "figures" / name).write_bytes(b"old")
    (tmp_path / "RESULTS.md").write_text("[SVG](figures/valid_loss.svg)\n\n![loss](figures/valid_loss.png)\n")
    write_report(tmp_path / "study", "--out", tmp_path)
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["grad_norm_first_update.png", "grad_norm_first_update.svg", "mine.png"]


def test_a_run_without_a_curve_is_named_below_the_figure(study):
    """A run that has just begun is not forgotten."""
    write_run(study, epochs=[], done=False, seed=2)
    assert f"Without a curve (no epoch's end in train.log): {POST} seed 2." in report(study)[0]


def test_sgd_has_a_figure_of_its_own(study):
    """Figure 2 (b): its rates and losses are far from Adam's."""
    write_run(study, run="iwslt14-post-sgd-lr5e-3-warmup4000", figure="2", optimizer="sgd", lr="5e-3")
    parts = tables.parts([run for run in read_study(study) if "2" in run.settings["figure"]])
    assert {part: [run.name for run in runs] for part, runs in parts.items()} == {
        "Adam": [POST],
        "SGD": ["iwslt14-post-sgd-lr5e-3-warmup4000"],
    }


def test_the_legend_has_short_names_with_seeds_and_divergence(tmp_path):
    """The study's name in front is left out."""
    write_run(tmp_path)
    write_run(tmp_path, seed=2, diverged="301\tNan\n")
    labels = {curve.label for curve in tables.valid_loss_curves(read_study(tmp_path))}
    assert labels == {"post-adam-lr5e-4-warmup4000 (2 seeds, 1 diverged)"}


def test_a_divergence_is_marked_where_the_curve_ends(tmp_path):
    """After update 350, which is epoch 3.5, at the last loss, and with the last rate."""
    log = "".join(inner(100 * e) + valid(e, 100 * e, loss) for e, loss in enumerate((6.5, 6.0, 7.25), 1)) + inner(350)
    write_run(tmp_path, log=log, diverged="351\tNan\n")
    runs = read_study(tmp_path)
    assert tables.valid_loss_curves(runs)[0].end == (3.5, 7.25)
    assert tables.learning_rate_curves(runs)[0].end == (3.5, 0.0005)


def crosses(axes):
    """Where the panel has the mark of a divergence."""
    lines = [line for line in axes.get_lines() if line.get_marker() == plots.DIVERGED_MARK["marker"]]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def loss_and_rate(runs):
    """The panels of a figure over the epochs."""
    panels = {"loss": tables.valid_loss_curves(runs), "learning rate": tables.learning_rate_curves(runs)}
    return plots.by_epoch(panels, [], plots.styles([run.name for run in runs]))


def test_a_divergence_before_the_first_epochs_end_is_drawn_at_the_upper_edge(study):
    """Such a run has no loss, but its rate ends there, and the legend explains the cross."""
    write_run(study, epochs=[], log=inner(50), diverged="51\tNan\n", seed=2)
    figure = loss_and_rate(read_study(study))
    assert [crosses(axes) for axes in figure.axes] == [[(0.5, 0.96)], [(0.5, 0.0005)]]
    assert "where a run diverged" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_rates_stand_below_losses_over_the_same_epochs(study):
    """The panels share their x axis; update 250 of 100 an epoch is at 2.5."""
    figure = loss_and_rate(read_study(study))
    loss, rate = figure.axes
    assert loss.get_shared_x_axes().joined(loss, rate) and loss.get_position().y0 > rate.get_position().y0
    assert 2.5 in rate.get_lines()[0].get_xdata() and rate.get_xlabel() == "epoch" and rate.get_yscale() == "log"


def test_no_divergence_no_cross(study):
    """Neither in the panels nor in the legend."""
    figure = loss_and_rate(read_study(study))
    assert [crosses(axes) for axes in figure.axes] == [[], []]
    assert len(figure.legends[0].get_texts()) == 2


def test_values_that_are_not_finite_are_no_points_of_a_curve(tmp_path):
    """A gap instead of an axis without end."""
    write_run(tmp_path, epochs=[("nan", 1, 1, None), (6.0, 1, 1, 20), ("inf", 1, 1, None)])
    (curve,) = tables.valid_loss_curves(read_study(tmp_path))
    assert (curve.x, curve.y) == ([2], [6.0])


def test_gradient_norms_have_a_panel_each_stack_and_matrix(study):
    """W1 and W2 (weights, not biases), layers from 1, the first logged update: 1.1 l for seed 1 of Post-LN."""
    panels = tables.grad_norm_curves(read_study(study))
    assert set(panels) == {(stack, matrix) for stack in ("encoder", "decoder") for matrix in ("W1", "W2")}
    assert panels["decoder", "W2"][0].x == [1, 2] and panels["decoder", "W2"][0].y == pytest.approx([1.1, 2.2])


def test_runs_with_the_same_gradient_norms_share_a_curve(study):
    """At the first update the learning rate has not acted yet."""
    write_run(study, run="iwslt14-post-adam-lr1e-3-warmup4000", lr="1e-3")
    labels = [curve.label for curve in tables.grad_norm_curves(read_study(study))["encoder", "W1"]]
    assert labels == ["post-adam-lr1e-3-warmup4000 and 1 more with the same norms", "pre-adam-lr5e-4-step"]


def test_the_norms_of_several_seeds_are_a_line_each_under_one_name(tmp_path):
    """The legend has one entry a run, which says so."""
    write_run(tmp_path)
    write_run(tmp_path, seed=2)
    (curves, *_) = tables.grad_norm_curves(read_study(tmp_path)).values()
    assert [curve.label for curve in curves] == [f"{POST.removeprefix('iwslt14-')} (a line a seed)"] * 2


def test_runs_differ_in_line_and_marker_without_colour():
    """The 18 runs of figures 2 and 4 can be told apart in grey."""
    looks = plots.styles([f"run {i}" for i in range(18)]).values()
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 18


def test_seeds_of_a_run_look_alike_and_have_one_legend_entry(tmp_path):
    """Three thin lines of one style."""
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed)
    figure = loss_and_rate(read_study(tmp_path))
    lines = figure.axes[0].get_lines()
    assert len(lines) == 3 and len({(line.get_color(), line.get_linestyle()) for line in lines}) == 1
    assert len(figure.legends[0].get_texts()) == 1


def test_panels_name_what_they_show(study):
    """The loss with base and smoothing, BLEU with its sentences."""
    _, drawings = page(read_study(study), [], [], ([], []))
    labels = list(drawings[0].arguments[0])
    assert labels == [
        "validation loss\n(base 2, label-smoothed 0.1)",
        "learning rate",
        "BLEU, first 500\nvalidation sentences",
    ]


def test_figure_6_shows_the_runs_that_its_claim_is_about(study):
    """The low rate alone says nothing: beside it is Post-LN with warm-up, and not Pre-LN."""
    low = {"figure": "6", "lr": "1e-4", "schedule": "no_warmup", "warmup_updates": "", "decay": "none"}
    write_run(study, run="iwslt14-post-adam-lr1e-4-held", **low)
    runs = read_study(study)
    _, drawings = page(runs, [], [], (claims.claims(claims.Evidence(runs, [])), []))
    figure6 = next(drawing for drawing in drawings if drawing.name == "figure6")
    assert [run.name for run in figure6.runs] == ["iwslt14-post-adam-lr1e-4-held", POST]


def test_a_bound_of_the_paper_is_drawn_as_an_arrow(study):
    """8.45 at best: what lies below it is meant."""
    write_run(study, run="iwslt14-post-adam-lr5e-4-warmup1", figure="2", warmup_updates="1", paper_bleu="8.45 at best")
    _, drawings = page(read_study(study), [], [], ([], []))
    figure2 = next(drawing for drawing in drawings if drawing.name == "figure2-paper")
    figure = plots.beside_the_paper(*figure2.arguments, plots.styles([run.name for run in figure2.runs]))
    marks = {line.get_xdata()[0]: line.get_marker() for line in figure.axes[0].get_lines()}
    assert (marks[34.0], marks[8.45]) == ("|", plots.BOUND_MARK["marker"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ours (one seed each)",
        "the paper's",
        "the paper's, at best",
    ]


def test_estimates_are_drawn_at_their_updates_with_the_ends_of_their_intervals():
    """Sorted by update, whatever came first; one without an interval has a bar of no length."""
    pre = [("pre", 700, Estimate(80.0, 79.0, 82.0)), ("pre", 400, Estimate(70.0, 69.0, 71.5))]
    post = ("post", 400, Estimate(60.0, math.nan, math.nan))
    names = {"pre": "Pre-LN", "post": "Post-LN"}
    figure = plots.estimates_by_update([("accuracy", [*pre, post], 68.4)], names, "majority class", plots.styles(names))
    drawn = {}
    for container in figure.axes[0].containers:
        line, _, (bars,) = container
        drawn[container.get_label()] = line.get_xydata().tolist(), [segment.tolist() for segment in bars.get_segments()]
    assert drawn == {
        "Pre-LN": ([[400, 70], [700, 80]], [[[400, 69], [400, 71.5]], [[700, 79], [700, 82]]]),
        "Post-LN": ([[400, 60]], [[[400, 60], [400, 60]]]),
    }


def test_an_svg_is_shortened_without_moving_anything(study):
    """The same numbers in the same order to 0.005 of a point, and the same tags."""
    figure = loss_and_rate(read_study(study))
    with plots.look():
        figure.savefig(plain := io.StringIO(), format="svg", metadata={"Date": None, "Creator": None})
    files = plain.getvalue(), plots.compact(plain.getvalue())
    numbers = [[float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", svg)] for svg in files]
    assert len(numbers[0]) > 1000 and numbers[0] == pytest.approx(numbers[1], abs=0.005 + 1e-9)
    assert re.findall(r"<[/\w:]+", files[0]) == re.findall(r"<[/\w:]+", files[1])
    assert len(files[1]) < 0.95 * len(files[0])


def test_ours_stands_beside_the_papers_bleu(study):
    """Ours at 29.75 with a bar at the paper's 34; words of the paper without a number are written."""
    write_run(study, run="iwslt14-post-sgd-lr5e-3-warmup1", figure="2", paper_bleu="just above zero")
    _, drawings = page(read_study(study), [], [], ([], []))
    figure2 = next(drawing for drawing in drawings if drawing.name == "figure2-paper")
    axes = plots.beside_the_paper(*figure2.arguments, plots.styles([run.name for run in figure2.runs])).axes[0]
    first = [line.get_xdata()[0] for line in axes.get_lines() if line.get_ydata()[0] == 0]
    assert sorted(first) == [29.75, 34.0]
    assert [text.get_text().strip() for text in axes.texts] == ["just above zero"]


# -- writing --


def test_a_folder_that_cannot_be_written_is_one_sentence(study, tmp_path):
    """--out names a file."""
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'}" in (sentence := refusal(study, "--out", tmp_path / "file"))
    assert "cannot be written" in sentence and "--out" in sentence
