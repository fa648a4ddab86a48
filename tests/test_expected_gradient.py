"""fairseq_lnplugin/analysis/expected_gradient.py and measurements.py (the paper's figure 3 and section 3.4)."""

import argparse
import csv
import gc
import io
import json
import math
import os
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import reference
import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.optim.adam import Adam
from sentences import sentence_of

from fairseq_lnplugin.analysis import expected_gradient, gradient_report, measurements

COLUMNS = "weight_init ln_position layers stack layer matrix quantity norm low high seeds batches".split()


def arguments(data, out, *flags):
    """The parsed flags of a small measurement."""
    parser = argparse.ArgumentParser()
    expected_gradient.add_arguments(parser)
    small = ["--batches", 3, "--max-tokens", 200]
    return parser.parse_args([str(word) for word in (data, "--out", out, *small, *flags)])


def new(data, out, *flags):
    """The parsed flags for new models of the tests' size."""
    return arguments(data, out, "--arch", "transformer_ln_study_tiny", "--layers", 2, *flags)


def measured(out):
    """The lines of measurements.jsonl."""
    return [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]


def one_model(args, seed=1):
    """Model, criterion, mini-batches and task of the first model that ``args`` ask for."""
    data = expected_gradient.Data(args.data, args.subset)
    utils.set_torch_seed(seed)
    model, criterion = expected_gradient.initial_models(args)[0].build(data.task)
    return model, criterion, list(data.batches(args.batches, args.max_tokens, seed, model)), data


def norms(model, criterion, batches, quantity="expected_gradient", seed=1):
    """Norms by matrix of one model."""
    rows = expected_gradient.measure(model, criterion, iter(batches), seed)["matrices"]
    return {(row["stack"], row["layer"], row["matrix"]): row[quantity] for row in rows}


@pytest.fixture
def drawn():
    """For the tests that look at figures."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """No figures elsewhere: they take most of a small measurement's time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(gradient_report.figures, "gradients", lambda folder, rows: [])


# -- The quantity --


@pytest.mark.parametrize("position", ["post", "pre"])
def test_both_gradients_equal_a_plain_double_loop_in_float64(position, data_bin, tmp_path):
    """|| mean_b g_b || and mean_b || g_b ||, by way of the paper's Table 1 written out in float64."""
    model, criterion, batches, data = one_model(new(data_bin, tmp_path, "--dropout", 0, "--ln-position", position))
    parameters = {name: value.detach().double().requires_grad_() for name, value in model.state_dict().items() if value.dim()}
    pad, smoothing = data.task.target_dictionary.pad(), 0.1
    gradients = {name: [] for name in parameters if name.endswith(("fc1.weight", "fc2.weight"))}
    for sample in batches:
        net_input, target = sample["net_input"], sample["target"]
        tokens = net_input["src_tokens"], net_input["prev_output_tokens"]
        lprobs = F.log_softmax(reference.logits(parameters, *tokens, 2, 2, position, pad), dim=-1)
        lprobs = lprobs[target.ne(pad)]
        right = lprobs.gather(1, target[target.ne(pad)][:, None]).squeeze(1)
        each = smoothing / (lprobs.size(1) - 1)
        loss = (-(1 - smoothing - each) * right - each * lprobs.sum(1)).mean()
        for name, gradient in zip(gradients, torch.autograd.grad(loss, [parameters[name] for name in gradients]), strict=True):
            gradients[name].append(gradient)
    expected = {expected_gradient.place(name): torch.stack(of_name).mean(0).norm().item() for name, of_name in gradients.items()}
    batch = {
        expected_gradient.place(name): torch.stack(of_name).flatten(1).norm(dim=1).mean().item()
        for name, of_name in gradients.items()
    }
    assert norms(model, criterion, batches) == pytest.approx(expected, rel=1e-4)
    assert norms(model, criterion, batches, "batch_gradient") == pytest.approx(batch, rel=1e-4)


def sums_of(*gradients):
    """Running sums over made-up gradients of one 2 x 2 matrix, and their row."""
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    sums = expected_gradient.Sums({"decoder.layers.0.fc2.weight": matrix})
    for gradient in gradients:
        matrix.grad = torch.as_tensor(gradient).clone()
        sums.add(1.0)
    return sums.norms()[0]


