"""recipes/*.sh, runs.tsv and presets.tsv (the paper's sections 3 and 4, appendix A.1 and H).

The real scripts run in the copies of the tree that recipe_trees.py makes, with stand-ins for all that they call.
"""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, free_port
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed.utils import infer_init_method
from omegaconf import OmegaConf
from recipe_trees import CORPUS_SCRIPT, Tree, flags, table


@pytest.fixture
def tree(tmp_path):
    """A fresh copy of the recipes."""
    return Tree(tmp_path)


def printed(tree, program, *arguments, recipe="iwslt14", count=4, **settings):
    """Flags of each command of a program that a dry run of a recipe prints; `count` of them, figure 4 has four runs."""
    result = tree.run(recipe, "--dry-run", *arguments, **settings)
    assert result.returncode == 0, result.stderr
    commands = [flags(line) for line in result.stdout.splitlines() if shlex.split(line)[0] == program]
    assert len(commands) == count, result.stdout
    return commands


# -- the tables --


def test_rows_of_a_figure_differ_only_in_the_columns_that_the_figure_studies():
    """All but these columns is one value within a figure; figures 2 and 6 are about Post-LN alone."""
    schedule = {"schedule", "warmup_updates", "hold_epochs", "decay", "decay_factor"}
    studied = {
        ("iwslt14", "2"): {"optimizer", "lr", "schedule", "warmup_updates", "decay"},
        ("iwslt14", "4"): {"ln_position", "optimizer", *schedule},
        ("iwslt14", "6"): set(),
        ("wmt14", "4"): {"ln_position", "lr", *schedule},
        ("iwslt14-fairseq", ""): {"ln_position"},
        ("own", ""): {"ln_position", *schedule},
    }
    free = {"figure", "run", "paper_bleu", "paper_loss", "note"}
    rows = table("runs.tsv")
    for (study, figure), columns in studied.items():
        members = [row for row in rows if row["study"] == study and figure in row["figure"].split(",")]
        assert len(members) > 1 or figure == "6"
        for column in set(rows[0]) - free - columns:
            assert len({row[column] for row in members}) == 1, (study, figure, column)


def test_every_run_is_named_after_its_settings_and_stands_once():
    """study-position-optimizer-lrX-schedule."""
    rows = table("runs.tsv")
    assert len({row["run"] for row in rows}) == len(rows)
    for row in rows:
        ending = f"warmup{row['warmup_updates']}" if row["warmup_updates"] else row["decay"].replace("none", "held")
        assert row["run"] == f"{row['study']}-{row['ln_position']}-{row['optimizer']}-lr{row['lr']}-{ending}"


def test_figure_2_has_every_pair_of_rate_and_warm_up_of_the_paper():
    """Adam: 5e-4, 1e-3 with T = 4000, 500, 1, and the held reading; SGD: 5e-3, 1e-3 with T = 4000, 1, and the held reading."""
    rows = [row for row in table("runs.tsv") if row["study"] == "iwslt14" and "2" in row["figure"].split(",")]
    adam = {(row["lr"], row["warmup_updates"]) for row in rows if row["optimizer"] == "adam"}
    sgd = {(row["lr"], row["warmup_updates"]) for row in rows if row["optimizer"] == "sgd"}
    assert adam == {(lr, warmup) for lr in ("5e-4", "1e-3") for warmup in ("4000", "500", "1", "")}
    assert sgd == {(lr, warmup) for lr in ("5e-3", "1e-3") for warmup in ("4000", "1", "")}
    assert {row["ln_position"] for row in rows} == {"post"}


def test_radam_always_has_linear_decay():
    """Section 4: linear decay for RAdam, as Liu et al. 2019; with 1/sqrt(t) Post-LN does not train."""
    assert {row["decay"] for row in table("runs.tsv") if row["optimizer"] == "radam"} == {"linear"}


def test_radam_with_another_decay_is_warned_of(tree):
    """O19: a row of one's own; the linear one is passed in silence."""
    assert "decays RAdam's rate linearly" not in tree.only(run="iwslt14-pre-radam-lr5e-4-linear").stderr
    plan = tree.root / "recipes" / "runs.tsv"
    text = plan.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "\tiwslt14-pre-radam-lr5e-4-linear\t" in f"\t{line}")
    plan.write_text(text.replace(row, row.replace("-linear\t", "-held\t").replace("\tlinear\t", "\tnone\t")), encoding="utf-8")
    result = tree.only(run="iwslt14-pre-radam-lr5e-4-held")
    assert result.returncode == 0 and "decays RAdam's rate linearly" in result.stderr


def test_a_preset_has_no_column_that_says_how_to_train():
    """Presets hold sizes, lengths and the number format."""
    methods = {"ln_position", "optimizer", "lr", "schedule", "decay", "dropout", "label_smoothing"}
    assert not methods & set(table("presets.tsv")[0])


# -- what is run --


def test_figure_4_trains_the_four_runs_with_the_settings_of_appendix_a1(tree):
    """512/1024/4, dropout 0.1, label smoothing 0.1, 4096 tokens, Adam (0.9, 0.98), lr 5e-4, 15 epochs, all sentences."""
    for command in printed(tree, "fairseq-train", PRESET="paper"):
        assert command["--arch"] == "transformer_ln_study_iwslt_de_en"
        assert (command["--dropout"], command["--label-smoothing"]) == ("0.1", "0.1")
        assert command["--criterion"].endswith("label_smoothed_cross_entropy")
        assert (command["--max-tokens"], command["--update-freq"], command["--distributed-world-size"]) == ("4096", "1", "1")
        assert command["--adam-betas"] == "(0.9,0.98)"
        assert (command["--lr"], command["--max-epoch"], command["--weight-decay"]) == ("5e-4", "15", "0.0")
        assert (command["--compute-dtype"], command["--weight-init"]) == ("float32", "xavier_uniform")
        assert command["--required-batch-size-multiple"] == "1"
        assert command["--user-dir"] == "fairseq_lnplugin"


def test_several_figures_are_trained_with_every_run_of_any_of_them_once(tree):
    """--figure 2,4 or "2 4": the union."""
    counts = {"2": 14, "4": 4, "2,4": 17, "2 4": 17}
    chosen = {figures: printed(tree, "fairseq-train", "--figure", figures, count=count) for figures, count in counts.items()}
    runs = {figures: {command["--save-dir"] for command in commands} for figures, commands in chosen.items()}
    assert runs["2,4"] == runs["2 4"] == runs["2"] | runs["4"] and runs["2"] != runs["4"]


def test_figure_4_has_post_ln_with_warm_up_and_the_other_three_without(tree):
    """Post Adam 4000; Post RAdam linear; Pre Adam held 7 epochs then times 0.1; Pre RAdam linear."""
    commands = printed(tree, "fairseq-train", PRESET="paper")
    kinds = [(c["--ln-position"], c["--optimizer"].removeprefix("fused_"), c["--lr-scheduler"]) for c in commands]
    assert kinds == [
        ("post", "adam", "warmup_inverse_sqrt"),
        ("post", "radam", "no_warmup"),
        ("pre", "adam", "no_warmup"),
        ("pre", "radam", "no_warmup"),
    ]
    assert commands[0]["--warmup-updates"] == "4000"
    assert [c.get("--decay") for c in commands] == [None, "linear", "step", "linear"]
    assert (commands[2]["--hold-epochs"], commands[2]["--decay-factor"]) == ("7", "0.1")


def test_decoding_uses_beam_5_and_length_penalty_1_2_and_drops_no_sentence(tree):
    """Appendix A.1, and fairseq's --required-batch-size-multiple."""
    for command in printed(tree, "fairseq-generate", count=8, PRESET="paper"):  # of valid and of test
        assert (command["--beam"], command["--lenpen"], command["--required-batch-size-multiple"]) == ("5", "1.2", "1")
        assert "--remove-bpe" in command


def test_preset_cpu_scales_the_warm_up_and_leaves_a_warm_up_of_one_alone(tree):
    """4000 and 500 in proportion to its 3,165 updates of the paper's about 17,000; 1 means none at any length."""
    commands = printed(tree, "fairseq-train", "--figure", "2", count=14, PRESET="cpu")
    assert {command["--warmup-updates"] for command in commands if "--warmup-updates" in command} == {"744", "93", "1"}


def test_preset_papersize_is_shorter_than_the_papers_and_nothing_else(tree):
    """5 epochs, warm-up in proportion; model, batch and all rates are the paper's."""
    length = {"--max-epoch", "--warmup-updates", "--hold-epochs", "--total-updates"}
    machine = {"--compute-dtype", "--log-interval", "--save-dir"}
    paper, shorter = (printed(tree, "fairseq-train", PRESET=preset) for preset in ("paper", "papersize"))
    for long, short in zip(paper, shorter, strict=True):
        assert long.keys() == short.keys()
        assert {flag for flag in long if long[flag] != short[flag]} <= length | machine
        assert short["--max-epoch"] == "5"
    assert shorter[0]["--warmup-updates"] == "4000*UPDATES_PER_EPOCH*5/17000"


