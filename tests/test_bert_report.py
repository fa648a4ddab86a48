"""Tests of fairseq_lnplugin/study/bert.py: the report of figure 5 (sections 4.1 and 4.2, appendix A.3).

Run folders are made up; oracles are closed forms: straight loss curves, and scores whose mean and interval are known.
"""

import re

import pytest
from bert_folders import (
    HIGH,
    HIGH_SETTINGS,
    PLAN,
    POST,
    PRE,
    PRE_SETTINGS,
    straight,
    write_accuracies,
    write_result,
    write_run,
)

from fairseq_lnplugin import cli
from fairseq_lnplugin.study import bert, tables
from fairseq_lnplugin.study.run_folder import read_study


def report(study, plan=()):
    """The text of RESULTS.md of a study, and its tables' files."""
    runs = read_study(study)
    text, _, files = bert.page(runs, list(plan), tables.to_go(runs, plan, []))
    return text, files


def section(text, title):
    """The part of a page under the heading that begins with ``title``."""
    return text.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


@pytest.fixture
def study(tmp_path):
    """Post-LN falls from 10 to 3 in 700 updates, Pre-LN from 10 to 0.2 and has 3 at update 500; Post-LN at 3e-4 diverged."""
    post = write_run(tmp_path, straight(10, 3))
    pre = write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS)
    write_run(tmp_path, straight(10, 11, 100), **HIGH_SETTINGS, diverged="101\tgradients are Nan/Inf\n")
    for run, better in ((post, 0), (pre, 2)):
        for updates in (400, 700):
            for seed, plus in ((1, -1), (2, 0), (3, 1)):
                write_result(run, "MRPC", updates, seed, 72 + better + plus, 81 + better + plus)
                write_result(run, "MRPC", updates, seed, 70 + plus, 80, lr="1e-4")
                write_result(run, "RTE", updates, seed, 55 + better + plus, 50)
    return tmp_path


def test_the_page_has_the_order_of_the_translation_reports(study):
    """Warnings, claims, figure by figure, what they rest on, what was run."""
    text, _ = report(study, PLAN)
    titles = [title.split(":")[0].split(" (")[0] for title in re.findall("^## (.*)$", text, re.MULTILINE)]
    assert titles == [
        *("The paper's claims, here", "Figure 5a", "Figure 5b", "Figure 5c", "Stuck at one class", "Missing"),
        *("Every run and seed", "What was run"),
    ]
    assert text.index("**No reproduction**: preset cpu") < text.index("## The paper's claims")


def test_each_claim_has_its_verdict_and_numbers(study):
    """Pre-LN is 40 % faster, Post-LN diverges, MRPC is 2 points ahead, and RTE's 57 is no better than the majority class."""
    claims = section(report(study, PLAN)[0], "The paper's claims, here")
    verdicts = re.findall(r"^\*\*(.*)\.\*\* \*Figure (5.)\.\*", claims, re.MULTILINE)
    assert verdicts == [("Holds", "5a"), ("Holds", "5a"), ("Holds", "5b"), ("Cannot be said here", "5c")]


def test_the_rules_of_the_verdicts_are_told(study):
    """The bound on what has learned among them."""
    claims = section(report(study)[0], "The paper's claims, here")
    assert "*Has learned*: a validation loss at least 1 bit below that of the subwords' frequencies alone." in claims


def test_the_race_stands_beside_the_papers(study):
    """700 / 500 - 1, for us as for the paper."""
    table = section(report(study)[0], "Figure 5a")
    assert (
        "| about 1.69 (base not told) | 700,000 | 500,000 | 40 % | its text prints the two numbers the other way round |" in table
    )
    assert "| pre-adam-lr3e-4-linear | post-adam-lr1e-4-warmup10000 | 1 | 3.000 | 700 | 500 | 40 % | - |" in table
    assert "| pre-adam-lr3e-4-linear | post-adam-lr3e-4-warmup10000 | 1 | - | 100 | - | - | Post-LN diverged |" in table