def test_the_mean_is_taken_before_the_norm():
    """Opposite gradients: the expected one is 0, the batches' own norms stay."""
    g = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    row = sums_of(g, -g)
    assert row["expected_gradient"] == 0 and row["batch_gradient"] == 5


def test_the_unbiased_gradient_is_free_of_the_batches_noise():
    """E of its square is ||mean||^2, which the plain norm exceeds by variance / N."""
    torch.manual_seed(1)
    rows = [sums_of(*(1 + 3 * torch.randn(4, 2, 2))) for _ in range(4000)]
    assert sum(row["expected_gradient"] ** 2 for row in rows) / len(rows) == pytest.approx(4 + 4 * 9 / 4, rel=0.05)
    # the root of a negative estimate counts as 0, so a signal well above the noise
    rows = [sums_of(*(10 + 3 * torch.randn(4, 2, 2))) for _ in range(1000)]
    assert sum(row["unbiased_gradient"] ** 2 for row in rows) / len(rows) == pytest.approx(400, rel=0.01)


def test_the_first_adam_update_is_fairseqs():
    """||change|| / lr of its Adam's first update, where epsilon is not small beside the gradient."""
    g = torch.tensor([[1e-9, 2e-8], [0.3, -4.0]])
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    parameter.grad = g.clone()
    Adam([parameter], lr=1e-3, betas=(0.9, 0.98), eps=1e-8).step()
    assert sums_of(g)["adam_first"] == pytest.approx(parameter.detach().norm().item() / 1e-3, rel=1e-4)


def test_the_later_adam_update_is_torchs_on_a_noisy_standing_gradient():
    """Root mean square change / lr after many updates on g + noise, weights being irrelevant to it."""
    torch.manual_seed(1)
    true, spread, parameter = torch.tensor([[0.0, 1.0], [2.0, -0.5]]), 1.0, torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Adam([parameter], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    squares = []
    for update in range(9000):
        before = parameter.detach().clone()
        parameter.grad = true + spread * torch.randn(2, 2)
        optimizer.step()
        if update >= 3000:
            squares.append((parameter.detach() - before).pow(2).sum().item() / 1e-6)
    found = sums_of(*(true + spread * torch.randn(3000, 2, 2)))["adam_still"]
    assert found == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=0.03)


def test_halves_of_a_minibatch_give_the_gradient_of_the_whole(data_bin, tmp_path):
    """Per-token means: with as many target tokens in each half, the mean over the halves is the whole's gradient."""
    model, criterion, _, data = one_model(new(data_bin, tmp_path, "--dropout", 0))
    lengths = data.dataset.tgt_sizes
    of_one_length = [index for index in range(len(data.dataset)) if lengths[index] == lengths[0]][:8]
    assert len(of_one_length) == 8
    whole, *halves = (
        data.dataset.collater([data.dataset[i] for i in part]) for part in (of_one_length, of_one_length[:4], of_one_length[4:])
    )
    assert norms(model, criterion, halves) == pytest.approx(norms(model, criterion, [whole]), rel=1e-4)


def test_the_order_of_minibatches_does_not_matter_without_dropout(data_bin, tmp_path):
    """A mean."""
    model, criterion, batches, _ = one_model(new(data_bin, tmp_path, "--dropout", 0))
    assert norms(model, criterion, batches) == pytest.approx(norms(model, criterion, batches[::-1]), rel=1e-5)


def test_freezing_all_else_leaves_the_gradients_as_they_are(data_bin, tmp_path):
    """Only W1 and W2 take a gradient here; in training every parameter does. With dropout."""
    model, criterion, batches, _ = one_model(new(data_bin, tmp_path))
    found = norms(model, criterion, batches[:1])
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    utils.set_torch_seed(1)
    loss, size, _ = criterion(model, batches[0])
    loss.backward()
    for name, parameter in expected_gradient.paper_matrices(model).items():
        assert found[expected_gradient.place(name)] == pytest.approx(parameter.grad.norm().item() / size, rel=1e-6)