def test_a_shorter_run_is_held_and_warmed_up_for_the_same_share_of_its_epochs(tree):
    """7 of 15 epochs are 2 of 5, and 4,000 updates of warm-up a third; the preset's own length is no shorter one."""
    commands = printed(tree, "fairseq-train", PRESET="paper", MAX_EPOCH="5")
    assert (commands[2]["--max-epoch"], commands[2]["--hold-epochs"]) == ("5", "2")
    assert commands[0]["--warmup-updates"] == "1333"
    for epochs, warmup in (("5", "248"), ("15", "744"), ("20", "744")):
        assert printed(tree, "fairseq-train", PRESET="cpu", MAX_EPOCH=epochs)[0]["--warmup-updates"] == warmup


def test_several_workers_share_the_tokens_of_an_update(tree):
    """4096 tokens in all: 2 workers x 2 micro-batches x 1024."""
    settings = {"LAUNCH": "launcher -n 2", "WORKERS": "2", "UPDATE_FREQ": "2"}
    for command in printed(tree, "launcher", PRESET="paper", **settings):
        assert (command["--max-tokens"], command["--update-freq"], command["--distributed-world-size"]) == ("1024", "2", "2")


def test_dry_run_prints_what_a_launcher_is_given(tree):
    """The path of fairseq-train, which not every launcher looks for."""
    (command,) = printed(tree, "launcher", "--only", "iwslt14-pre-adam-lr5e-4-step", count=1, LAUNCH="launcher", WORKERS="2")
    assert command[""][1] == str(tree.calls_log.parent / "bin" / "fairseq-train")


def test_dry_run_needs_no_more_than_python3(tree, tmp_path):
    """A prepared corpus, and no command `python`: nothing is said to be broken."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "prepare")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "python3").symlink_to(sys.executable)
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--dry-run", PATH=f"{tmp_path / 'plain'}:/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert "fairseq-train data/iwslt14/bin" in result.stdout


def test_a_damaged_corpus_is_named_with_what_to_delete(tree):
    """corpus.json is cut."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "prepare")
    (tree.root / "data" / "iwslt14" / "corpus.json").write_text("{")
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stage", "train")
    assert result.returncode == 1
    assert "data/iwslt14/corpus.json is damaged" in result.stderr.splitlines()[-1]
    assert "delete data/iwslt14" in result.stderr.splitlines()[-1]


def test_dry_run_prints_the_commands_that_a_run_gives(tree):
    """All of fairseq's, apart from the names that only a run knows: the epoch and where a half-made folder lies."""
    dry = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--dry-run").stdout.splitlines()
    assert tree.only().returncode == 0
    dry_after = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--dry-run").stdout.splitlines()
    for program, lines in (("fairseq-preprocess", dry), ("fairseq-train", dry), ("fairseq-generate", dry_after)):
        shown = [flags(line) for line in lines if line.startswith(program)]
        called = [flags(call) for call in tree.calls(program)]
        for command in called + shown:
            command[""] = [word for word in command[""] if word.startswith("data/")]
            for flag in set(command) - {""}:
                command[flag] = command[flag].replace(".partial", "").replace("checkpoint2.pt", "checkpointN.pt")
        assert shown and all(command in called for command in shown)
    assert "checkpointN.pt" in dry_after[-3] and dry_after[-3].endswith("decode/epochN.test.shard0.txt")
    assert dry_after[-2].startswith("fairseq-ln score") and dry_after[-2].endswith("decode/epochN.test.shard0.txt")
    cut = next(line for line in dry if "bpe/train.de" in line and line.startswith("head"))
    assert cut == "head -n 400 data/iwslt14/bpe/train.de >data/iwslt14/bin-train400-heldout100/text/bpe/train.de"


def test_dry_run_makes_nothing(tree):
    """No program is called, no file is written."""
    result = tree.run("quickstart", "--dry-run")
    assert result.returncode == 0
    assert not tree.calls_log.exists()
    assert not (tree.root / "runs").exists() and not (tree.root / "data").exists()


def test_linear_decay_ends_with_the_last_update(tree):
    """--total-updates is epochs times updates of an epoch, those of a greedy packing of 1,024 tokens, longest side first."""
    tree.only(run="iwslt14-pre-radam-lr5e-4-linear")
    lengths = sorted(2 + 1 + n % 9 for n in range(400))  # words of both sides and the end mark
    batches, size = 1, 0
    for length in lengths:
        size += 1
        if size * length > 1024:
            batches, size = batches + 1, 1
    assert flags(tree.calls("fairseq-train")[0])["--total-updates"] == str(2 * batches)


# -- WMT14, fairseq's own setting, one's own text --


def test_a_dry_run_of_16_workers_prints_the_wmt14_study_of_the_paper(tree):
    """Appendix A.1, section 4: base size, 8192 tokens x 16, Adam (0.9, 0.98), smoothing 0.1; 4000 warm-up or 5 epochs held."""
    settings = {"LAUNCH": "srun --nodes 2 --ntasks-per-node 8", "WORKERS": "16", "SLURM_JOB_ID": "123456"}
    commands = printed(tree, "srun", recipe="wmt14", **settings)
    for command in commands:
        assert command["--arch"] == "transformer_ln_study_wmt_en_de" and command["--dropout"] == "0.1"
        assert (command["--max-tokens"], command["--update-freq"], command["--distributed-world-size"]) == ("8192", "1", "16")
        assert (command["--source-lang"], command["--target-lang"]) == ("en", "de")
        assert (command["--adam-betas"], command["--label-smoothing"], command["--weight-decay"]) == ("(0.9,0.98)", "0.1", "0.0")
        assert command["--optimizer"].endswith("adam") and command["--criterion"].endswith("label_smoothed_cross_entropy")
    names = ("--ln-position", "--lr", "--warmup-updates", "--hold-epochs", "--decay")
    assert [tuple(command.get(name) for name in names) for command in commands] == [
        ("post", "7e-4", "4000", None, None),
        ("post", "1.5e-3", "4000", None, None),
        ("pre", "7e-4", None, "5", "inverse_sqrt"),
        ("pre", "1.5e-3", None, "5", "inverse_sqrt"),
    ]
    assert {command["--clip-norm"] for command in commands} == {"0.0"}
    assert {command["--max-epoch"] for command in commands} == {"15"}  # IWSLT14's; the text has none for WMT14


def test_a_dry_run_prints_how_the_wmt14_corpus_is_made_and_scored(tree):
    """37K joint merges (appendix A.1), and tokenized BLEU with compounds split."""
    dry_run = tree.run("wmt14", "--dry-run").stdout.splitlines()
    (corpus,) = (flags(line) for line in dry_run if "recipes/corpora/wmt14.py" in line)
    assert (corpus["--merges"], corpus["--out"]) == ("37000", "data/wmt14-bpe37000")
    scores = [flags(line) for line in dry_run if line.startswith("fairseq-ln score")]
    assert [score["--subset"] for score in scores] == ["test1", "test"] * 4
    for score in scores:
        assert "--compound-split" in score and "--lowercase" not in score and score["--lang"] == "de"


def test_shared_embeddings_and_a_joined_dictionary_go_together(tree):
    """O15: both in every preset of WMT14, neither in IWSLT14."""
    for recipe, presets, both in (("wmt14", ("paper", "cpu", "smoke"), True), ("iwslt14", ("paper",), False)):
        for preset in presets:
            (preprocess,) = printed(tree, "fairseq-preprocess", recipe=recipe, count=1, PRESET=preset)
            train = printed(tree, "fairseq-train", recipe=recipe, PRESET=preset)
            assert ("--joined-dictionary" in preprocess) is both
            assert {"--share-all-embeddings" in command for command in train} == {both}


@pytest.mark.parametrize(
    ("workers", "share", "label"),
    [
        (1, ("8192", "16"), ""),
        (8, ("8192", "2"), ""),
        (32, ("4096", "1"), ""),
        (6, ("7281", "3"), ", not the paper's 131072"),  # 131,072 is not a multiple of 6
    ],
)
def test_an_update_has_the_papers_tokens_for_any_number_of_workers(tree, workers, share, label):
    """O20: 8192 x 16 through --update-freq, printed, and labelled where it is not so."""
    settings = {"LAUNCH": "run", "WORKERS": str(workers)} if workers > 1 else {}
    result = tree.run("wmt14", "--dry-run", "--stage", "train", "--stop-stage", "train", **settings)
    tokens, update_freq = share
    for line in result.stdout.splitlines():
        assert (flags(line)["--max-tokens"], flags(line)["--update-freq"]) == share
    total = int(tokens) * workers * int(update_freq)
    assert f"{total} tokens an update ({workers} x {tokens} x update-freq {update_freq}){label}\n" in result.stderr


