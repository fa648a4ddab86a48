"""Tests of fairseq_lnplugin/study/bert_claims.py: what the paper claims of figure 5, and when our runs bear it out.

Run folders are made up: frequencies alone give 9.85 bits, and losses are straight lines whose crossings are known.
"""

import math

import pytest
from bert_folders import HIGH, HIGH_SETTINGS, PLAN, POST, PRE, PRE_SETTINGS, read, straight, write_accuracies, write_run

from fairseq_lnplugin.study.bert_claims import above_zero, claims, faster
from fairseq_lnplugin.study.claims import FAILS, HOLDS, IN_PART, UNKNOWN
from fairseq_lnplugin.study.finetuning import levels
from fairseq_lnplugin.study.intervals import Estimate

EARLIER, DIVERGES, MRPC, RTE = range(4)
NANS = "101\tgradients are Nan/Inf\n"


def claim_of(study, which, plan=()):
    """One of the four claims about a study."""
    pretrainings, finetunings = read(study)
    return claims(pretrainings, levels(finetunings), list(plan))[which]


def write_positions(study, post=3.0, pre=0.2, **more):
    """Both runs of the paper's comparison, which end at these losses after 700 updates from 10 bits."""
    return write_run(study, straight(10, post), **more), write_run(study, straight(10, pre), **PRE_SETTINGS | more)


# -- rules --


@pytest.mark.parametrize(
    ("speed_up", "verdict"), [(0.4, HOLDS), (0.3, HOLDS), (0.29, IN_PART), (0.0, FAILS), (-0.1, FAILS), (None, FAILS)]
)
def test_faster_is_a_speed_up_of_three_quarters_of_the_papers(speed_up, verdict):
    """40 % in the paper."""
    assert faster(speed_up) == verdict


