"""Tests of fairseq_lnplugin/grad_norm.py: the gradient norm of every matrix (Xiong et al. 2020, section 3.3).

One *update* of most runs below is the whole ``valid`` part of the corpus, 40 pairs, so that batch, halves and workers
see the same sentences.
"""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import train
from sentences import sentence_of

from fairseq_lnplugin.grad_norm import (
    FILE_NAME,
    HEADER,
    checked_interval,
    is_due,
    keep_rows_until,
    measure,
    pending_factor,
    place,
)

SMOOTHING = 0.1


def arguments(data_bin, save_dir, *flags):
    """A fairseq-train command line of the tiny model, one shared embedding, one line of JSON an update."""
    args = [data_bin, "--save-dir", save_dir, "--arch", "transformer_ln_study_tiny", "--share-all-embeddings"]
    args += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", SMOOTHING, "--seed", 1, "--cpu"]
    args += ["--disable-validation", "--required-batch-size-multiple", 1, "--num-workers", 0]
    return [*args, "--log-format", "json", "--log-interval", 1, *flags]


#: Plain gradient descent without dropout: a small difference of gradients stays small.
WHOLE = ("--train-subset", "valid", "--batch-size", 40, "--dropout", 0, "--optimizer", "sgd", "--lr", 0.1,
         "--max-update", 3, "--grad-norm-interval", 1)  # fmt: skip