def test_fairseqs_own_setting_is_its_published_recipe_for_both_positions(tree):
    """Of fairseq's translation examples: dropout 0.3, weight decay 1e-4, warm-up 4000, tied output, lenpen 1; BLEU 34.5 to 35."""
    commands = printed(tree, "fairseq-train", "--setting", "fairseq", count=2)
    assert [command["--ln-position"] for command in commands] == ["post", "pre"]
    for command in commands:
        assert (command["--dropout"], float(command["--weight-decay"]), command["--lr"]) == ("0.3", 1e-4, "5e-4")
        assert (command["--warmup-updates"], command["--max-tokens"]) == ("4000", "4096")
        assert "--share-decoder-input-output-embed" in command
    for generate in printed(tree, "fairseq-generate", "--setting", "fairseq", count=4):
        assert (generate["--beam"], generate["--lenpen"]) == ("5", "1")
    assert any("34.5 to 35" in row["note"] for row in table("runs.tsv") if row["study"] == "iwslt14-fairseq")


@pytest.fixture(scope="module")
def wmt14(tmp_path_factory):
    """A tree in which one run of WMT14 is trained and scored, with the average of its two epochs."""
    tree = Tree(tmp_path_factory.mktemp("wmt14"))
    result = tree.only("wmt14", "wmt14-pre-adam-lr7e-4-inverse_sqrt", AVERAGE="2")
    assert result.returncode == 0, result.stderr
    return tree


def test_wmt14_is_scored_with_compounds_split_and_case(wmt14):
    """What papers on WMT14 print; German is the target."""
    for call in (flags(call) for call in wmt14.calls("fairseq-ln") if call[0] == "score"):
        assert "--compound-split" in call and "--lowercase" not in call
        assert call["--lang"] == "de" and call["--reference"].endswith(".de")


def test_the_average_of_the_last_epochs_is_scored_on_the_test_set_under_its_own_name(wmt14):
    """O30: the files are those of the last N epochs, up to the last."""
    folder = wmt14.folder("wmt14-pre-adam-lr7e-4-inverse_sqrt", "wmt14-smoke")
    (average,) = [flags(call) for call in wmt14.calls("fairseq-ln") if call[0] == "average"]
    assert (average["--last"], average["--up-to"]) == ("2", "2") and average["--out"].endswith("average2.pt")
    assert (folder / "scores.tsv").read_text().splitlines()[-1] == "2\t20\ttest-average2"


def test_an_average_asked_for_later_is_scored_and_the_rest_is_not_again(wmt14):
    """AVERAGE=1 after AVERAGE=2: one more row, no training."""
    before = len(wmt14.calls("fairseq-train"))
    result = wmt14.only("wmt14", "wmt14-pre-adam-lr7e-4-inverse_sqrt", AVERAGE="1")
    assert result.returncode == 0, result.stderr
    names = [call["--subset"] for call in map(flags, wmt14.calls("fairseq-ln")) if "--subset" in call]
    assert names == ["test1", "test", "test1", "test", "test-average2", "test-average1"]
    assert len(wmt14.calls("fairseq-train")) == before


def test_a_run_without_enough_checkpoints_for_the_average_is_done_all_the_same(tree):
    """One of two is gone; the second start has nothing to do."""
    only = ("wmt14", "wmt14-pre-adam-lr7e-4-inverse_sqrt")
    tree.only(*only, "--stop-stage", "train")
    (tree.folder(only[1], "wmt14-smoke") / "checkpoints" / "checkpoint1.pt").unlink()
    assert "only 1 epochs were finished, so there is no average of 2" in tree.only(*only, AVERAGE="2").stderr
    assert "nothing to do" in tree.only(*only, AVERAGE="2").stderr


def test_an_average_of_more_epochs_than_the_run_has_is_refused_before_training(tree):
    """O30: two epochs, average of five."""
    result = tree.only("wmt14", "wmt14-pre-adam-lr7e-4-inverse_sqrt", AVERAGE="5")
    assert result.returncode == 1 and not tree.calls("fairseq-train")
    assert "has only 2 epochs to average" in result.stderr.splitlines()[-1]


OWN = ("--src", "de", "--tgt", "en", "--train", "text/train", "--valid", "text/dev", "--test", "/else/test")


def test_a_study_of_ones_own_text_trains_the_three_runs_into_one_folder(tree):
    """Pre-LN without, Post-LN with and without warm-up; paths are the user's; warm-up is 4000 of 17,000 in proportion."""
    result = tree.run("study", *OWN, "--out", "mine", PRESET="smoke")
    assert result.returncode == 0, result.stderr
    corpus = flags(tree.calls("own.py")[0])
    assert (corpus["--train"], corpus["--test"]) == ("text/train", "/else/test")
    commands = [flags(call) for call in tree.calls("fairseq-train")]
    assert [(c["--ln-position"], c["--lr-scheduler"]) for c in commands] == [
        ("post", "warmup_inverse_sqrt"),
        ("post", "no_warmup"),
        ("pre", "no_warmup"),
    ]
    (batches,) = (tree.root / "mine" / "corpus").glob("bin*/batches-of-1024-tokens")
    updates = 2 * int(batches.read_text())
    assert commands[0]["--warmup-updates"] == str(max(2, round(4000 * updates / 17000)))
    assert (tree.root / "mine" / "RESULTS.md").exists()


def test_a_study_of_ones_own_text_names_the_flag_that_is_missing(tree):
    """Without --test."""
    result = tree.run("study", *OWN[:-2])
    assert result.returncode == 1 and not tree.calls_log.exists()
    assert "--test is missing" in result.stderr.splitlines()[-1]


def test_a_study_goes_on_without_its_raw_text(tree):
    """--out alone names it; where nothing does, the flag is asked for."""
    tree.only("study", "own-pre-adam-lr5e-4-step", *OWN, "--out", "mine", "--stop-stage", "train")
    result = tree.only("study", "own-pre-adam-lr5e-4-step", "--out", "mine", "--stage", "score")
    assert result.returncode == 0 and (tree.root / "mine" / "RESULTS.md").exists(), result.stderr
    result = tree.run("study", "--stage", "report")
    assert result.returncode == 1 and "--out is missing" in result.stderr.splitlines()[-1]


@pytest.fixture
def elsewhere(tmp_path):
    """Another folder than the repository's root, with a space in its name."""
    (tmp_path / "else where").mkdir()
    return tmp_path / "else where"


def test_relative_paths_in_settings_are_the_callers(tree, elsewhere):
    """IWSLT14, DATA and RUNS, by a caller who is somewhere else."""
    (elsewhere / "text").mkdir()
    settings = {"PRESET": "smoke", "IWSLT14": "text", "DATA": "my data", "RUNS": "my runs"}
    result = tree.run("iwslt14", "--only", "iwslt14-pre-adam-lr5e-4-step", cwd=elsewhere, **settings)
    assert result.returncode == 0, result.stderr
    assert flags(tree.calls("iwslt14.py")[0])["--from"] == str(elsewhere / "text")
    assert (elsewhere / "my data" / "iwslt14" / "corpus.json").exists()
    assert (elsewhere / "my runs" / "RESULTS.md").exists()


def test_folders_that_nobody_names_are_the_repositorys(tree, elsewhere):
    """Wherever the caller is."""
    result = tree.run("iwslt14", "--only", "iwslt14-pre-adam-lr5e-4-step", cwd=elsewhere, PRESET="smoke")
    assert result.returncode == 0, result.stderr
    assert (tree.folder() / "done").exists()
    assert not list(elsewhere.iterdir())


def test_the_text_and_the_folder_of_ones_own_study_are_the_callers(tree, elsewhere):
    """--train and --out, relative."""
    result = tree.run("study", *OWN, "--out", "mine", "--stop-stage", "prepare", cwd=elsewhere, PRESET="smoke")
    assert result.returncode == 0, result.stderr
    assert flags(tree.calls("own.py")[0])["--train"] == str(elsewhere / "text/train")
    assert (elsewhere / "mine" / "corpus" / "corpus.json").exists()


@pytest.mark.parametrize("names", [["a checkpoint.pt"], ["one.pt", "two.pt"]])
def test_checkpoints_to_measure_are_the_callers(tree, elsewhere, names):
    """One whose name has a space, or several."""
    for name in names:
        (elsewhere / name).touch()
    arguments = ("--dry-run", "--stage", "after", "--stop-stage", "after")
    result = tree.run("gradients", *arguments, cwd=elsewhere, CHECKPOINT=" ".join(names))
    words = shlex.split(result.stdout)
    at = words.index("--checkpoint") + 1
    assert words[at : at + len(names)] == [str(elsewhere / name) for name in names]


