"""fairseq_lnplugin/analysis/gradient_claims.py: what the paper says of figure 3, and what planted measurements say of it."""

import math

import pytest
from gradient_records import record

from fairseq_lnplugin.analysis import gradient_claims, gradient_tables
from fairseq_lnplugin.study.claims import FAILS, HOLDS, IN_PART, UNKNOWN
from fairseq_lnplugin.study.intervals import Estimate

SEEDS = (1, 2, 3)
GROW, FLAT, SMALL, FALLS, STAYS, BOUNDED = "grow from layer", "flat", "very small", "falls", "stays at about 1.6", "bounded"


def findings(records, statement):
    """The findings of the one claim whose statement holds these words."""
    (claim,) = (claim for claim in gradient_claims.claims(gradient_tables.grouped(records)) if statement in claim.statement)
    return claim.findings


def verdict(records, statement):
    """The one verdict of a claim."""
    (finding,) = findings(records, statement)
    return finding.verdict


def growing(position, *factors):
    """A seed for each factor a layer, in both stacks; a pair is (encoder, decoder)."""
    pairs = [factor if isinstance(factor, tuple) else (factor, factor) for factor in factors]
    return [
        record(6, position, seed, lambda stack, layer, pair=pair: (pair[0] if stack == "encoder" else pair[1]) ** layer)
        for seed, pair in enumerate(pairs)
    ]


def at_depths(position, norm, seeds=SEEDS):
    """Measurements at the paper's depths; ``norm``: a function of the number of layers."""
    return [record(layers, position, seed, norm(layers) * (1 + 1e-3 * seed)) for layers in (6, 8, 10, 12, 14) for seed in seeds]


# -- Rules --


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.2, 0.8), HOLDS), ((0.0, 1.0), HOLDS), ((-0.1, 0.5), UNKNOWN), ((1.1, 1.2), FAILS), ((math.nan, math.nan), UNKNOWN)],
)
def test_a_whole_interval_decides(ends, expected):
    """Inside holds, outside does not, across an end or without an interval nothing can be said."""
    assert gradient_claims.verdict(Estimate(0.5, *ends), 0.0, 1.0) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, FAILS), IN_PART),
        ((HOLDS, UNKNOWN), IN_PART),
        ((FAILS, UNKNOWN), FAILS),
        ((UNKNOWN, UNKNOWN), UNKNOWN),
    ],
)
def test_a_claim_about_several_numbers_holds_for_all_or_in_part(verdicts, expected):
    """One that holds nowhere and fails somewhere does not hold."""
    assert gradient_claims.together(verdicts) == expected


# -- Figure 3 (a, b) --


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((1.2, 1.21, 1.22), HOLDS),
        ((1.0, 1.01, 1.02), FAILS),
        ((0.8, 0.81, 0.82), FAILS),
        (((0.95, 1.2), (0.94, 1.21), (0.95, 1.22)), IN_PART),
        ((1.02, 1.06, 1.1), UNKNOWN),
        ((1.2,), UNKNOWN),
    ],
)
def test_post_ln_grows_with_a_factor_above_5_per_cent(factors, expected):
    """In both stacks; in part where one falls."""
    assert verdict(growing("post", *factors), GROW) == expected


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((1.0, 1.01, 1.02), HOLDS),
        ((0.96, 0.961, 0.962), HOLDS),
        ((1.2, 1.21, 1.22), FAILS),
        ((0.88, 0.882, 0.884), FAILS),
        (((1.0, 0.9), (1.01, 0.9), (1.0, 0.9)), IN_PART),
    ],
)
def test_pre_ln_is_flat_within_5_per_cent(factors, expected):
    """A factor of 0.882 beside "flat" is not flat."""
    assert verdict(growing("pre", *factors), FLAT) == expected


def test_each_init_has_a_finding_of_its_own():
    """One that falls does not hide behind one that grows."""
    other = [record(6, "post", seed, lambda stack, layer: 0.9**layer, weight_init="fairseq") for seed in SEEDS]
    found = findings(growing("post", 1.2, 1.21, 1.22) + other, GROW)
    assert [(finding.subject[:9], finding.verdict) for finding in found] == [("`xavier_u", HOLDS), ("`fairseq`", FAILS)]