def test_the_first_minibatch_is_the_first_update_of_fairseq_train(trained, data_bin, tmp_path):
    """Same seed, same flags: weights, mini-batch, dropout and so the gradient norms are those of grad_norm.tsv."""
    expected_gradient.run(new(data_bin, tmp_path, "--batches", 1, "--seeds", 3, "--ln-position", "pre"))
    ours = {(row["stack"], str(row["layer"]), row["matrix"]): row["batch_gradient"] for row in measured(tmp_path)[0]["matrices"]}
    with open(trained / "grad_norm.tsv", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["update"] == "1"]
    logged = {(row["stack"], row["layer"], row["matrix"]): float(row["norm"]) for row in rows}
    assert len(ours) == 8
    assert ours == pytest.approx({key: logged[key] for key in ours}, rel=1e-4)


def test_minibatch_b_is_run_with_the_random_numbers_of_seed_plus_b(data_bin, tmp_path):
    """With dropout: the batch gradient of two mini-batches is the mean of those measured alone with seeds 1 and 2."""
    model, criterion, batches, _ = one_model(new(data_bin, tmp_path))
    alone = [norms(model, criterion, [batch], "batch_gradient", seed) for seed, batch in enumerate(batches[:2], 1)]
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    assert norms(model, criterion, batches[:2], "batch_gradient") == pytest.approx(mean, rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_minibatches(data_bin, tmp_path):
    """The numbers in tensors after the 5th and the 9th mini-batch."""
    model, criterion, batches, _ = one_model(new(data_bin, tmp_path))
    held = []

    def count(_):
        gc.collect()
        held.append(sum(thing.numel() for thing in gc.get_objects() if isinstance(thing, torch.Tensor)))

    expected_gradient.measure(model, criterion, iter((batches * 3)[:9]), 1, count)
    assert held[4] == held[8]


# -- Hidden states --


def test_epsilon_and_delta_of_a_known_sample():
    """Z = 1..8, mean 4.5: 7 of 8 values are at most 7; 4 of 8 are above 1.1 x 4.5 = 4.95."""
    epsilon, delta, mean = expected_gradient.bounded(torch.arange(1.0, 9.0))
    assert (epsilon, delta, mean) == pytest.approx((7 / 4.5 - 1, 4 / 8, 4.5))


def test_recorded_sums_are_what_post_ln_normalizes(data_bin, tmp_path):
    """LN(x^{post,5}) of the last encoder layer is the encoder's output, dropout and all."""
    model, _, batches, _ = one_model(new(data_bin, tmp_path))
    net_input = batches[0]["net_input"]
    model.train()
    with torch.no_grad(), expected_gradient.recorded_sums() as kept:
        out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])["encoder_out"][0]
    assert len(kept) == 4
    torch.testing.assert_close(F.layer_norm(kept[-1], kept[-1].shape[-1:]), out, rtol=1e-4, atol=1e-4)


def test_pads_do_not_count_as_hidden_states(data_bin, tmp_path):
    """As many norms as there are real tokens."""
    model, criterion, batches, data = one_model(new(data_bin, tmp_path))
    with torch.no_grad(), expected_gradient.recorded_sums() as kept:
        criterion(model, batches[0])
    tokens = batches[0]["net_input"]["src_tokens"]
    found = expected_gradient.squared_norms_of(kept, model, batches[0])
    assert len(found) == 4 and len(found[0]) == tokens.ne(data.task.source_dictionary.pad()).sum()


# -- The command --


def test_figure3_tsv_has_the_agreed_columns_and_both_quantities(drawn, data_bin, tmp_path):
    """One row for each model, matrix and quantity; with several seeds an interval around the mean."""
    expected_gradient.run(new(data_bin, tmp_path, "--seeds", 1, 2))
    with open(tmp_path / "figure3.tsv", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # positions, stacks, layers, matrices, quantities
    assert {row["quantity"] for row in rows} == {"expected_gradient", "batch_gradient"}
    assert all(float(row["low"]) < float(row["norm"]) < float(row["high"]) for row in rows)
    assert {(row["seeds"], row["batches"]) for row in rows} == {("2", "3")}
    assert json.loads((tmp_path / "figure3.json").read_text())["settings"]["label_smoothing"] == 0.1
    assert "about 1.6" in (tmp_path / "RESULTS.md").read_text()
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"figure3.png", "figure3.svg"}


def test_one_seed_repeats_bit_for_bit_and_two_differ(data_bin, tmp_path):
    """A seed makes weights, mini-batches and dropout."""
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        expected_gradient.run(new(data_bin, tmp_path / folder, "--ln-position", "post", "--seeds", seed))
    a, b, c = (measured(tmp_path / folder)[0]["matrices"] for folder in "abc")
    assert a == b
    assert all(row["expected_gradient"] != other["expected_gradient"] for row, other in zip(a, c, strict=True))