def test_a_study_copied_to_another_place_goes_on_there(tree):
    """The folder moved, its commands hold the old place: nothing is trained again."""
    tree.only("study", "own-pre-adam-lr5e-4-step", *OWN, "--out", "mine", "--stop-stage", "train")
    (tree.root / "mine").rename(tree.root / "copied")
    result = tree.only("study", "own-pre-adam-lr5e-4-step", *OWN, "--out", "copied", "--stage", "train")
    assert result.returncode == 0, result.stderr
    assert len(tree.calls("fairseq-train")) == 1 and (tree.root / "copied" / "RESULTS.md").exists()


def test_a_copied_study_beside_other_data_is_refused(tree):
    """The dictionaries are equal by chance, and the pairs are fewer."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train", PRESET="paper", MAX_EPOCH="1")
    text = tree.root / "data" / "iwslt14" / "train.en"
    text.write_text("".join(text.read_text(encoding="utf-8").splitlines(keepends=True)[:300]), encoding="utf-8")
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stage", "score", PRESET="paper", MAX_EPOCH="1")
    assert result.returncode == 1 and not tree.calls("fairseq-generate")
    assert "was trained with 500 pairs, and data/iwslt14/bin has 300" in result.stderr.splitlines()[-1]


# -- several workers, for real --

WORKERS = """#!/bin/bash
# N COMMAND...: N processes of COMMAND that train one model on the CPU over gloo
n=$1 && shift
more=(--cpu --dropout 0 --num-workers 0 --log-interval 1)
((n == 1)) || more+=(--distributed-no-spawn --distributed-backend gloo --distributed-init-method "tcp://127.0.0.1:$PORT"
  --ddp-backend legacy_ddp)
for ((rank = 1; rank < n; rank++)); do "$@" "${more[@]}" --distributed-rank "$rank" >/dev/null 2>&1 & done
"$@" "${more[@]}"
"""


def test_two_workers_train_the_model_of_one_worker_with_two_micro_batches(tree, tmp_path):
    """The smoke run of WMT14 with the real fairseq: same losses and gradient norms, up to the order of the sums."""
    for name in ("fairseq-preprocess", "fairseq-train", "fairseq-ln"):
        (tmp_path / "bin" / name).unlink()
    (tmp_path / "bin" / "workers").write_text(WORKERS)
    (tmp_path / "bin" / "workers").chmod(0o755)
    losses = {}
    for workers, update_freq in ((2, 1), (1, 2)):
        result = tree.only(
            *("wmt14", "wmt14-pre-adam-lr7e-4-inverse_sqrt", "--stop-stage", "train"),
            **{"LAUNCH": f"workers {workers}", "WORKERS": str(workers), "UPDATE_FREQ": str(update_freq)},
            **{"RUNS": f"runs/{workers}", "PORT": str(free_port()), "CHECK": "1"},
        )
        assert result.returncode == 0, result.stderr
        log = (tree.root / f"runs/{workers}/wmt14-pre-adam-lr7e-4-inverse_sqrt/seed1/train.log").read_text()
        assert f"training on {workers} devices" in log
        records = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| train_inner | {" in line]
        losses[workers] = [(float(record["loss"]), float(record["gnorm"])) for record in records]
    assert len(losses[1]) >= 4
    assert losses[2] == [pytest.approx(pair, rel=2e-3) for pair in losses[1]]


@pytest.mark.parametrize("port", [23456, -1])
def test_srun_needs_the_port_that_the_recipe_gives_it(tree, tmp_path, monkeypatch, port):
    """SLURM as fairseq handles it, told of 2 machines with 8 tasks each: worker 11 meets the others at the first machine."""
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nprintf 'one\\ntwo\\n'\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    settings = {"STEP_NODELIST": "one,two", "NNODES": "2", "NTASKS": "16", "PROCID": "11", "LOCALID": "0", "JOB_ID": "13456"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("SLURM_NTASKS_PER_NODE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", tree.environment["PATH"])
    cfg = OmegaConf.structured(DistributedTrainingConfig(distributed_world_size=16, distributed_port=port, tpu=False))
    if port < 0:
        with pytest.raises(AssertionError, match="available devices"):
            infer_init_method(cfg)
        return
    infer_init_method(cfg)
    assert (cfg.distributed_init_method, cfg.distributed_rank) == ("tcp://one:23456", 11)
    command = printed(tree, "srun", recipe="wmt14", LAUNCH="srun", WORKERS="16", SLURM_JOB_ID="13456")[0]
    assert command["--distributed-port"] == str(port)


# -- the run folder, second starts --


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tree in which one run is done, in a POSIX locale, and what the recipe said."""
    tree = Tree(tmp_path_factory.mktemp("finished"))
    return tree, tree.only(LC_ALL="POSIX", OMP_NUM_THREADS="2")


def test_a_recipe_works_in_a_folder_with_a_space_and_in_the_posix_locale(finished):
    """Ends with status 0, and the umlauts of the translations are whole."""
    tree, result = finished
    assert result.returncode == 0, result.stderr
    assert "grüß" in (tree.folder() / "decode" / "epoch2.test.shard0.txt").read_text(encoding="utf-8")


def test_a_run_folder_holds_what_the_report_reads(finished):
    """Settings, command, environment, log, scores, seconds, stamp."""
    tree, _ = finished
    names = {path.name for path in tree.folder().iterdir()}
    assert names >= {"settings.tsv", "command.txt", "environment.json", "train.log", "scores.tsv", "wall_seconds", "done"}
    assert json.loads((tree.folder() / "scored_with.json").read_text()) == {}  # as the stand-in says
    assert flags((tree.folder() / "command.txt").read_text())["--save-dir"].endswith("seed1/checkpoints")


def test_settings_name_every_setting_of_the_run(finished):
    """The names of the contract, in two columns; what does not apply is empty."""
    tree, _ = finished
    settings = dict(line.split("\t") for line in (tree.folder() / "settings.tsv").read_text().splitlines())
    expected = """study run figure data pairs preset arch ln_position weight_init compute_dtype optimizer lr schedule
        warmup_updates hold_epochs decay decay_factor dropout label_smoothing weight_decay shared_embeddings
        decoding batch max_tokens update_freq max_epoch max_update seed paper_bleu note"""
    assert list(settings) == expected.split()
    assert (settings["data"], settings["pairs"], settings["warmup_updates"]) == ("stand-in", "400", "")
    assert settings["batch"] == "1024 tokens an update (1 x 1024 x update-freq 1), not the paper's 4096"


def test_the_last_and_the_best_epoch_are_scored_on_the_whole_test_set(finished):
    """Every epoch on the first sentences of valid (test1), the best (1, by validation loss) and the last (2) on test."""
    tree, _ = finished
    rows = [line.split("\t") for line in (tree.folder() / "scores.tsv").read_text().splitlines()[1:]]
    assert rows == [["1", "10", "test1"], ["1", "10", "test"], ["2", "20", "test1"], ["2", "20", "test"]]


def test_a_preset_scores_each_of_so_many_epochs_and_the_last_and_the_best(tree):
    """cpu: each third of 5 epochs on valid, the best (1) and the last (5) beside; these two on test."""
    result = tree.only(PRESET="cpu", MAX_EPOCH="5")
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t")[::2] for line in (tree.folder(study="iwslt14-cpu") / "scores.tsv").read_text().splitlines()[1:]]
    assert rows == [["1", "test1"], ["1", "test"], ["3", "test1"], ["5", "test1"], ["5", "test"]]


def test_a_run_of_other_widths_than_its_archs_names_them(tree):
    """In its command and in what tables show as its arch."""
    tree.only(PRESET="cpu", MAX_EPOCH="1")
    folder = tree.folder(study="iwslt14-cpu")
    command = flags((folder / "command.txt").read_text())
    for stack in ("encoder", "decoder"):
        assert (command[f"--{stack}-embed-dim"], command[f"--{stack}-ffn-embed-dim"]) == ("128", "512")
    assert "arch\ttransformer_ln_study_small at 128/512\n" in (folder / "settings.tsv").read_text()


def test_scores_come_from_the_text_that_was_decoded(finished):
    """The reference has as many lines as the preset holds out, and lower-case where the corpus is."""
    tree, _ = finished
    scores = [call for call in tree.calls("fairseq-ln") if call[0] == "score"]
    for call in scores:
        assert len((tree.root / flags(call)["--reference"]).read_text().splitlines()) == 100
        assert "--lowercase" in call


def test_shards_are_counted_from_0_and_all_there(finished):
    """Ranks 0 and 1 of a world of 2, the cores that the caller leaves to the recipe, for each decoded subset."""
    tree, _ = finished
    calls = [flags(call) for call in tree.calls("fairseq-generate")]
    for subset in ("test", "test1"):
        mine = [call for call in calls if call["--gen-subset"] == subset and call["--path"].endswith("checkpoint1.pt")]
        assert sorted(call["--distributed-rank"] for call in mine) == ["0", "1"][: os.cpu_count()]
        assert {call["--distributed-world-size"] for call in mine} == {str(len(mine))}


