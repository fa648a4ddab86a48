"""transformer_ln_study.py, compat.py, the criterion: a mistake ends in one sentence of what, where and what to do.

A sentence raised as ``SystemExit`` is printed to standard error, without a traceback, and the exit status is 1; the
last tests run the real commands and look at that.
"""

import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from conftest import SPLITS, binarize
from fairseq.data import data_utils
from fairseq.models import build_model
from fairseq_runs import SMOOTHED, TINY, generate, load, train, weights_in
from omegaconf import OmegaConf
from tiny_models import built

from fairseq_lnplugin import compat

PRE = ["--ln-position", "pre"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--encoder-normalize-before", "--encoder-normalize-before contradicts --ln-position post"),
        ("--decoder-normalize-before", "--decoder-normalize-before contradicts --ln-position post"),
        ("--ln-position pre --no-decoder-final-norm", "--no-decoder-final-norm contradicts --ln-position pre"),
        ("--encoder-attention-heads 3", "--encoder-attention-heads 3 does not divide --encoder-embed-dim 64"),
        ("--decoder-embed-dim 65", "--decoder-attention-heads 2 does not divide --decoder-embed-dim 65"),
        ("--encoder-layers 0", "--encoder-layers 0: give 1 or more"),
        ("--decoder-layers -1", "--decoder-layers -1: give 1 or more"),
        ("--encoder-embed-dim 0", "--encoder-embed-dim 0: give 1 or more"),
        ("--decoder-attention-heads 0", "--decoder-attention-heads 0: give 1 or more"),
        ("--dropout 1.5", "--dropout 1.5: give a rate from 0 to below 1"),
        ("--encoder-layerdrop -0.1", "--encoder-layerdrop -0.1: give a rate from 0 to below 1"),
        ("--share-all-embeddings --encoder-embed-dim 32", "--encoder-embed-dim is 32, --decoder-embed-dim 64"),
        ("--quant-noise-scalar 0.5", "--quant-noise-scalar does nothing in this model"),
        ("--cross-self-attention", "--cross-self-attention does nothing in this model"),
        ("--base-layers 1", "--base-layers does nothing in this model"),
        ("--bf16 --compute-dtype bfloat16", "--compute-dtype bfloat16 would do nothing"),
        ("--fp16 --compute-dtype bfloat16", "--compute-dtype bfloat16 would do nothing"),
        ("--adaptive-softmax-cutoff 10,20", "needs --criterion adaptive_loss, not label_smoothed_cross_entropy"),
        ("--criterion fused_label_smoothed_cross_entropy --report-accuracy", "--report-accuracy needs all logits"),
    ],
)
def test_flags_that_no_model_can_follow_are_refused_before_training(flags, sentence, data_bin, tmp_path):
    """Contradictions, impossible sizes, flags that our layers do not have."""
    with pytest.raises(SystemExit, match=sentence):
        train(data_bin, tmp_path / "save", *flags.split())
    assert not (tmp_path / "save").exists() or not list((tmp_path / "save").iterdir())


@pytest.mark.parametrize("flag", ["--ln-position", "--weight-init", "--compute-dtype"])
def test_an_unknown_choice_is_refused_by_the_command_line(flag, data_bin, tmp_path, capsys):
    """The parser names the flag and its choices; exit status 2, as every wrong argument."""
    with pytest.raises(SystemExit) as stopped:
        train(data_bin, tmp_path, flag, "sandwich")
    assert stopped.value.code == 2
    assert f"argument {flag}: invalid choice: 'sandwich' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["ln_position", "weight_init", "compute_dtype"])
def test_an_unknown_choice_in_a_yaml_file_is_refused(flag):
    """fairseq-hydra-train has no parser for our flags."""
    cfg = OmegaConf.create({"_name": "transformer_ln_study_tiny", flag: "sandwich"})
    task = Namespace(source_dictionary=None, target_dictionary=None)
    with pytest.raises(SystemExit, match=f"--{flag.replace('_', '-')} sandwich: no such choice; take one of "):
        build_model(cfg, task)


# Data


@pytest.fixture(scope="module")
def two_dictionaries(text_corpus, tmp_path_factory):
    """The corpus binarized without --joined-dictionary: 20 types more or less than one dictionary for both has."""
    return binarize(tmp_path_factory.mktemp("two-dictionaries"), **{split: text_corpus / split for split in SPLITS})


def test_a_missing_data_folder_is_named(tmp_path):
    """And what to give instead."""
    with pytest.raises(SystemExit, match="nowhere is not a folder that fairseq-preprocess wrote .*; give its --destdir"):
        train(tmp_path / "nowhere", tmp_path / "save")


def test_plain_text_in_the_place_of_binarized_data_is_refused(text_corpus, tmp_path):
    """The language pair cannot be found there."""
    with pytest.raises(SystemExit, match="is not a folder that fairseq-preprocess wrote"):
        train(text_corpus, tmp_path / "save")