def rows_of(save_dir):
    """The table as ``{(update, stack, layer, matrix): norm}``; no key may come twice."""
    header, *lines = (save_dir / FILE_NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    assert header == HEADER
    rows = {}
    for line in lines:
        update, stack, layer, matrix, norm = line.removesuffix("\n").split("\t")
        key = int(update), stack, layer, matrix
        assert key not in rows, f"{key} is there twice"
        rows[key] = float(norm)
    return rows


def of_update(rows, update):
    """The rows of one update, without their update number."""
    return {key[1:]: norm for key, norm in rows.items() if key[0] == update}


def root_of_squares(rows):
    """The norm of the whole gradient."""
    return sum(norm**2 for norm in rows.values()) ** 0.5


def updates_of(rows):
    """The updates that were measured, in the table's order."""
    return list(dict.fromkeys(key[0] for key in rows))


def lines_of(log):
    """The JSON that fairseq prints after each update, from a log."""
    return [json.loads(line.split("| train_inner | ")[1]) for line in log.splitlines() if "| train_inner |" in line]


class Keeper(logging.Handler):
    """Keeps fairseq's JSON of each update."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if record.name == "train_inner":
            self.lines.append(json.loads(record.getMessage()))


def train_here(args):
    """fairseq-train in this process, for what has to be patched; returns fairseq's JSON of each update."""
    keeper = Keeper()
    logger = logging.getLogger("fairseq.logging.progress_bar")  # it takes another name for each line
    level = logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    try:
        args = options.parse_args_and_arch(options.get_training_parser(), input_args=[str(arg) for arg in args])
        train.main(convert_namespace_to_omegaconf(args))
    finally:
        logger.removeHandler(keeper)
        logger.setLevel(level)
    return keeper.lines


def assert_equal_norms(ours, theirs, rel=1e-5):
    """The same matrices with the same norms; below 1e-6 a gradient is zero but for rounding (biases of the keys)."""
    assert ours.keys() == theirs.keys()
    for key, norm in theirs.items():
        assert ours[key] == pytest.approx(norm, rel=rel, abs=1e-6), key


@pytest.fixture(scope="module")
def whole(data_bin, fairseq_train, tmp_path_factory):
    """Three updates, each of one batch of 40 pairs, a checkpoint after each: save folder, rows, log lines."""
    save_dir = tmp_path_factory.mktemp("whole")
    run = fairseq_train(arguments(data_bin, save_dir, *WHOLE))
    assert run.rc == 0, run.log
    return SimpleNamespace(save_dir=save_dir, rows=rows_of(save_dir), lines=lines_of(run.log))


# What is measured


def test_the_root_of_the_summed_squares_is_fairseqs_gnorm(whole):
    """sqrt(sum of ||g_m||^2 over all matrices m) = gnorm, to the three digits that fairseq prints."""
    assert [line["num_updates"] for line in whole.lines] == ["1", "2", "3"]
    for update, line in enumerate(whole.lines, 1):
        assert root_of_squares(of_update(whole.rows, update)) == pytest.approx(float(line["gnorm"]), abs=5.1e-4)


def test_the_norms_are_those_of_the_loss_per_target_token(whole):
    """Autograd in float64 on (1 / tokens) sum_i loss_i at the weights after update 1 gives the rows of update 2."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(whole.save_dir / "checkpoint1.pt")])
    data = task.load_dataset("valid") or task.dataset("valid")
    sample = data.collater([data[index] for index in range(len(data))])
    model.double().train()
    lprobs = model(**sample["net_input"])[0].log_softmax(-1)
    real = sample["target"].ne(task.target_dictionary.pad())
    spread = SMOOTHING / (lprobs.size(-1) - 1)  # fairseq spreads the smoothing over all other types
    nll = -lprobs.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
    loss = (1 - SMOOTHING - spread) * nll - spread * lprobs.sum(-1)
    (loss[real].sum() / real.sum()).backward()
    expected = {}
    for name, parameter in model.named_parameters():
        stack, layer, matrix = place(name)
        expected[stack, str(layer), matrix] = parameter.grad.norm().item()
    assert_equal_norms(of_update(whole.rows, 2), expected, rel=3e-5)  # float32 against float64; seen: 1.0e-5


def test_halves_of_a_batch_give_the_norms_of_the_batch(whole, data_bin, fairseq_train, tmp_path):
    """--update-freq 2: the norm of the accumulated gradient, not of the last half's."""
    run = fairseq_train(arguments(data_bin, tmp_path, *WHOLE, "--batch-size", 20, "--update-freq", 2))
    assert run.rc == 0, run.log
    assert_equal_norms(rows_of(tmp_path), whole.rows)


def test_two_workers_give_the_norms_of_one(whole, data_bin, fairseq_train, tmp_path):
    """A half of the batch each over gloo: the norm of the reduced gradient, written once."""
    run = fairseq_train(arguments(data_bin, tmp_path, *WHOLE, "--batch-size", 20), workers=2)
    assert run.rc == 0, run.log
    assert "training on 2 devices" in run.log
    assert_equal_norms(rows_of(tmp_path), whole.rows)


def test_a_clipped_gradient_is_measured_before_clipping(whole, data_bin, tmp_path):
    """--clip-norm 0.1 under a norm of 3: the first update's rows are the same to the last digit."""
    lines = train_here(arguments(data_bin, tmp_path, *WHOLE, "--clip-norm", 0.1))
    assert float(lines[0]["clip"]) == 100
    assert of_update(rows_of(tmp_path), 1) == of_update(whole.rows, 1)


ADAM = ("--optimizer", "adam", "--lr", 1e-4)  # fairseq's SGD has no memory-efficient mode


@pytest.mark.parametrize(
    "flags",
    [
        ("--memory-efficient-fp16", "--fp16-init-scale", 128),
        ("--fp16", "--fp16-init-scale", 128),
        ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 128),
        ("--bf16",),
        ("--memory-efficient-bf16",),
        ("--amp",),
        ("--compute-dtype", "bfloat16"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_every_precision_gives_the_norms_of_float32(whole, data_bin, tmp_path, monkeypatch, flags):
    """Loss scale and token count are out of the rows: total to 1 %, each matrix to 3 % of it or 0.1 % of the total."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # flat fp16 asks for it; a CPU's index is None
    lines = train_here(arguments(data_bin, tmp_path, *WHOLE, *ADAM, "--max-update", 1, *flags))
    ours, theirs = rows_of(tmp_path), of_update(whole.rows, 1)
    ours = of_update(ours, 1)
    total = root_of_squares(theirs)
    assert root_of_squares(ours) == pytest.approx(total, rel=0.01)
    assert root_of_squares(ours) == pytest.approx(float(lines[0]["gnorm"]), abs=5.1e-4)
    assert ours.keys() == theirs.keys()
    for key, norm in theirs.items():
        assert ours[key] == pytest.approx(norm, rel=0.03, abs=1e-3 * total), key


def test_a_weight_without_gradient_has_no_row_and_a_shared_one_has_one():
    """A dropped layer; an embedding that is the output projection, too; a criterion's own weight."""
    model = torch.nn.Module()
    model.embed, model.dropped, model.out = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))
    model.out.weight = model.embed.weight
    criterion = torch.nn.Linear(1, 1, bias=False)
    model.embed.weight.grad = torch.full((2, 2), 3.0)
    criterion.weight.grad = torch.full((1, 1), 2.0)
    trainer = SimpleNamespace(get_model=lambda: model, get_criterion=lambda: criterion, optimizer=None)
    assert measure(trainer) == [("embed", "", "weight", 6.0), ("criterion", "", "weight", 2.0)]


def test_amp_still_has_its_loss_scale_to_take_off_the_gradients():
    """Fairseq divides by it while clipping, after the measurement."""
    optimizer = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 128.0))
    assert pending_factor(optimizer) == 1 / 128


# When


def test_updates_1_and_each_multiple_are_due():
    """--grad-norm-interval 3, and 1."""
    assert [update for update in range(1, 10) if is_due(update, 3)] == [1, 3, 6, 9]
    assert all(is_due(update, 1) for update in range(1, 10))