def test_a_second_start_does_nothing_and_says_so(finished):
    """No program of fairseq is called again."""
    tree, _ = finished
    before = [len(tree.calls(name)) for name in ("fairseq-preprocess", "fairseq-train", "fairseq-generate", "fairseq-ln")]
    result = tree.only()
    assert "nothing to do" in result.stderr
    assert before == [len(tree.calls(name)) for name in ("fairseq-preprocess", "fairseq-train", "fairseq-generate", "fairseq-ln")]


def test_a_run_trained_since_the_report_is_in_the_next_one(tree):
    """Trained and not yet scored: the report is made again, once."""
    tree.only()
    trained = ("--only", "iwslt14-pre-radam-lr5e-4-linear", "--stop-stage", "train")
    for arguments in (trained, ("--stage", "report"), ("--stage", "report")):
        result = tree.run("iwslt14", *arguments, PRESET="smoke")
        assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert len([call for call in tree.calls("fairseq-ln") if call[0] == "report"]) == 2


@pytest.mark.parametrize("lost", ["RESULTS.html", "figures"])
def test_a_report_of_which_a_part_is_gone_is_made_again(tree, lost):
    """Its page or its figures."""
    tree.only()
    path = tree.root / "runs" / "iwslt14-smoke" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    tree.run("iwslt14", "--stage", "report", PRESET="smoke")
    assert path.exists()


@pytest.mark.parametrize("changed", ["runs/iwslt14-smoke/iwslt14-pre-adam-lr5e-4-step/seed1/train.log", "recipes/runs.tsv"])
def test_a_report_is_made_again_when_a_training_went_on_or_the_plan_changed(tree, changed):
    """Its pages tell of both."""
    tree.only()
    path = tree.folder().parents[3] / changed
    path.write_text(path.read_text() + "# more\n")
    tree.run("iwslt14", "--stage", "report", PRESET="smoke")
    assert len([call for call in tree.calls("fairseq-ln") if call[0] == "report"]) == 2


def test_a_report_needs_no_corpus(tree):
    """A study's folder without its data, as on another machine."""
    tree.only()
    shutil.rmtree(tree.root / "data")
    (tree.root / "runs" / "iwslt14-smoke" / "RESULTS.md").unlink()
    result = tree.run("iwslt14", "--stage", "report", PRESET="smoke")
    assert result.returncode == 0, result.stderr
    assert (tree.root / "runs" / "iwslt14-smoke" / "RESULTS.md").exists()


def test_a_run_that_was_deleted_is_not_in_the_next_report(tree):
    """Its folder is gone."""
    tree.only()
    tree.only("iwslt14", "iwslt14-pre-radam-lr5e-4-linear")
    shutil.rmtree(tree.folder().parent)
    tree.run("iwslt14", "--stage", "report", PRESET="smoke")
    assert len([call for call in tree.calls("fairseq-ln") if call[0] == "report"]) == 3


def test_a_run_folder_made_with_other_settings_is_refused_by_naming_the_two(finished):
    """The flag in both versions, and what to delete."""
    tree, _ = finished
    result = tree.only(COMPUTE_DTYPE="bfloat16")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert "there: --compute-dtype float32; now: --compute-dtype bfloat16" in message
    assert "set COMPUTE_DTYPE=float32 to go on" in message
    assert "delete runs/iwslt14-smoke/iwslt14-pre-adam-lr5e-4-step/seed1" in message


def on_another_machine(tree, **changes):
    """Rewrite the finished run's command as if these flags had been others where it was trained."""
    path = tree.folder() / "command.txt"
    command = path.read_text()
    for flag, value in changes.items():
        command = re.sub(rf"(--{flag.replace('_', '-')}) \S+", rf"\1 {value}", command)
    path.write_text(command)


@pytest.mark.parametrize(("workers", "tokens"), [(2, 256), (3, 170)])
def test_a_run_trained_on_another_machine_is_scored_here(tree, workers, tokens):
    """In bfloat16, by several workers and two micro-batches: nothing says that it must be so here. Three share 1,020 of 1,024."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    on_another_machine(tree, compute_dtype="bfloat16", max_tokens=tokens, update_freq="2", distributed_world_size=workers)
    result = tree.only()
    assert result.returncode == 0, result.stderr
    assert (tree.folder() / "done").exists() and len(tree.calls("fairseq-train")) == 1


def test_lengths_in_updates_may_differ_by_what_several_workers_make_of_them(tree):
    """Their batches are filled a little otherwise, so that RAdam's decay ends some updates earlier: up to 5 % count as one."""
    tree.only("iwslt14", "iwslt14-pre-radam-lr5e-4-linear", "--stop-stage", "train")
    folder = tree.folder("iwslt14-pre-radam-lr5e-4-linear")
    command = (folder / "command.txt").read_text()
    total = int(flags(command)["--total-updates"])
    batches = next((tree.root / "data" / "iwslt14").glob("bin-*/batches-of-1024-tokens"))
    batches.write_text(str(100 * int(batches.read_text())))  # so that 5 % are more than one
    for changed, status in ((106 * total, 1), (94 * total, 1), (95 * total, 0), (105 * total, 0)):
        (folder / "command.txt").write_text(command.replace(f"--total-updates {total}", f"--total-updates {changed}"))
        result = tree.only("iwslt14", "iwslt14-pre-radam-lr5e-4-linear")
        assert result.returncode == status, result.stderr
        if status:
            assert f"there: --total-updates {changed}; now: --total-updates {100 * total}" in result.stderr.splitlines()[-1]


def test_a_run_trained_with_another_batch_is_refused_on_any_machine(tree):
    """512 tokens an update are not 1,024."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    on_another_machine(tree, max_tokens="256", update_freq="2")
    result = tree.only()
    assert result.returncode == 1 and not tree.calls("fairseq-generate")
    assert "there: --max-tokens 512; now: --max-tokens 1024" in result.stderr.splitlines()[-1]


def test_a_run_half_trained_on_another_machine_is_refused_and_the_setting_to_go_on_is_named(tree):
    """Its other half would be in another type."""
    tree.only(TRAIN_MODE="fails")
    on_another_machine(tree, compute_dtype="bfloat16")
    result = tree.only()
    assert result.returncode == 1
    assert "set COMPUTE_DTYPE=bfloat16 to go on, or delete" in result.stderr.splitlines()[-1]


def test_a_changed_dictionary_is_refused_before_decoding(tree):
    """O16: the words of a model are numbers of the dictionary that it was trained with."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    dictionary = next((tree.root / "data" / "iwslt14").glob("bin*/dict.en.txt"))
    dictionary.write_text("other 1\n")
    result = tree.only()
    assert result.returncode == 1 and not tree.calls("fairseq-generate")
    assert "dictionaries" in result.stderr.splitlines()[-1]


# -- trainings that do not end well --


def test_a_corpus_that_cannot_be_had_ends_with_its_address_and_the_setting_for_a_local_copy(tree):
    """O12: a dead address; the script has said why."""
    result = tree.only(NO_CORPUS="iwslt14.py", IWSLT14="http://localhost:9/de-en.tgz")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "from http://localhost:9/de-en.tgz" in last and "give IWSLT14=PATH" in last


def test_text_of_ones_own_that_is_refused_ends_with_the_flags_to_check(tree):
    """own.py has said why."""
    result = tree.run("study", *OWN, NO_CORPUS="own.py", PRESET="smoke")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("see above, or check --train, --valid and --test")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_line_longer_than_a_workers_share_is_refused_before_training(tree, split):
    """O28: 1,024 tokens an update; the longest line with its end mark has 1,025."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "prepare")
    (text,) = tree.root.glob(f"data/iwslt14/bin-*/text/bpe/{split}.en")
    with open(text, "a", encoding="utf-8") as file:
        file.write("word " * 1023 + "\n")
    assert tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train").returncode == 0
    with open(text, "a", encoding="utf-8") as file:
        file.write("word " * 1024 + "\n")
    (text.parents[2] / "longest-lines").unlink()
    result = tree.only(run="iwslt14-post-adam-lr5e-4-warmup1")
    assert result.returncode == 1 and len(tree.calls("fairseq-train")) == 1
    assert "a line of" in result.stderr.splitlines()[-1] and "1025 subwords" in result.stderr.splitlines()[-1]


def test_a_line_of_the_test_set_longer_than_the_models_positions_is_refused_before_training(tree):
    """O28: fairseq-generate would stop, when all is trained. With its end mark it has 1,025 subwords."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "prepare")
    (text,) = tree.root.glob("data/iwslt14/bin-*/text/bpe/test.de")
    with open(text, "a", encoding="utf-8") as file:
        file.write("word " * 1024 + "\n")
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    assert result.returncode == 1 and not tree.calls("fairseq-train")
    assert "has 1025 subwords with its end mark, and the model has 1024 positions" in result.stderr.splitlines()[-1]


