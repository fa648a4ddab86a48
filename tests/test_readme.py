"""Tests of README.md: its commands run, its flags, paths and run-time names exist, its numbers are those of the results."""

import csv
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import fairseq
import pytest
from conftest import ROOT
from fairseq import options
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass

import fairseq_lnplugin  # noqa: F401  registers the flags

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)


def known_flags():
    """Every flag of the programs that the README names."""
    flags = set()
    for parser in (options.get_training_parser(), options.get_generation_parser(), options.get_preprocessing_parser()):
        flags |= set(parser._option_string_actions)
    model = options.get_training_parser()
    fairseq_lnplugin.transformer_ln_study.TransformerLNStudyModel.add_args(model)
    for config in (
        fairseq_lnplugin.lr_scheduler.NoWarmupConfig,
        fairseq_lnplugin.lr_scheduler.WarmupInverseSqrtConfig,
        fairseq_lnplugin.radam.RAdamConfig,
        LabelSmoothedCrossEntropyCriterionConfig,
    ):
        gen_parser_from_dataclass(model, config())
    flags |= set(model._option_string_actions)
    for script in (ROOT / "recipes").glob("*.sh"):  # whose --help is their header
        flags |= set(re.findall(r"--[a-z][a-z0-9-]+", script.read_text(encoding="utf-8")))
    for script in [*(ROOT / "recipes/corpora").glob("*.py"), *(ROOT / "fairseq_lnplugin").rglob("*.py")]:
        added = r"add(?:_argument)?\(\s*\"(--[a-z][a-z0-9-]+)\""
        flags |= set(re.findall(added, script.read_text(encoding="utf-8")))
    flags.add("--nproc_per_node")  # torchrun's
    return flags


def test_every_flag_in_the_readme_exists():
    """A renamed flag must not live on in the README."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", README))
    assert named - known_flags() == set()


def test_every_path_in_the_readme_exists():
    """Links, and paths into the project's folders; `runs/` and `data/` come into being only when something runs."""
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    code = {word for span in re.findall(r"`([^`\n]+)`", README) for word in span.split() if "/" in word and "{" not in word}
    commands = {word for block in BLOCKS for word in block.split()}
    first = r"(recipes|examples|tests|benchmarks|results|fairseq_lnplugin)/"
    paths = links | {path for path in code | commands if re.match(first, path)}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_every_file_of_the_picture_of_the_code_exists():
    """The README's picture of the code names files of the package and of the root."""
    picture = re.search(r"## The code\n\n```\n(.*?)```", README, flags=re.DOTALL).group(1)
    missing = []
    for line in picture.splitlines():
        names = re.match(r"(\s*)((?:[\w./]+(?:, )?)+)", line)
        folder = ROOT / "fairseq_lnplugin" if names.group(1) else ROOT
        missing += [name for name in names.group(2).rstrip(", ").split(", ") if not (folder / name.strip()).exists()]
    assert missing == []