DROPOUT = ("--batch-size", 32, "--dropout", 0.3, "--optimizer", "adam", "--lr", 5e-3, "--max-update", 20)


@pytest.fixture(scope="module")
def measured(data_bin, fairseq_train, tmp_path_factory):
    """Twenty updates (two epochs) with dropout and Adam, measured each third, a checkpoint after each fifth."""
    save_dir = tmp_path_factory.mktemp("measured")
    flags = (*DROPOUT, "--grad-norm-interval", 3, "--save-interval-updates", 5)
    run = fairseq_train(arguments(data_bin, save_dir, *flags))
    assert run.rc == 0, run.log
    return SimpleNamespace(save_dir=save_dir, rows=rows_of(save_dir), lines=lines_of(run.log))


@pytest.fixture(scope="module")
def unmeasured(data_bin, fairseq_train, tmp_path_factory):
    """The same run with --grad-norm-interval 0: its save folder and log lines."""
    save_dir = tmp_path_factory.mktemp("unmeasured")
    run = fairseq_train(arguments(data_bin, save_dir, *DROPOUT, "--grad-norm-interval", 0))
    assert run.rc == 0, run.log
    return SimpleNamespace(save_dir=save_dir, lines=lines_of(run.log))


def test_every_interval_is_measured_in_a_real_run(measured):
    """Interval 3 of 20 updates."""
    assert updates_of(measured.rows) == [1, 3, 6, 9, 12, 15, 18]


def test_measuring_leaves_the_trained_weights_bit_equal(measured, unmeasured):
    """Weights and Adam's moments after 20 updates, hook on and off."""
    on, off = (torch.load(run.save_dir / "checkpoint_last.pt") for run in (measured, unmeasured))
    assert on["model"].keys() == off["model"].keys()
    assert all(torch.equal(on["model"][name], off["model"][name]) for name in off["model"])
    on, off = (state["last_optimizer_state"]["state"] for state in (on, off))
    assert all(torch.equal(on[i][moment], off[i][moment]) for i in off for moment in ("exp_avg", "exp_avg_sq"))


def test_interval_0_writes_nothing(unmeasured):
    """No table, no value in fairseq's metrics."""
    assert not list(unmeasured.save_dir.glob(f"{FILE_NAME}*"))
    assert not [key for line in unmeasured.lines for key in line if key.startswith("gnorm_")]


# Where


def test_fairseqs_metrics_get_W1_and_W2_of_each_layer(whole):  # noqa: N802 - the paper's matrices
    """Keys such as gnorm_decoder_2_fc1.weight, each with the table's value."""
    for update, line in enumerate(whole.lines, 1):
        shown = {key: float(value) for key, value in line.items() if key.startswith("gnorm_")}
        expected = {
            f"gnorm_{stack}_{layer}_{matrix}": norm
            for (stack, layer, matrix), norm in of_update(whole.rows, update).items()
            if matrix in ("fc1.weight", "fc2.weight")
        }
        assert len(expected) == 8  # two matrices, two layers, two stacks
        assert shown == pytest.approx(expected, abs=5.1e-6)


def test_a_log_line_without_a_measurement_shows_null(measured):
    """Interval 3, a line each update: values at updates 1, 3, 6, ... only."""
    shown = [line["num_updates"] for line in measured.lines if line.get("gnorm_encoder_1_fc1.weight") is not None]
    assert shown == ["1", "3", "6", "9", "12", "15", "18"]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("encoder.layers.0.fc1.weight", ("encoder", 1, "fc1.weight")),
        ("decoder.layers.11.encoder_attn.q_proj.bias", ("decoder", 12, "encoder_attn.q_proj.bias")),
        ("encoder.sentence_encoder.layers.5.final_layer_norm.bias", ("encoder", 6, "final_layer_norm.bias")),
        ("layers.0.weight", ("other", 1, "weight")),
        ("decoder.embed_tokens.weight", ("decoder", "", "embed_tokens.weight")),
        ("encoder.layers.weight", ("encoder", "", "layers.weight")),
        ("criterion.scale", ("criterion", "", "scale")),
        ("scale", ("other", "", "scale")),
    ],
)
def test_a_parameters_name_tells_stack_layer_and_matrix(name, where):
    """Layers count from 1; wrappers leave no trace."""
    assert place(name) == where


# Resumed and failing runs