def test_a_killed_start_is_continued(data_bin, tmp_path, monkeypatch):
    """Whole lines stay, a half-written one is measured again, and what is done is not."""
    expected_gradient.run(new(data_bin, tmp_path, "--seeds", 1, 2))
    path, original, calls = tmp_path / "measurements.jsonl", expected_gradient.measure, []
    before, table = measured(tmp_path), (tmp_path / "figure3.tsv").read_bytes()
    path.write_bytes(path.read_bytes()[:-50])
    monkeypatch.setattr(expected_gradient, "measure", lambda *args: calls.append(1) or original(*args))
    expected_gradient.run(new(data_bin, tmp_path, "--seeds", 1, 2))
    assert len(calls) == 1
    assert [record["matrices"] for record in measured(tmp_path)] == [record["matrices"] for record in before]
    assert (tmp_path / "figure3.tsv").read_bytes() == table


def test_a_grid_grows_in_one_folder(data_bin, tmp_path):
    """Depths, inits and seeds of later starts stand beside the first; exponents come once there are two depths."""
    expected_gradient.run(new(data_bin, tmp_path, "--ln-position", "pre"))
    assert json.loads((tmp_path / "figure3.json").read_text())["exponents_in_depth"] == []
    for flags in (("--layers", 3), ("--weight-init", "fairseq"), ("--seeds", 2)):
        expected_gradient.run(new(data_bin, tmp_path, "--ln-position", "pre", *flags))
    assert len(measured(tmp_path)) == 4
    exponents = json.loads((tmp_path / "figure3.json").read_text())["exponents_in_depth"]
    assert {(row["weight_init"], row["ln_position"]) for row in exponents} == {("xavier_uniform", "pre")}


def test_other_settings_want_another_folder(data_bin, tmp_path):
    """Means over models that were measured differently are none."""
    expected_gradient.run(new(data_bin, tmp_path))
    before = (tmp_path / "measurements.jsonl").read_bytes()
    fails(new(data_bin, tmp_path, "--batches", 2), "holds measurements with batches 3, and now it is 2")
    assert (tmp_path / "measurements.jsonl").read_bytes() == before


def test_other_data_want_another_folder(data_bin, tmp_path):
    """A dictionary with one more word is enough: other words have the numbers."""
    expected_gradient.run(new(data_bin, tmp_path / "out", "--ln-position", "pre", "--batches", 1))
    before = (tmp_path / "out" / "measurements.jsonl").read_bytes()
    data = shutil.copytree(data_bin, tmp_path / "data")
    with open(data / "dict.de.txt", "a") as file:
        file.write("onemore 1\n")
    fails(new(data, tmp_path / "out", "--ln-position", "pre", "--batches", 1), "out holds measurements with data ")
    assert (tmp_path / "out" / "measurements.jsonl").read_bytes() == before


def test_a_checkpoint_is_measured_as_it_was_trained(trained, data_bin, tmp_path):
    """Position, depth, dropout come with it; its rows go into a table of their own, with the number of updates."""
    expected_gradient.run(arguments(data_bin, tmp_path, "--checkpoint", trained / "checkpoint_last.pt"))
    record = measured(tmp_path)[0]
    assert (record["unit"]["ln_position"], record["unit"]["layers"], record["unit"]["checkpoint"]["updates"]) == ("pre", 2, 2)
    assert record["shared"]["dropout"] == 0.1
    with open(tmp_path / "figure3_trained.tsv", newline="") as file:
        assert next(csv.DictReader(file, delimiter="\t"))["updates"] == "2"
    assert not (tmp_path / "figure3.tsv").exists()


def test_the_report_says_how_a_checkpoint_was_trained(trained, data_bin, tmp_path):
    """The flags of the fixture's training, which the measuring's own do not change."""
    expected_gradient.run(arguments(data_bin, tmp_path, "--checkpoint", trained / "checkpoint_last.pt"))
    training = measured(tmp_path)[0]["unit"]["checkpoint"]["training"]
    assert (training["optimizer"], training["lr"], training["tokens_an_update"]) == ("adam", 1e-3, 200)
    assert "was trained with: optimizer adam" in (tmp_path / "RESULTS.md").read_text()