def test_pre_ln_that_never_gets_there_is_said_to_have_not_by_its_end(tmp_path):
    """No speed-up."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 4), **PRE_SETTINGS)
    assert "| 3.000 | 700 | not by 700 | - | - |" in report(tmp_path)[0]


def test_no_speed_up_is_told_against_a_run_that_has_not_learned(tmp_path):
    """9.1 bits beside the frequencies' 9.85."""
    write_run(tmp_path, straight(10, 9.1))
    write_run(tmp_path, straight(10, 8.74), **PRE_SETTINGS)
    text, _ = report(tmp_path)
    assert "| 9.100 | 700 | 500 | - | Post-LN has not learned |" in text
    assert f"**Not learned enough**: {POST} seed 1." in text


@pytest.mark.parametrize(("name", "more"), [(POST, {}), (PRE, PRE_SETTINGS)])
def test_a_race_with_a_run_under_way_is_not_decided_yet(tmp_path, name, more):
    """Neither a final loss of Post-LN at update 300, nor a Pre-LN that never had it."""
    write_run(tmp_path, straight(10, 3)[:3], done=False, **more)
    write_run(tmp_path, straight(10, 3), **({} if more else PRE_SETTINGS))
    text, _ = report(tmp_path)
    assert f"| 1 | not yet | - | not yet | - | {name} seed 1 not finished |" in text
    assert "**Cannot be said yet.** *Figure 5a.*" in text


def test_what_the_plan_has_and_no_run_is_of_is_named(tmp_path):
    """Post-LN at Pre-LN's rate, and how far the other one is."""
    write_run(tmp_path, straight(10, 3)[:3], done=False)
    write_run(tmp_path, straight(10, 0.2), done=False, trained=True, **PRE_SETTINGS)
    text, _ = report(tmp_path, PLAN)
    missing = section(text, "Missing")
    assert "**1 of 3 runs of the plan not trained**: see Missing." in text
    assert f"- {HIGH}: not trained" in missing
    assert f"- {POST} seed 1: 300 of 700 updates trained" in missing
    assert f"- {PRE} seed 1: pre-trained, 0 fine-tunings so far" in missing


def test_the_command_gives_the_plan_to_the_page(study, tmp_path):
    """``--plan``, as the recipe passes it."""
    plan, out = tmp_path / "plan.tsv", tmp_path / "out"
    columns = "study run figure ln_position optimizer lr schedule warmup_updates".split()
    plan.write_text("\t".join(columns) + "\nbert\tbert-post-more\t5a\tpost\tadam\t2e-4\tpolynomial_decay\t10000\n")
    assert cli.main(["report", str(study), "--plan", str(plan), "--out", str(out)]) == 0
    assert "- bert-post-more: not trained" in (out / "RESULTS.md").read_text()


# -- fine-tunings --


def test_runs_stuck_at_the_majority_class_are_counted_and_named(study):
    """279 of 408 rows are 68.4 % and F1 81.2; answering 0 on RTE is the minority: 47.3 % and F1 0."""
    write_result(study / PRE / "seed1", "MRPC", 700, 7, 68.4, 81.2, lr="2e-5")
    write_result(study / PRE / "seed1", "RTE", 700, 8, 47.3, 0, lr="2e-5")
    text, files = report(study)
    assert "2 of 38 fine-tunings give the same answer for every row of dev, as far as scores with one decimal tell" in text
    assert f"- MRPC, {PRE} seed 1, update 700, the majority class: 32, 2e-5, 3 with seed 7" in text
    assert f"- RTE, {PRE} seed 1, update 700, the minority class: 32, 2e-5, 3 with seed 8" in text
    rows = [line.split("\t") for line in files["finetunings.tsv"].decode().splitlines()]
    assert [row[-2] for row in rows if row[-2] in ("0", "1")] == ["1", "0"] and len(rows) == 39


def test_the_majority_class_and_the_fine_tunings_are_told_with_each_task(study):
    """Scores of the majority, with chance in the rows, and the grid."""
    mrpc = section(report(study)[0], "Figure 5b")
    assert "On the 408 rows of dev" in mrpc and "accuracy 68.4, F1 81.2" in mrpc and "may be up to 72.7" in mrpc
    assert "lr 5e-5/1e-4, epochs 3; 3 seeds (1, 2, 3), none dropped" in mrpc


