"""Run folders as recipes/bert.sh leaves them, for the tests of the report of figure 5."""

from fairseq_lnplugin.study.finetuning import read_finetunings
from fairseq_lnplugin.study.pretraining import read_pretraining
from fairseq_lnplugin.study.run_folder import read_study

POST, PRE, HIGH = "bert-post-adam-lr1e-4-warmup10000", "bert-pre-adam-lr3e-4-linear", "bert-post-adam-lr3e-4-warmup10000"
SETTINGS = {
    **{"study": "bert", "run": POST, "figure": "5a,5b,5c", "data": "wikitext-2", "pairs": "", "words": "2450351"},
    **{"unigram_loss": "9.85", "preset": "cpu", "task": "masked_lm", "arch": "bert_ln_study_small", "ln_position": "post"},
    **{"weight_init": "fairseq", "compute_dtype": "bfloat16", "optimizer": "adam", "lr": "1e-4"},
    **{"schedule": "polynomial_decay", "warmup_updates": "24", "decay": "", "dropout": "0.1", "label_smoothing": "0"},
    **{"tokens_per_sample": "128", "max_tokens": "4096", "update_freq": "1", "max_epoch": "", "max_update": "700"},
    **{"seed": "1", "note": "as published"},
}
PRE_SETTINGS = {"run": PRE, "ln_position": "pre", "lr": "3e-4", "schedule": "no_warmup", "warmup_updates": "", "decay": "linear"}
HIGH_SETTINGS = {"run": HIGH, "lr": "3e-4", "figure": "5a"}
#: The rows of a plan, of which a report reads these columns.
PLAN = [
    {"run": settings["run"], **{name: settings[name] for name in ("figure", "ln_position", "lr")}}
    for settings in (SETTINGS, SETTINGS | PRE_SETTINGS, SETTINGS | HIGH_SETTINGS)
]
MRPC_ROWS, RTE_ROWS = (129, 279), (131, 146)


def straight(first, last, updates=700, every=100):
    """A loss that falls linearly from ``first`` at update 0 to ``last`` at the last, at each ``every`` updates."""
    return [(u, first + (last - first) * u / updates) for u in range(every, updates + 1, every)]


def write_run(study, losses, done=True, trained=False, diverged="", **settings):
    """A run folder with a train.log of these validations; returns its path."""
    settings = SETTINGS | settings
    folder = study / settings["run"] / f"seed{settings['seed']}"
    folder.mkdir(parents=True)
    (folder / "settings.tsv").write_text("".join(f"{name}\t{value}\n" for name, value in settings.items()))
    (folder / "environment.json").write_text('{"commit": "0123abc", "dirty": false, "device": "a CPU", "torch": "2.13.0"}')
    (folder / "command.txt").write_text("fairseq-train data/bin\n")
    (folder / "wall_seconds").write_text("2400\n")
    (folder / "train.log").write_text("".join(log_lines(u, loss) for u, loss in losses))
    if diverged:
        (folder / "diverged").write_text(diverged)
    if trained:
        (folder / "trained").touch()
    if done:
        (folder / "done").write_text("grid\n")
    return folder


def log_lines(update, loss):
    """What fairseq logs at an update with a validation."""
    inner = f'{{"epoch": 1, "update": 0.5, "loss": "{loss}", "num_updates": "{update}", "lr": "0.0001"}}'
    valid = f'{{"epoch": 1, "valid_loss": "{loss}", "valid_num_updates": "{update}"}}'
    return f"x | INFO | train_inner | {inner}\nx | INFO | valid | {valid}\n"


def write_result(run, task, updates, seed, accuracy, f1, lr="5e-5", rows=None, **more):
    """A result.tsv of a fine-tuning in a run folder."""
    rows = rows or {"MRPC": MRPC_ROWS, "RTE": RTE_ROWS}[task]
    values = {"task": task, "updates": updates, "batch_size": 32, "lr": lr, "epochs": 3, "seed": seed}
    values |= {"rows_of_class_0": rows[0], "rows_of_class_1": rows[1], "accuracy": accuracy, "f1": f1} | more
    path = run / "finetune" / task / f"update{updates}-batch32-lr{lr}-epochs3-seed{seed}" / "result.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{name}\t{value}\n" for name, value in values.items()))
    return path


def write_accuracies(run, task, updates, accuracies):
    """A fine-tuning of each seed from 1 on, with these accuracies."""
    for seed, accuracy in enumerate(accuracies, 1):
        write_result(run, task, updates, seed, accuracy, 80)


def read(study):
    """The pre-trainings and the fine-tunings of a study."""
    pretrainings = [read_pretraining(run) for run in read_study(study)]
    return pretrainings, [item for p in pretrainings for item in read_finetunings(p)]
