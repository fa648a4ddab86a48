"""Tests of fairseq_lnplugin/study/claims.py: what the paper claims of figures 2, 4 and 6, and when our runs bear it out."""

import math
import re

import pytest
from run_folders import PRE_SETTINGS, write_run

from fairseq_lnplugin.study import claims
from fairseq_lnplugin.study.claims import FAILS, HOLDS, IN_PART, UNKNOWN
from fairseq_lnplugin.study.page import claims_section
from fairseq_lnplugin.study.run_folder import read_study
from fairseq_lnplugin.study.significance import Difference

# -- Rules, each at its boundaries --


def around(value):
    """The floats next to a value, below and above."""
    return math.nextafter(value, -math.inf), math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    "bleu, reference, verdict",
    [
        (17.0, 34.0, HOLDS),
        (around(17.0)[1], 34.0, IN_PART),
        (around(33.0)[0], 34.0, IN_PART),
        (33.0, 34.0, FAILS),
        (35.0, 34.0, FAILS),
        (0.0, 5.0, HOLDS),
        (0.0, around(5.0)[0], UNKNOWN),
    ],
)
def test_far_below_is_half(bleu, reference, verdict):
    """At most half holds, more than 1 BLEU below in part; a reference below 5 has not learned."""
    assert claims.far_below(bleu, reference) == verdict


@pytest.mark.parametrize(
    "bleu, verdict",
    [
        (17.0, IN_PART),
        (around(17.0)[1], HOLDS),
        (around(33.0)[0], HOLDS),
        (33.0, FAILS),
        (34.0, FAILS),
    ],
)
def test_a_part_is_more_than_one_bleu_and_less_than_half(bleu, verdict):
    """Beside 34: between 17 and 33 holds, more is lost in part; a loss that seeds of one setting have is none."""
    assert claims.costs_a_part(bleu, 34.0) == verdict


@pytest.mark.parametrize("bleu, verdict", [(8.5, HOLDS), (around(8.5)[1], IN_PART), (around(33.0)[0], IN_PART), (33.0, FAILS)])
def test_nearly_all_leaves_a_quarter(bleu, verdict):
    """Beside 34: at most 8.5 holds (the paper's is 2.77), more than 1 BLEU below in part."""
    assert claims.costs_nearly_all(bleu, 34.0) == verdict


@pytest.mark.parametrize(
    "bleu, verdict", [(40.0, HOLDS), (33.0, HOLDS), (around(33.0)[0], IN_PART), (31.0, IN_PART), (around(31.0)[0], FAILS)]
)
def test_the_same_level_is_not_more_than_one_bleu_below(bleu, verdict):
    """Beside 34: from 33 on holds, being ahead too; from 31 on in part."""
    assert claims.same_level(bleu, 34.0) == verdict


@pytest.mark.parametrize(
    "bleu, verdict",
    [(33.0, HOLDS), (35.0, HOLDS), (around(35.0)[1], IN_PART), (31.0, IN_PART), (37.0, IN_PART), (around(37.0)[1], FAILS)],
)
def test_little_difference_counts_on_both_sides(bleu, verdict):
    """Beside 34: within 1 holds, within 3 in part."""
    assert claims.little_difference(bleu, 34.0) == verdict


@pytest.mark.parametrize(
    "rule, reference, inside, verdicts",
    [
        (claims.same_level, 6.0, 5.4, (HOLDS, IN_PART)),
        (claims.same_level, 6.0, 4.2, (IN_PART, FAILS)),
        (claims.same_level, 10.0, 9.0, (HOLDS, IN_PART)),
        (claims.same_level, 20.0, 17.0, (IN_PART, FAILS)),
        (claims.little_difference, 6.0, 5.4, (HOLDS, IN_PART)),
        (claims.little_difference, 6.0, 4.2, (IN_PART, FAILS)),
        (claims.costs_a_part, 6.0, 5.4, (FAILS, HOLDS)),
        (claims.costs_nearly_all, 6.0, 5.4, (FAILS, IN_PART)),
        (claims.far_below, 6.0, 5.4, (FAILS, IN_PART)),
    ],
)
def test_bounds_shrink_with_a_reference_below_ten_bleu(rule, reference, inside, verdicts):
    """Beside 6 BLEU, 1 and 3 BLEU become 0.6 and 1.8; from 10 on they are whole."""
    assert (rule(inside + 1e-9, reference), rule(inside - 1e-9, reference)) == verdicts


