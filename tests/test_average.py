"""Tests of fairseq_lnplugin/study/average.py: averaging the checkpoints of a run."""

import shutil
import subprocess
import sys

import pytest
import torch
from fairseq import checkpoint_utils
from sentences import sentence_of

from fairseq_lnplugin import cli


@pytest.fixture(scope="module")
def run_folder(data_bin, fairseq_train, tmp_path_factory):
    """Checkpoints 1 to 3 of a tiny Pre-LN run with tied embeddings, one update an epoch, its Adam state included."""
    folder = tmp_path_factory.mktemp("run")
    args = [data_bin, "--arch", "transformer_ln_study_tiny", "--ln-position", "pre", "--share-all-embeddings"]
    args += ["--optimizer", "adam", "--lr", "0.01", "--criterion", "label_smoothed_cross_entropy"]
    run = fairseq_train([*args, "--max-tokens", 8000, "--max-epoch", 3, "--save-dir", folder])
    assert run.rc == 0, run.log
    return folder


@pytest.fixture
def paths(run_folder, tmp_path):
    """Copies of the three checkpoints in a folder of the test's own."""
    names = [f"checkpoint{epoch}.pt" for epoch in (1, 2, 3)]
    return [shutil.copy(run_folder / name, tmp_path / name) for name in names]


def average(*argv):
    """Run ``fairseq-ln average``; returns its status."""
    return cli.main(["average", *map(str, argv)])


def load(path):
    """A checkpoint as torch saved it."""
    return torch.load(path, weights_only=False)


def altered(path, out, change):
    """Save a checkpoint after ``change(state)`` to ``out``."""
    state = load(path)
    change(state)
    torch.save(state, out)
    return out


def setting(name, value):
    """A change of one of the model's settings."""
    return lambda state: setattr(state["cfg"]["model"], name, value)


def refusal(folder, *argv):
    """The sentence that ``fairseq-ln average`` ends with; nothing may be written."""
    return sentence_of(average, *argv, begins="fairseq-ln average: ", unchanged=folder)


# The mean


def test_every_parameter_is_the_mean_of_the_files(paths, tmp_path):
    """(a + b + c) / 3 in float64, rounded once."""
    assert average("--out", tmp_path / "mean.pt", *paths) == 0
    models, mean = [load(path)["model"] for path in paths], load(tmp_path / "mean.pt")["model"]
    assert list(mean) == list(models[0])
    for name, value in mean.items():
        wanted = torch.stack([model[name].double() for model in models]).mean(0)
        assert torch.equal(value, wanted.to(value.dtype)), name
    name = "encoder.layers.0.fc1.weight"
    assert not torch.equal(models[0][name], models[2][name])  # or the test shows nothing


def test_the_mean_of_one_checkpoint_is_itself(paths, tmp_path):
    """Bit by bit."""
    average("--out", tmp_path / "mean.pt", paths[0])
    mean = load(tmp_path / "mean.pt")["model"]
    assert all(torch.equal(value, mean[name]) for name, value in load(paths[0])["model"].items())


def test_half_precision_parameters_are_summed_in_float64(paths, tmp_path):
    """60000 + 60000 overflows float16; the mean is 60000 in float16."""

    def to_half(state):
        state["model"]["encoder.layers.0.fc1.bias"] = torch.full((128,), 60000, dtype=torch.float16)

    halves = [altered(path, tmp_path / f"half{i}.pt", to_half) for i, path in enumerate(paths[:2])]
    average("--out", tmp_path / "mean.pt", *halves)
    mean = load(tmp_path / "mean.pt")["model"]["encoder.layers.0.fc1.bias"]
    assert mean.dtype == torch.float16 and torch.all(mean == 60000)


def test_tied_embeddings_stay_one_tensor(paths, tmp_path):
    """Averaged once and saved once: source, target and output embedding."""
    average("--out", tmp_path / "mean.pt", *paths)
    model = load(tmp_path / "mean.pt")["model"]
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert len({model[name].data_ptr() for name in names}) == 1