def test_only_a_search_over_several_cells_is_said_to_flatter_the_best(study):
    """MRPC has two rates, RTE has one."""
    text, _ = report(study)
    flatters = "so the best cell's accuracy is a little too good"
    assert flatters in section(text, "Figure 5b")
    assert flatters not in section(text, "Figure 5c") and "no search" in section(text, "Figure 5c")


def test_what_diverged_of_a_checkpoints_cells_is_told(study):
    """The other cell, of mean 70, is shown."""
    path = study / POST / "seed1" / "finetune" / "MRPC" / "update700-batch32-lr5e-5-epochs3-seed2" / "result.tsv"
    path.write_text(path.read_text().replace("accuracy\t72\n", "accuracy\t\n").replace("f1\t81\n", "f1\t\n"))
    lines = section(report(study)[0], "Figure 5b").splitlines()
    line = next(line for line in lines if line.startswith("| post-adam-lr1e-4-warmup10000 | 700 | 32, 1e-4, 3"))
    assert "32, 5e-5, 3: seed 2 diverged" in line and "70.0 (" in line


def test_pre_lns_lead_is_told_with_its_interval_and_what_speaks_against_it(study):
    """2 points at each seed of both checkpoints; RTE's 57 is within chance of the majority class's 52.7."""
    text, _ = report(study)
    runs = "| pre-adam-lr3e-4-linear | post-adam-lr1e-4-warmup10000 |"
    assert f"| 400 {runs} +2.00 (+2.00 to +2.00) | - |" in section(text, "Figure 5b")
    rte = section(text, "Figure 5c")
    assert f"| 700 {runs} +2.00 (+2.00 to +2.00) | neither accuracy is better than the majority class's |" in rte


@pytest.mark.parametrize(("seeds", "words"), [("1", "one pre-training seed: no spread"), ("12", "counts with its mean")])
def test_what_the_intervals_are_over_is_told(tmp_path, seeds, words):
    """The fine-tunings of one pre-training, or the means of several."""
    for seed in seeds:
        write_accuracies(write_run(tmp_path, straight(10, 3), seed=seed), "MRPC", 700, [80, 81, 83])
    assert words in section(report(tmp_path)[0], "Figure 5b")


# -- the report as a whole --


def test_the_first_line_has_the_size_of_the_text_beside_the_papers(study):
    """2,450,351 of 3.4B words are 0.072 %."""
    text, _ = report(study)
    assert text.splitlines()[0] == (
        "# Figure 5 (BERT): wikitext-2, 2,450,351 words of text against the paper's 3.4B (0.072 %), preset cpu"
    )


def test_the_cost_of_pre_training_is_its_seconds_over_its_updates(study):
    """Two runs of 700 updates and one of 100, 2,400 s each."""
    assert "- training: 1,500 updates in 2 h 00 min, 4.80 s an update with its validations\n" in report(study)[0]


def test_a_study_under_way_is_reported_with_what_there_is(tmp_path):
    """No log yet, no fine-tuning: no figure, and said so."""
    folder = write_run(tmp_path, [], done=False)
    (folder / "train.log").unlink()
    text, drawings, _ = bert.page(read_study(tmp_path), [], [])
    assert f"**1 of 1 run not finished**: {POST} seed 1." in text
    assert drawings == [] and "Nothing to draw yet." in section(text, "Figure 5a")


def test_results_tsv_has_a_row_a_run(study):
    """Columns of the run, its last and its best loss."""
    _, files = report(study)
    header, *rows = [line.split("\t") for line in files["results.tsv"].decode().splitlines()]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(table) == sorted([POST, PRE, HIGH])
    assert (table[POST]["valid_loss"], table[POST]["updates"], table[POST]["state"]) == ("3", "700", "finished")


def test_the_command_writes_tables_and_figures_twice_the_same(study, tmp_path, capsys):
    """Fairseq-ln report: RESULTS.md, two tables, three figures in two forms; the same bytes each time."""
    contents = []
    for name in "ab":
        assert cli.main(["report", str(study), "--out", str(tmp_path / name)]) == 0
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert {str(path) for path in contents[0]} == {
        *("RESULTS.md", "RESULTS.html", "results.tsv", "finetunings.tsv"),
        *(f"figures/figure5{part}.{kind}" for part in "abc" for kind in ("png", "svg")),
    }
    assert "3 runs, 3 figures" in capsys.readouterr().out
