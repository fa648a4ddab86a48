"""fairseq_lnplugin/analysis/{gradient_report,figures}.py: text and curves of figure 3's report, from planted measurements."""

import argparse
import shlex

import pytest
from gradient_records import FACTS, SHARED, record
from matplotlib.figure import Figure

from fairseq_lnplugin.analysis import expected_gradient, figures, gradient_report, gradient_tables

TRAINING = {"optimizer": "adam", "tokens_an_update": 4096}


def text(records, shared=(), **data):
    """RESULTS.md of these measurements; ``shared`` and ``data`` change the settings and the facts of the data."""
    for one in records:
        one["shared"] = {**SHARED, **dict(shared)}
    facts = {**FACTS, "data": {**FACTS["data"], **data}}
    return gradient_report.markdown(gradient_tables.grouped(records), records, facts, [])


DEPTHS = (6, 8, 10, 12, 14)


def new(seeds=(1, 2), **kwargs):
    """Measurements of new models at two depths, both positions."""
    return [record(layers, position, seed, 1.0, **kwargs) for layers in (2, 3) for position in ("post", "pre") for seed in seeds]


def test_the_report_names_its_data_and_their_size():
    """A part of the paper's corpus, and of how many pairs."""
    page = text(new(), pairs=40_653)
    assert page.startswith("# Figure 3: gradient norms of the FFN matrices, iwslt14-de-en, 40,653 of 160,239 pairs\n")
    assert "`train` of iwslt14-de-en (40,653 of 160,239 pairs, de-en, 9,000 and 7,000 types)" in page


def test_the_commit_of_the_measurements_is_told_apart_from_that_of_the_writing():
    """A report is written again without measuring again; older measurements did not keep their commit."""
    records = new()
    made = {"commit": "9999fed", "dirty": True, "torch": "2.6.0", "device": "another CPU"}
    records[0]["measured_with"] = made
    words = "measured at commit 9999fed-dirty and a commit that was not kept, torch 2.6.0, device another CPU; written at commit"
    assert f"{words} 0123abc" in text(records)


def test_the_papers_settings_are_a_reproduction():
    """All pairs, 4096 tokens, dropout and label smoothing 0.1, every depth, ten seeds, the checkpoint's training too."""
    grid = [record(layers, position, seed, 1.0) for layers in DEPTHS for position in ("post", "pre") for seed in range(1, 11)]
    trained = record(6, "post", 1, 0.1, checkpoint="c" * 16, training=TRAINING)
    assert "No reproduction" not in text([*grid, trained, record(6, "post", 1, 1.0, weight_init="fairseq")])


@pytest.mark.parametrize(
    ("seeds", "depths", "inits", "words"),
    [
        (9, DEPTHS, ["xavier_uniform"], "9 seeds, the paper 10"),
        (10, DEPTHS[:-1], ["xavier_uniform"], "without the depths 14"),
        (10, DEPTHS, ["fairseq"], "weight init fairseq, the paper xavier_uniform"),
    ],
)
def test_a_smaller_grid_than_the_papers_is_no_reproduction(seeds, depths, inits, words):
    """Each depth, ten seeds, the start of the paper's time; of other inits there may be less."""
    grid = [record(layers, "post", seed, 1.0, weight_init=init) for layers in depths for seed in range(seeds) for init in inits]
    assert words in text(grid).split("> **No reproduction**")[1].split("\n")[0]


@pytest.mark.parametrize(
    ("shared", "data", "words"),
    [
        ({}, {"pairs": 40_653}, "40,653 of 160,239 pairs"),
        ({}, {"name": "grammar"}, "other data (train of grammar)"),
        ({}, {"subset": "valid"}, "other data (valid of iwslt14-de-en)"),
        ({"dropout": 0.3}, {}, "dropout 0.3, the paper 0.1"),
        ({"label_smoothing": 0.0}, {}, "label smoothing 0.0, the paper 0.1"),
        ({"arch": "transformer_ln_study_small"}, {}, "arch transformer_ln_study_small, the paper"),
        ({"max_tokens": 512}, {}, "mini-batches of 512 tokens, the paper 4,096"),
        ({"compute_dtype": "bfloat16"}, {}, "compute dtype bfloat16, the paper float32"),
        ({"batches": 4}, {}, "--batches 4, the command's default 16"),
    ],
)
def test_other_settings_than_the_papers_are_no_reproduction(shared, data, words):
    """Said before any number."""
    page = text(new(), shared, **data)
    assert words in page.split("> **No reproduction**")[1].split("\n")[0]


def test_a_checkpoint_trained_with_another_batch_is_no_reproduction():
    """512 tokens an update, the paper 4096."""
    page = text([record(2, "post", 1, 0.1, checkpoint="c" * 16, training={"tokens_an_update": 512})])
    assert (
        "after 4000 updates (checkpoint cccccccc) of 512 tokens, the paper 4,096"
        in page.split("> **No reproduction**")[1].split("\n")[0]
    )