def test_the_seconds_of_scoring_are_added_to_those_of_earlier_starts(tree):
    """1000 before; the row that is scored again takes a second or more."""
    tree.only()
    (tree.folder() / "score_seconds").write_text("1000\n")
    scores = tree.folder() / "scores.tsv"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    (tree.folder() / "done").unlink()
    tree.only(SLOW_SCORE="1")
    assert 1000 < int((tree.folder() / "score_seconds").read_text()) < 2000


def test_a_diverged_run_is_a_result_and_the_others_go_on(tree):
    """Its folder says after which update, with fairseq's message; all four runs are trained and reported."""
    result = tree.run("iwslt14", PRESET="smoke", TRAIN_MODE="diverges", TRAIN_MODE_ONLY="iwslt14-post-radam-lr5e-4-linear")
    assert result.returncode == 0, result.stderr
    assert len(tree.calls("fairseq-train")) == 4
    folder = tree.folder("iwslt14-post-radam-lr5e-4-linear")
    assert (folder / "diverged").read_text() == "6\tFloatingPointError: gradients are Nan/Inf\n"
    assert (folder / "done").exists() and not (folder / "trained").exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("scale", "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding."),
        ("workers", "FloatingPointError: Fatal error: gradients are inconsistent between workers, of which some are NaN or Inf"),
    ],
)
def test_a_loss_scale_that_runs_out_and_nan_on_all_workers_are_divergences(tree, mode, message):
    """O17: fp16's message, and that of several GPUs, below which a launcher prints much more."""
    result = tree.only(TRAIN_MODE=mode)
    assert result.returncode == 0, result.stderr
    assert (tree.folder() / "diverged").read_text() == f"6\t{message}\n"


def test_workers_whose_finite_gradients_differ_are_a_failure(tree):
    """Something is wrong with the machines then, and not with the run."""
    result = tree.only(TRAIN_MODE="inconsistent")
    assert result.returncode == 1 and not (tree.folder() / "diverged").exists()


def test_a_divergence_of_an_earlier_sitting_does_not_hide_a_failure(tree):
    """Only what this start wrote of the log counts."""
    tree.only(TRAIN_MODE="diverges")
    (tree.folder() / "diverged").unlink()
    assert tree.only(TRAIN_MODE="fails").returncode == 1
    assert not (tree.folder() / "diverged").exists()


def test_a_pre_ln_run_that_diverges_is_remarked_on(tree):
    """O17: the paper's Pre-LN never does; of Post-LN nothing is said."""
    remark = "a Pre-LN run is not expected to diverge"
    assert remark in tree.only(TRAIN_MODE="diverges").stderr
    assert remark not in tree.only("iwslt14", "iwslt14-post-adam-lr5e-4-warmup1", TRAIN_MODE="diverges").stderr


def test_the_runs_and_seeds_of_all_starts_are_noted_for_the_report(tree):
    """Each once, in the order of the starts; a dry run notes nothing."""
    runs = ("iwslt14-pre-adam-lr5e-4-step", "iwslt14-post-adam-lr5e-4-warmup1")
    tree.only("iwslt14", runs[0], "--dry-run")
    assert not (tree.root / "runs").exists()
    tree.only("iwslt14", runs[0], "--seeds", "1 2")
    tree.only("iwslt14", runs[1], "--seeds", "1")
    tree.only("iwslt14", runs[0], "--seeds", "2")
    assert (tree.root / "runs" / "iwslt14-smoke" / "chosen").read_text() == f"{runs[0]}\t1\n{runs[0]}\t2\n{runs[1]}\t1\n"


def test_a_divergence_is_after_the_last_update_that_its_own_sitting_tells_of(tree):
    """An earlier sitting went further before it was killed, its epoch's end at update 10; then update 5 again and NaN."""
    tree.only(TRAIN_MODE="killed")
    log = tree.folder() / "train.log"
    log.write_text(log.read_text() + 'x | INFO | train_inner | {"epoch": 2, "num_updates": "17"}\n')
    tree.only(TRAIN_MODE="diverges")
    assert (tree.folder() / "diverged").read_text().startswith("11\t")


def test_losses_are_compared_with_a_point_in_every_locale(tree, tmp_path):
    """4.90, 4.10 and 4.20: the best is the second, which German sorting would take for as good as the first."""
    locales = tmp_path / "locales"
    locales.mkdir()
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("this system cannot make a German locale")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.UTF-8")], check=True)
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train", PRESET="paper", MAX_EPOCH="3")
    log = tree.folder(study="iwslt14-paper") / "train.log"
    losses = iter(("4.90", "4.10", "4.20"))
    log.write_text(re.sub(r'"valid_loss": "\d+"', lambda _: f'"valid_loss": "{next(losses)}"', log.read_text()))
    german = {"LOCPATH": str(locales), "LC_ALL": "de_DE.UTF-8"}
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", PRESET="paper", MAX_EPOCH="3", **german)
    assert result.returncode == 0, result.stderr
    rows = (tree.folder(study="iwslt14-paper") / "scores.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows if row.endswith("\ttest")] == ["2", "3"]


def test_any_other_failure_stops_with_one_sentence_that_names_the_log(tree):
    """A full disk is no divergence."""
    result = tree.only(TRAIN_MODE="fails")
    assert result.returncode == 1
    assert "RuntimeError: no space left on device" in result.stderr.splitlines()[-1]
    assert "train.log" in result.stderr.splitlines()[-1]
    assert not (tree.folder() / "diverged").exists()


def test_a_killed_run_goes_on_from_the_newest_checkpoint_that_can_be_read(tree):
    """O24: checkpoint_last.pt is cut, checkpoint1.pt is whole; the half-written file goes, and the log says what happened."""
    assert tree.only(TRAIN_MODE="killed").returncode == 1
    checkpoints = tree.folder() / "checkpoints"
    assert not zipfile.is_zipfile(checkpoints / "checkpoint_last.pt")
    result = tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "2")
    assert result.returncode == 0, result.stderr
    assert "checkpoint_last.pt cannot be read; going on from checkpoint1.pt" in result.stderr
    assert "resumed" in (tree.folder() / "train.log").read_text()
    assert not list(checkpoints.glob("*.tmp"))