def test_a_data_folder_without_dictionaries_names_the_missing_one(data_bin, tmp_path):
    """Binarized text alone cannot be read."""
    for file in data_bin.iterdir():
        if not file.name.startswith("dict."):
            shutil.copy(file, tmp_path)
    with pytest.raises(SystemExit, match=r"no .*dict\.de\.txt"):
        train(tmp_path, tmp_path / "save")


@pytest.mark.parametrize("flags", ["--share-all-embeddings", "--arch transformer_ln_study_wmt_en_de"])
def test_one_embedding_for_two_dictionaries_is_refused(flags, two_dictionaries, tmp_path):
    """By the flag, and by the named size that sets it."""
    with pytest.raises(SystemExit, match="run fairseq-preprocess with --joined-dictionary, or leave the flag out"):
        train(two_dictionaries, tmp_path, *flags.split())


def test_sentences_that_fairseq_leaves_out_of_training_are_warned_of(data_bin, tmp_path, caplog, monkeypatch):
    """The default of --required-batch-size-multiple is 8: 4 of 300 training sentences are over, in batches of 16."""
    monkeypatch.setattr(compat, "warned", set())
    flags = ["--no-save", "--max-update", 1, "--batch-size", 16, "--required-batch-size-multiple"]
    train(data_bin, tmp_path, *flags, 1)
    assert "to lose no sentence" not in caplog.text
    train(data_bin, tmp_path, *flags, 8)
    assert "leaves out 4 of 300 sentences" in caplog.text
    assert caplog.text.count("to lose no sentence") == 1


@pytest.mark.parametrize("trained_with, decoded_with, left_out", [(1, 8, 5), (8, 1, 0), (8, 8, 5)])
def test_sentences_that_fairseq_leaves_out_of_decoding_are_warned_of(
    trained_with, decoded_with, left_out, text_corpus, data_bin, tmp_path, caplog, monkeypatch
):
    """37 sentences in batches of 16: what counts is the flag of fairseq-generate, not that of the checkpoint's training."""
    for lang in ("de", "en"):
        lines = (text_corpus / f"test.{lang}").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"test.{lang}").write_text("".join(lines[:37]), encoding="utf-8")
    dictionaries = ["--srcdict", data_bin / "dict.de.txt", "--tgtdict", data_bin / "dict.en.txt"]
    binarize(tmp_path / "bin", *dictionaries, test=tmp_path / "test")
    train(data_bin, tmp_path, "--max-update", 1, "--required-batch-size-multiple", trained_with)
    monkeypatch.setattr(compat, "warned", set())
    caplog.clear()
    flags = ["--batch-size", 16, "--required-batch-size-multiple", decoded_with]
    assert len(generate(tmp_path / "bin", tmp_path / "checkpoint_last.pt", tmp_path, *flags)) == 37 - left_out
    assert (f"leaves out {left_out} of 37 sentences" in caplog.text) == bool(left_out)
    assert ("to lose no sentence" in caplog.text) == bool(left_out)


def test_sentences_may_be_any_iterable_as_in_fairseq():
    """A task of a third party may give a generator, which can be read once."""
    batches = data_utils.batch_by_size((index for index in range(9)), num_tokens_fn=lambda index: 5, max_sentences=4)
    assert [list(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@pytest.mark.parametrize("multiple, kept", [(1, 37), (8, 32)])
def test_that_warning_is_true_of_this_fairseq(multiple, kept):
    """37 sentences of equal length in batches of at most 16: the last 5 go missing with 8."""
    batches = data_utils.batch_by_size(
        list(range(37)), num_tokens_fn=lambda index: 5, max_sentences=16, required_batch_size_multiple=multiple
    )
    assert sum(len(batch) for batch in batches) == kept


# Checkpoints


@pytest.fixture(scope="module")
def pre_checkpoint(data_bin, tmp_path_factory):
    """A Pre-LN model of one update."""
    folder = tmp_path_factory.mktemp("pre")
    train(data_bin, folder, *PRE, "--max-update", 1)
    return folder / "checkpoint_last.pt"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--ln-position post", r"ends in an LN \(Pre-LN\) and this model is --ln-position post"),
        ("--ln-position pre --encoder-layers 3", r"does not fit this model's flags: Missing key.*encoder.layers.2"),
        ("--ln-position pre --decoder-ffn-embed-dim 96", r"does not fit this model's flags: size mismatch for decoder"),
    ],
)
def test_a_save_directory_of_other_settings_is_refused_and_left_alone(flags, sentence, pre_checkpoint, data_bin, tmp_path):
    """checkpoint_last.pt of a Pre-LN run, then the same --save-dir with another setting."""
    shutil.copy(pre_checkpoint, tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        train(data_bin, tmp_path, *flags.split())
    assert [file.name for file in tmp_path.iterdir()] == [pre_checkpoint.name]
    assert (tmp_path / pre_checkpoint.name).read_bytes() == pre_checkpoint.read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"ln_position": "post"},
        {"ln_position": "post", "encoder_normalize_before": False, "decoder_normalize_before": False},
    ],
)
def test_another_position_at_decoding_cannot_change_the_model_in_silence(overrides, pre_checkpoint, data_bin):
    """--model-overrides of fairseq-generate."""
    with pytest.raises(SystemExit, match="--ln-position post"):
        load(pre_checkpoint, data_bin, **overrides)


