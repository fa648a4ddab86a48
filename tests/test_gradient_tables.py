"""fairseq_lnplugin/analysis/gradient_tables.py: from the measurements of figure 3 to numbers with their intervals."""

import math

import pytest
from gradient_records import record

from fairseq_lnplugin.analysis import gradient_tables
from fairseq_lnplugin.study import intervals


def of_slope(seed, slope, intercept=1.0, layers=6):
    """A measurement whose norms grow by ``slope`` a layer, in logarithms."""
    return record(layers, "post", seed, lambda stack, layer: intercept * math.exp(slope * layer))


def pre_exponent(records):
    """The :class:`gradient_tables.Exponent` of Pre-LN's expected gradient."""
    return gradient_tables.depth_exponents(gradient_tables.grouped(records))["xavier_uniform", "pre", "expected_gradient"]


def test_an_exact_law_in_depth_gives_its_exponent():
    """Norms of L^(-1/2)."""
    records = [record(layers, "pre", seed, layers**-0.5) for layers in (6, 8, 14) for seed in (1, 2)]
    exponent, seeds = gradient_tables.depth_exponents(gradient_tables.grouped(records))[
        "xavier_uniform", "pre", "expected_gradient"
    ]
    assert exponent.value == pytest.approx(-0.5) and seeds == 2


def test_an_exponents_interval_is_that_of_the_seeds_own_exponents():
    """Exponents -0.6, -0.5 and -0.4: Student's interval of three values, however many depths there are."""
    records = [
        record(layers, "pre", seed, layers**-power) for layers in range(6, 30) for seed, power in enumerate((0.6, 0.5, 0.4))
    ]
    exponent, _ = pre_exponent(records)
    half = 4.30265 * 0.1 / 3**0.5
    assert exponent == pytest.approx((-0.5, -0.5 - half, -0.5 + half), abs=1e-4)


def test_a_seed_that_lacks_a_depth_has_no_exponent():
    """Its line would be over other depths than the others'."""
    records = [record(layers, "pre", 1, layers**-0.5) for layers in (6, 8)] + [record(6, "pre", 2, 9.0)]
    exponent, seeds = gradient_tables.depth_exponents(gradient_tables.grouped(records))[
        "xavier_uniform", "pre", "expected_gradient"
    ]
    assert exponent.value == pytest.approx(-0.5) and seeds == 1


def test_a_factors_interval_is_that_of_the_seeds_own_factors():
    """Seeds that differ in slope by 0.1: a line through all points would take layers for independent values."""
    records = [of_slope(seed, slope) for seed, slope in enumerate((0.1, 0.2, 0.3))]
    half = 4.30265 * 0.1 / 3**0.5
    factor = gradient_tables.layer_factor(records, "decoder", "fc1.weight")
    assert factor == pytest.approx([math.exp(end) for end in (0.2, 0.2 - half, 0.2 + half)], abs=1e-4)


def test_the_level_of_a_seed_does_not_widen_its_factor():
    """The same slope at three levels."""
    records = [of_slope(seed, 0.2, intercept) for seed, intercept in enumerate((1.0, 5.0, 25.0))]
    assert gradient_tables.layer_factor(records, "encoder", "fc2.weight") == pytest.approx([math.exp(0.2)] * 3)


def test_a_stack_of_one_layer_has_no_factor():
    """A slope needs two."""
    assert gradient_tables.layer_factor([of_slope(1, 0.2, layers=1)], "encoder", "fc2.weight") is None


def test_checkpoints_of_as_many_updates_are_no_seeds_of_one_another():
    """Two hashes, two groups."""
    records = [record(2, "post", 1, norm, checkpoint=checkpoint) for norm, checkpoint in ((1.0, "a" * 16), (9.0, "b" * 16))]
    groups = gradient_tables.grouped(records)
    assert {group.checkpoint: len(of_group) for group, of_group in groups.items()} == {"a" * 16: 1, "b" * 16: 1}
    assert len({group.title for group in groups}) == 2


def test_orders_of_minibatches_of_one_checkpoint_are_one_group():
    """The seeds of a checkpoint."""
    groups = gradient_tables.grouped([record(2, "post", seed, 1.0, checkpoint="a" * 16) for seed in (1, 2)])
    assert [len(records) for records in groups.values()] == [2]


def test_the_same_measurement_twice_counts_once():
    """Two starts at once may both have made it."""
    groups = gradient_tables.grouped([record(2, "post", 1, 1.0), record(2, "post", 1, 1.0)])
    assert [len(records) for records in groups.values()] == [1]


def test_a_checkpoint_measured_before_its_training_was_kept_counts_once():
    """Older records tell nothing of the training; of the two the older one stays."""
    old, new = (record(2, "post", 1, norm, checkpoint="a" * 16) for norm in (1.0, 2.0))
    del old["unit"]["checkpoint"]["training"]
    (records,) = gradient_tables.grouped([old, new]).values()
    assert records == [old] and gradient_tables.training(records) == {}


def test_a_layer_has_one_value_a_seed():
    """Shares of 0 and 0.02 in each of two layers: mean 0.01, and an interval that ends at 0."""
    records = [record(2, "post", seed, 1.0, delta=delta) for seed, delta in ((1, 0.0), (2, 0.02))]
    found = gradient_tables.by_layer(records, "hidden", "delta", intervals.share)
    assert len(found) == 4
    assert found["decoder", 2] == pytest.approx((0.01, 0.0, 0.01 + 12.7062 * 0.01), abs=1e-4)


def test_relative_update_sizes_are_rate_times_gradient_over_weight():
    """SGD: 0.5 x 4 / 10; Adam: 0.1 x 2 / 10, 0.1 x 1 / 10."""
    rows = [record(1, "post", 1, 4.0)["matrices"][0]]
    assert gradient_tables.relative_updates(rows, 0.5, 0.1) == pytest.approx({"sgd": 0.2, "adam_first": 0.02, "adam_still": 0.01})