def test_a_log_with_a_cut_line_is_scored_all_the_same(tree):
    """What a killed training left in the middle of a record."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    log = tree.folder() / "train.log"
    log.write_text('x | INFO | valid | {"epoch": 1, "val\n' + log.read_text())
    result = tree.only()
    assert result.returncode == 0, result.stderr
    assert len((tree.folder() / "scores.tsv").read_text().splitlines()) == 5


def test_a_run_without_any_readable_checkpoint_says_that_it_starts_again(tree):
    """Never from the beginning in silence."""
    tree.only(TRAIN_MODE="killed")
    (tree.folder() / "checkpoints" / "checkpoint1.pt").write_bytes(b"half")
    result = tree.only()
    assert result.returncode == 0, result.stderr
    assert "no checkpoint can be read; starting again from the beginning" in result.stderr
    assert "resumed" not in (tree.folder() / "train.log").read_text()


def test_two_jobs_train_all_runs(tree):
    """JOBS=2: the same four commands, each once."""
    result = tree.run("iwslt14", "--stop-stage", "train", PRESET="smoke", JOBS="2")
    assert result.returncode == 0, result.stderr
    assert len({flags(call)["--save-dir"] for call in tree.calls("fairseq-train")}) == len(tree.calls("fairseq-train")) == 4


def test_a_run_gets_the_gpu_of_the_job_that_has_ended(tree):
    """JOBS=2 on two GPUs: the first run keeps GPU 0 until the other three, one after another, have had GPU 1."""
    first = "iwslt14-post-adam-lr5e-4-warmup4000"
    settings = {"JOBS": "2", "CHECK": "2", "TRAIN_MODE": "last", "TRAIN_MODE_ONLY": first, "CUDA_VISIBLE_DEVICES": "4,7"}
    result = tree.run("iwslt14", "--stop-stage", "train", PRESET="smoke", **settings)
    assert result.returncode == 0, result.stderr
    gpus = {path.parts[-3]: path.read_text() for path in tree.root.glob("runs/iwslt14-smoke/*/seed1/gpu")}
    assert len(gpus) == 4 and gpus.pop(first) == "4"
    assert set(gpus.values()) == {"7"}


def test_a_run_that_another_process_trains_is_left_alone(tree):
    """The lock in the run folder is held; a killed start may leave its fairseq-train running."""
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    tree.folder().mkdir(parents=True)
    with open(tree.folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = tree.only()
    assert result.returncode == 1 and not tree.calls("fairseq-train")
    assert "is being trained or scored by another process" in result.stderr.splitlines()[-1]


def test_a_run_that_another_process_scores_is_left_alone(tree):
    """Two starts of overlapping figures come to score the same run; the second one decodes nothing."""
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "train")
    with open(tree.folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = tree.only()
    assert result.returncode == 1 and not tree.calls("fairseq-generate")
    assert "is being trained or scored by another process" in result.stderr.splitlines()[-1]


def test_srun_may_be_started_from_a_machine_without_a_gpu_and_torchrun_not(tree):
    """Its processes may run elsewhere."""
    refused = "WORKERS=2 needs GPUs"
    settings = {"PRESET": "smoke", "WORKERS": "2", "CHECK": "0"}
    assert refused in tree.run("iwslt14", LAUNCH="torchrun", **settings).stderr
    (tree.calls_log.parent / "bin" / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tree.calls_log.parent / "bin" / "srun").chmod(0o755)
    result = tree.only(**settings, LAUNCH="srun")
    assert refused not in result.stderr and len(tree.calls("fairseq-train")) == 1


def test_several_jobs_of_several_workers_are_refused(tree):
    """Before any work."""
    result = tree.only(JOBS="2", WORKERS="2", LAUNCH="x")
    assert result.returncode == 1 and not tree.calls_log.exists()
    assert "JOBS=2 and WORKERS=2: use several jobs or several workers, not both" in result.stderr.splitlines()[-1]


def test_an_environment_that_does_not_work_stops_before_training(tree):
    """One sentence with what Python said."""
    result = tree.only(CHECK="ImportError: no torch")
    assert result.returncode == 1 and not tree.calls("fairseq-train")
    assert "does not work (ImportError: no torch)" in result.stderr.splitlines()[-1]


def test_progress_names_the_run_its_epoch_and_its_place_among_all(tree):
    """For example: run 2 of 4, NAME, seed 1: epoch 1 of 2."""
    result = tree.run("iwslt14", "--stop-stage", "train", PRESET="smoke")
    assert "run 2 of 4, iwslt14-post-radam-lr5e-4-linear, seed 1: epoch 1 of 2" in result.stderr


def test_with_gpus_there_are_as_many_shards_of_decoding(tree):
    """Two GPUs: two shards, whatever the number of cores."""
    tree.only(CHECK="2")
    calls = [flags(call) for call in tree.calls("fairseq-generate")]
    assert {call["--distributed-world-size"] for call in calls} == {"2"}


# -- the corpus --


def test_quickstart_takes_the_grammar_corpus_and_says_so_when_no_packages_are_to_be_had(tree):
    """Exit status 3 of libreoffice_help.py; a study stays with the corpus that it began with."""
    result = tree.only("quickstart", "quickstart-pre-adam-lr1e-3-held", NO_CORPUS="libreoffice_help.py")
    assert result.returncode == 0, result.stderr
    assert "MADE UP" in result.stderr
    assert len(tree.calls("grammar.py")) == 1
    assert flags(tree.calls("fairseq-train")[0])[""] == ["data/grammar/bin-train400-heldout100"]
    assert "nothing to do" in tree.only("quickstart", "quickstart-pre-adam-lr1e-3-held").stderr


def test_a_study_of_made_up_text_stays_with_it_when_real_text_turns_up(tree):
    """The packages could be had later."""
    tree.only("quickstart", "quickstart-pre-adam-lr1e-3-held", NO_CORPUS="libreoffice_help.py")
    shutil.copytree(tree.root / "data" / "grammar", tree.root / "data" / "libreoffice-help")
    result = tree.only("quickstart", "quickstart-pre-adam-lr1e-3-held", "--seeds", "2", "--stage", "train")
    assert result.returncode == 0, result.stderr
    assert flags(tree.calls("fairseq-train")[-1])[""] == ["data/grammar/bin-train400-heldout100"]


def test_uneven_text_is_refused_before_it_is_binarized(tree):
    """O13: the two sides have as many lines, and at least one."""
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--dry-run")
    script = tree.root / "recipes" / "corpora" / "iwslt14.py"
    script.write_text(CORPUS_SCRIPT + '\n(out / "bpe" / "valid.en").write_text("")\n', encoding="utf-8")
    result = tree.only()
    assert result.returncode == 1 and not tree.calls("fairseq-preprocess")
    assert "0 of en" in result.stderr.splitlines()[-1]


def test_two_starts_do_not_binarize_into_the_same_folder(tree):
    """The folder is locked; the second start stops, and deletes nothing."""
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    work = tree.root / "data" / "iwslt14" / "bin-train400-heldout100.partial"
    work.mkdir(parents=True)
    (work / "half").touch()
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    result = tree.only()
    os.close(lock)
    assert result.returncode == 1 and not tree.calls("fairseq-preprocess")
    assert "is being written by another process" in result.stderr.splitlines()[-1]
    assert (work / "half").exists()


def test_official_dictionaries_are_used_where_the_corpus_has_them(tree):
    """Both or neither: --srcdict and --tgtdict."""
    script = tree.root / "recipes" / "corpora" / "iwslt14.py"
    extra = '\nfor lang in ("de", "en"):\n    (out / "bpe" / f"dict.{lang}.txt").write_text("w 1")\n'
    script.write_text(CORPUS_SCRIPT + extra, encoding="utf-8")
    tree.only("iwslt14", "iwslt14-pre-adam-lr5e-4-step", "--stop-stage", "prepare")
    command = flags(tree.calls("fairseq-preprocess")[0])
    assert (command["--srcdict"], command["--tgtdict"]) == (
        "data/iwslt14/bpe/dict.de.txt",
        "data/iwslt14/bpe/dict.en.txt",
    )


@pytest.mark.parametrize(
    ("gpus", "amx", "dtype"),
    [
        ("9.0", False, "bfloat16"),
        (r"9.0\n7.5", False, "float32"),
        ("", True, "bfloat16"),
        ("", False, "float32"),
    ],
    ids=["GPU", "one older GPU", "AMX", "neither"],
)
def test_auto_takes_bfloat16_where_it_is_the_faster_and_float32_elsewhere(tree, gpus, amx, dtype):
    """With GPUs of compute capability 8 or more, or with Intel's AMX; a dry run and a run decide alike."""
    bin_folder = Path(tree.environment["PATH"].split(os.pathsep)[0])
    programs = {
        "nvidia-smi": f"#!/bin/sh\nprintf '{gpus}\n'\n",
        "grep": f'#!/bin/sh\ncase "$*" in *amx_bf16*) {str(amx).lower()}; exit ;; esac\nexec {shutil.which("grep")} "$@"\n',
    }
    for name, text in programs.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    only = ("--only", "iwslt14-pre-adam-lr5e-4-step")
    (command,) = printed(tree, "fairseq-train", *only, count=1, COMPUTE_DTYPE="auto")
    assert command["--compute-dtype"] == dtype


# -- recipes/gradients.sh --


@pytest.fixture
def measured(tree):
    """A finished smoke run of gradients.sh, three seeds in two processes, and its output."""
    result = tree.run("gradients", PRESET="smoke", SEEDS="1 2 3", MAX_UPDATE="7")
    assert result.returncode == 0, result.stderr
    return tree, result


def test_figure_3_is_measured_at_the_papers_size(tree):
    """512/1024/4 and 4096 tokens, both positions, five depths, ten seeds, dropout and label smoothing as trained."""
    result = tree.run("gradients", "--dry-run", "--stage", "gradients", "--stop-stage", "gradients")
    words = shlex.split(result.stdout.splitlines()[0])
    for expected in (
        "--arch transformer_ln_study_iwslt_de_en --layers 6 8 10 12 14 --ln-position post pre --weight-init xavier_uniform",
        "--seeds 1 2 3 4 5 6 7 8 9 10",
        "--max-tokens 4096",
        "--dropout 0.1 --label-smoothing 0.1",
    ):
        assert expected in " ".join(words)


def test_every_seed_is_measured_by_one_of_the_processes(measured):
    """Two processes share three seeds; each seed once."""
    tree, _ = measured
    calls = [call for call in tree.calls("fairseq-ln") if call[0] == "gradients" and "xavier_uniform" in call]
    shares = [call[call.index("--seeds") + 1 :] for call in calls[:2]]
    assert sorted(seed for share in shares for seed in share) == ["1", "2", "3"]


def test_the_warm_up_stage_is_trained_and_its_end_measured(measured):
    """Post-LN with the run's own flags, no further than MAX_UPDATE, then its last checkpoint."""
    tree, _ = measured
    (command,) = [flags(call) for call in tree.calls("fairseq-train")]
    assert (command["--max-update"], command["--ln-position"]) == ("7", "post")
    last = "runs/gradients-smoke/iwslt14-post-adam-lr5e-4-warmup4000/seed1/checkpoints/checkpoint_last.pt"
    assert (tree.root / last).exists()
    assert any("--checkpoint" in call and last in call for call in tree.calls("fairseq-ln"))


def test_the_warm_up_stage_may_have_smaller_updates_than_the_measurement(tree):
    """WARMUP_TOKENS: of the training alone, and told in its settings."""
    result = tree.run("gradients", PRESET="smoke", WARMUP_TOKENS="512")
    assert result.returncode == 0, result.stderr
    (train,) = tree.calls("fairseq-train")
    assert flags(train)["--max-tokens"] == "512"
    assert {flags(call)["--max-tokens"] for call in tree.calls("fairseq-ln") if call[0] == "gradients"} == {"1024"}
    (settings,) = tree.root.glob("runs/gradients-smoke/*/seed1/settings.tsv")
    assert "batch\t512 tokens an update (1 x 512 x update-freq 1), not the paper's 4096\n" in settings.read_text()