def test_little_difference_is_measured_by_the_larger_score():
    """Whichever run has it: 0.9 BLEU beside 9, not beside 8.1."""
    assert claims.little_difference(9.0, 8.1 + 1e-9) == claims.little_difference(8.1 + 1e-9, 9.0) == HOLDS


@pytest.mark.parametrize("rule", [claims.costs_a_part, claims.costs_nearly_all, claims.same_level])
def test_nothing_is_measured_against_a_run_that_has_not_learned(rule):
    """Below 5 BLEU; the paper's failed runs have 2.77 and 8.45."""
    assert rule(4.0, around(5.0)[0]) == UNKNOWN != rule(4.0, 5.0)


def test_two_runs_that_have_not_learned_are_not_called_alike():
    """0.3 and 0.4 BLEU say nothing about RAdam; one that has learned beside one that has not does."""
    assert claims.little_difference(0.3, 0.4) == UNKNOWN
    assert claims.little_difference(0.3, 5.0) == FAILS


@pytest.mark.parametrize("bleu, verdict", [(1.0, HOLDS), (around(1.0)[1], IN_PART), (around(5.0)[0], IN_PART), (5.0, FAILS)])
def test_just_above_zero_is_one_bleu(bleu, verdict):
    """Up to 1 holds, below 5 in part."""
    assert claims.just_above_zero(bleu) == verdict


@pytest.mark.parametrize("epoch, verdict", [(9, HOLDS), (10, HOLDS), (11, IN_PART), (14, IN_PART), (15, FAILS), (None, FAILS)])
def test_faster_is_two_thirds_of_the_epochs(epoch, verdict):
    """Beside epoch 15: the 10th holds (the paper's is the 9th), any earlier one in part."""
    assert claims.faster(epoch, 15) == verdict


@pytest.mark.parametrize(
    "loss, verdict", [(4.0, HOLDS), (around(4.0)[1], IN_PART), (4.45, IN_PART), (around(4.45)[1], FAILS), (math.inf, FAILS)]
)
def test_a_loss_is_lower_by_a_margin(loss, verdict):
    """Beside 4.5, by 0.5; in part by 0.05, since losses that are closer are alike."""
    assert claims.lower(loss, 4.5, 0.5) == verdict


def test_no_loss_is_lower_than_none():
    """Two runs that diverged before their first validation."""
    assert claims.lower(math.inf, math.inf, 0.5) == FAILS


def test_any_loss_is_lower_than_that_of_a_run_that_diverged_at_once():
    """Which has none."""
    assert claims.lower(9.0, math.inf, 0.5) == HOLDS


@pytest.mark.parametrize(
    "verdicts, verdict",
    [
        ([], UNKNOWN),
        ([HOLDS], HOLDS),
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, FAILS], IN_PART),
        ([HOLDS, IN_PART], IN_PART),
        ([FAILS, FAILS], FAILS),
        ([HOLDS, UNKNOWN], UNKNOWN),
    ],
)
def test_a_statement_of_several_parts_needs_all_of_them(verdicts, verdict):
    """One unknown part leaves it open; parts that disagree make it hold in part."""
    assert claims.every(verdicts) == verdict


def test_comparisons_that_repeat_one_another_need_one():
    """At a second learning rate that has not been run yet."""
    assert claims.either([UNKNOWN, HOLDS]) == HOLDS and claims.either([UNKNOWN]) == claims.either([]) == UNKNOWN


# -- Claims about runs --

COLD = {"schedule": "no_warmup", "warmup_updates": "", "decay": "none"}


def make(root, name, bleu, lr="5e-4", loss=5.0, losses=None, **more):
    """A finished run with this BLEU; ``losses``: of each epoch, the last one the best."""
    losses = losses or [9.0, loss]
    epochs = [(value, value - 1, 1.0, bleu if value == losses[-1] else None) for value in losses]
    write_run(root, epochs=epochs, run=f"iwslt14-{name}", lr=lr, **more)