@pytest.mark.parametrize(("last", "expected"), [(0.1, HOLDS), (0.5, IN_PART)])
def test_after_warm_up_every_layer_counts(last, expected):
    """A jump in one layer of six, from 0.1 of its norm before training to 0.5."""
    before = [record(6, "post", seed, 2.0) for seed in SEEDS]
    after = [
        record(6, "post", seed, lambda stack, layer: 2 * (last if layer == 6 else 0.1), checkpoint="c" * 16) for seed in SEEDS
    ]
    assert verdict(before + after, SMALL) == expected


def test_a_checkpoint_without_its_model_before_training_makes_no_claim():
    """There is nothing that it could be small beside."""
    groups = gradient_tables.grouped([record(6, "post", seed, 0.1, checkpoint="c" * 16) for seed in SEEDS])
    assert gradient_claims.claims(groups) == []


# -- Figure 3 (c, d) --


@pytest.mark.parametrize(("power", "expected"), [(-0.5, HOLDS), (-0.2, HOLDS), (0.0, FAILS), (0.5, FAILS)])
def test_pre_ln_falls_with_an_exponent_below_a_tenth(power, expected):
    """Norm = L^power."""
    assert verdict(at_depths("pre", lambda layers: layers**power), FALLS) == expected


@pytest.mark.parametrize(("power", "word"), [(-0.5, "inside"), (-0.4, "outside")])
def test_theorem_1s_exponent_is_inside_the_interval_or_not(power, word):
    """Three seeds of nearly one exponent."""
    records = [
        record(layers, "pre", seed, layers ** (power + 0.01 * (seed - 2))) for layers in (6, 8, 10, 12, 14) for seed in SEEDS
    ]
    (finding,) = findings(records, FALLS)
    assert f"theorem 1's -0.5 is {word} its interval" in finding.words


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (lambda layers: 1.6, HOLDS),
        (lambda layers: 1.25, IN_PART),
        (lambda layers: 1.6 * (layers / 9) ** -0.5, IN_PART),
        (lambda layers: 0.8 * (layers / 9) ** -0.5, FAILS),
    ],
    ids=["at 1.6", "stays elsewhere", "falls around 1.6", "neither"],
)
def test_post_ln_stays_and_is_about_1_6(norm, expected):
    """Two things are said: no depth in it, and the number."""
    assert verdict(at_depths("post", norm), STAYS) == expected


def test_the_words_say_how_far_post_ln_is_from_the_papers_figure():
    """1.2 is 25 % below about 1.6."""
    (finding,) = findings([record(6, "post", 1, 1.2)], STAYS)
    assert "-25 % away from 1.6" in finding.words


# -- Hidden states --


@pytest.mark.parametrize(
    ("worst", "expected"), [((0.12, 0.12, 0.12), HOLDS), ((0.17, 0.18, 0.175), FAILS), ((0.06, 0.09, 0.175), UNKNOWN)]
)
def test_the_worst_layer_decides_whether_hidden_states_are_bounded(worst, expected):
    """One of twelve layers beyond 0.125, the mean over layers far below it."""
    records = [
        record(6, "pre", seed, 1.0, delta=lambda stack, layer, delta=delta: delta if (stack, layer) == ("decoder", 2) else 0.05)
        for seed, delta in zip(SEEDS, worst, strict=True)
    ]
    assert verdict(records, BOUNDED) == expected
    assert gradient_claims.bounded(records)[0] == ("decoder", 2)


def test_a_checkpoint_whose_training_is_not_known_is_not_judged():
    """A record of an older version."""
    trained = [record(6, "post", seed, 0.1, checkpoint="c" * 16) for seed in SEEDS]
    for one in trained:
        del one["unit"]["checkpoint"]["training"]
    before = [record(6, "post", seed, 2.0) for seed in SEEDS]
    assert gradient_claims.after_warmup(gradient_tables.grouped([*before, *trained])) == []


@pytest.mark.parametrize("warmup", [None, 1, 4001])
def test_a_checkpoint_that_is_not_past_its_warm_up_is_not_judged_as_such(warmup):
    """Trained without one, or for less than it; the checkpoint is of update 4000."""
    training = {"warmup_updates": warmup}
    trained = [record(6, "post", seed, 0.1, checkpoint="c" * 16, training=training) for seed in SEEDS]
    before = [record(6, "post", seed, 2.0) for seed in SEEDS]
    assert gradient_claims.after_warmup(gradient_tables.grouped([*before, *trained])) == []
