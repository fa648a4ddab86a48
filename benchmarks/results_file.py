"""The results of the benchmarks: ``results.json``, what each was measured with, and ``RESULTS.md`` made of it.

A row that is measured again on a CPU of the same vector extensions replaces the old one, and ends in their name; all others
stay, each with its own commit, data and machine.
"""

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import statistics
import struct
import subprocess
from pathlib import Path

from processes import ROOT, cores, failure, say

#: Extensions of x86 processors that decide how fast the products are.
ISA = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")

#: How a row's name ends, by the widest of them.
VECTORS = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}

#: Variables that change how fast a process is; those that are set come with the results.
SPEED_VARIABLES = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "MALLOC_", "LD_PRELOAD")


class Data:
    """A folder made by fairseq-preprocess, and what the results call it.

    ``name``: from corpus.json in it or above it, else the folder's name (that above a folder ``bin``). ``languages``: as in
    ``de-en``; None for a text made with --only-source.

    Raises:
        SystemExit: it is no such folder.

    """

    def __init__(self, folder, name=None):
        self.folder = Path(folder).resolve()
        found = sorted(self.folder.glob("train.*-*.*.idx"))
        if not found and not (self.folder / "train.idx").is_file():
            raise failure(f"{folder} holds no train.*.idx; give a folder made by fairseq-preprocess")
        self.languages = found[0].name.split(".")[1] if found else None
        self.name = name or self.name_of_corpus()

    def name_of_corpus(self):
        """The name in corpus.json, else of the folder."""
        for place in (self.folder, self.folder.parent):
            if (place / "corpus.json").is_file():
                try:
                    return json.loads((place / "corpus.json").read_text(encoding="utf-8"))["name"]
                except (ValueError, KeyError):
                    break
        return (self.folder.parent if self.folder.name == "bin" else self.folder).name

    def pairs(self, subset):
        """Number of sentence pairs of a subset, or of lines of a text, as its index file says.

        Raises:
            SystemExit: there is no such subset.

        """
        languages = f".{self.languages}.{self.languages.split('-')[0]}" if self.languages else ""
        index = self.folder / f"{subset}{languages}.idx"
        try:
            with open(index, "rb") as file:  # magic (9 bytes), version, type of the numbers, sentences
                return struct.unpack_from("<QBQ", file.read(26), 9)[2]
        except (OSError, struct.error):
            there = sorted({path.name.split(".")[0] for path in self.folder.glob("*.idx")})
            raise failure(f"{self.name} has no subset {subset!r}; choose from {', '.join(there)}") from None