def judged(root, plan=(), to_go=()):
    """The claims about all runs of a folder, by the first words of their statement."""
    found = claims.claims(claims.Evidence(read_study(root), list(plan), to_go))
    return {claim.statement.split(":")[0]: claim for claim in found}


NEEDS, LENGTH, SGD = (
    "Post-LN with Adam needs a warm-up",
    "Post-LN depends on the length of the warm-up",
    "SGD does not replace Adam",
)
LEVEL = "Pre-LN without warm-up reaches the level of Post-LN with warm-up."
FASTER = "Pre-LN without warm-up converges faster than Post-LN with it."
RADAM = "RAdam trains Post-LN without warm-up, to the level of Adam with warm-up."
RADAM_PRE = "On Pre-LN, RAdam makes little difference to Adam."
LOW = claims.LOW_RATE


def paper(root):
    """The paper's figures 2, 4 and 6 with its own numbers."""
    make(root, "post-warm", 34, loss=4.0, losses=[9.0] * 13 + [4.1, 4.0])
    make(root, "post-cold1", 8.45, losses=[9.0] * 14 + [8.0], warmup_updates="1")
    make(root, "post-cold2", 8.0, losses=[9.0] * 14 + [8.0], **COLD)
    make(root, "post-short", 31.16, warmup_updates="125")
    make(root, "post-warm-high", 34, lr="1e-3")
    make(root, "post-short-high", 2.77, lr="1e-3", warmup_updates="125")
    make(root, "sgd-warm", 12, lr="5e-3", optimizer="sgd")
    make(root, "sgd-cold", 0.4, lr="5e-3", optimizer="sgd", **COLD)
    pre = {**PRE_SETTINGS, "figure": "4"}
    del pre["run"]
    make(root, "pre", 34.1, losses=[9.0] * 8 + [4.0, 3.9], **pre)
    make(root, "radam", 33.5, optimizer="radam", **{**COLD, "decay": "linear"})
    make(root, "pre-radam", 34.4, ln_position="pre", optimizer="radam", **{**COLD, "decay": "linear"})
    make(root, "post-low", 25, lr="1e-4", losses=[8.5] * 14 + [5.0] * 12 + [4.3], **COLD)


def test_the_papers_own_numbers_bear_out_all_its_claims(tmp_path):
    """The rules would be wrong otherwise."""
    paper(tmp_path)
    found = judged(tmp_path)
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(
        (NEEDS, LENGTH, SGD, LEVEL, FASTER, RADAM, RADAM_PRE, LOW), HOLDS
    )
    assert [claim.figure for claim in found.values()] == ["2", "2", "2", "4", "4", "4", "4", "6"]


def test_a_claim_names_our_numbers_and_the_runs_to_test(tmp_path):
    """Of both readings of no warm-up, at the rate that both runs have."""
    paper(tmp_path)
    claim = judged(tmp_path)[NEEDS]
    assert claim.words == ["post-cold1 8.45 against post-warm 34.00", "post-cold2 8.00 against post-warm 34.00"]
    assert claim.pairs == [("iwslt14-post-cold1", "iwslt14-post-warm"), ("iwslt14-post-cold2", "iwslt14-post-warm")]


def test_speed_is_told_in_epochs(tmp_path):
    """Post-LN's best loss is in epoch 15, and Pre-LN is there in epoch 9."""
    paper(tmp_path)
    assert judged(tmp_path)[FASTER].words == ["post-warm has its best loss, 4.000, in epoch 15; pre reaches it in epoch 9"]


def test_a_run_that_never_gets_there_is_not_faster(tmp_path):
    """Pre-LN's loss stays above."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 4.0])
    make(tmp_path, "pre", 30, losses=[8.0, 5.0], ln_position="pre", **COLD)
    claim = judged(tmp_path)[FASTER]
    assert claim.verdict == FAILS and claim.words[0].endswith("pre has not reached it by epoch 2")


def test_a_run_that_diverged_at_once_is_not_faster(tmp_path):
    """Pre-LN is not expected to."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 4.0])
    write_run(tmp_path, run="iwslt14-pre", epochs=[], diverged="51\tNan\n", ln_position="pre", **COLD)
    claim = judged(tmp_path)[FASTER]
    assert claim.verdict == FAILS and claim.words[0].endswith("pre has not reached it by epoch 0")