def test_the_tokens_of_an_update_are_those_of_all_its_micro_batches_and_workers():
    """1024 tokens, 4 micro-batches, 2 workers."""
    cfg = SimpleNamespace(
        lr_scheduler=SimpleNamespace(_name="warmup_inverse_sqrt", warmup_updates=4000),
        optimizer=SimpleNamespace(_name="adam"),
        optimization=SimpleNamespace(lr=[5e-4], update_freq=[4]),
        dataset=SimpleNamespace(max_tokens=1024),
        distributed_training=SimpleNamespace(distributed_world_size=2),
    )
    assert expected_gradient.training_facts(cfg)["tokens_an_update"] == 8192


def test_a_checkpoint_trained_under_activation_checkpointing_is_measured_as_any_other(trained, data_bin, tmp_path):
    """Only W1 and W2 have gradients here, which is not what fairseq's checkpointing of activations is made for."""
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    for number, switched in enumerate((False, True)):
        state["cfg"]["model"].checkpoint_activations = switched
        torch.save(state, tmp_path / f"{number}.pt")
        expected_gradient.run(arguments(data_bin, tmp_path / str(number), "--checkpoint", tmp_path / f"{number}.pt"))
    plain, checkpointed = (measured(tmp_path / str(number))[0]["matrices"] for number in (0, 1))
    assert checkpointed == plain


def test_a_measurement_that_the_disk_took_half_of_leaves_nothing(tmp_path, monkeypatch):
    """One sentence; the file is as before."""
    path = tmp_path / "measurements.jsonl"
    measurements.append(path, {"shared": 1})
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, line):
            return super().write(line[:3])

    monkeypatch.setattr(measurements, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
    with pytest.raises(expected_gradient.UserError, match="No space left on device"):
        measurements.append(path, {"shared": 2})
    assert path.read_bytes() == before


def test_the_json_holds_the_numbers_of_the_tsv(data_bin, tmp_path):
    """Row for row, to the last digit that the tsv shows."""
    expected_gradient.run(new(data_bin, tmp_path, "--seeds", 1, 2))
    rows = json.loads((tmp_path / "figure3.json").read_text())["rows"]
    with open(tmp_path / "figure3.tsv", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [row["norm"] for row in rows] == [float(row["norm"]) for row in table]
    assert [row["layer"] for row in rows] == [int(row["layer"]) for row in table]


def test_the_trained_weights_are_measured_and_not_new_ones(trained, data_bin, tmp_path):
    """W2's own norm is the checkpoint's."""
    expected_gradient.run(arguments(data_bin, tmp_path, "--checkpoint", trained / "checkpoint_last.pt"))
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)["model"]
    assert measured(tmp_path)[0]["matrices"][-1]["weight"] == pytest.approx(state["decoder.layers.1.fc2.weight"].norm().item())


# -- Bad input --


@pytest.fixture(scope="session")
def trained(data_bin, fairseq_train, tmp_path_factory):
    """Two updates of fairseq-train, Pre-LN, seed 3, mini-batches as here."""
    folder = tmp_path_factory.mktemp("trained")
    flags = "--task translation --arch transformer_ln_study_tiny --ln-position pre --dropout 0.1 --label-smoothing 0.1 --seed 3"
    flags += " --criterion fused_label_smoothed_cross_entropy --optimizer adam --lr 1e-3 --max-tokens 200 --max-update 2"
    flags += " --required-batch-size-multiple 1 --cpu --grad-norm-interval 1 --disable-validation --no-epoch-checkpoints"
    run = fairseq_train([data_bin, *flags.split(), "--save-dir", folder])
    assert run.rc == 0, run.log
    return folder


def fails(args, sentence):
    """The command ends in one sentence that holds ``sentence``."""
    assert sentence in sentence_of(expected_gradient.run, args, begins="fairseq-ln gradients: ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--layers", 0), "--layers 0 is none"),
        (("--batches", 0), "--batches 0 is none"),
        (("--batches", 10_000), "and --batches is 10000; ask for fewer"),
        (("--seeds", 1, 2, 1), "--seeds has 1 twice"),
        (("--seeds", -1), "--seeds -1 is negative"),
        (("--seeds", 5_000_000_000), "--seeds 5000000000 is too large"),
        (("--dropout", 1), "--dropout 1.0 is not in [0, 1)"),
        (("--label-smoothing", 1), "--label-smoothing 1.0 is not in [0, 1)"),
        (("--max-tokens", 0), "--max-tokens 0 is none"),
        (("--lr-sgd", 0), "--lr-sgd must be above 0"),
        (("--arch", "transformer_iwslt_de_en"), "is no Transformer of this plug-in"),
        (("--subset", "holiday"), "has no part 'holiday' that can be read"),
        (("--source-lang", "de"), "go together"),
        (("--checkpoint", "nowhere.pt"), "there is no file nowhere.pt"),
    ],
)
def test_bad_flags_end_in_one_sentence(flags, sentence, data_bin, tmp_path):
    """And nothing is written that could be taken for a result."""
    fails(new(data_bin, tmp_path / "out", *flags), sentence)
    assert not (tmp_path / "out" / "RESULTS.md").exists()


