"""Tests of fairseq_lnplugin/analysis/norm_map.py: where the norms sit (Xiong et al. 2020, Table 1 and figure 1)."""

from collections import Counter

import pytest
import torch
import torch.nn as nn
from fairseq import checkpoint_utils
from sentences import sentence_of

from fairseq_lnplugin import cli

TINY = ("--arch", "transformer_ln_study_tiny")
STOCK = ("--arch", "transformer", "--encoder-layers", 2, "--decoder-layers", 2)


def show(capsys, *argv):
    """Run ``fairseq-ln map``; returns its sentence and its table as dicts, cells separated by two spaces or more."""
    assert cli.main(["map", *map(str, argv)]) == 0
    sentence, empty, header, *lines = capsys.readouterr().out.splitlines()
    assert empty == ""
    starts = [header.index(name) for name in header.split()]
    ends = [*starts[1:], None]
    rows = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]
    return sentence, [dict(zip(header.split(), row, strict=True)) for row in rows]


def refusal(*argv):
    """The sentence that ``fairseq-ln map`` ends with."""
    return sentence_of(cli.main, ["map", *map(str, argv)], begins="fairseq-ln map: ")


@pytest.fixture(scope="module")
def checkpoint(data_bin, fairseq_train, tmp_path_factory):
    """``checkpoint(arch flags)``: a model of 2 + 2 layers trained for 2 updates; returns its last checkpoint's path."""

    def train(*flags):
        folder = tmp_path_factory.mktemp("checkpoint")
        args = [data_bin, *flags, "--optimizer", "adam", "--lr", "0.001", "--criterion", "cross_entropy"]
        args += ["--max-tokens", 2000, "--max-update", 2, "--no-epoch-checkpoints", "--save-dir", folder]
        run = fairseq_train(args)
        assert run.rc == 0, run.log
        return folder / "checkpoint_last.pt"

    return train


@pytest.fixture(scope="module")
def pre_checkpoint(checkpoint):
    """Of our tiny model, Pre-LN."""
    return checkpoint(*TINY, "--ln-position", "pre")


# Named models


@pytest.mark.parametrize(("position", "where", "ends"), [("pre", "before", 2), ("post", "after", 0)])
def test_table_1_layer_by_layer(position, where, ends, capsys):
    """2 sub-layers in an encoder layer and 3 in a decoder layer, and for Pre-LN alone one more LN after each stack."""
    _, rows = show(capsys, *TINY, "--ln-position", position)
    counts = Counter((row["stack"], row["sub-layer"], row["norm"]) for row in rows)
    expected = {("encoder", "self-attention", where): 2, ("encoder", "FFN", where): 2}
    expected |= {("decoder", "self-attention", where): 2, ("decoder", "FFN", where): 2}
    expected |= {("decoder", "encoder-decoder attention", where): 2}
    if ends:
        expected |= {("encoder", "end of stack", "final"): 1, ("decoder", "end of stack", "final"): 1}
    assert counts == expected


@pytest.mark.parametrize(("flags", "told"), [((), "Post-LN"), (("--ln-position", "pre"), "Pre-LN")])
def test_the_sentence_names_position_and_final_norms(flags, told, capsys):
    """Post-LN is the default; only Pre-LN ends its stacks in an LN."""
    sentence, _ = show(capsys, *TINY, *flags)
    answer = "yes" if told == "Pre-LN" else "no"
    assert f": {told}; final norms: encoder {answer}, decoder {answer};" in sentence


def test_layers_count_from_1_as_in_the_paper(capsys):
    """Code counts from 0, and the name in the last column with it."""
    _, rows = show(capsys, *TINY, "--encoder-layers", 3)
    layers = [(row["layer"], row["name"]) for row in rows if row["stack"] == "encoder" and row["sub-layer"] == "FFN"]
    assert layers == [(str(i + 1), f"encoder.layers.{i}.final_layer_norm") for i in range(3)]


def test_a_norm_has_two_parameters_a_dimension(capsys):
    """Gain and bias (paper, section 3.1): 2 d."""
    _, rows = show(capsys, *TINY, "--encoder-embed-dim", 32, "--decoder-embed-dim", 32)
    assert {row["parameters"] for row in rows} == {"64"}


def test_equations_stand_beside_the_places(capsys):
    """Table 1's two forms."""
    for position, equation in (("pre", "x = x + f(LN(x))"), ("post", "x = LN(x + f(x))")):
        _, rows = show(capsys, *TINY, "--ln-position", position)
        assert {row["equation"] for row in rows if row["layer"] != "-"} == {equation}


def test_fairseqs_own_transformer_is_read_too(capsys):
    """Normalize-before on both stacks is Pre-LN with both final norms."""
    sentence, rows = show(capsys, *STOCK, "--encoder-normalize-before", "--decoder-normalize-before")
    assert ": Pre-LN; final norms: encoder yes, decoder yes; 12 norms" in sentence and len(rows) == 12


