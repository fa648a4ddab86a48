"""transformer_ln_study.py, layers.py: what stock fairseq's ``transformer`` began goes on here and the other way round.

Also what may not change a training: where a run is cut, how its sentences are spread over micro-batches and workers.
Dropout is 0 where two implementations are compared, since they draw other masks.
"""

import re

import pytest
import torch
from conftest import binarize
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq_runs import SMOOTHED, TINY, load, train, weights_in
from reference import assert_equal_gradients
from tiny_models import batch, built, stock_of, task_of

from fairseq_lnplugin.fused_label_smoothed_cross_entropy import FusedLabelSmoothedCrossEntropy

#: The sizes of transformer_ln_study_tiny as flags of stock fairseq.
STOCK = ["--arch", "transformer"]
for stack in ("encoder", "decoder"):
    STOCK += [f"--{stack}-embed-dim", 64, f"--{stack}-ffn-embed-dim", 128]
    STOCK += [f"--{stack}-attention-heads", 2, f"--{stack}-layers", 2]
PRE = ["--encoder-normalize-before", "--decoder-normalize-before"]

#: Position, its flags here, its flags in stock fairseq.
PAIRS = {
    "pre": (["--ln-position", "pre"], [*STOCK, *PRE]),
    "post": (["--ln-position", "post"], STOCK),
    "pre, one embedding": (
        ["--ln-position", "pre", "--share-all-embeddings"],
        [*STOCK, *PRE, "--share-all-embeddings"],
    ),
    "post, one embedding": (["--ln-position", "post", "--share-all-embeddings"], [*STOCK, "--share-all-embeddings"]),
}


@pytest.fixture(scope="module", params=sorted(PAIRS))
def begun(request, data_bin, tmp_path_factory):
    """Flags here, flags in stock fairseq, and a checkpoint of two updates by each."""
    ours, stock = PAIRS[request.param]
    folder = tmp_path_factory.mktemp("begun")
    for name, flags in (("ours", ours), ("stock", stock)):
        train(data_bin, folder / name, "--dropout", 0, "--max-update", 2, *flags)
    return ours, stock, folder


@pytest.mark.parametrize("beginner", ["stock", "ours"])
def test_training_that_one_began_goes_on_the_same_in_the_other(beginner, begun, data_bin, tmp_path):
    """Two more updates with Adam's state from the checkpoint (--restore-file): weights equal to 1e-5.

    But for key biases: softmax makes their gradient 0 but for rounding, and Adam scales that to the learning rate.
    """
    ours, stock, folder = begun
    for name, flags in (("ours", ours), ("stock", stock)):
        restore = ["--restore-file", folder / beginner / "checkpoint_last.pt"]
        train(data_bin, tmp_path / name, "--dropout", 0, "--max-update", 4, *restore, *flags)
    ends = [weights_in(tmp_path / name / "checkpoint_last.pt") for name in ("ours", "stock")]
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-5, msg=name)


PLAIN = ["--optimizer", "adam", "--criterion", "label_smoothed_cross_entropy"]
FUSED = ["--optimizer", "fused_adam", "--criterion", "fused_label_smoothed_cross_entropy"]