def test_the_average_knows_its_dictionaries(paths, tmp_path):
    """As its parts do, so that another data folder is refused."""
    average("--out", tmp_path / "mean.pt", *paths)
    mean, part = (load(path)["model"]._metadata for path in (tmp_path / "mean.pt", paths[0]))
    assert mean["decoder"]["types"] == part["decoder"]["types"]


def test_the_optimizers_state_is_left_out(paths, tmp_path):
    """Adam's moments belong to no average; they are two thirds of a checkpoint."""
    assert "last_optimizer_state" in load(paths[2])
    average("--out", tmp_path / "mean.pt", *paths)
    assert "last_optimizer_state" not in load(tmp_path / "mean.pt")


def test_the_file_says_what_it_is_the_average_of(paths, tmp_path, capsys):
    """In extra_state and on standard output."""
    average("--out", tmp_path / "mean.pt", *paths[1:])
    assert load(tmp_path / "mean.pt")["extra_state"]["average_of"] == ["checkpoint2.pt", "checkpoint3.pt"]
    assert "checkpoint2.pt, checkpoint3.pt" in capsys.readouterr().out


def test_fairseq_loads_the_average_with_its_ln_position(paths, tmp_path):
    """Every parameter fits, and the settings are the run's."""
    average("--out", tmp_path / "mean.pt", *paths)
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "mean.pt")])
    assert cfg.model.ln_position == "pre" and model.decoder.layer_norm is not None


def test_fairseq_generate_translates_with_the_average(paths, tmp_path, data_bin, repo_root):
    """40 test sentences, 40 translations."""
    average("--out", tmp_path / "mean.pt", *paths)
    command = [sys.executable, "-m", "fairseq_cli.generate", data_bin, "--user-dir", repo_root / "fairseq_lnplugin"]
    command += ["--path", tmp_path / "mean.pt", "--beam", 2, "--max-len-b", 12, "--required-batch-size-multiple", 1]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert sum(line.startswith("H-") for line in run.stdout.splitlines()) == 40


# Which files


def test_the_last_epochs_are_counted_as_numbers(paths, tmp_path):
    """Epoch 10 is later than epoch 2; best, last and update checkpoints are not epochs."""
    for name in ("checkpoint10.pt", "checkpoint_last.pt", "checkpoint_1_99.pt"):
        shutil.copy(paths[0], tmp_path / name)
    average("--out", tmp_path / "mean.pt", "--last", 2, "--dir", tmp_path)
    assert load(tmp_path / "mean.pt")["extra_state"]["average_of"] == ["checkpoint3.pt", "checkpoint10.pt"]


def test_an_upper_bound_makes_the_choice_independent_of_later_epochs(paths, tmp_path):
    """--last 2 --up-to 2 of epochs 1 to 3."""
    average("--out", tmp_path / "mean.pt", "--last", 2, "--dir", tmp_path, "--up-to", 2)
    assert load(tmp_path / "mean.pt")["extra_state"]["average_of"] == ["checkpoint1.pt", "checkpoint2.pt"]


@pytest.mark.parametrize(("bound", "found"), [((), "3 (1, 2, 3) of the 5"), (("--up-to", 1), "1 (1) of the 5")])
def test_fewer_checkpoints_than_asked_for_are_refused(paths, tmp_path, bound, found):
    """3 epochs, average 5."""
    told = refusal(tmp_path, "--out", tmp_path / "mean.pt", "--last", 5, "--dir", tmp_path, *bound)
    assert found in told and "--keep-last-epochs" in told


@pytest.mark.parametrize("argv", [(), ("--last", 2), ("--dir", "."), ("--up-to", 3, "a.pt"), ("--last", 2, "--dir", ".", "a.pt")])
def test_flags_that_do_not_go_together_are_refused(tmp_path, argv):
    """Either files, or --last with --dir."""
    assert "--last N" in refusal(tmp_path, "--out", tmp_path / "mean.pt", *argv)


def test_a_file_given_twice_is_refused(paths, tmp_path):
    """It would count double; another spelling of the path does not hide it."""
    assert "twice" in refusal(tmp_path, "--out", tmp_path / "m.pt", paths[0], tmp_path / "." / "checkpoint1.pt")