def test_normalize_before_on_one_stack_is_told_as_mixed(capsys):
    """A mistake that fairseq lets pass."""
    sentence, _ = show(capsys, *STOCK, "--encoder-normalize-before")
    assert "mixed LN positions; final norms: encoder yes, decoder no" in sentence


@pytest.mark.parametrize(
    ("argv", "final"),
    [
        (["--arch", "lightconv_iwslt_de_en", "--encoder-normalize-before"], "encoder yes, decoder no"),
        (["--arch", "fconv_self_att_wp"], "no"),
    ],
)
def test_norms_that_are_not_known_make_no_verdict(argv, final, capsys):
    """Layers of another kind of model, and a model without stacks of layers."""
    cli.main(["map", *argv])
    assert f"{argv[1]}: an LN position that this command does not know; final norms: {final};" in capsys.readouterr().out


def test_bert_base_is_post_ln_whatever_its_settings_say(capsys):
    """Its encoder_normalize_before is a norm on the embeddings; its layers are Post-LN."""
    sentence, rows = show(capsys, "--arch", "bert_base", "--encoder-layers", 1)
    assert ": Post-LN;" in sentence
    assert [row["norm"] for row in rows if row["layer"] == "1"] == ["after", "after"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--arch", "transformer_ln_studi"), "did you mean transformer_ln_study"),
        (("--arch", "transformer", "--ln-position", "pre"), "transformer has no flag --ln-position"),
        ((*TINY, "--encoder-normalize-before"), "contradicts --ln-position post"),
        ((*STOCK, "--encoder-embed-dim", 33), "cannot be built here"),
        (("--arch", "fconv"), "has no layer normalization"),
        (("--checkpoint", "nothing.pt"), "there is no file nothing.pt"),
        (("--checkpoint", "nothing.pt", "--ln-position", "pre"), "a checkpoint has its own settings"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(argv, told):
    """Names and flags that do not exist or do not go together."""
    assert told in refusal(*argv)


# Checkpoints


def test_a_checkpoint_needs_no_flags(pre_checkpoint, capsys):
    """Its LN position comes from its settings; every norm is in its state dict."""
    sentence, rows = show(capsys, "--checkpoint", pre_checkpoint)
    assert sentence.startswith("transformer_ln_study_tiny: Pre-LN;")
    model = torch.load(pre_checkpoint, weights_only=False)["model"]
    named = {name.rpartition(".")[0] for name in model if "layer_norm" in name}
    assert named == {row["name"] for row in rows}


def test_the_place_shown_is_where_the_trained_model_normalizes(pre_checkpoint, capsys):
    """Before: a sub-layer whose output is 0 leaves the stream as it was, so a layer of them is the identity."""
    _, rows = show(capsys, "--checkpoint", pre_checkpoint)
    assert {row["norm"] for row in rows if row["layer"] != "-"} == {"before"}
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(pre_checkpoint)])
    layer = model.encoder.layers[0].eval()
    for linear in (layer.self_attn.out_proj, layer.fc2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    x = torch.randn(5, 2, 64)
    assert torch.equal(layer(x, None), x)


def test_the_sentence_counts_the_checkpoints_parameters(pre_checkpoint, capsys):
    """12 norms of 2 x 64, and all trained numbers."""
    sentence, _ = show(capsys, "--checkpoint", pre_checkpoint)
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(pre_checkpoint)])
    assert sentence.endswith(f"12 norms with 1,536 parameters of {sum(p.numel() for p in model.parameters()):,}")


def test_a_checkpoint_of_fairseqs_own_transformer_is_read(checkpoint, capsys):
    """Trained with stock layers, normalize-before on both stacks."""
    flags = [f"--{stack}-{name}" for stack in ("encoder", "decoder") for name in ("embed-dim", "ffn-embed-dim")]
    sizes = [word for flag in flags for word in (flag, 32)]
    path = checkpoint(*STOCK, *sizes, "--encoder-normalize-before", "--decoder-normalize-before")
    sentence, rows = show(capsys, "--checkpoint", path)
    assert sentence.startswith("transformer: Pre-LN; final norms: encoder yes, decoder yes;") and len(rows) == 12


def test_a_checkpoint_that_contradicts_its_settings_is_refused(pre_checkpoint, tmp_path):
    """Pre-LN's parameters said to be Post-LN: the final norms have no place."""
    state = torch.load(pre_checkpoint, weights_only=False)
    state["cfg"]["model"].ln_position = "post"
    state["cfg"]["model"].encoder_normalize_before = state["cfg"]["model"].decoder_normalize_before = False
    torch.save(state, tmp_path / "wrong.pt")
    told = refusal("--checkpoint", tmp_path / "wrong.pt")
    assert "wrong.pt do not fit the transformer_ln_study_tiny that its settings describe" in told


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """With its name."""
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    assert "broken.pt cannot be read" in refusal("--checkpoint", tmp_path / "broken.pt")