def test_a_second_start_of_the_measurement_trains_nothing_and_says_so(measured):
    """The measurements are there (MEASURED), and the warm-up stage is trained."""
    tree, _ = measured
    result = tree.run("gradients", PRESET="smoke", SEEDS="1 2 3", MAX_UPDATE="7", MEASURED="yes")
    assert result.returncode == 0
    assert "nothing to do" in result.stderr.splitlines()[-1]
    assert len(tree.calls("fairseq-train")) == 1


def test_a_warm_up_stage_that_diverges_is_no_measurement(tree):
    """The run and its log are named."""
    result = tree.run("gradients", PRESET="smoke", TRAIN_MODE="diverges")
    assert result.returncode == 1
    assert "iwslt14-post-adam-lr5e-4-warmup4000 diverged in its warm-up stage" in result.stderr.splitlines()[-1]
    assert not any("--checkpoint" in call for call in tree.calls("fairseq-ln") if call[0] == "gradients")


# -- what is refused --


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("--figure", "2,3"), {}, "there is no figure '3'; choose from 2, 4, 6, all"),
        (("--figure", ""), {}, "--figure needs a value"),
        (("--figure", ","), {}, "--figure is empty; choose from 2, 4, 6, all"),
        ((), {"PRESET": "huge"}, "unknown preset 'huge'; choose PRESET from paper, papersize, cpu, smoke"),
        (("--figure", "3"), {}, "there is no figure '3'; choose from 2, 4, 6, all"),
        (("--only", "nothing"), {}, "there is no run 'nothing'; choose --only from iwslt14-post-adam"),
        (("--stage", "5"), {}, "there is no stage '5'; choose from 1=prepare"),
        (("--stage", "3", "--stop-stage", "2"), {}, "--stop-stage 2 lies before --stage 3"),
        (("--fast",), {}, "unknown argument '--fast'"),
        (("--only",), {}, "--only needs a value"),
        (("--seeds", "one"), {}, "SEEDS holds 'one'"),
        ((), {"JOBS": "0"}, "JOBS must be a whole number from 1 on"),
        ((), {"COMPUTE_DTYPE": "float16"}, "COMPUTE_DTYPE must be float32, bfloat16 or auto"),
        ((), {"UPDATE_FREQ": "5000"}, "4096 tokens an update are too few for WORKERS=1 x UPDATE_FREQ=5000"),
        ((), {"AVERAGE": "few"}, "AVERAGE must be a whole number from 1 on"),
        (("--setting", "best"), {}, "unknown --setting 'best'; choose from paper, fairseq"),
        (("--setting", "fairseq", "--figure", "2"), {}, "--setting fairseq is in no figure of the paper"),
        ((), {"WORKERS": "2"}, "WORKERS=2 needs LAUNCH"),
        ((), {"LAUNCH": "srun"}, "LAUNCH needs WORKERS"),
        ((), {"IWSLT14": ""}, "IWSLT14 is not set"),
        ((), {"IWSLT14": "/nowhere/de-en.tgz"}, "IWSLT14=/nowhere/de-en.tgz does not exist"),
        (("--stage", "train"), {}, "has no corpus.json; start with stage 1"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(tree, arguments, settings, sentence):
    """Non-zero, the value and the choices named, nothing done."""
    result = tree.run("iwslt14", *arguments, **settings)
    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert not tree.calls_log.exists()


# -- the environment --


def set_up(folder, python, path):
    """Run environment.sh in a copy of what it reads, with a Python of our choice and a PATH without fairseq."""
    root = folder / "clone"
    if not root.exists():
        (root / "recipes").mkdir(parents=True)
        for name in ("environment.sh", "constraints.txt"):
            shutil.copy(ROOT / "recipes" / name, root / "recipes")
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        (root / "fairseq_lnplugin" / "csrc").mkdir(parents=True)
        shutil.copy(ROOT / "fairseq_lnplugin" / "csrc" / "kernels.cpp", root / "fairseq_lnplugin" / "csrc")
    return subprocess.run(
        ["bash", str(root / "recipes" / "environment.sh")],
        env={"PATH": path, "PYTHON": str(python), "PIP_CALLS": str(folder / "pip.txt")},
        capture_output=True,
        text=True,
        timeout=60,
    )


FAKE_PYTHON = """#!/bin/bash
# a Python 3.11 whose venv module copies this file, and whose pip records its arguments (and fails on PIP_FAILS)
case "$*" in
  *version_info*) echo 3.11 ;;
  *"-m venv"*)
    bin=${@: -1}/bin
    mkdir -p "$bin" && cp "$0" "$bin/python" && echo "PATH='$bin':\\$PATH" >"$bin/activate" ;;
  *"-m pip"*)
    printf '%s\\n' "${*: -2}" >>"$PIP_CALLS"
    [[ ! -e $PIP_CALLS.fails || $* != *fairseq-fixed* ]] || { echo "no compiler"; exit 1; } ;;
esac
"""


@pytest.fixture
def fake_python(tmp_path):
    """A stand-in for Python 3.11, and a PATH of the system's programs where `python` is of no use."""
    for name, text in (("python3.11", FAKE_PYTHON), ("python", "#!/bin/sh\nexit 1\n"), ("c++", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path / "bin" / "python3.11", f"{tmp_path / 'bin'}:/usr/bin:/bin"


def test_torch_is_installed_before_fairseq_and_fairseq_before_the_plugin(tmp_path, fake_python):
    """Otherwise the build of fairseq brings another torch of its own."""
    result = set_up(tmp_path, *fake_python)
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "pip.txt").read_text().splitlines()
    assert [call.split()[-1] for call in calls[:3]] == ["torch", "ninja", "fairseq-fixed==0.12.3.1"]
    assert calls[2].startswith("--no-build-isolation") and calls[3].endswith("[test,report,bert]")


def test_a_second_set_up_does_nothing_and_changed_pins_install_again(tmp_path, fake_python):
    """The stamp holds a sum of constraints.txt, setup.py, pyproject.toml and the kernels."""
    set_up(tmp_path, *fake_python)
    set_up(tmp_path, *fake_python)
    assert len((tmp_path / "pip.txt").read_text().splitlines()) == 4
    for calls, name in ((8, "recipes/constraints.txt"), (12, "fairseq_lnplugin/csrc/kernels.cpp")):
        with open(tmp_path / "clone" / name, "a") as file:
            file.write("# changed\n")
        set_up(tmp_path, *fake_python)
        assert len((tmp_path / "pip.txt").read_text().splitlines()) == calls


def test_an_activated_environment_of_this_project_follows_changed_pins(tmp_path, fake_python):
    """As the README has its reader activate it; another environment that has all is used as it is."""
    python, path = fake_python
    set_up(tmp_path, python, path)
    own = tmp_path / "clone" / ".venv" / "bin"
    for name in ("fairseq-preprocess", "fairseq-train", "fairseq-generate", "fairseq-ln"):
        (own / name).write_text("#!/bin/sh\n")
        (own / name).chmod(0o755)
    with open(tmp_path / "clone" / "recipes" / "constraints.txt", "a") as file:
        file.write("# changed\n")
    shutil.copytree(own, tmp_path / "other")
    for folder, calls in ((tmp_path / "other", 4), (own, 8)):
        result = set_up(tmp_path, python, f"{folder}:{path}")
        assert result.returncode == 0, result.stderr
        assert len((tmp_path / "pip.txt").read_text().splitlines()) == calls


def test_a_failed_set_up_shows_why_and_the_next_one_finishes_it(tmp_path, fake_python):
    """The end of pip's output, the log's name, a non-zero status, and no stamp."""
    (tmp_path / "pip.txt.fails").touch()
    result = set_up(tmp_path, *fake_python)
    assert result.returncode == 1
    assert "no compiler" in result.stderr and "setup.log" in result.stderr.splitlines()[-1]
    (tmp_path / "pip.txt.fails").unlink()
    assert set_up(tmp_path, *fake_python).returncode == 0


def test_an_old_python_is_refused_before_any_work_naming_those_that_do(tmp_path, fake_python):
    """O1: one sentence, no traceback."""
    python, path = fake_python
    python.write_text(FAKE_PYTHON.replace("echo 3.11", "echo 3.9"))
    result = set_up(tmp_path, python, path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("is Python 3.9; give one of Python 3.11, 3.12 or 3.13")
    assert not (tmp_path / "clone" / ".venv").exists()


def test_every_script_is_free_of_shellcheck_warnings():
    """Severity warning and above."""
    scripts = [*(ROOT / "recipes").glob("*.sh"), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "--severity", "warning", *map(str, scripts)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