UP, AROUND, DOWN, ALONE = (Estimate(0, low, high) for low, high in ((1, 3), (-1, 1), (-3, -1), (math.nan, math.nan)))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([UP, UP], HOLDS),
        ([UP, AROUND], IN_PART),
        ([UP, DOWN], IN_PART),
        ([DOWN, AROUND], FAILS),
        ([AROUND, AROUND], UNKNOWN),
        ([ALONE], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_ahead_is_what_the_intervals_of_all_checkpoints_say(differences, verdict):
    """An interval that includes 0, or none, says nothing."""
    assert above_zero(differences) == verdict


# -- figure 5a, earlier --


def test_pre_ln_is_earlier_where_curves_are_the_papers(tmp_path):
    """3 bits at update 500 of 700: a speed-up of 40 %."""
    write_positions(tmp_path)
    claim = claim_of(tmp_path, EARLIER)
    assert claim.verdict == HOLDS and "at update 500, a speed-up of 40 %" in claim.words[0]


def test_pre_ln_is_earlier_in_part_where_post_ln_bears_its_rate_and_ends_lower(tmp_path):
    """The saving against the lower rate alone does not decide."""
    write_positions(tmp_path)
    write_run(tmp_path, straight(10, 0.1), **HIGH_SETTINGS)
    claim = claim_of(tmp_path, EARLIER)
    assert claim.verdict == IN_PART and "does not have that by update 700" in claim.words[1]


def test_a_post_ln_run_that_diverged_does_not_weaken_pre_lns_lead(tmp_path):
    """As in the paper."""
    write_positions(tmp_path)
    write_run(tmp_path, straight(10, 11, 100), **HIGH_SETTINGS, diverged=NANS)
    assert claim_of(tmp_path, EARLIER).verdict == HOLDS


def test_a_loss_that_pre_ln_has_at_its_first_validation_is_told_as_a_bound(tmp_path):
    """It may have had it before update 100 of 700."""
    write_run(tmp_path, straight(10, 3))
    write_run(tmp_path, [(100, 2.9), (700, 0.2)], **PRE_SETTINGS)
    (words,) = claim_of(tmp_path, EARLIER).words
    assert "has that at update at most 100, a speed-up of at least 600 %" in words


def test_nothing_is_measured_against_a_post_ln_run_that_has_not_learned(tmp_path):
    """9.1 bits beside 9.85, though Pre-LN has them at update 500."""
    write_positions(tmp_path, post=9.1, pre=8.74)
    claim = claim_of(tmp_path, EARLIER)
    assert (claim.verdict, claim.lacking) == (UNKNOWN, []) and "speed-up" not in claim.words[0]
    assert "Not far enough below the subwords' frequencies to be measured against: 0.75 bits (Post-LN at lr 1e-4)." in claim.notes


@pytest.mark.parametrize(("name", "more"), [(POST, {}), (PRE, PRE_SETTINGS)])
def test_a_run_under_way_leaves_the_claim_open_and_is_named(tmp_path, name, more):
    """Its loss at update 300 is not its final one."""
    other = {} if more else PRE_SETTINGS
    write_run(tmp_path, straight(10, 3)[:3], done=False, **more)
    write_run(tmp_path, straight(10, 3), **other)
    claim = claim_of(tmp_path, EARLIER)
    assert (claim.verdict, claim.words, claim.lacking) == (UNKNOWN, [], [f"{name} seed 1"])


def test_a_row_of_the_plan_that_is_not_trained_leaves_the_claim_open_and_is_named(tmp_path):
    """Post-LN at Pre-LN's rate may end lower than Pre-LN."""
    write_positions(tmp_path)
    claim = claim_of(tmp_path, EARLIER, PLAN)
    assert (claim.verdict, claim.lacking) == (UNKNOWN, [HIGH])


def test_a_chosen_seed_that_has_not_begun_leaves_the_claim_open_and_is_named(tmp_path):
    """Seed 2 of one of both runs."""
    write_positions(tmp_path)
    pretrainings, finetunings = read(tmp_path)
    claim = claims(pretrainings, levels(finetunings), [], [f"{PRE} seed 2", "another seed 2"])[EARLIER]
    assert (claim.verdict, claim.lacking) == (UNKNOWN, [f"{PRE} seed 2"])


@pytest.mark.parametrize(("seeds", "noted"), [("1", True), ("12", False)])
def test_one_pre_training_seed_is_said_to_have_no_spread(tmp_path, seeds, noted):
    """Two have one."""
    for seed in seeds:
        write_positions(tmp_path, seed=seed)
    assert ("One pre-training seed: no spread known." in claim_of(tmp_path, EARLIER).notes) == noted


# -- figure 5a, divergence --


@pytest.mark.parametrize(
    ("end", "diverged", "verdict"), [(11, NANS, HOLDS), (0.3, "", FAILS), (9.9, "", IN_PART)], ids=["NaN", "trained", "idle"]
)
def test_post_ln_diverges_at_pre_lns_rate_or_does_not(tmp_path, end, diverged, verdict):
    """NaN or Inf; in part: 9.9 bits, no better than the frequencies' 9.85."""
    write_positions(tmp_path)
    write_run(tmp_path, straight(10, end), **HIGH_SETTINGS, diverged=diverged)
    assert claim_of(tmp_path, DIVERGES).verdict == verdict


def test_a_divergence_of_both_positions_is_not_post_lns_alone(tmp_path):
    """In part."""
    write_run(tmp_path, straight(10, 11, 100), **PRE_SETTINGS, diverged=NANS)
    write_run(tmp_path, straight(10, 11, 100), **HIGH_SETTINGS, diverged=NANS)
    assert claim_of(tmp_path, DIVERGES).verdict == IN_PART


def test_post_ln_at_its_own_rate_says_nothing_about_divergence_at_pre_lns(tmp_path):
    """And the run that would is named."""
    write_positions(tmp_path)
    claim = claim_of(tmp_path, DIVERGES, PLAN)
    assert (claim.verdict, claim.words, claim.lacking) == (UNKNOWN, [], [HIGH])


# -- figures 5b and 5c --


def test_pre_ln_is_ahead_where_every_interval_of_the_difference_is_above_zero(tmp_path):
    """2 points at each seed, at both checkpoints."""
    for run, better in zip(write_positions(tmp_path), (0, 2), strict=True):
        for updates in (400, 700):
            write_accuracies(run, "MRPC", updates, [80 + better, 81 + better, 83 + better])
    claim = claim_of(tmp_path, MRPC)
    assert claim.verdict == HOLDS
    assert claim.words[0] == "Pre-LN 83.3 and Post-LN 81.3 after 400 updates, a difference of +2.00 (+2.00 to +2.00)"


def test_a_lead_at_the_majority_class_s_level_is_no_lead(tmp_path):
    """66 and 68 are below the 68.4 of always answering class 1."""
    for run, better in zip(write_positions(tmp_path), (0, 2), strict=True):
        write_accuracies(run, "MRPC", 700, [65 + better, 66 + better, 67 + better])
    claim = claim_of(tmp_path, MRPC)
    assert claim.verdict == UNKNOWN
    assert claim.notes[0] == (
        "After 700 updates the difference says nothing: neither accuracy is better than the majority class's."
    )


def test_fine_tunings_of_a_run_under_way_leave_the_claim_open(tmp_path):
    """Pre-LN waits for the rest of its fine-tunings."""
    post = write_run(tmp_path, straight(10, 3))
    pre = write_run(tmp_path, straight(10, 0.2), **PRE_SETTINGS, done=False, trained=True)
    for run, better in ((post, 0), (pre, 2)):
        write_accuracies(run, "MRPC", 700, [80 + better, 81 + better, 83 + better])
    claim = claim_of(tmp_path, MRPC)
    assert (claim.verdict, claim.words, claim.lacking) == (UNKNOWN, [], [f"{PRE} seed 1"])


def test_a_task_that_no_run_is_of_has_no_claim(tmp_path):
    """Figure 5a alone."""
    write_run(tmp_path, straight(10, 3), figure="5a")
    pretrainings, _ = read(tmp_path)
    assert [claim.figure for claim in claims(pretrainings, [], [])] == ["5a", "5a"]
