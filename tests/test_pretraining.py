"""Tests of fairseq_lnplugin/study/pretraining.py: losses of masked-LM pre-training by update (figure 5a, section 4.2).

Oracles are closed forms: straight loss curves, whose crossings are known.
"""

import math

import pytest
from bert_folders import HIGH, HIGH_SETTINGS, POST, PRE_SETTINGS, log_lines, read, straight, write_run

from fairseq_lnplugin.study.pretraining import LEARNED, races, reached
from fairseq_lnplugin.study.run_folder import RunFolderError, read_validations


def raced(study):
    """Post-LN's loss and Pre-LN's updates, of each race of a study."""
    return [(race.loss, race.pre_updates) for race in races(read(study)[0])]


def test_the_paper_is_reproduced_where_curves_are_the_papers():
    """Linear curves through (700, 3) and (500, 3): update 500."""
    assert reached(straight(10, 0.2), 3) == pytest.approx(500)


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
    assert reached(points, loss) == update


def test_pre_ln_races_every_post_ln_run_of_its_seed(tmp_path):
    """At whatever rate; another seed's loss is of other masked positions."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 6.5), **HIGH_SETTINGS)
    write_run(tmp_path, straight(10, 6.5), seed="2")
    for seed in "12":
        write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS, seed=seed)
    found = {(race.post.run.name, race.post.run.seed, race.pre.run.seed) for race in races(read(tmp_path)[0])}
    assert found == {(POST, 1, 1), (HIGH, 1, 1), (POST, 2, 2)}


def test_pre_ln_does_not_race_a_run_of_another_length(tmp_path):
    """A loss after 350 updates of a decay to 0 is not one on the way to 700."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, straight(10, 0.2, 350, 50), **PRE_SETTINGS, max_update="350")
    assert raced(tmp_path) == []


@pytest.mark.parametrize("unfinished", ["pre", "post"])
def test_a_run_under_way_has_no_final_loss(tmp_path, unfinished):
    """Neither is Post-LN's loss so far its final one, nor has Pre-LN never reached what it has not reached yet."""
    write_run(tmp_path, straight(10, 3), done=unfinished != "post")
    write_run(tmp_path, straight(10, 0.2)[:3], **PRE_SETTINGS, done=unfinished != "pre")
    assert raced(tmp_path) == []


def test_a_run_that_waits_for_its_fine_tunings_has_its_final_loss(tmp_path):
    """``trained`` is there, ``done`` is not."""
    write_run(tmp_path, straight(10, 3), done=False, trained=True)
    write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS)
    assert raced(tmp_path) == [(3.0, pytest.approx(500))]


@pytest.mark.parametrize(("below", "learned"), [(LEARNED + 0.001, True), (LEARNED - 0.001, False), (math.nan, False)])
def test_a_model_has_learned_that_is_a_bit_below_the_frequencies(tmp_path, below, learned):
    """Frequencies alone give 9.85 bits."""
    write_run(tmp_path, straight(10, 3))
    assert read(tmp_path)[0][0].has_learned(9.85 - below) == learned


def test_the_loss_of_a_checkpoint_is_the_last_one_up_to_its_update(tmp_path):
    """Losses 9 to 3 at updates 100 to 700."""
    write_run(tmp_path, straight(10, 3))
    assert read(tmp_path)[0][0].loss_at(450) == 6


def test_settings_without_the_frequencies_loss_are_refused(tmp_path):
    """One sentence, with the file."""
    write_run(tmp_path, straight(10, 3), unigram_loss="")
    with pytest.raises(RunFolderError, match="settings.tsv is damaged .unigram_loss is no number"):
        read(tmp_path)


def test_validations_inside_an_epoch_count_and_a_resume_replaces_what_came_after(tmp_path):
    """Read_log keeps one an epoch; here each update has its own, and a sitting from update 150 on wins."""
    (tmp_path / "train.log").write_text("".join(map(log_lines, (100, 200, 300), (8, 7, 6))) + log_lines(200, 7.5))
    assert read_validations(tmp_path / "train.log") == [(100, 8.0), (200, 7.5)]
