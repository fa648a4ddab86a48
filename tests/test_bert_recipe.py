"""recipes/bert.sh, masked_lm.sh and masked_lm.tsv (the paper's figure 5, section 4.1, appendix A.3).

The real scripts run in a copy of the tree with stand-ins for the corpus scripts, fairseq-preprocess, fairseq-train and
fairseq-ln, which record their arguments; once, the recipe runs for real on a few sentences.
"""

import fcntl
import os
import random
import shutil
import subprocess
import zipfile

import pytest
from conftest import ROOT
from recipe_trees import RECORDER, Tree, flags, table

POST, PRE, POST_HIGH = "bert-post-adam-lr1e-4-warmup10000", "bert-pre-adam-lr3e-4-linear", "bert-post-adam-lr3e-4-warmup10000"

CORPUS_SCRIPT = '''
"""Stand-in for masked_lm_text.py and glue.py."""
import json, os, sys
from pathlib import Path

name = Path(sys.argv[0]).name
with open(os.environ["STAND_IN_LOG"], "a") as file:
    print(json.dumps([name, *sys.argv[1:]]), file=file)
out = Path(sys.argv[sys.argv.index("--out") + 1])
facts = {"name": "stand-in", "words": {"train": 1990, "valid": 10}, "unigram_loss": 7.5}
if name == "glue.py":
    facts = {"tasks": {task: {"rows": {"train": [40, 60], "valid": [3, 7]}} for task in ("MRPC", "RTE")}}
    for task in ("MRPC", "RTE"):
        (out / task / "input0").mkdir(parents=True, exist_ok=True)
        (out / task / "input0" / "dict.txt").write_text(os.environ.get("GLUE_DICT", "word 1\\n"))
out.mkdir(parents=True, exist_ok=True)
(out / "corpus.json").write_text(json.dumps(facts))
'''

STAND_IN = """
# An epoch has 20 updates. MODE: how trainings go; FINETUNE_MODE: how fine-tunings go, where their folder holds FINETUNE_ONLY.
if name == "fairseq-preprocess":
    out = Path(flag("--destdir"))
    (out / "dict.txt").write_text("word 1\\n")
    (out / "valid.bin").write_text("x")
elif name == "fairseq-train" and "--restore-file" in arguments:
    mode = os.environ.get("FINETUNE_MODE", "well") if os.environ.get("FINETUNE_ONLY", "") in flag("--save-dir") else "well"
    assert Path(flag("--restore-file")).is_file()
    if mode == "diverges":
        sys.exit("FloatingPointError: gradients are Nan/Inf")
    if mode == "fails":
        sys.exit("RuntimeError: no space left on device")
    if mode == "killed":
        os.kill(os.getppid(), signal.SIGKILL)
    if mode == "well":
        print('x | INFO | valid | {{"epoch": 1, "valid_accuracy": "70.5", "valid_pred": [], "valid_f1": "81.3"}}')
elif name == "fairseq-train":
    save, mode = Path(flag("--save-dir")), os.environ.get("MODE", "well")
    if (save / "checkpoint_last.pt").exists():
        print("resumed", flush=True)
    for update in range(10, int(flag("--max-update")) + 1, int(flag("--save-interval-updates"))):
        print('x | INFO | train_inner | {{"epoch": 1, "update": 0.5, "loss": "9.5", "num_updates": "%d", "lr": "1e-4"}}' % update)
        if mode == "diverges" and flag("--ln-position") == "post":
            sys.exit("FloatingPointError: gradients are Nan/Inf")
        print('x | INFO | valid | {{"epoch": 1, "valid_loss": "8", "valid_num_updates": "%d"}}' % update, flush=True)
        checkpoint(save / ("checkpoint1.pt" if update == 20 else "checkpoint_1_%d.pt" % update))
        checkpoint(save / "checkpoint_last.pt")
    if mode == "killed":
        (save / "checkpoint_last.pt").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
elif name == "fairseq-ln":
    if arguments[0] == "environment":
        print("{{}}")
    elif arguments[0] == "report":
        Path(arguments[1], "figures").mkdir(exist_ok=True)
        for report in ("RESULTS.md", "RESULTS.html"):
            Path(arguments[1], report).write_text("results")
"""