def conditions(data, command, variables):
    """What a row was measured with: data, commit, machine, versions, variables, date.

    ``data``: :class:`Data`. ``command``: what the user typed, a list of texts without paths of this machine.
    ``variables``: the environment of the measured processes.
    """
    return {
        "measured": datetime.date.today().isoformat(),
        "data": {"name": data.name, "pairs" if data.languages else "lines": data.pairs("train")},
        "commit": commit(),
        "command": shlex.join(command),
        "machine": machine(),
        "versions": versions(),
        "environment": {name: variables[name] for name in sorted(variables) if name.startswith(SPEED_VARIABLES)},
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit():
    """The commit of this checkout; "with changes" when the measured code differs from it."""
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + (" with changes" if git("status", "--porcelain", "--", "fairseq_lnplugin", "setup.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments):
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine():
    """Processor, cores, memory (GiB), and the extensions in :data:`ISA` that it has."""
    facts = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    flags = facts.get("flags", "").split()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:  # virtual machines leave the number out of the name
        name += f", family {facts['cpu family']}, model {facts['model']}"
    return {
        "cpu": name,
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "isa": [name for name in ISA if name in flags],
        "amx": "amx_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
    }


def vectors(machine):
    """The widest vector extension of what :func:`machine` returned, for a reader."""
    return next((name for extension, name in VECTORS.items() if extension in machine["isa"]), "no AVX2")


def faster_dtype():
    """The faster products of this machine, as the recipes choose them: bfloat16 with AMX, float32 without."""
    return "bfloat16" if machine()["amx"] else "float32"


def versions():
    """Versions of Python, torch and fairseq, and whether the plug-in's compiled kernels are there."""
    fairseq = importlib.metadata.packages_distributions().get("fairseq", [])
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "fairseq": ", ".join(sorted({f"{name} {importlib.metadata.version(name)}" for name in fairseq})),
        "kernels": any((ROOT / "fairseq_lnplugin").glob("_kernels.*")),
    }


def spread(values):
    """Median and range of a list of numbers, as they are stored: ``{"median", "min", "max"}``, 4 digits."""
    return {name: float(f"{of(values):.4g}") for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def load(folder):
    """The results in a folder, ``{section: {row: numbers}}``; none yet is empty.

    Raises:
        SystemExit: results.json there cannot be read.

    """
    path = Path(folder) / "results.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise failure(f"{path} cannot be read ({error}); move it away") from error


def begin(folder):
    """Before the first row: a results.json that cannot be read is told of now, and a busy machine too.

    Raises:
        SystemExit: as :func:`load`.

    """
    load(folder)
    if os.getloadavg()[0] > 0.5:
        say(f"other programs use the cores (load {os.getloadavg()[0]:.1f}), and the numbers will suffer")


def save(folder, section, row, numbers):
    """Put a row into results.json, under its name and the machine's vector extension, and make RESULTS.md anew.

    Raises:
        SystemExit: results.json cannot be read, or a file cannot be written.

    """
    results = load(folder)
    results.setdefault(section, {})[f"{row}, {vectors(numbers['conditions']['machine'])}"] = numbers
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write(Path(folder) / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write(Path(folder) / "RESULTS.md", as_markdown(results))
    except OSError as error:
        raise failure(f"cannot write {error.filename} ({error.strerror}); make room, or give --out another folder") from error


def write(path, text):
    """A text file, whole or not at all."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def add_arguments(parser):
    """The flags that both benchmarks have."""
    parser.add_argument("--pairs", type=count, default=5, help="how often each side runs (default: 5)")
    parser.add_argument("--data-name", help="what the results call the data (default: as its corpus.json or folder)")
    default = ROOT / "benchmarks"
    parser.add_argument("--out", type=Path, default=default, help="folder of results.json and RESULTS.md (default: here)")


def count(text):
    """A whole number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def shown(words):
    """A command line as the results show it: quoted for a shell, its variables in front not."""
    variables = list(itertools.takewhile(lambda word: word != "python", words))
    return " ".join([*variables, shlex.join(words[len(variables) :])])


# -- RESULTS.md --

INTRODUCTION = """# Speed and memory against stock fairseq

Made by `train_speed.py`, `decode_speed.py` and `gradients_speed.py` from `results.json`; they replace what they measure
again. A row's name ends in the widest vector extension of its CPU. Each pair is stock fairseq and ours, one after the
other, in processes of their own, on the same data and, but for decoding, the same batches. Numbers are medians over the
pairs; a ratio is taken in each pair, its range over the pairs is in brackets."""

TRAINING = """## Training

Target tokens a second, from the line of fairseq's log for the last update before the measured ones to that for the last
measured one; of BERT all tokens but pads. Peak memory is the resident set of the process. 6-6 layers where nothing else
is said. BERT: masked LM in blocks of up to 512 tokens, stock is fairseq's `roberta`."""

HOOK = """## Gradient-norm hook

Ours with `--grad-norm-interval` against ours without, paper's IWSLT14 size, bfloat16 products with AMX and float32
without. By the clock in the hook: its seconds in the measured updates (`hook_timer.py`) over all other seconds of the
same process. Between processes: how much longer the updates took than in the process without the hook; a few per cent
are noise."""

DECODING = """## Decoding

fairseq-generate, beam 5, length penalty 1.2. Stock: float32, one process with all cores, which is fairseq's default, from
stock.pt: the checkpoint with fairseq's names in its configuration, as `decode_speed.py` writes it. Ours: bfloat16 products
with AMX and float32 without unless the row names a type, the sentences in shards over the cores, one process each, as the
recipes decode. Stock in shards: stock with the shards of ours, which tells what of the gain is the shards'. The same
weights. Shards make other batches, and fairseq bounds a translation by the longest source of its batch, so that translations
which reach the bound may differ. Whole command: from its start to its end, loading included. Translating: fairseq's own
"Translated ... in", of the slowest shard. Peak memory: the sum over the shards, shared pages counted in each. BLEU:
tokenized, against fairseq-generate's `T-` lines."""

GRADIENTS = """## Figure 3

Seconds for one mini-batch of 4096 tokens and one model, paper's IWSLT14 size. Naive: fairseq's model in float32, one whole
backward a mini-batch (`naive_gradients.py`). Ours: `fairseq-ln gradients`. Peak memory is the resident set of the process."""


def as_markdown(results):
    """All of RESULTS.md. ``results``: as :func:`load` gives them."""
    training, decoding, gradients = (results.get(section, {}) for section in ("training", "decoding", "gradients"))
    against_stock = {name: row for name, row in training.items() if "stock" in row["sides"]}
    hooks = {name: row for name, row in training.items() if "hook" in row}
    parts = [INTRODUCTION]
    if against_stock:
        parts += [TRAINING, training_table(against_stock)]
    parts += [cost_of_a_layer(row) for row in training.values() if "layers" in row]
    if hooks:
        parts += [HOOK, hook_table(hooks)]
    if decoding:
        parts += [DECODING, decoding_table(decoding)]
    if gradients:
        parts += [GRADIENTS, gradients_table(gradients)]
    parts += ["## Measured with", *measured_with({**training, **decoding, **gradients})]
    return "\n\n".join(parts) + "\n"


def table(header, rows):
    """A Markdown table. ``header``: texts; ``rows``: lists of texts."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def ratio_text(values):
    """A stored ratio: median and range."""
    return f"**{values['median']:.2f}** [{values['min']:.2f}-{values['max']:.2f}]"


def percent_text(values, digits):
    """A stored share as per cent, with so many digits: median and range."""
    low, middle, high = (f"{100 * values[name]:.{digits}f}" for name in ("min", "median", "max"))
    return f"**{middle} %** [{low} to {high}]"


def training_table(rows):
    """Stock against ours."""
    header = ["row", "what", "stock, tokens/s", "ours, tokens/s", "ours / stock", "at least"]
    header += ["stock, GiB", "ours, GiB", "pairs x updates"]
    cells = []
    for name, row in rows.items():
        sides = (row["sides"]["stock"], row["sides"]["ours"])
        speeds = [f"{side['tokens_per_second']['median']:,.0f}" for side in sides]
        goal = f"{row['goal']:g}" if row["goal"] else ""
        peaks = [f"{side['peak_gib']['median']:.2f}" for side in sides]
        times = f"{row['pairs']} x {row['updates']}"
        cells.append([name, row["about"], *speeds, ratio_text(row["ratio"]), goal, *peaks, times])
    return table(header, cells)


def cost_of_a_layer(row):
    """What one more layer costs, between three depths."""
    layers = row["layers"]
    depths = ", ".join(f"{depth}-{depth}: {values['median']:.3f} s" for depth, values in layers["seconds"].items())
    costs = " and ".join(f"{1000 * values['median']:.0f} ms from {where}" for where, values in layers["cost"].items())
    return (
        f"Seconds an update of ours by depth: {depths}. One more encoder layer and decoder layer cost {costs} layers; "
        f"ratio {ratio_text(layers['ratio'])}, 1 where the cost of a layer is constant."
    )


def hook_table(rows):
    """Ours with the hook against ours without."""
    header = ["row", "s an update", "by the clock in the hook", "at most", "ms a measurement", "between processes"]
    header += ["pairs x updates"]
    cells = []
    for name, row in rows.items():
        cells.append(
            [
                name,
                f"{row['sides']['without']['seconds_per_update']['median']:.3f}",
                percent_text(row["hook"]["share"], 3),
                f"{100 * row['goal']:g} %",
                f"{1000 * row['hook']['seconds_per_measurement']['median']:.1f}",
                percent_text(row["hook"]["between_processes"], 1),
                f"{row['pairs']} x {row['updates']}",
            ]
        )
    return table(header, cells)


def decoding_table(rows):
    """Stock against ours, and what was decoded."""
    header = ["data, subset", "what", "stock", "stock in shards", "ours", "stock / ours", "stock in shards / ours", "goal"]
    cells, notes = [], []
    for name, row in rows.items():
        sides = [row["sides"].get(side) for side in ("stock", "stock in shards", "ours")]
        in_shards = row["ratio"].get("stock in shards", {})  # which older rows lack
        lines = (("whole command, s", "wall_seconds", f"at least {row['goal']:g}"),
                 ("translating, s", "translated_seconds", ""), ("peak memory, GiB", "peak_gib", "above 1"))  # fmt: skip
        for what, key, goal in lines:
            medians = [f"{side[key]['median']:.2f}" if side else "-" for side in sides]
            ratios = [ratio_text(of[key]) if key in of else "-" for of in (row["ratio"], in_shards)]
            cells.append([name, what, *medians, *ratios, goal])
        bleu = row["bleu"]
        difference = f"difference {bleu['ours'] - bleu['stock']:+.2f}"
        cells.append([name, "BLEU", f"{bleu['stock']:.2f}", "-", f"{bleu['ours']:.2f}", difference, "-", "within 0.1"])
        notes.append(
            f"{name}: {row['checkpoint']}; {row['sentences']} sentences, {row['pairs']} pairs, {row['shards']} shards; "
            f"{100 * row['same_translations']:.0f} % of the translations are the same."
        )
    return "\n\n".join([table(header, cells), *notes])


def gradients_table(rows):
    """The obvious way against ours."""
    header = ["row", "what", "naive, s", "ours, s", "naive / ours", "naive, GiB", "ours, GiB", "pairs x mini-batches"]
    cells = []
    for name, row in rows.items():
        sides = (row["sides"]["naive"], row["sides"]["ours"])
        seconds = [f"{side['seconds']['median']:.2f}" for side in sides]
        peaks = [f"{side['peak_gib']['median']:.2f}" for side in sides]
        cells.append([name, row["about"], *seconds, ratio_text(row["ratio"]), *peaks, f"{row['pairs']} x {row['batches']}"])
    return table(header, cells)


def measured_with(rows):
    """Data, commit, machine, versions and commands, a paragraph each time; rows that share them are told together."""
    groups = {}
    for name, row in rows.items():
        shared = {key: value for key, value in row["conditions"].items() if key not in ("command", "load_before")}
        groups.setdefault(json.dumps(shared), []).append(name)
    for shared, names in groups.items():
        had = json.loads(shared)
        data, where, what = had["data"], had["machine"], had["versions"]
        lines = [
            f"**{'; '.join(names)}**",
            "",
            f"* {had['measured']}, commit {had['commit']}; data {data.pop('name')}, "
            + ", ".join(f"{number:,} training {unit}" for unit, number in data.items()),
            f"* {where['cpu']}; {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}; "
            f"{', '.join(where['isa']) or 'extensions unknown'}; AMX: {'yes' if where['amx'] else 'no'}",
            f"* Python {what['python']}, torch {what['torch']}, {what['fairseq']}, compiled kernels: "
            f"{'yes' if what['kernels'] else 'no'}",
            "* " + " ".join(f"{name}={value}" for name, value in had["environment"].items()),
        ]
        for name in names:
            command, load_before = (rows[name]["conditions"][key] for key in ("command", "load_before"))
            lines += ["", f"{name}; load of the machine before: {load_before}", "", "```text", command]
            lines += [f"{side}: {text}" for side, text in rows[name]["commands"].items()]
            lines += ["```"]
        yield "\n".join(lines)