def test_a_run_that_diverged_before_any_score_counts_as_zero(tmp_path):
    """Post-LN without warm-up may end in NaN, which bears the claim out."""
    make(tmp_path, "post-warm", 34)
    write_run(tmp_path, run="iwslt14-post-cold", epochs=[], diverged="51\tNan\n", **COLD)
    claim = judged(tmp_path)[NEEDS]
    assert (claim.verdict, claim.words) == (HOLDS, ["post-cold diverged before any score against post-warm 34.00"])


def test_means_over_seeds_decide_with_their_interval_in_the_words(tmp_path):
    """BLEU 16, 17, 18 has mean 17, half of 34; the interval is 17 +- 4.30265 / sqrt(3)."""
    make(tmp_path, "post-warm", 34)
    for seed, bleu in enumerate((16, 17, 18), 1):
        make(tmp_path, "post-cold", bleu, seed=seed, **COLD)
    claim = judged(tmp_path)[NEEDS]
    assert (claim.verdict, claim.words) == (HOLDS, ["post-cold 17.00 (14.52 to 19.48) over 3 seeds against post-warm 34.00"])


def test_seeds_that_diverged_count_as_zero_beside_those_that_did_not(tmp_path):
    """30, 0 and 0 are 10 BLEU on average, and the words say how many diverged."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 30, **COLD)
    for seed in (2, 3):
        write_run(tmp_path, run="iwslt14-post-cold", seed=seed, epochs=[], diverged="51\tNan\n", **COLD)
    claim = judged(tmp_path)[NEEDS]
    assert claim.verdict == HOLDS
    assert re.fullmatch(r"post-cold 10\.00 \(.*\) over 3 seeds, 2 of them diverged against post-warm 34\.00", claim.words[0])


def test_a_run_that_diverged_after_a_score_says_so(tmp_path):
    """The score of its best epoch counts."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 3, diverged="251\tNan\n", **COLD)
    assert judged(tmp_path)[NEEDS].words == ["post-cold 3.00 diverged against post-warm 34.00"]


def test_a_study_that_cannot_speak_to_a_claim_does_not_have_it(tmp_path):
    """The quick start's three runs: no SGD, no RAdam, no second length."""
    make(tmp_path, "post-warm", 20)
    make(tmp_path, "post-cold", 3, **COLD)
    make(tmp_path, "pre", 20, ln_position="pre", **COLD)
    assert list(judged(tmp_path)) == [NEEDS, LEVEL, FASTER]


def test_a_run_not_finished_decides_nothing_and_is_named(tmp_path):
    """Its best epoch may still come."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 3, done=False, **COLD)
    claim = judged(tmp_path)[NEEDS]
    assert (claim.verdict, claim.words, claim.lacking) == (UNKNOWN, [], ["iwslt14-post-cold"])


def test_settings_that_are_no_numbers_decide_nothing(tmp_path):
    """A list of rates, one an epoch, is allowed by fairseq."""
    make(tmp_path, "post-warm", 34, lr="5e-4,1e-4")
    make(tmp_path, "post-cold", 3, lr="5e-4,1e-4", **COLD)
    assert judged(tmp_path)[NEEDS].verdict == UNKNOWN


def test_what_nobody_has_planned_is_named_in_words(tmp_path):
    """There is no row for the run that Pre-LN is measured against."""
    make(tmp_path, "pre", 20, ln_position="pre", **COLD)
    assert judged(tmp_path)[LEVEL].lacking == ["Post-LN, Adam, with warm-up at lr 0.0005"]


def row(name, warmup="4000", **more):
    """A row of a plan."""
    return {
        **{"study": "iwslt14", "figure": "2", "run": f"iwslt14-{name}", "ln_position": "post", "optimizer": "adam"},
        **{"lr": "5e-4", "schedule": "warmup_inverse_sqrt", "warmup_updates": warmup, "decay": ""},
        **more,
    }


def test_rows_of_the_plan_that_are_not_run_are_named(tmp_path):
    """The claim holds at one rate, and the other is not known yet."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 3, warmup_updates="1")
    claim = judged(tmp_path, [row("post-warm"), row("post-cold", "1"), row("post-cold-high", "1", lr="1e-3")])[NEEDS]
    assert claim.verdict == HOLDS
    assert claim.lacking == ["iwslt14-post-cold-high", "Post-LN, Adam, with warm-up at lr 0.001"]