def test_every_message_of_the_table_of_trouble_is_one_that_programs_print():
    """In our own sources or in fairseq's and Python's, strings that go on in another line put together."""
    table = README.partition("## Trouble")[2]
    messages = [
        message
        for line in table.splitlines()
        if line.startswith("| `")
        for message in re.findall(r"`(.+?)`", line.split(" | ")[0])
    ]
    sources = [*(ROOT / "fairseq_lnplugin").rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), *(ROOT / "recipes").glob("*.sh")]
    sources.append(Path(fairseq.__file__).with_name("trainer.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r"\"\s*\\?\n\s*f?\"", "", text)
    known = [re.escape(message).replace("IWSLT14", r"\S+").replace("tar", r"\S+") for message in messages]
    missing = [message for message, pattern in zip(messages, known, strict=True) if not re.search(pattern, text)]
    of_python = ["IndexError: Replacement index 1 out of range for positional args tuple"]
    assert missing == [*of_python, "unrecognized arguments: --warmup-updates"]  # argparse's


def test_the_speeds_in_the_readme_are_the_medians_of_the_benchmarks():
    """benchmarks/results.json, rounded as the table rounds, a column each kind of CPU."""
    measured = json.loads((ROOT / "benchmarks/results.json").read_text(encoding="utf-8"))

    def training(row, words="words"):
        memory = row["sides"]["ours"]["peak_gib"]["median"] / row["sides"]["stock"]["peak_gib"]["median"]
        return f"{row['ratio']['median']:.2f} x the {words} per second, {memory:.2f} x the memory"

    def decoding(row):
        assert row["shards"] == 2
        whole, translating, memory = (row["ratio"][key]["median"] for key in ("wall_seconds", "translated_seconds", "peak_gib"))
        return f"{whole:.2f} x, start included; {translating:.2f} x without; {1 / memory:.1f} x the memory"

    def line(what, section, row, text):
        rows = (measured[section].get(f"{row}, {vectors}") for vectors in ("AVX-512", "AVX2"))
        return " | ".join(["", what, *("-" if row is None else text(row) for row in rows), ""]).strip()

    def start(vectors):
        ours = measured["decoding"][f"libreoffice-help, test1, {vectors}"]["sides"]["ours"]
        return f"{ours['wall_seconds']['median'] - ours['translated_seconds']['median']:.0f} s"

    hook = measured["training"]["hook-1, AVX-512"]
    in_shards = measured["decoding"]["iwslt14-de-en, test1, AVX-512"]["ratio"]["stock in shards"]["wall_seconds"]["median"]
    bleu = measured["decoding"]["libreoffice-help, test1, bfloat16, AVX-512"]["bleu"]
    bert = "BERT of 6 layers (256/1024), masked LM, against fairseq's `roberta`, float32"
    gradients = "`fairseq-ln gradients` against fairseq's model and a backward a mini-batch"
    share = "time that `--grad-norm-interval {}` adds, of an update"
    expected = [
        line("training, the paper's IWSLT14 size, float32", "training", "fp32-no-amx", training),
        line(bert, "training", "bert-small-fp32", lambda row: training(row, "tokens")),
        line(gradients, "gradients", "6-6-fp32", lambda row: f"{row['ratio']['median']:.2f} x"),
        line(share.format(1), "training", "hook-1", lambda row: f"{100 * row['hook']['share']['median']:.1f} %"),
        line(share.format(100), "training", "hook-100", lambda row: f"{100 * row['hook']['share']['median']:.3f} %"),
        line("translating 500 sentences, the paper's IWSLT14 size", "decoding", "iwslt14-de-en, test1", decoding),
        line("translating 500 sentences, a tiny model (128/256)", "decoding", "libreoffice-help, test1", decoding),
        f"at the paper's size ours are {in_shards:.2f} x as fast as those",
        f"A start of fairseq, {start('AVX-512')} on the one CPU and {start('AVX2')} on the other",
        f"| {hook['sides']['without']['seconds_per_update']['median']:.1f}, both cores, without",
        f"cost {bleu['stock'] - bleu['ours']:.2f} BLEU ({bleu['ours']:.2f} against {bleu['stock']:.2f}) in the one pair",
    ]
    readme = " ".join(README.split())
    assert [cell for cell in expected if cell not in readme] == []


def test_how_far_the_types_of_products_are_apart_in_the_readme_is_what_the_benchmark_found():
    """The largest difference of four runs, each within the spread of float32's seeds, with no divergence."""
    lines = (ROOT / "benchmarks/DTYPES.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| iwslt14-")]
    assert len(rows) == 4 and all(row[1] == "1, 2, 3" and row[6:] == ["yes", "yes"] for row in rows)
    assert not any("diverged" in cell for row in rows for cell in row)
    assert f"ended at most {max(row[4] for row in rows)} bits from float32's validation loss" in " ".join(README.split())