class BertTree(Tree):
    """A copy of the recipes with stand-ins for what bert.sh calls."""

    def __init__(self, folder):
        super().__init__(folder)
        python = (folder / "bin" / "fairseq-train").read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
        for name in ("fairseq-preprocess", "fairseq-train", "fairseq-ln"):
            (folder / "bin" / name).write_text((RECORDER + STAND_IN).format(python=python), encoding="utf-8")
        for name in ("masked_lm_text", "glue"):
            (self.root / "recipes" / "corpora" / f"{name}.py").write_text(CORPUS_SCRIPT, encoding="utf-8")
        (folder / "text.txt").write_text("text\n")
        self.environment |= {"TEXT": str(folder / "text.txt"), "GLUE": str(folder), "PRESET": "smoke"}
        if "PYTHONPATH" in os.environ:  # where sentencepiece may be
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]

    def bert(self, *arguments, **settings):
        """Run bert.sh."""
        return self.run("bert", *arguments, **settings)

    def finetunings(self):
        """Arguments of every fine-tuning so far."""
        return [flags(call) for call in self.calls("fairseq-train") if "--restore-file" in call]

    def folder(self, run=PRE, study="bert-smoke", seed=1):
        """A run folder."""
        return super().folder(run, study, seed)


@pytest.fixture
def tree(tmp_path):
    """A fresh copy of the recipes."""
    return BertTree(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tree in which all stages are done, and what the recipe said."""
    tree = BertTree(tmp_path_factory.mktemp("finished"))
    return tree, tree.bert()


def printed(tree, preset):
    """Flags of the trainings and of the fine-tunings that a dry run prints."""
    result = tree.bert("--dry-run", PRESET=preset)
    assert result.returncode == 0, result.stderr
    commands = [flags(line) for line in result.stdout.splitlines() if line.startswith("fairseq-train")]
    trainings, finetunings = ([c for c in commands if ("--restore-file" in c) == wanted] for wanted in (False, True))
    # three runs; two of them on two tasks
    assert (len(trainings), len(finetunings)) == (3, 4 * len(presets()[preset]["finetune_updates"])), result.stdout
    return trainings, finetunings


def presets():
    """The rows of masked_lm.tsv, lists as lists."""
    lists = ("finetune_updates", "batch_sizes", "lrs", "epochs", "seeds")
    return {row["preset"]: row | {name: row[name].split() for name in lists} for row in table("masked_lm.tsv")}


# -- the tables --


def test_the_runs_are_the_papers_three():
    """Section 4.1: Post-LN 1e-4 with 10k warm-up, Pre-LN 3e-4 without and with linear decay, Post-LN at 3e-4."""
    rows = [row for row in table("runs.tsv") if row["study"] == "bert"]
    assert [(row["ln_position"], row["lr"], row["warmup_updates"]) for row in rows] == [
        ("post", "1e-4", "10000"),
        ("pre", "3e-4", ""),
        ("post", "3e-4", "10000"),
    ]


def test_only_the_two_that_are_compared_are_fine_tuned():
    """Figures 5b and 5c; Post-LN at Pre-LN's rate is of 5a alone."""
    rows = {row["run"]: row["figure"] for row in table("runs.tsv") if row["study"] == "bert"}
    assert rows == {POST: "5a,5b,5c", PRE: "5a,5b,5c", POST_HIGH: "5a"}


@pytest.mark.parametrize("preset", ["paper", "cpu"])
def test_the_grid_lies_in_the_papers_search_space(preset):
    """Appendix A.3: batch 16/32, lr 1e-5 to 1e-4, 3 to 8 epochs."""
    row = presets()[preset]
    assert set(row["batch_sizes"]) <= {"16", "32"}
    assert all(1e-5 <= float(lr) <= 1e-4 for lr in row["lrs"])
    assert all(3 <= int(epochs) <= 8 for epochs in row["epochs"])


def test_preset_paper_has_six_seeds():
    """Appendix A.3."""
    assert len(presets()["paper"]["seeds"]) == 6


def test_every_preset_fine_tunes_the_last_checkpoint_and_an_earlier_one():
    """Figures 5b and 5c are against updates; each update is one that is kept."""
    for row in presets().values():
        updates = list(map(int, row["finetune_updates"]))
        assert len(updates) > 1 and updates[-1] == int(row["max_update"])
        assert all(update % int(row["save_interval_updates"]) == 0 for update in updates)


# -- what is run --


def test_preset_paper_trains_bert_base_as_devlin_et_al(tree):
    """12 layers, 256 x 512 tokens, Adam (0.9, 0.999), weight decay 0.01, dropout 0.1, 1,000,000 updates, no clipping."""
    for command in printed(tree, "paper")[0]:
        assert command["--arch"] == "bert_ln_study"
        assert int(command["--max-tokens"]) * int(command["--update-freq"]) == 256 * 512
        assert (command["--tokens-per-sample"], command["--max-positions"]) == ("512", "512")
        assert (command["--adam-betas"], command["--weight-decay"]) == ("(0.9,0.999)", "0.01")
        assert (command["--dropout"], command["--attention-dropout"], command["--clip-norm"]) == ("0.1", "0.1", "0.0")
        assert (command["--mask-prob"], command["--max-update"]) == ("0.15", "1000000")


def test_blocks_of_text_respect_documents(tree):
    """--sample-break-mode complete_doc."""
    assert {command["--sample-break-mode"] for command in printed(tree, "paper")[0]} == {"complete_doc"}


def test_both_positions_decay_linearly_to_the_last_update(tree):
    """Post-LN after 10,000 updates of linear warm-up, Pre-LN from the first update on."""
    post, pre, post_high = printed(tree, "paper")[0]
    for command in (post, post_high):
        assert command["--lr-scheduler"] == "polynomial_decay"
        assert (command["--warmup-updates"], command["--total-num-update"]) == ("10000", "1000000")
    assert (pre["--lr-scheduler"], pre["--decay"], pre["--total-updates"]) == ("no_warmup", "linear", "1000000")
    assert "--warmup-updates" not in pre and "--hold-updates" not in pre


def test_runs_differ_only_in_position_rate_and_schedule(tree):
    """All other flags are one value."""
    studied = {"--ln-position", "--lr", "--lr-scheduler", "--warmup-updates", "--total-num-update", "--decay", "--total-updates"}
    for preset in presets():
        commands = printed(tree, preset)[0]
        for name in set().union(*commands) - studied - {"--save-dir"}:
            assert len({str(command.get(name)) for command in commands}) == 1, name


@pytest.mark.parametrize("preset", ["paper", "cpu"])
def test_a_preset_keeps_the_share_of_the_warm_up(tree, preset):
    """One update in a hundred, as 10k of a million."""
    post = printed(tree, preset)[0][0]
    assert int(post["--max-update"]) == 100 * int(post["--warmup-updates"])


def test_fine_tuning_is_the_same_for_both_positions(tree):
    """All flags but the position, the checkpoint and the folder."""
    commands = printed(tree, "cpu")[1]
    half = len(commands) // 2
    for post, pre in zip(commands[:half], commands[half:], strict=True):
        assert (post["--ln-position"], pre["--ln-position"]) == ("post", "pre")
        assert all(post[name] == pre[name] for name in post if name not in ("--ln-position", "--save-dir", "--restore-file"))


def test_fine_tuning_starts_from_the_weights_alone_and_drops_no_row(tree):
    """Optimizer, schedule and counters are new; every row of train and dev counts."""
    for command in printed(tree, "cpu")[1]:
        for name in ("--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader", "--reset-meters"):
            assert name in command
        assert command["--required-batch-size-multiple"] == "1"
        assert (command["--init-token"], command["--separator-token"], command["--num-classes"]) == ("0", "2", "2")


def test_dry_run_makes_nothing(tree):
    """No program is called, no file is written, and text and tasks need not be there."""
    result = tree.bert("--dry-run", TEXT="", GLUE="")
    assert result.returncode == 0, result.stderr
    assert not tree.calls_log.exists()
    assert not (tree.root / "runs").exists() and not (tree.root / "data").exists()


def test_a_dry_run_shows_no_binarizing_of_what_is_binarized(tree):
    """A folder of another text is refused; with the text gone, all of stage 1 is shown."""
    tree.bert("--stop-stage", "prepare")
    text = tree.root / "data" / "masked-lm-smoke"
    result = tree.bert("--dry-run")
    assert result.returncode == 0, result.stderr
    assert "fairseq-preprocess" not in result.stdout and "data/masked-lm-smoke-bin is there" in result.stderr
    (text / "corpus.json").write_text((text / "corpus.json").read_text() + "\n")
    result = tree.bert("--dry-run")
    assert result.returncode == 1
    assert "was made from another corpus than data/masked-lm-smoke is now" in result.stderr.splitlines()[-1]
    shutil.rmtree(text)
    result = tree.bert("--dry-run")
    assert result.returncode == 0 and "fairseq-preprocess" in result.stdout, result.stderr


def test_a_folder_of_something_else_is_not_written_over(tree):
    """It stands where the binarized text is to be."""
    (tree.root / "data" / "masked-lm-smoke-bin").mkdir(parents=True)
    result = tree.bert()
    assert result.returncode == 1 and not tree.calls("fairseq-preprocess")
    assert "data/masked-lm-smoke-bin exists and is not this recipe's work" in result.stderr.splitlines()[-1]


# -- all stages --


def test_all_stages_end_well_and_the_report_is_made(finished):
    """Status 0, RESULTS.md, and every run is done."""
    tree, result = finished
    assert result.returncode == 0, result.stderr
    assert (tree.root / "runs" / "bert-smoke" / "RESULTS.md").is_file()
    assert all((tree.folder(run) / "done").is_file() for run in (POST, PRE, POST_HIGH))


def test_every_cell_of_the_grid_is_fine_tuned_with_every_seed(finished):
    """2 runs x 2 tasks x 2 checkpoints x 1 cell x 2 seeds, each once; none of Post-LN at 3e-4."""
    tree, _ = finished
    found = [
        (c[""][0].split("/")[-1], c["--save-dir"].split("/")[2], c["--seed"], c["--restore-file"]) for c in tree.finetunings()
    ]
    assert len(found) == len(set(found)) == 16
    assert {run for _, run, _, _ in found} == {POST, PRE} and {seed for _, _, seed, _ in found} == {"1", "2"}


def test_a_checkpoint_at_an_epochs_end_is_found_under_its_other_name(finished):
    """With fairseq update 20, the last of epoch 1, is checkpoint1.pt, and update 10 checkpoint_1_10.pt."""
    tree, _ = finished
    for command in tree.finetunings():
        expected = {"update10": "checkpoint_1_10.pt", "update20": "checkpoint1.pt"}
        assert command["--restore-file"].split("/")[-1] == expected[command["--save-dir"].split("/")[-1].split("-")[0]]


def test_the_schedule_of_a_fine_tuning_is_as_long_as_its_epochs(finished):
    """100 rows in batches of 32 are 4 updates an epoch, of which 6 % round down to no warm-up."""
    tree, _ = finished
    for command in tree.finetunings():
        assert (command["--total-num-update"], command["--warmup-updates"], command["--max-epoch"]) == ("4", "0", "1")


def test_a_result_tells_what_it_is_of_and_the_rows_of_each_class(finished):
    """What fairseq-ln report reads."""
    tree, _ = finished
    path = tree.folder() / "finetune" / "RTE" / "update20-batch32-lr1e-4-epochs1-seed2" / "result.tsv"
    assert dict(line.split("\t") for line in path.read_text().splitlines()) == {
        **{"task": "RTE", "updates": "20", "batch_size": "32", "lr": "1e-4", "epochs": "1", "seed": "2"},
        **{"rows_of_class_0": "3", "rows_of_class_1": "7", "accuracy": "70.5", "f1": "81.3"},
    }


def test_settings_tell_the_size_of_the_text(finished):
    """Words of train and valid, and the loss of knowing frequencies alone."""
    tree, _ = finished
    settings = dict(line.split("\t") for line in (tree.folder() / "settings.tsv").read_text().splitlines())
    assert (settings["data"], settings["words"], settings["unigram_loss"]) == ("stand-in", "2000", "7.5")
    assert (settings["task"], settings["max_update"], settings["warmup_updates"]) == ("masked_lm", "20", "")


def test_progress_is_told_in_updates_and_the_grid_is_printed(finished):
    """Runs are counted in updates, fine-tunings one by one."""
    _, result = finished
    assert f"run 2 of 3, {PRE}, seed 1: update 10 of 20, loss 9.5" in result.stderr
    assert "updates 10 20; batch 32; lr 1e-4; epochs 1; seeds 1 2" in result.stderr
    assert "fine-tuning 8 of 8" in result.stderr


def test_a_second_start_does_nothing_and_says_so(finished):
    """No training, no fine-tuning, no report again."""
    tree, _ = finished
    before = [len(tree.calls(name)) for name in ("fairseq-preprocess", "fairseq-train", "fairseq-ln")]
    result = tree.bert()
    assert result.returncode == 0 and "nothing to do" in result.stderr
    assert before == [len(tree.calls(name)) for name in ("fairseq-preprocess", "fairseq-train", "fairseq-ln")]


# -- going on --


def test_a_larger_grid_fine_tunes_only_what_is_new(tree):
    """Another seed: 2 tasks x 2 checkpoints more."""
    only = ("--only", PRE)
    tree.bert(*only)
    assert len(tree.finetunings()) == 8
    result = tree.bert(*only, FINETUNE_SEEDS="1 2 3")
    assert result.returncode == 0, result.stderr
    assert len(tree.finetunings()) == 12 and {command["--seed"] for command in tree.finetunings()[8:]} == {"3"}


def test_a_larger_grid_that_is_not_whole_yet_is_not_taken_for_done(tree):
    """Ended in its second fine-tuning: the report must not judge by half of it."""
    only = ("--only", PRE)
    tree.bert(*only)
    assert (tree.folder() / "done").exists()
    assert tree.bert(*only, FINETUNE_SEEDS="1 2 3", FINETUNE_MODE="killed", FINETUNE_ONLY="seed3").returncode != 0
    assert not (tree.folder() / "done").exists()


def test_a_study_copied_to_another_place_goes_on_there(tree):
    """The folder of the runs and that of the data are elsewhere, named by their full paths: only what is new is fine-tuned."""
    tree.bert("--only", PRE)
    (tree.root / "runs" / "bert-smoke").rename(tree.root / "copied")
    (tree.root / "data").rename(tree.root / "elsewhere")
    settings = {"RUNS": str(tree.root / "copied"), "DATA": str(tree.root / "elsewhere"), "FINETUNE_SEEDS": "1 2 3"}
    result = tree.bert("--only", PRE, **settings)
    assert result.returncode == 0, result.stderr
    assert [command["--seed"] for command in tree.finetunings()[8:]] == ["3"] * 4


def test_a_killed_start_goes_on_with_the_fine_tuning_that_was_under_way(tree):
    """Those with a result are not run again; the one without is."""
    only = ("--only", PRE)
    assert tree.bert(*only, FINETUNE_MODE="killed", FINETUNE_ONLY="MRPC/update20").returncode != 0
    before = len(tree.finetunings())
    assert before == 3 and not (tree.folder() / "done").exists()
    result = tree.bert(*only)
    assert result.returncode == 0, result.stderr
    assert len(tree.finetunings()) == before + 8 - 2


def test_a_fine_tuning_that_diverges_is_a_result_and_the_others_go_on(tree):
    """No seed is dropped: its result.tsv is there, without a score."""
    result = tree.bert("--only", PRE, FINETUNE_MODE="diverges", FINETUNE_ONLY="RTE/update10-batch32-lr1e-4-epochs1-seed2")
    assert result.returncode == 0, result.stderr
    path = tree.folder() / "finetune" / "RTE" / "update10-batch32-lr1e-4-epochs1-seed2" / "result.tsv"
    assert path.read_text().endswith("accuracy\t\nf1\t\n")
    assert len(list((tree.folder() / "finetune").glob("*/*/result.tsv"))) == 8


@pytest.mark.parametrize(
    ("mode", "words"), [("fails", "RuntimeError: no space left on device"), ("silent", "ended without accuracy and F1")]
)
def test_any_other_failure_of_a_fine_tuning_stops_with_one_sentence(tree, mode, words):
    """It names the log; nothing is taken for a result."""
    result = tree.bert("--only", PRE, FINETUNE_MODE=mode)
    assert result.returncode == 1
    assert words in result.stderr.splitlines()[-1] and "train.log" in result.stderr.splitlines()[-1]
    assert not list(tree.folder().glob("finetune/*/*/result.tsv"))


def test_a_run_that_diverged_is_not_fine_tuned_and_the_study_goes_on(tree):
    """Post-LN diverges: marked, done; Pre-LN is fine-tuned."""
    result = tree.bert(MODE="diverges")
    assert result.returncode == 0, result.stderr
    assert (tree.folder(POST) / "diverged").read_text().startswith("11\t") and (tree.folder(POST) / "done").is_file()
    assert {command["--ln-position"] for command in tree.finetunings()} == {"pre"}


def test_a_killed_pre_training_goes_on_from_its_newest_checkpoint(tree):
    """checkpoint1.pt, of the end of epoch 1, is newer than checkpoint_1_10.pt; checkpoint_last.pt is cut."""
    assert tree.bert("--only", PRE, MODE="killed").returncode == 1
    assert not zipfile.is_zipfile(tree.folder() / "checkpoints" / "checkpoint_last.pt")
    result = tree.bert("--only", PRE, "--stop-stage", "pretrain")
    assert result.returncode == 0, result.stderr
    assert "checkpoint_last.pt cannot be read; going on from checkpoint1.pt" in result.stderr
    assert "resumed" in (tree.folder() / "train.log").read_text()


def test_a_run_that_another_start_fine_tunes_is_left_alone(tree):
    """The lock in the run folder is held, by another start or by what a killed one left behind."""
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    tree.bert("--only", PRE, "--stop-stage", "pretrain")
    with open(tree.folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = tree.bert("--only", PRE)
    assert result.returncode == 1 and not tree.finetunings()
    assert "is being trained or scored by another process" in result.stderr.splitlines()[-1]


# -- what is refused --


def test_tasks_of_another_dictionary_than_the_checkpoints_are_refused(tree):
    """Before any fine-tuning, naming the run."""
    result = tree.bert("--only", PRE, GLUE_DICT="other 1\n")
    assert result.returncode == 1 and not tree.finetunings()
    assert "is not that of the checkpoint's training" in result.stderr.splitlines()[-1]


def test_a_fine_tuning_made_with_other_settings_is_refused(tree):
    """Another number format: the folder to delete is named, nothing is lost."""
    tree.bert("--only", PRE)
    command = next((tree.folder() / "finetune").glob("MRPC/*/command.txt"))
    command.write_text(command.read_text().replace("float32", "bfloat16"))
    (tree.folder() / "done").unlink()
    result = tree.bert("--only", PRE)
    assert result.returncode == 1
    assert f"{command.parent.name} was made with other settings (there: --compute-dtype bf" in result.stderr.splitlines()[-1]
    assert (command.parent / "result.tsv").is_file()


def test_without_tasks_pre_training_alone_is_possible(tree):
    """GLUE is needed for stage 3 only."""
    result = tree.bert("--only", PRE, "--stop-stage", "pretrain", GLUE="")
    assert result.returncode == 0, result.stderr
    assert (tree.folder() / "trained").is_file() and not tree.calls("glue.py")


def test_without_text_libreoffices_help_is_asked_for(tree):
    """masked_lm_text.py without --from."""
    tree.bert("--stop-stage", "prepare", TEXT="")
    assert "--from" not in tree.calls("masked_lm_text.py")[0]


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        ((), {"GLUE": ""}, "GLUE is not set; give GLUE=PATH"),
        ((), {"GLUE": "/nowhere"}, "GLUE=/nowhere does not exist"),
        ((), {"TEXT": "/nowhere"}, "TEXT=/nowhere does not exist"),
        ((), {"PRESET": "huge"}, "unknown preset 'huge'; choose PRESET from paper, cpu, smoke"),
        ((), {"FINETUNE_UPDATES": "15"}, "no checkpoint at update 15; preset smoke keeps one each 10 updates up to 20"),
        ((), {"FINETUNE_UPDATES": "30"}, "no checkpoint at update 30"),
        ((), {"UPDATE_FREQ": "32"}, "use fewer workers or a smaller UPDATE_FREQ"),
        ((), {"FINETUNE_SEEDS": "one"}, "take whole numbers from 1 on, not 'one'"),
        ((), {"FINETUNE_LRS": "high"}, "FINETUNE_LRS takes learning rates such as 1e-5, not 'high'"),
        ((), {"FINETUNE_LRS": "0.0"}, "not '0.0'"),
        ((), {"MAX_EPOCH": "3"}, "MAX_EPOCH, MAX_UPDATE and AVERAGE do not go with bert.sh"),
        (("--figure", "5"), {}, "bert.sh has no flag --figure"),
        (("--stage", "train"), {}, "there is no stage 'train'; choose from 1=prepare, 2=pretrain, 3=finetune, 4=report"),
        (("--stage", "pretrain"), {}, "holds no prepared text; start with stage 1"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(tree, arguments, settings, sentence):
    """Non-zero, the value and the choices named, nothing done."""
    result = tree.bert(*arguments, **settings)
    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert not tree.calls_log.exists()


# -- for real --


def test_the_recipe_runs_for_real_on_a_few_sentences(tmp_path):
    """Text, vocabulary, tasks, 20 updates, one fine-tuning a task, report: every program is the real one."""
    pick = random.Random(1)
    syllables = "ba ke lo mi nu ra se to".split()
    words = [a + b + c for a in syllables for b in syllables for c in syllables]

    def sentence():
        return " ".join(pick.choices(words, k=8)).capitalize() + "."

    (tmp_path / "text.txt").write_text("\n\n".join(f"{sentence()} {sentence()}" for _ in range(400)) + "\n")
    headers = {"MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "RTE": "index\tsentence1\tsentence2\tlabel"}
    for task, header in headers.items():
        for split in ("train", "dev"):
            rows = []
            for number in range(20):
                cells = {"MRPC": [number % 2, 1, 2, sentence(), sentence()]}
                cells["RTE"] = [number, sentence(), sentence(), ("entailment", "not_entailment")[number % 2]]
                rows.append("\t".join(map(str, cells[task])))
            path = tmp_path / "glue" / task / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([header, *rows]) + "\n")
    settings = {"TEXT": tmp_path / "text.txt", "GLUE": tmp_path / "glue", "DATA": tmp_path / "data", "RUNS": tmp_path / "runs"}
    settings |= {"PRESET": "smoke", "FINETUNE_UPDATES": "20", "FINETUNE_SEEDS": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        ["bash", "recipes/bert.sh", "--only", PRE],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / PRE / "seed1" / "checkpoints" / "checkpoint_last.pt").is_file()
    text = (tmp_path / "runs" / "RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith("# Figure 5 (BERT): text, 6,400 words of text against the paper's 3.4B")
    assert "On the 20 rows of dev" in text
    results = list((tmp_path / "runs" / PRE / "seed1" / "finetune").glob("*/*/result.tsv"))
    assert len(results) == 2
    for path in results:  # in percent: a share of 20 rows
        result = dict(line.split("\t") for line in path.read_text().splitlines())
        assert float(result["accuracy"]) in range(5, 101, 5) and 0 <= float(result["f1"]) <= 100