def test_the_plan_tells_a_short_warm_up_from_a_scaled_one(tmp_path):
    """The run has 125 updates where the paper has 500, and there is no other run yet."""
    make(tmp_path, "post-short", 3, warmup_updates="125")
    make(tmp_path, "pre", 20, ln_position="pre", **COLD)
    plan = [row("post-warm"), row("post-short", "500"), row("pre", "", ln_position="pre", schedule="no_warmup")]
    found = judged(tmp_path, plan)
    assert found[LENGTH].verdict == found[LEVEL].verdict == UNKNOWN
    assert found[LEVEL].lacking == ["iwslt14-post-warm"] and "iwslt14-post-warm" in found[LENGTH].lacking


def test_the_length_of_the_warm_up_is_judged_at_two_rates(tmp_path):
    """The paper's two numbers are at 5e-4 and at 1e-3; one of them is half of the claim."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-short", 31, warmup_updates="125")
    claim = judged(tmp_path)[LENGTH]
    assert claim.verdict == UNKNOWN and claim.lacking == ["Post-LN, Adam, with short warm-up at a higher rate"]


def test_a_claim_that_half_of_the_runs_bear_out_holds_in_part(tmp_path):
    """SGD is far below Adam, but not just above zero."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "sgd-warm", 12, lr="5e-3", optimizer="sgd")
    make(tmp_path, "sgd-cold", 6, lr="5e-3", optimizer="sgd", **COLD)
    assert judged(tmp_path)[SGD].verdict == IN_PART


def test_a_short_warm_up_that_costs_the_same_at_both_rates_is_half_of_the_claim(tmp_path):
    """Half is kept at each: more than a part at the low rate, and not nearly all at the high one."""
    for rate in ("5e-4", "1e-3"):
        make(tmp_path, f"warm-{rate}", 34, lr=rate)
        make(tmp_path, f"short-{rate}", 16.5, lr=rate, warmup_updates="125")
    assert judged(tmp_path)[LENGTH].verdict == IN_PART


def test_losses_are_compared_in_the_epochs_that_both_runs_have(tmp_path):
    """The low rate has 4.3 only in an epoch that the others never had: until then it is behind."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 4.0])
    make(tmp_path, "post-cold", 3, losses=[9.0, 7.0], **COLD)
    make(tmp_path, "post-low", 3, lr="1e-4", losses=[9.0, 8.0, 4.3], **COLD)
    claim = judged(tmp_path)[LOW]
    assert claim.verdict == IN_PART and claim.words == [
        "best validation loss of 2 epochs: post-low 8.000, post-cold 7.000, post-warm 4.000; "
        "of all its 3 epochs post-low has 4.300",
        "post-low is not below post-cold by 0.05 (does not hold here)",
    ]


def test_the_low_rate_is_judged_beside_each_run_without_warm_up(tmp_path):
    """Far better than one of them, and not than the other."""
    make(tmp_path, "post-warm", 34, loss=4.0)
    make(tmp_path, "post-cold1", 3, loss=8.0, warmup_updates="1")
    make(tmp_path, "post-cold2", 3, loss=4.5, **COLD)
    make(tmp_path, "post-low", 3, lr="1e-4", loss=4.3, **COLD)
    claim = judged(tmp_path)[LOW]
    assert (claim.verdict, set(claim.curves)) == (
        *(IN_PART, {f"iwslt14-{name}" for name in ("post-low", "post-cold1", "post-cold2", "post-warm")}),
    )


def test_a_run_that_diverged_is_set_against_all_of_the_low_rates_epochs(tmp_path):
    """Its loss after one epoch is its last word: 8, against the 4.3 of epoch 3."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 5.0, 4.0])
    make(tmp_path, "post-cold", 3, losses=[8.0], diverged="151\tNan\n", **COLD)
    make(tmp_path, "post-low", 3, lr="1e-4", losses=[9.0, 8.5, 4.3], **COLD)
    assert judged(tmp_path)[LOW].verdict == HOLDS