def test_a_folder_that_is_none_is_refused(tmp_path):
    """No data."""
    fails(new(tmp_path / "none", tmp_path / "out"), "there is no folder")


def test_an_empty_split_is_refused(data_bin, tmp_path):
    """A binarized file without a sentence."""
    data = shutil.copytree(data_bin, tmp_path / "data")
    for lang in ("de", "en"):
        prefix = str(data / f"valid.de-en.{lang}")
        MMapIndexedDatasetBuilder(f"{prefix}.bin").finalize(f"{prefix}.idx")
    fails(new(data, tmp_path / "out", "--subset", "valid"), "part 'valid'")


def altered(trained, folder, change):
    """A copy of the checkpoint with a change made to its state."""
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    change(state)
    torch.save(state, folder / "altered.pt")
    return folder / "altered.pt"


def test_a_checkpoint_of_another_architecture_is_refused(trained, data_bin, tmp_path):
    """Fairseq's own Transformer."""

    def rename(state):
        state["cfg"]["model"].arch = state["cfg"]["model"]._name = "transformer_iwslt_de_en"

    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", altered(trained, tmp_path, rename)), "transformer_iwslt_de_en")


def test_flags_that_contradict_a_checkpoint_are_refused(trained, data_bin, tmp_path):
    """It has a position of its own."""
    path = trained / "checkpoint_last.pt"
    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", path, "--ln-position", "post"), "has --ln-position pre")


def test_checkpoints_of_different_settings_want_two_folders(trained, data_bin, tmp_path):
    """Dropout 0.1 and 0.3."""

    def more_dropout(state):
        state["cfg"]["model"].dropout = 0.3

    paths = trained / "checkpoint_last.pt", altered(trained, tmp_path, more_dropout)
    sentence = "has --dropout 0.3 and pre, 2-2, after 2 updates has 0.1; measure them into two folders"
    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", *paths), sentence)


def test_a_checkpoint_of_unequal_stacks_is_refused(trained, data_bin, tmp_path):
    """Figure 3 has one number of layers."""

    def deepen(state):
        state["cfg"]["model"].decoder_layers = 3

    path = altered(trained, tmp_path, deepen)
    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", path), "altered.pt has 2 encoder and 3 decoder layers")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_checkpoint_that_drops_layers_is_refused_however_seldom(stack, trained, data_bin, tmp_path):
    """A layer that is dropped in one mini-batch of many has no gradient there."""

    def drop(state):
        setattr(state["cfg"]["model"], f"{stack}_layerdrop", 0.001)

    path = altered(trained, tmp_path, drop)
    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", path), "altered.pt was trained with LayerDrop")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_for_other_dictionaries_is_refused(trained, data_bin, tmp_path):
    """Words would be other words."""
    data = shutil.copytree(data_bin, tmp_path / "data")
    for lang in ("de", "en"):
        with open(data / f"dict.{lang}.txt", "a") as file:
            file.write("onemore 1\n")
    fails(arguments(data, tmp_path / "out", "--checkpoint", trained / "checkpoint_last.pt"), "does not fit the data")


def test_a_loss_that_is_no_number_is_refused_and_leaves_no_result(trained, data_bin, tmp_path):
    """NaN weights."""

    def spoil(state):
        state["model"]["decoder.layers.1.fc2.weight"].fill_(math.nan)

    path = altered(trained, tmp_path, spoil)
    fails(arguments(data_bin, tmp_path / "out", "--checkpoint", path), "the loss of mini-batch 1 (seed 1) is nan")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("notes", ["notes\n", "notes", "{}\n"])