@pytest.mark.parametrize(
    ("row", "run"),
    [
        ("Pre-LN | Adam | no warm-up", "pre-adam-lr5e-4-step"),
        ("Post-LN | Adam | warm-up", "post-adam-lr5e-4-warmup4000"),
        ("Post-LN | Adam | no warm-up, falls from the first update on", "post-adam-lr5e-4-warmup1"),
        ("Post-LN | Adam | no warm-up, held", "post-adam-lr5e-4-held"),
        ("Pre-LN | RAdam | no warm-up", "pre-radam-lr5e-4-linear"),
        ("Post-LN | RAdam | no warm-up", "post-radam-lr5e-4-linear"),
    ],
)
def test_the_bleu_in_the_readme_is_that_of_the_results(row, run):
    """Means over the finished seeds, to one decimal, small and at the paper's size."""

    def bleu(study):
        with open(ROOT / f"results/{study}/results.tsv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row["run"] == f"iwslt14-{run}"]
        scores = [float(row["bleu"]) for row in rows if row["state"] == "finished"]
        return f"{statistics.mean(scores):.1f}" if scores else "-"

    assert f"| {row} | {bleu('iwslt14-cpu')} | {bleu('iwslt14-papersize')} |" in README


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("iwslt14", "59,502 of 1,664 tokens | {}, one thread"),
        ("wmt14", "15,900 of 2,304 tokens | {}, the same"),
        ("bert", "18,000 of 1,024 tokens | {}, the same"),
    ],
)
def test_the_cost_of_an_update_in_the_readme_is_that_of_the_results(study, words):
    """The seconds an update that each study's report works out."""
    report = (ROOT / f"results/{study}-cpu/RESULTS.md").read_text(encoding="utf-8")
    seconds = re.search(r"^- training: .*, ([\d.]+) s an update", report, flags=re.MULTILINE)[1]
    assert words.format(seconds) in README


IN_BLOCKS = re.findall(r"^(?:IWSLT14=\S+ .*)?bash recipes/.*$", "\n".join(BLOCKS), flags=re.MULTILINE)
IN_TEXT = re.findall(r"`((?:[A-Z]+=(?:\"[^\"]*\"|\S+)\s+)*bash recipes/[^`]+)`", README)


@pytest.mark.parametrize("command", [*IN_BLOCKS, *IN_TEXT])
def test_every_recipe_command_of_the_readme_is_accepted(command, tmp_path):
    """With --dry-run, or as --help, each recipe takes the arguments that the README gives it."""
    command = " ".join(command.split("#")[0].split()).replace("IWSLT14=de-en.tgz", f"IWSLT14={tmp_path}")
    run = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_the_training_and_translation_commands_run_as_printed(data_bin, tmp_path):
    """Only the size and the length are cut; everything else is run as the README prints it."""
    block = next(block for block in BLOCKS if block.startswith("fairseq-train"))
    run = run_printed(block, data_bin, tmp_path)
    assert len(re.findall(r"^H-\d+", run.stdout, flags=re.MULTILINE)) == 40  # every sentence of the test set
    assert (tmp_path / "checkpoints/grad_norm.tsv").exists()


def test_the_commands_for_a_stock_checkpoint_run_as_printed(data_bin, tmp_path):
    """A Post-LN model of fairseq's own: trained further, translated as it is and as our model, with the same words."""
    stock = [
        "--arch",
        "transformer_tiny",
        "--decoder-ffn-embed-dim",
        "128",
        "--encoder-ffn-embed-dim",
        "128",
        "--max-update",
        "3",
    ]
    more = ["--optimizer", "adam", "--max-tokens", "4096", "--save-dir", tmp_path, "--required-batch-size-multiple", "1"]
    command = [sys.executable, "-m", "fairseq_cli.train", data_bin, *stock, *more]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=300)
    (tmp_path / "checkpoint_last.pt").rename(tmp_path / "stock.pt")
    run = run_printed(next(block for block in BLOCKS if "stock.pt" in block), data_bin, tmp_path)
    words = [line.split("\t")[2] for line in run.stdout.splitlines() if line.startswith("H-")]
    assert len(words) == 80 and words[:40] == words[40:]
    assert (tmp_path / "further/checkpoint_last.pt").exists()


def run_printed(block, data_bin, folder):
    """Run a block of the README in a folder, with a tiny model and few updates; the finished process."""
    block = block.replace("transformer_ln_study_iwslt_de_en", "transformer_ln_study_tiny")
    block = block.replace("--max-epoch 15", "--max-update 3")
    block = block.replace("--user-dir fairseq_lnplugin", f"--user-dir {ROOT / 'fairseq_lnplugin'}")
    for program in ("train", "generate"):
        block = block.replace(f"fairseq-{program} ", f"{sys.executable} -m fairseq_cli.{program} ")
    run = subprocess.run(["bash", "-ec", f"DATA={data_bin}\n{block}"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return run