def test_data_binarized_with_other_dictionaries_is_refused_at_decoding(pre_checkpoint, two_dictionaries, tmp_path):
    """The sizes of both, and how to binarize."""
    with pytest.raises(SystemExit, match="knows 88 types and the data folder's dictionary has 48: binarize"):
        generate(two_dictionaries, pre_checkpoint, tmp_path)


@pytest.fixture(scope="module")
def other_order(data_bin, tmp_path_factory):
    """The data folder with dictionaries of the same types in reverse, as another corpus of the same words may have them."""
    folder = shutil.copytree(data_bin, tmp_path_factory.mktemp("other-order") / "bin")
    for path in folder.glob("dict.*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(reversed(lines)), encoding="utf-8")
    return folder


OTHER_TYPES = "the checkpoint's encoder knows other types, or the same in another order, than .*: binarize with the dictionaries"


def test_dictionaries_of_the_same_size_that_differ_are_refused_at_decoding(pre_checkpoint, other_order, tmp_path):
    """Every word would be another one, without a sign of it."""
    with pytest.raises(SystemExit, match=OTHER_TYPES):
        generate(other_order, pre_checkpoint, tmp_path)


def test_dictionaries_of_the_same_size_that_differ_are_refused_at_a_resume(pre_checkpoint, other_order, tmp_path):
    """The data folder was made anew, the save directory is the old one."""
    shutil.copy(pre_checkpoint, tmp_path)
    with pytest.raises(SystemExit, match=OTHER_TYPES):
        train(other_order, tmp_path, *PRE, "--max-update", 2)


def test_a_checkpoint_that_does_not_tell_its_dictionaries_is_loaded(pre_checkpoint, other_order, tmp_path):
    """Those of stock fairseq and of earlier versions."""
    state = torch.load(pre_checkpoint)
    del state["model"]._metadata
    torch.save(state, tmp_path / "checkpoint.pt")
    assert load(tmp_path / "checkpoint.pt", other_order)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("part", ["decoder", "encoder.embed", "encoder.layers.1"])
def test_a_part_of_a_checkpoint_is_loaded_if_the_rest_may_be_missing(part, position):
    """strict=False: a stack that is not there does not tell another position."""
    model = built(ln_position=position)
    weights = {name: torch.zeros_like(weight) for name, weight in model.named_parameters() if name.startswith(part)}
    model.load_state_dict(dict(weights), strict=False)
    assert not any(weight.any() for name, weight in model.named_parameters() if name in weights)


def test_a_model_that_was_refused_a_checkpoint_keeps_its_weights():
    """Nothing is copied before the sentence."""
    model = built(ln_position="post")
    other = built(ln_position="pre")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(SystemExit):
        model.load_state_dict(other.state_dict())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# Divergence, and the real commands


def test_a_diverged_run_ends_in_fairseqs_sentence(data_bin, tmp_path):
    """A rate of 1e30: the error is that of the gradients, not one of the search for the NaN's source."""
    with pytest.raises(FloatingPointError, match="gradients are Nan/Inf"):
        train(data_bin, tmp_path, "--lr", 1e30, "--max-update", 6)
    assert weights_in(tmp_path / "crash.pt")


@pytest.mark.parametrize(
    "data, flags, sentence",
    [
        ("data", ["--encoder-layers", 0], "--encoder-layers 0: give 1 or more"),
        ("nowhere", [], "nowhere is not a folder that fairseq-preprocess wrote"),
    ],
)
def test_fairseq_train_prints_the_sentence_alone_and_fails(data, flags, sentence, data_bin, tmp_path, fairseq_train):
    """Exit status 1, the last line is the sentence, no traceback, no checkpoint."""
    (tmp_path / "data").symlink_to(data_bin)
    run = fairseq_train([tmp_path / data, "--save-dir", tmp_path / "save", *TINY, *SMOOTHED, *flags])
    assert run.rc == 1
    assert sentence in run.log.strip().splitlines()[-1]
    assert "Traceback" not in run.log
    assert not list(tmp_path.glob("save/*"))


def test_generate_prints_the_sentence_alone_and_fails(repo_root, pre_checkpoint, two_dictionaries):
    """As fairseq-train does."""
    command = [sys.executable, "-m", "fairseq_cli.generate", two_dictionaries, "--user-dir", "fairseq_lnplugin"]
    command += ["--path", pre_checkpoint, "--cpu"]
    run = subprocess.run([str(word) for word in command], cwd=repo_root, capture_output=True, text=True)
    assert run.returncode == 1
    assert "binarize with the dictionaries of its training" in run.stderr.strip().splitlines()[-1]
    assert "Traceback" not in run.stderr