def test_a_resumed_run_ends_in_the_table_of_the_unbroken_one(measured, data_bin, fairseq_train, tmp_path):
    """Killed in the middle of a line after update 20, resumed from update 5: byte for byte the same file.

    Update 5 is in epoch 1: from a later epoch fairseq itself goes on with other batches than the unbroken run.
    """
    table = (measured.save_dir / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(table + b"20\tdecoder\t2\tfc1.we")
    shutil.copy(measured.save_dir / "checkpoint_1_5.pt", tmp_path / "checkpoint_last.pt")
    run = fairseq_train(arguments(data_bin, tmp_path, *DROPOUT, "--grad-norm-interval", 3, "--no-save"))
    assert run.rc == 0, run.log
    assert "@ 5 updates" in run.log
    assert (tmp_path / FILE_NAME).read_bytes() == table


def test_a_fresh_run_in_an_old_folder_starts_a_fresh_table(tmp_path):
    """Update 0: only the header stays."""
    path = tmp_path / FILE_NAME
    path.write_text(HEADER + "1\tencoder\t1\tfc1.weight\t0.5\n")
    keep_rows_until(str(path), 0)
    assert path.read_text() == HEADER


def test_a_run_that_goes_on_from_a_measured_update_keeps_its_row(tmp_path):
    """Rows of updates 3, 6 and 9, from update 6 on: that of 9 is made again."""
    path = tmp_path / FILE_NAME
    rows = [f"{update}\tencoder\t1\tfc1.weight\t0.5\n" for update in (3, 6, 9)]
    path.write_text(HEADER + "".join(rows))
    keep_rows_until(str(path), 6)
    assert path.read_text() == HEADER + rows[0] + rows[1]


@pytest.mark.parametrize("text", ["my notes\n", "my notes", HEADER + "1\tencoder\n", HEADER + "x\ta\tb\tc\td\n"])
def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path, text):
    """Another first line, a row too short, no update number."""
    path = tmp_path / FILE_NAME
    path.write_text(text)
    assert "move the file away" in sentence_of(keep_rows_until, str(path), 3)
    assert path.read_text() == text


def test_a_table_that_cannot_be_written_is_reported_in_a_sentence(tmp_path):
    """A folder of that name."""
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(SystemExit, match="cannot write .*grad_norm.tsv .*Is a directory"):
        keep_rows_until(str(tmp_path / FILE_NAME), 3)


def test_an_overflow_leaves_no_row(whole, data_bin, tmp_path, monkeypatch, caplog):
    """fp16 from a loss scale that overflows several times: update 1 is in the table once, from the try that counted."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # fairseq's handler asks for it
    flags = ("--memory-efficient-fp16", "--fp16-init-scale", 2**24, "--max-update", 2)
    with caplog.at_level(logging.INFO):
        train_here(arguments(data_bin, tmp_path, *WHOLE, *ADAM, *flags))
    assert len([record for record in caplog.records if "gradient overflow detected" in record.message]) > 1
    rows = rows_of(tmp_path)
    assert updates_of(rows) == [1, 2]
    expected = root_of_squares(of_update(whole.rows, 1))
    assert root_of_squares(of_update(rows, 1)) == pytest.approx(expected, rel=0.01)


def test_an_update_that_is_not_a_number_leaves_no_row(data_bin, tmp_path, monkeypatch):
    """A diverged run ends with fairseq's error; the rows before it stay."""
    original = torch.nn.functional.log_softmax
    calls = []

    def breaking(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs) * (1.0 if len(calls) < 3 else float("nan"))

    monkeypatch.setattr(torch.nn.functional, "log_softmax", breaking)
    with pytest.raises(FloatingPointError, match="Nan/Inf"):
        train_here(arguments(data_bin, tmp_path, *WHOLE))
    assert updates_of(rows_of(tmp_path)) == [1, 2]


def test_a_negative_interval_ends_the_command_in_a_sentence(data_bin, fairseq_train, tmp_path):
    """Exit status 1, the sentence as last line, no traceback, nothing written."""
    run = fairseq_train(arguments(data_bin, tmp_path, *WHOLE, "--grad-norm-interval", -5))
    assert run.rc == 1
    assert "Traceback" not in run.log
    assert run.log.splitlines()[-1].startswith("--grad-norm-interval -5 is negative; give the number of updates")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "use_bmuf", "flag"),
    [
        ("fully_sharded", False, "--ddp-backend fully_sharded"),
        ("slowmo", False, "--ddp-backend slowmo"),
        ("pytorch_ddp", True, "--use-bmuf"),
    ],
)
def test_a_run_whose_workers_never_hold_the_whole_gradient_is_refused(backend, use_bmuf, flag):
    """In one sentence, but only where norms are asked for."""
    cfg = SimpleNamespace(
        model=SimpleNamespace(grad_norm_interval=10),
        distributed_training=SimpleNamespace(ddp_backend=backend),
        optimization=SimpleNamespace(use_bmuf=use_bmuf),
    )
    assert flag in sentence_of(checked_interval, cfg)
    cfg.model = SimpleNamespace()  # a model of fairseq's own, without the flag
    assert checked_interval(cfg) == 0