def test_a_seed_that_diverged_does_not_cut_the_curve_of_the_others(tmp_path):
    """Post-LN's second seed ends after 2 of 6 epochs; its best loss is still that of epoch 6."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    make(tmp_path, "post-warm", 34, losses=[9.0, 8.5], seed=2, diverged="251\tNan\n")
    make(tmp_path, "pre", 34, losses=[8.0, 7.5, 4.5, 4.0], ln_position="pre", **COLD)
    claim = judged(tmp_path)[FASTER]
    assert claim.words == ["post-warm has its best loss, 4.000, in epoch 6; pre reaches it in epoch 4"]


def test_a_seed_that_diverged_does_not_lengthen_the_comparison(tmp_path):
    """The other seed without warm-up has 2 epochs, and the low rate is behind it there."""
    make(tmp_path, "post-warm", 34, losses=[9.0, 4.0])
    make(tmp_path, "post-cold", 3, losses=[9.0, 7.0], **COLD)
    write_run(tmp_path, run="iwslt14-post-cold", seed=2, epochs=[], diverged="51\tNan\n", **COLD)
    make(tmp_path, "post-low", 3, lr="1e-4", losses=[9.0, 8.0, 4.3], **COLD)
    assert judged(tmp_path)[LOW].verdict == IN_PART


def test_a_low_rate_without_a_gain_is_half_of_the_last_claim(tmp_path):
    """Worse than with warm-up it is, but not better than a large rate."""
    make(tmp_path, "post-warm", 34, loss=4.0)
    make(tmp_path, "post-cold", 3, loss=4.3, **COLD)
    make(tmp_path, "post-low", 3, lr="1e-4", loss=4.3, **COLD)
    assert judged(tmp_path)[LOW].verdict == IN_PART


def test_the_papers_words_are_those_on_the_studys_corpus(tmp_path):
    """WMT14 has its own; other data are set beside IWSLT14's."""
    for data, words in (("wmt14-en-de", "on WMT14: the same level at both rates"), ("mine", "on IWSLT14: both about 34 BLEU")):
        make(tmp_path / data, "post-warm", 34, data=data)
        make(tmp_path / data, "pre", 34, data=data, ln_position="pre", **COLD)
        assert judged(tmp_path / data)[LEVEL].paper == words


def test_a_reference_close_to_the_bound_is_named(tmp_path):
    """5.5 is within 1 of the 5 BLEU below which nothing is measured, 34 is not."""
    make(tmp_path, "post-warm", 5.5)
    make(tmp_path, "post-warm-high", 34, lr="1e-3")
    make(tmp_path, "post-cold", 5.5, **COLD)
    assert claims.near_bound(claims.Evidence(read_study(tmp_path), [])) == ["post-warm (5.50)"]


def test_a_reference_close_to_the_bound_is_said_to_be_no_firm_one(tmp_path):
    """Below the paragraphs of the claims; not where all are far from it."""
    texts = []
    for bleu in (5.5, 34):
        make(tmp_path / f"{bleu}", "post-warm", bleu)
        make(tmp_path / f"{bleu}", "post-cold", 1, **COLD)
        texts.append(claims_section(read_study(tmp_path / f"{bleu}"), [], [judged(tmp_path / f"{bleu}")[NEEDS]], []))
    assert "\n\nWithin 1 BLEU of the 5 below which nothing is measured against a run" in texts[0]
    assert "is not firm: post-warm (5.50).\n\n" in texts[0] and "Within 1 BLEU of" not in texts[1]


@pytest.mark.parametrize("name", [NEEDS, FASTER, LOW])
def test_a_study_that_has_not_learned_anything_says_nothing(tmp_path, name):
    """As the smoke preset: every score is near 0."""
    make(tmp_path, "post-warm", 0.3, loss=4.0)
    make(tmp_path, "post-cold", 0.1, loss=8.0, **COLD)
    make(tmp_path, "pre", 0.4, ln_position="pre", **COLD)
    make(tmp_path, "post-low", 0.3, lr="1e-4", loss=4.3, **COLD)
    assert judged(tmp_path)[name].verdict == UNKNOWN


