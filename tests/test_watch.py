"""Tests of fairseq_lnplugin/study/watch.py: how far a running study is (``fairseq-ln report --watch``)."""

import io
import os

import pytest
from run_folders import EPOCHS, POST, PRE, PRE_SETTINGS, inner, write_run

from fairseq_lnplugin import cli
from fairseq_lnplugin.study import watch
from fairseq_lnplugin.study.run_folder import read_study

NOW = 1_000_000.0


def overview(root, quiet=1.0, to_go=()):
    """The lines, with the last sign of every run that many seconds ago."""
    runs = read_study(root)
    return watch.overview(runs, list(to_go), {run.folder: NOW - quiet for run in runs}, NOW)


def state(root, name, quiet=1.0):
    """The line of a run."""
    return next(line for line in overview(root, quiet) if line.startswith(name.removeprefix("iwslt14-")))


def begun(root, name=PRE, log=None, wall=150, **more):
    """A run of Pre-LN in training: half of epoch 2 of 3, 100 seconds an epoch."""
    settings = {**PRE_SETTINGS, "run": name, **more}
    folder = write_run(root, epochs=[], done=False, log=log or inner(100) + inner(150), **settings)
    (folder / "wall_seconds").write_text(f"{wall}\n")
    return folder


def test_runs_done_running_and_to_go_are_counted(tmp_path):
    """One finished, one in training, and one that has no folder."""
    write_run(tmp_path)
    begun(tmp_path)
    lines = overview(tmp_path, to_go=["iwslt14-third"])
    assert lines[0].startswith("iwslt14, preset cpu: 1 done, 1 running, 1 to go;")
    assert lines[-1].split() == ["iwslt14-third", "to", "go"]


def test_what_works_now_stands_first(tmp_path):
    """A small screen shows it; then what is to go on, then what is done."""
    runs = [write_run(tmp_path), begun(tmp_path, name="iwslt14-stopped"), begun(tmp_path)]
    signs = {folder: NOW - (0 if folder == runs[2] else watch.QUIET) for folder in runs}
    lines = watch.overview(read_study(tmp_path), [], signs, NOW)
    assert [line.split()[3] for line in lines[4:]] == ["training", "stopped", "done"]


@pytest.mark.parametrize(("max_update", "left"), [("200", "50 s"), ("400", "2 min")])
def test_a_training_ends_at_the_nearer_of_two_bounds(tmp_path, max_update, left):
    """150 updates in 150 seconds: of 200 there are 50 left, of 400 the 150 of three epochs come first."""
    begun(tmp_path, max_update=max_update)
    assert f"about {left} " in overview(tmp_path)[0]


def test_the_best_bleu_so_far_has_its_run(tmp_path):
    """On the test set at the epoch of the best validation loss."""
    write_run(tmp_path, epochs=[(5.0, 4.0, 10.0, 20.0)])
    write_run(tmp_path, epochs=[(5.0, 4.0, 10.0, 21.5)], seed=2)
    assert overview(tmp_path)[1] == f"best BLEU on the test set so far: 21.50 ({POST} seed 2)"


def test_no_score_yet_is_said(tmp_path):
    """The best of nothing."""
    begun(tmp_path)
    assert overview(tmp_path)[1] == "best BLEU on the test set so far: none yet"


def test_a_run_shows_epochs_update_loss_and_bleu(tmp_path):
    """The best loss and its score."""
    write_run(tmp_path)
    assert state(tmp_path, POST).split()[1:] == ["seed", "1", "done", "3.0", "of", "3", "300", "5.250", "29.75"]


@pytest.mark.parametrize("quiet, word", [(1.0, "training"), (watch.QUIET - 1, "training"), (watch.QUIET, "stopped")])
def test_a_run_without_a_sign_for_ten_minutes_has_stopped(tmp_path, quiet, word):
    """A killed recipe leaves its folder as it is."""
    begun(tmp_path)
    assert state(tmp_path, PRE, quiet).split()[3] == word


@pytest.mark.parametrize("quiet, words", [(1.0, ["scoring"]), (watch.QUIET, ["not", "scored"])])
def test_a_trained_run_is_being_scored_or_waits(tmp_path, quiet, words):
    """The stage after training."""
    (begun(tmp_path) / "trained").write_text("x\n")
    assert state(tmp_path, PRE, quiet).split()[3 : 3 + len(words)] == words


def test_a_diverged_run_tells_where(tmp_path):
    """It counts as done."""
    write_run(tmp_path, diverged="251\tNan\n")
    lines = overview(tmp_path)
    assert "diverged at 251" in lines[4] and "1 done, 0 running, 0 to go" in lines[0]


def left(root, plan=()):
    """Seconds of training left, from the first line."""
    runs = read_study(root)
    found = [(run, watch.progress(run, 1.0)) for run in runs]
    return watch.time_left(found, len(plan))


def test_the_time_left_is_the_rest_at_the_pace_so_far(tmp_path):
    """1.5 of 3 epochs in 150 seconds: 150 seconds more."""
    begun(tmp_path)
    assert left(tmp_path) == pytest.approx(150)
    assert "about 2 min of training left" in overview(tmp_path)[0]


def test_a_training_may_be_bounded_by_updates(tmp_path):
    """150 of 600 updates in 150 seconds: 450 seconds more."""
    begun(tmp_path, max_epoch="", max_update="600")
    assert left(tmp_path) == pytest.approx(450)


def test_runs_of_the_plan_count_as_the_mean_of_the_others(tmp_path):
    """Two more of 3 epochs at 100 seconds each."""
    begun(tmp_path)
    assert left(tmp_path, ["one", "two"]) == pytest.approx(150 + 2 * 300)