@pytest.mark.parametrize("began, goes_on", [(PLAIN, FUSED), (FUSED, PLAIN)], ids=["to the fused ones", "to fairseq's"])
def test_a_run_may_change_between_an_optimizer_or_criterion_and_its_fused_twin(began, goes_on, data_bin, tmp_path):
    """Two updates, resumed for two more with the other names: weights equal to those of an unchanged run to 1e-5."""
    train(data_bin, tmp_path / "changed", "--dropout", 0, "--max-update", 2, *began)
    train(data_bin, tmp_path / "changed", "--dropout", 0, "--max-update", 4, *goes_on)
    train(data_bin, tmp_path / "unchanged", "--dropout", 0, "--max-update", 4, *PLAIN)
    changed, unchanged = (weights_in(tmp_path / name / "checkpoint_last.pt") for name in ("changed", "unchanged"))
    for name in unchanged:
        if not name.endswith("k_proj.bias"):  # see above
            torch.testing.assert_close(changed[name], unchanged[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_run_may_not_change_to_an_optimizer_of_another_state(data_bin, tmp_path):
    """From fused_adam to radam fairseq stops, as from adam."""
    train(data_bin, tmp_path, "--max-update", 1, *FUSED)
    with pytest.raises(AssertionError, match="Optimizer does not match; please reset the optimizer"):
        train(data_bin, tmp_path, "--max-update", 2, *FUSED, "--optimizer", "radam")


def test_a_stock_checkpoint_can_be_finetuned(begun, data_bin, tmp_path):
    """--finetune-from-model at rate 0: the weights are the stock checkpoint's, to the bit."""
    ours, _, folder = begun
    checkpoint = folder / "stock/checkpoint_last.pt"
    train(data_bin, tmp_path, "--finetune-from-model", checkpoint, "--lr", 0, "--max-update", 1, *ours)
    theirs, mine = weights_in(checkpoint), weights_in(tmp_path / "checkpoint_last.pt")
    assert theirs.keys() == mine.keys()
    assert [name for name in theirs if not torch.equal(theirs[name], mine[name])] == []


def test_a_checkpoint_computes_the_same_in_both(begun, data_bin):
    """Loaded strictly into the other model: logits of a padded batch, in eval and in train mode, equal to 1e-5."""
    models = [load(begun[2] / name / "checkpoint_last.pt", data_bin) for name in ("ours", "stock")]
    inputs = batch()["net_input"]
    for source, target in (models, reversed(models)):
        target.load_state_dict(source.state_dict(), strict=True)
        for mode in (True, False):
            outputs = [model.train(mode)(**inputs)[0] for model in models]
            torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=2e-6)


def test_a_checkpoint_of_the_other_position_is_refused_in_a_sentence(begun, data_bin, tmp_path):
    """The same save directory used for pre and post: the sentence names both, nothing is trained."""
    ours, _, folder = begun
    other = "post" if "pre" in ours else "pre"
    flags = [other if flag == ("pre" if other == "post" else "post") else flag for flag in ours]
    with pytest.raises(SystemExit, match=f"LN .*and this model is --ln-position {other}"):
        train(data_bin, tmp_path, "--restore-file", folder / "stock/checkpoint_last.pt", *flags)
    assert not list(tmp_path.glob("*.pt"))


# Loss and gradients


def loss_and_gradients(model, criterion, sample):
    loss, _, logging = criterion(model.train(), sample)
    loss.backward()
    return loss, logging, {name: parameter.grad for name, parameter in model.named_parameters()}


def compared(position, padded, criterion, dtype):
    """Loss, logging outputs and gradients of our model and of stock fairseq's with the same weights, in train mode."""
    model, sample = built(ln_position=position, dropout=0.0, compute_dtype=dtype), batch(padded=padded)
    task, stock = task_of(model.encoder.dictionary), stock_of(model)
    ours = loss_and_gradients(model, criterion(task, False, 0.1), sample)
    return ours, loss_and_gradients(stock, LabelSmoothedCrossEntropyCriterion(task, False, 0.1), sample)


CRITERIA = [LabelSmoothedCrossEntropyCriterion, FusedLabelSmoothedCrossEntropy]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_loss_and_every_gradient_equal_stock_fairseqs(position, padded, criterion, operators):
    """float32: the loss to 1e-6, each gradient to 1e-5 of its norm."""
    ours, theirs = compared(position, padded, criterion, "float32")
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    assert_equal_gradients(ours[2], theirs[2])
    assert {key: float(value) for key, value in ours[1].items()} == pytest.approx(
        {key: float(value) for key, value in theirs[1].items()}, rel=1e-6
    )


def distance(gradients, others):
    """Norm of the difference of all gradients."""
    return sum(float((gradients[name] - others[name]).square().sum()) for name in gradients) ** 0.5


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("position", ["pre", "post"])
def test_bfloat16_products_are_as_near_to_float32_as_torchs_autocast(position, criterion):
    """The loss to 0.2 %; the gradients at most 1.25 times as far from stock fairseq's as its own under autocast."""
    ours, exact = compared(position, True, criterion, "bfloat16")
    torch.testing.assert_close(ours[0], exact[0], rtol=2e-3, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        _, autocast = compared(position, True, criterion, "float32")
    assert distance(ours[2], exact[2]) <= 1.25 * distance(autocast[2], exact[2])
    assert {gradient.dtype for gradient in ours[2].values()} == {torch.float32}


# Runs that are cut, spread over micro-batches, spread over workers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_resumed_in_mid_epoch_ends_as_the_unbroken_one(dtype, data_bin, tmp_path):
    """From update 3 of 7 in epoch 1, dropout on, two epochs: bit-equal weights."""
    flags = ["--compute-dtype", dtype, "--criterion", "fused_label_smoothed_cross_entropy", "--max-epoch", 2]
    train(data_bin, tmp_path / "unbroken", "--save-interval-updates", 3, *flags)
    train(data_bin, tmp_path / "resumed", "--restore-file", tmp_path / "unbroken/checkpoint_1_3.pt", *flags)
    unbroken, resumed = (weights_in(tmp_path / run / "checkpoint_last.pt") for run in ("unbroken", "resumed"))
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []


@pytest.fixture(scope="module")
def eight_pairs(text_corpus, tmp_path_factory):
    """A data folder with eight training pairs, so that an update may take them all, in one batch or in two."""
    folder = tmp_path_factory.mktemp("eight")
    for lang in ("de", "en"):
        lines = (text_corpus / f"train.{lang}").read_text(encoding="utf-8").splitlines(keepends=True)[:8]
        (folder / f"train.{lang}").write_text("".join(lines), encoding="utf-8")
    return binarize(folder / "bin", "--joined-dictionary", train=folder / "train", valid=folder / "train")


#: Three updates over all eight pairs; SGD, so that weights differ as much as gradients do.
ALL_EIGHT = ["--dropout", 0, "--optimizer", "sgd", "--lr", 0.5, "--max-update", 3, "--disable-validation"]
ALL_EIGHT += ["--criterion", "fused_label_smoothed_cross_entropy"]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def spread(request, eight_pairs, tmp_path_factory, fairseq_train):
    """The dtype, and weights: at the start, and after updates of one batch, of halves in turn, of halves on workers."""
    folder = tmp_path_factory.mktemp("spread")
    flags = [*ALL_EIGHT, "--compute-dtype", request.param]
    train(eight_pairs, folder / "start", *flags, "--batch-size", 8, "--max-update", 1, "--lr", 0)
    train(eight_pairs, folder / "one batch", *flags, "--batch-size", 8)
    train(eight_pairs, folder / "halves in turn", *flags, "--batch-size", 4, "--update-freq", 2)
    command = [eight_pairs, "--save-dir", folder / "two workers", *TINY, *SMOOTHED, *flags, "--batch-size", 4]
    run = fairseq_train(command, workers=2)
    assert run.rc == 0, run.log
    assert re.search("training on 2 devices", run.log)
    runs = ("start", "one batch", "halves in turn", "two workers")
    return request.param, {run: weights_in(folder / run / "checkpoint_last.pt") for run in runs}


def test_two_workers_train_as_two_micro_batches_do(spread):
    """The same halves in both: weights equal to 1e-6, in float32 and in bfloat16."""
    _, weights = spread
    for name, weight in weights["two workers"].items():
        torch.testing.assert_close(weight, weights["halves in turn"][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("run", ["halves in turn", "two workers"])
def test_halves_train_as_one_batch_does(spread, run):
    """float32: weights equal to 1e-5. bfloat16: the difference is under 3 % of the way that the weights went in all.

    (There a half's gradient of a matrix is rounded before the halves are summed.)
    """
    dtype, weights = spread
    difference, way = 0.0, 0.0
    for name, weight in weights["one batch"].items():
        if dtype == "float32":
            torch.testing.assert_close(weights[run][name], weight, rtol=0, atol=1e-5, msg=name)
        difference += float((weights[run][name] - weight).square().sum())
        way += float((weight - weights["start"][name]).square().sum())
    assert difference**0.5 < 0.03 * way**0.5