def test_runs_of_another_experiment_are_left_out(tmp_path):
    """One with dropout 0.3 among runs with 0.1 is not measured against them."""
    make(tmp_path, "post-warm", 20)
    make(tmp_path, "post-cold", 3, **COLD)
    make(tmp_path, "post-warm-dropout", 34, dropout="0.3")
    claim = judged(tmp_path)[NEEDS]
    assert claim.pairs == [("iwslt14-post-cold", "iwslt14-post-warm")]
    runs = read_study(tmp_path)
    assert "are not those of most runs: iwslt14-post-warm-dropout seed 1." in claims_section(runs, [], [claim], [])


def test_a_seed_of_another_experiment_is_not_in_the_mean(tmp_path):
    """Seed 2 was trained on other data, and has twice the score."""
    make(tmp_path, "post-warm", 20)
    make(tmp_path, "post-warm", 40, seed=2, pairs="160239")
    make(tmp_path, "post-cold", 3, **COLD)
    assert judged(tmp_path)[NEEDS].words == ["post-cold 3.00 against post-warm 20.00"]


@pytest.mark.parametrize("name", [LEVEL, FASTER])
def test_runs_of_different_lengths_are_not_compared(tmp_path, name):
    """Pre-LN had a third of the epochs, by MAX_EPOCH; more of them might have been enough."""
    make(tmp_path, "post-warm", 20, max_epoch="15")
    make(tmp_path, "pre", 3, ln_position="pre", max_epoch="5", **COLD)
    claim = judged(tmp_path)[name]
    assert (claim.verdict, claim.words) == (UNKNOWN, ["pre and post-warm have different lengths, and are not compared"])


def test_seeds_that_say_the_opposite_make_a_claim_hold_in_part(tmp_path):
    """Their mean of 16.5 is far below 34, but one of two seeds has its level."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 33.5, **COLD)
    make(tmp_path, "post-cold", 0, seed=2, **COLD)
    assert judged(tmp_path)[NEEDS].verdict == IN_PART


@pytest.mark.parametrize("missing", ["post-cold seed 3", "post-warm seed 3"])
def test_a_verdict_before_all_chosen_seeds_have_begun_is_one_so_far(tmp_path, missing):
    """Of either run."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 3, **COLD)
    claim = judged(tmp_path, to_go=[f"iwslt14-{missing}", "iwslt14-another seed 1"])[NEEDS]
    assert claim.lacking == [f"iwslt14-{missing}"]


def test_a_verdict_before_a_begun_seed_has_ended_is_one_so_far(tmp_path):
    """Seed 2 trains."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-warm", 34, seed=2, done=False)
    make(tmp_path, "post-cold", 3, **COLD)
    assert judged(tmp_path)[NEEDS].lacking == ["iwslt14-post-warm seed 2"]


# -- Their paragraphs --


def paragraph(claim, tests=(), root=None):
    """The claim's paragraph."""
    return claims_section(read_study(root), [], [claim], list(tests)).split("\n\n")[2]


def test_a_paragraph_has_verdict_claim_numbers_and_p_values(tmp_path):
    """In this order; a test without a p-value does not count."""
    paper(tmp_path)
    claim = judged(tmp_path)[NEEDS]
    tests = [
        Difference(*claim.pairs[0], 1, 8.45, 34.0, 0.001, "signature"),
        Difference(*claim.pairs[1], 1, 8.0, 34.0, 0.25, "signature"),
        Difference(*claim.pairs[1], 2, None, None, None, None, "no translations"),
        Difference("another", "pair", 1, 1.0, 2.0, 0.5, "signature"),
    ]
    assert paragraph(claim, tests, tmp_path) == (
        "**Holds.** *Figure 2.* Post-LN with Adam needs a warm-up: without, it stays far below. The paper on IWSLT14: about 34 "
        "BLEU with it, 8.45 at best without. Ours: post-cold1 8.45 against post-warm 34.00; post-cold2 8.00 against post-warm "
        "34.00. By chance in the test sentences, the differences of -26.00 to -25.55 between runs of one seed: p up to 0.250 "
        "(2 tests)."
    )