def test_a_file_with_something_else_in_it_is_left_alone(notes, data_bin, tmp_path):
    """Somebody's notes."""
    (tmp_path / "measurements.jsonl").write_text(notes)
    fails(new(data_bin, tmp_path), "line 1 of")
    assert (tmp_path / "measurements.jsonl").read_text() == notes


# -- The report --


def test_the_data_are_called_as_their_corpus_says(data_bin, tmp_path):
    """corpus.json beside a folder bin; else the folder's name."""
    data = shutil.copytree(data_bin, tmp_path / "talks" / "bin")
    assert expected_gradient.Data(str(data), "train").facts["name"] == "talks"
    (tmp_path / "talks" / "corpus.json").write_text('{"name": "iwslt14-de-en"}')
    assert expected_gradient.Data(str(data), "train").facts["name"] == "iwslt14-de-en"
    expected_gradient.run(new(data, tmp_path, "--data-name", "mine"))
    assert json.loads((tmp_path / "figure3.json").read_text())["facts"]["data"]["name"] == "mine"


def test_a_report_that_cannot_be_written_is_one_sentence_and_measurements_stay(data_bin, tmp_path):
    """A folder stands where RESULTS.md should."""
    (tmp_path / "RESULTS.md").mkdir()
    fails(new(data_bin, tmp_path), "cannot be written (Is a directory)")
    assert len(measured(tmp_path)) == 2


# -- The recipe --


def recipe(repo_root, *flags, **settings):
    """``bash recipes/gradients.sh --dry-run``: exit status, printed commands, messages."""
    command = ["bash", str(repo_root / "recipes/gradients.sh"), "--dry-run", *flags]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DATA": "nowhere", **settings})
    return run.returncode, [shlex.split(line) for line in run.stdout.splitlines()], run.stderr


def test_the_recipe_measures_the_papers_grid_and_its_commands_parse(repo_root):
    """Five depths, both positions, ten seeds; other inits; a checkpoint after 4000 updates of warm-up."""
    status, commands, messages = recipe(repo_root)
    assert status == 0, messages
    parser = argparse.ArgumentParser()
    expected_gradient.add_arguments(parser)
    grid, others, after, _ = (
        parser.parse_args(command[2:]) for command in commands if command[:2] == ["fairseq-ln", "gradients"]
    )
    assert (grid.layers, grid.ln_position, grid.max_tokens) == ([6, 8, 10, 12, 14], ["post", "pre"], 4096)
    assert grid.seeds == list(range(1, 11)) and grid.weight_init == ["xavier_uniform"]
    assert others.weight_init == ["xavier_normal", "fairseq"]
    (train,) = (command for command in commands if command[0] == "fairseq-train")
    assert train[train.index("--max-update") + 1] == train[train.index("--warmup-updates") + 1] == "4000"
    assert after.checkpoint[0].startswith(train[train.index("--save-dir") + 1])


def test_the_recipe_takes_a_checkpoint_in_the_place_of_a_training(repo_root, tmp_path):
    """CHECKPOINT=FILE."""
    (tmp_path / "some.pt").touch()
    status, commands, _ = recipe(repo_root, CHECKPOINT=str(tmp_path / "some.pt"))
    assert status == 0 and not any(command[0] == "fairseq-train" for command in commands)
    assert any(str(tmp_path / "some.pt") in command for command in commands)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"LAYERS": "6 x"}, "not 'x'"),
        ({"BATCHES": "0"}, "not '0'"),
        ({"CHECKPOINT": "nowhere.pt"}, "CHECKPOINT=nowhere.pt does not exist"),
        ({"PRESET": "huge"}, "unknown preset 'huge'"),
        ({"LAUNCH": "torchrun", "WORKERS": "2", "JOBS": "1"}, "leave LAUNCH, WORKERS and UPDATE_FREQ out"),
    ],
)
def test_bad_settings_of_the_recipe_end_in_one_sentence(settings, sentence, repo_root):
    """Before any work."""
    status, commands, messages = recipe(repo_root, **settings)
    assert status == 1 and not commands
    assert messages.count("\n") == 1 and sentence in messages