def test_runs_trained_side_by_side_share_the_time(tmp_path):
    """Two at once, each with 150 seconds to go: not 300."""
    begun(tmp_path)
    begun(tmp_path, name="iwslt14-other")
    assert left(tmp_path) == pytest.approx(150)


def test_a_finished_run_has_no_time_left(tmp_path):
    """Though it may have stopped before its last epoch."""
    write_run(tmp_path, epochs=EPOCHS[:2])
    assert left(tmp_path) == 0


def test_before_the_first_update_the_time_is_not_known(tmp_path):
    """There is no pace yet."""
    begun(tmp_path, log="fairseq_cli.train | Namespace()\n", wall=0)
    assert left(tmp_path) is None and "time left not known yet" in overview(tmp_path)[0]


def test_a_run_folder_with_nothing_but_its_lock_is_passed_over(tmp_path):
    """A recipe makes folder and lock before all else."""
    begun(tmp_path)
    (tmp_path / "iwslt14-new" / "seed1").mkdir(parents=True)
    (tmp_path / "iwslt14-new" / "seed1" / "lock").write_text("")
    assert [run.name for run in read_study(tmp_path)] == [PRE]


def test_the_last_sign_is_the_newest_of_logs_scores_and_translations(tmp_path):
    """While it is scored, a run's log is old."""
    folder = begun(tmp_path)
    (folder / "decode").mkdir()
    (folder / "decode" / "epoch1.test.shard0.txt").write_text("")
    for path in folder.rglob("*"):
        os.utime(path, (1000, 1000))
    os.utime(folder / "decode" / "epoch1.test.shard0.txt", (2000, 2000))
    assert watch.last_sign(folder) == 2000


def test_where_there_is_no_terminal_the_state_is_printed_once_and_nothing_is_written(tmp_path, capsys):
    """As into a file or a pipe; plain text."""
    begun(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["report", str(tmp_path), "--watch"]) == 0
    out = capsys.readouterr().out
    assert out.count("iwslt14, preset cpu:") == 1 and "\x1b" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_and_seeds_that_a_recipe_was_told_to_train_are_to_go(tmp_path, capsys):
    """Without a plan: of three chosen, one has begun; a run of the folder that nobody named counts too."""
    begun(tmp_path)
    (tmp_path / "chosen").write_text(f"{PRE}\t1\n{PRE}\t2\n{POST}\t1\n")
    assert cli.main(["report", str(tmp_path), "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0 done, 1 running, 2 to go" in lines[0]
    assert [line.split()[:3] for line in lines[-2:]] == [[PRE, "seed", "2"], [POST, "seed", "1"]]


def test_a_damaged_list_of_chosen_runs_is_named(tmp_path):
    """One sentence: which file, what is wrong, what to do."""
    begun(tmp_path)
    (tmp_path / "chosen").write_text(f"{PRE} 1\n")
    with pytest.raises(SystemExit, match="chosen is damaged .line 1 .*delete it"):
        cli.main(["report", str(tmp_path), "--watch"])


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    def isatty(self):
        return True


def watched(monkeypatch, root, pauses):
    """What is shown on a terminal; ``pauses(n)`` is called in the place of the n-th pause."""
    terminal, seen = Terminal(), []

    def sleep(seconds):
        seen.append(seconds)
        pauses(len(seen))

    monkeypatch.setattr(watch.sys, "stdout", terminal)
    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.shutil, "get_terminal_size", lambda: os.terminal_size((60, 8)))
    assert watch.watch(lambda: (read_study(root), [])) == 0
    return terminal.getvalue(), seen


def interrupt(number):
    """Ctrl-C in the third pause."""
    if number == 3:
        raise KeyboardInterrupt


def test_on_a_terminal_it_is_drawn_again_until_ctrl_c(tmp_path, monkeypatch):
    """Three times, from the upper left corner, no line longer than the screen is wide; the end is no error."""
    begun(tmp_path)
    text, pauses = watched(monkeypatch, tmp_path, interrupt)
    assert text.count(watch.HOME) == 3 and text.count(watch.CLEAR) == 1 and text.endswith("\n")
    lines = text.replace(watch.CLEAR, "").replace(watch.HOME, "").replace(watch.BELOW, "").split(watch.TO_END_OF_LINE)
    assert max(len(line.strip("\n")) for line in lines) < 60 and pauses == [watch.EVERY] * 3


def test_it_ends_by_itself_when_all_is_done(tmp_path, monkeypatch):
    """In the first pause the run is finished."""
    (folder := begun(tmp_path)).joinpath("trained").write_text("x\n")

    def finish(number):
        (folder / "scores.tsv").write_text((write_run(tmp_path / "other") / "scores.tsv").read_text())
        (folder / "done").write_text("x\n")
        assert number == 1

    text, _ = watched(monkeypatch, tmp_path, finish)
    assert "1 done, 0 running, 0 to go" in text.split(watch.HOME)[-1]


def test_a_study_that_is_not_there_is_refused(tmp_path):
    """As without --watch."""
    with pytest.raises(SystemExit, match="there is no folder"):
        cli.main(["report", str(tmp_path / "no"), "--watch"])


def test_a_folder_to_write_to_does_not_go_with_watch(tmp_path):
    """It would do nothing."""
    with pytest.raises(SystemExit, match="--watch writes nothing; leave --out out"):
        cli.main(["report", str(tmp_path), "--watch", "--out", str(tmp_path)])


def test_a_file_that_goes_while_one_looks_does_no_harm(tmp_path):
    """The recipe deletes the translations of the validation sentences once they are scored."""
    assert watch.written(tmp_path / "gone") == 0