def test_a_checkpoints_seeds_are_told_as_orders_of_minibatches():
    """It has one set of weights, and a jump in one layer is no factor a layer."""
    page = text([*new(), *(record(2, "post", seed, 0.1, checkpoint="c" * 16, training=TRAINING) for seed in (1, 2))])
    section = page.split("after training\n")[1].split("\n## ")[0]
    assert "2 seeds: one checkpoint, that many orders of mini-batches" in section
    assert "0.100 [0.100, 0.100], 0.100 [0.100, 0.100] | 1.000, 1.000 |" in section
    assert "factor" not in section


def test_the_verdicts_stand_beside_the_claims():
    """Norms that do not change from layer to layer do not grow."""
    page = text(new())
    after = page.split("grow from layer to layer towards the output.\n\n")[1]
    assert after.startswith("- `xavier_uniform`, Post-LN, 2-2: **does not hold here**. Ours: encoder W1 1.000 [1.000, 1.000]")


def test_a_report_of_a_checkpoint_alone_makes_no_claims():
    """There is nothing before training to set it against."""
    assert "claims" not in text([record(2, "post", 1, 0.1, checkpoint="c" * 16)])


def test_the_commands_of_the_report_measure_the_same_again():
    """Parsed, they ask for each unit that was measured, and for no other; Post-LN alone at a third depth."""
    records = new() + new((3,), weight_init="fairseq") + [record(4, "post", 1, 1.0)]
    records.append(record(2, "post", 5, 0.1, checkpoint="c" * 16))
    parser = argparse.ArgumentParser()
    expected_gradient.add_arguments(parser)
    asked, trained = set(), []
    for line in gradient_report.commands(gradient_tables.grouped(records), SHARED):
        args = parser.parse_args(shlex.split(line)[2:])
        assert (args.batches, args.max_tokens, args.dropout, args.compute_dtype) == (16, 4096, 0.1, "float32")
        if args.checkpoint:
            trained.append((args.checkpoint, args.seeds))
            continue
        models = expected_gradient.initial_models(args)
        asked |= {tuple(model.unit(seed).values()) for model in models for seed in args.seeds}
    assert asked == {tuple(record["unit"].values()) for record in records[:-1]}
    assert trained == [(["CHECKPOINT"], [5])]


def test_the_size_of_an_update_is_told_in_per_cent():
    """||W|| = 10, ||g|| = 1 at SGD's 5e-3, Adam's updates 2 and 1 at its 5e-4."""
    section = text(new()).split("the size of an update at lr_max\n")[1]
    assert "an SGD update would change it by 0.05 %, Adam's first by 0.01 %, a later one by 0.005 %." in section
    assert "| xavier_uniform | Post-LN, 2-2 | decoder | W2 | 0.05, 0.05 | 0.01, 0.01 | 0.005, 0.005 |" in section


def test_post_lns_norm_stands_beside_the_papers_and_pre_lns_has_none_there():
    """0.8 of about 1.6."""
    page = text([record(2, position, seed, 0.8) for position in ("post", "pre") for seed in (1, 2)])
    norm = "0.800 [0.800, 0.800]"
    assert f"| xavier_uniform | Post-LN | 2-2 | {norm} | {norm} | 0.800 | 0.50 | 2 |" in page
    assert f"| xavier_uniform | Pre-LN | 2-2 | {norm} | {norm} | 0.800 | - | 2 |" in page


# -- figures.py --


def panels(records):
    """Points of every curve of each panel of figure 3, as lists of [x, y]."""
    figure, rows = Figure(), gradient_tables.table(gradient_tables.grouped(records), 16)
    figures.figure3(figure, [row for row in rows if row["quantity"] == "expected_gradient"])
    return [[curve[0].get_xydata().tolist() for curve in axis.containers] for axis in figure.axes]


def distinct_norm(stack, layer):
    """11 and 12 in the encoder of two layers, 21 and 22 in the decoder."""
    return {"encoder": 10, "decoder": 20}[stack] + layer


def test_figure_3_has_the_decoders_layers_behind_the_encoders():
    """In panels (a) and (b), both positions."""
    a, b, *_ = panels([record(2, position, 1, distinct_norm) for position in ("post", "pre")])
    assert a == b == [[[1, 11], [2, 12]], [[3, 21], [4, 22]]] * 2


def test_figure_3_has_the_last_w2_of_each_depth():
    """Panel (c) Pre-LN's, panel (d) Post-LN's, here with twice the norm."""
    records = [record(layers, "pre", 1, distinct_norm) for layers in (2, 3)]
    records += [record(layers, "post", 1, lambda stack, layer: 2 * distinct_norm(stack, layer)) for layers in (2, 3)]
    *_, c, d = panels(records)
    assert (c, d) == ([[[2, 22], [3, 23]]], [[[2, 44], [3, 46]]])