def test_the_least_p_value_that_the_test_can_say_is_a_bound(tmp_path):
    """1,000 samples cannot say less than 1/1,001."""
    paper(tmp_path)
    claim = judged(tmp_path)[NEEDS]
    tests = [Difference(*pair, 1, 8.0, 34.0, 1 / 1001, "signature") for pair in claim.pairs]
    assert paragraph(claim, tests, tmp_path).endswith("-26.00 between runs of one seed: p \u2264 0.001 (2 tests).")


def test_what_cannot_be_said_has_no_p_value(tmp_path):
    """Two runs that have not learned may well differ."""
    make(tmp_path, "post-warm", 0.3)
    make(tmp_path, "post-cold", 0.1, **COLD)
    claim = judged(tmp_path)[NEEDS]
    assert "by chance" not in paragraph(claim, [Difference(*claim.pairs[0], 1, 0.1, 0.3, 0.001, "signature")], tmp_path)


def test_a_paragraph_says_why_nothing_can_be_said(tmp_path):
    """A run that is not there, or one that has not learned."""
    make(tmp_path, "pre", 0.4, ln_position="pre", **COLD)
    assert "**Cannot be said yet.**" in paragraph(judged(tmp_path)[LEVEL], root=tmp_path)
    assert "Not finished or not run: Post-LN, Adam, with warm-up" in paragraph(judged(tmp_path)[LEVEL], root=tmp_path)
    make(tmp_path, "post-warm", 0.3)
    words = paragraph(judged(tmp_path)[LEVEL], root=tmp_path)
    assert "**Cannot be said here.**" in words and "What it is measured against is below 5 BLEU, and has not learned" in words


def test_the_difference_of_one_test_has_its_sign_and_seed(tmp_path):
    """It is of one seed, where the words above may be means over several."""
    paper(tmp_path)
    claim = judged(tmp_path)[NEEDS]
    words = paragraph(claim, [Difference(*claim.pairs[0], 2, 8.45, 34.0, 0.04, "signature")], tmp_path)
    assert words.endswith("the difference of -25.55 in seed 2: p = 0.040 (1 test).")


def test_where_comparisons_disagree_each_has_its_verdict(tmp_path):
    """One holds and one does not; with one verdict for both there is nothing to add."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold1", 3, **COLD)
    make(tmp_path, "post-cold2", 4, warmup_updates="1")
    assert not any("holds" in words for words in judged(tmp_path)[NEEDS].words)
    make(tmp_path, "post-cold3", 33.5, decay="step", **{name: value for name, value in COLD.items() if name != "decay"})
    said = [words.rpartition(" (")[2] for words in judged(tmp_path)[NEEDS].words]
    assert sorted(said) == ["does not hold here)", "holds)", "holds)"]


def test_a_comparison_with_a_run_that_has_not_learned_is_marked_as_not_counted(tmp_path):
    """At the lower rate the reference has 4.9 BLEU; the verdict is of the higher."""
    make(tmp_path, "post-warm-low", 4.9, lr="5e-4")
    make(tmp_path, "post-cold-low", 1.0, lr="5e-4", warmup_updates="1")
    make(tmp_path, "post-warm-high", 34, lr="1e-3")
    make(tmp_path, "post-cold-high", 3, lr="1e-3", warmup_updates="1")
    claim = judged(tmp_path)[NEEDS]
    assert claim.verdict == HOLDS
    assert [words.endswith("(not counted: below 5 BLEU)") for words in claim.words] == [True, False]


def test_a_verdict_before_all_is_there_is_one_so_far(tmp_path):
    """One of the runs without warm-up has not ended."""
    paper(tmp_path)
    make(tmp_path, "post-cold3", 1.0, done=False, **COLD)
    assert "**Holds so far.**" in paragraph(judged(tmp_path)[NEEDS], root=tmp_path)


def test_an_interval_of_bleu_ends_at_zero(tmp_path):
    """0.89 and 1.06 have a t-interval from -0.11 on."""
    make(tmp_path, "post-warm", 34)
    make(tmp_path, "post-cold", 0.89, **COLD)
    make(tmp_path, "post-cold", 1.06, seed=2, **COLD)
    assert "0.98 (0.00 to 2.06) over 2 seeds" in judged(tmp_path)[NEEDS].words[0]