def test_an_input_is_never_overwritten(paths, tmp_path):
    """--out is checkpoint1.pt, by a symlink."""
    (tmp_path / "link.pt").symlink_to(paths[0])
    content = (tmp_path / "checkpoint1.pt").read_bytes()
    assert "another name" in refusal(tmp_path, "--out", tmp_path / "link.pt", *paths)
    assert (tmp_path / "checkpoint1.pt").read_bytes() == content


# What cannot be averaged


@pytest.mark.parametrize(
    ("name", "value"),
    [("ln_position", "post"), ("arch", "transformer"), ("encoder_attention_heads", 4), ("activation_fn", "gelu")],
)
def test_another_model_is_refused_though_all_shapes_agree(paths, tmp_path, name, value):
    """Both files and both values are named."""
    other = altered(paths[1], tmp_path / "other.pt", setting(name, value))
    told = refusal(tmp_path, "--out", tmp_path / "mean.pt", paths[0], other)
    assert f"setting {name} is " in told and str(value) in told and "checkpoint1.pt" in told and "other.pt" in told


def test_a_checkpoint_of_another_dictionary_is_refused(paths, tmp_path):
    """Its rows of the embedding are other words."""
    other = altered(paths[1], tmp_path / "other.pt", lambda state: state["model"]._metadata["decoder"].update(types="abc"))
    told = refusal(tmp_path, "--out", tmp_path / "mean.pt", paths[0], other)
    assert "other.pt knows other types in its decoder than files before" in told


def test_a_run_whose_first_checkpoints_do_not_tell_their_dictionaries_is_averaged(paths, tmp_path):
    """It began with an earlier version; the average tells what the later ones do."""
    old = altered(paths[0], tmp_path / "old.pt", lambda state: state["model"]._metadata["decoder"].pop("types"))
    assert average("--out", tmp_path / "mean.pt", old, paths[1]) == 0
    assert load(tmp_path / "mean.pt")["model"]._metadata["decoder"]["types"]


def test_other_parameter_names_are_refused(paths, tmp_path):
    """A model without its last LN."""
    other = altered(paths[1], tmp_path / "other.pt", lambda state: state["model"].pop("decoder.layer_norm.weight"))
    told = refusal(tmp_path, "--out", tmp_path / "mean.pt", paths[0], other)
    assert "parameter decoder.layer_norm.weight" in told and "missing in the other" in told


def test_other_parameter_shapes_are_refused(paths, tmp_path):
    """Another dictionary: a row more in the embedding."""

    def add_word(state):
        weight = state["model"]["encoder.embed_tokens.weight"]
        state["model"]["encoder.embed_tokens.weight"] = torch.cat([weight, weight[:1]])

    other = altered(paths[1], tmp_path / "other.pt", add_word)
    told = refusal(tmp_path, "--out", tmp_path / "mean.pt", paths[0], other)
    assert "parameter encoder.embed_tokens.weight is (" in told


def test_a_file_cut_short_is_refused_by_name(paths, tmp_path):
    """As a killed training or a full disk leaves it."""
    content = (tmp_path / "checkpoint2.pt").read_bytes()
    (tmp_path / "checkpoint2.pt").write_bytes(content[: len(content) // 2])
    assert "checkpoint2.pt cannot be read" in refusal(tmp_path, "--out", tmp_path / "mean.pt", *paths)


@pytest.mark.parametrize("content", [b"", b"some text\n"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(paths, tmp_path, content):
    """Empty, or something else."""
    (tmp_path / "notes.pt").write_bytes(content)
    assert "notes.pt cannot be read" in refusal(tmp_path, "--out", tmp_path / "mean.pt", tmp_path / "notes.pt")


def test_a_missing_file_is_told(tmp_path):
    """With its name."""
    assert "there is no file" in refusal(tmp_path, "--out", tmp_path / "mean.pt", tmp_path / "nothing.pt")


def test_a_place_that_cannot_be_written_is_told(paths, tmp_path):
    """--out in a missing folder."""
    assert "cannot be written" in refusal(tmp_path, "--out", tmp_path / "missing" / "mean.pt", *paths)
