"""Make the data of fairseq's sentence_prediction task from GLUE's MRPC and RTE (figure 5), for a pre-trained masked LM.

    python recipes/corpora/glue.py --out DIR --from PATH --model sentencepiece.model --dict dict.txt [--max-subwords N]

PATH is a folder or an archive that holds MRPC/{train,dev}.tsv and RTE/{train,dev}.tsv, at any depth. The files are GLUE's: a line
with the columns' names, tabs between columns, no quoting (a quotation mark is text), UTF-8; a byte-order mark and CRs go.
The model is that of masked_lm_text.py, the dictionary that of the checkpoint's training data. A pair of more than N subwords
(with its marks) loses the end of its longer sentence, as BERT does it. DIR gets::

    DIR/{MRPC,RTE}/{input0,input1,label}/{train,valid}.{bin,idx} and dict.txt    valid is GLUE's dev
    DIR/corpus.json     rows of each class, how many were shortened, sha256 of every file

Class 1 is "paraphrase" and "entailment".

Two examples::

    python recipes/corpora/glue.py --out data/glue --from glue.tar.gz --model data/masked-lm/sentencepiece.model \
        --dict data/masked-lm/bin/dict.txt
    python recipes/corpora/glue.py --out data/glue --from glue_data --model m.model --dict bin/dict.txt --max-subwords 512
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import masked_lm_text
import parallel_text
from parallel_text import CorpusError

SPLITS = {"train": "train", "valid": "dev"}  # fairseq's names and GLUE's
MARKS = 4  # of a pair: <s> first </s> </s> second </s>


class Task(NamedTuple):
    """Where a task's files have what: the columns of the two sentences and of the label, and the class of each label."""

    sentences: tuple[str, str]
    label: str
    classes: dict[str, int]


TASKS = {
    "MRPC": Task(("#1 String", "#2 String"), "Quality", {"0": 0, "1": 1}),
    "RTE": Task(("sentence1", "sentence2"), "label", {"not_entailment": 0, "entailment": 1}),
}


class Row(NamedTuple):
    """A row of a GLUE file."""

    first: str
    second: str
    label: int


@dataclass
class Glue:
    """What to make, its files read and checked."""

    origin: str
    rows: dict[str, dict[str, list[Row]]]  # task -> split -> rows
    subwords: masked_lm_text.Subwords
    dictionary: Path
    max_subwords: int


# ---------------------------------------------------------------------------------------------------------- reading


def read_rows(path: Path, task: Task) -> Iterator[Row]:
    """The rows of one file; a `CorpusError` names the file, the line and what is wrong with it."""
    header, *lines = parallel_text.read_text(path).removesuffix("\n").replace("\r\n", "\n").split("\n")
    names = header.rstrip("\r").split("\t")
    if missing := [name for name in (*task.sentences, task.label) if name not in names]:
        raise CorpusError(f"{path}: the first line has no column {missing[0]!r}; give GLUE's own file, tabs between columns")
    at = [names.index(name) for name in (*task.sentences, task.label)]
    for number, line in enumerate(lines, start=2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(names):
            raise CorpusError(
                f"{path}, line {number}: {len(cells)} columns instead of {len(names)}; GLUE's files have no quoting, so a tab "
                "always ends a column and a line end a row: get the file again"
            )
        first, second, label = (cells[i].strip() for i in at)
        if label not in task.classes:
            raise CorpusError(f"{path}, line {number}: the label {label!r} is none of {', '.join(task.classes)}")
        if not (first and second):
            raise CorpusError(f"{path}, line {number}: a sentence is empty; get the file again")
        yield Row(first, second, task.classes[label])


def read_tasks(root: Path, origin: str) -> dict[str, dict[str, list[Row]]]:
    """The rows of both splits of every task below a folder."""
    rows = {}
    for name, task in TASKS.items():
        folders = [path for path in sorted(root.rglob(name)) if path.is_dir()] + ([root] if root.name == name else [])
        if not folders:
            raise CorpusError(f"{origin} has no folder {name}; give GLUE's folder, which holds {' and '.join(TASKS)}")
        rows[name] = {split: list(read_rows(folders[0] / f"{glue}.tsv", task)) for split, glue in SPLITS.items()}
        for split, of_split in rows[name].items():
            if {row.label for row in of_split} != {0, 1}:
                raise CorpusError(f"{folders[0] / SPLITS[split]}.tsv has not a row of each class; get it again")
    return rows


def make(args: argparse.Namespace) -> Glue:
    """Read and check everything."""
    given = getattr(args, "from")
    for path in (args.model, args.dict):
        if not path.is_file():
            raise CorpusError(f"{path}: no such file; make it with masked_lm_text.py and fairseq-preprocess")
    if args.max_subwords < MARKS + 2:
        raise CorpusError(f"--max-subwords {args.max_subwords}: give {MARKS + 2} or more")
    with masked_lm_text.folder_of(given) as root:
        rows = read_tasks(root, str(given))
    try:
        subwords = masked_lm_text.Subwords(args.model.read_bytes())
    except (RuntimeError, OSError) as error:
        raise CorpusError(f"{args.model} is not a sentencepiece model; make it again with masked_lm_text.py") from error
    known = [line.rsplit(" ", 1)[0] for line in parallel_text.read_text(args.dict).splitlines()]
    if known != subwords.all():
        raise CorpusError(
            f"{args.dict} is not the dictionary of {args.model}: its subwords differ, and a model reads subwords by their "
            "numbers; give those of one masked_lm_text.py folder"
        )
    return Glue(given.name, rows, subwords, args.dict, args.max_subwords)


# ---------------------------------------------------------------------------------------------------------- writing


def shortened(first: list[str], second: list[str], limit: int) -> tuple[list[str], list[str]]:
    """Both sentences, of which the longer one has lost its last subword again and again until `limit` are left in all."""
    half = limit // 2
    if len(first) + len(second) <= limit:
        return first, second
    if len(second) <= half:
        return first[: limit - len(second)], second
    if len(first) <= limit - half:
        return first, second[: limit - len(first)]
    return first[: limit - half], second[:half]


def write(glue: Glue, folder: Path) -> dict:
    """Write what is described at the top of this file into the existing, empty `folder`; return its facts."""
    from fairseq.data import Dictionary  # takes seconds to import, and bad input is refused without it

    dictionary, labels = Dictionary.load(str(glue.dictionary)), Dictionary()
    for label in ("0", "1"):
        labels.add_symbol(label)
    facts: dict[str, dict] = {}
    for task, splits in glue.rows.items():
        facts[task] = {"classes": TASKS[task].classes, "rows": {}, "shortened": {}}
        for split, rows in splits.items():
            pairs = [(glue.subwords(row.first), glue.subwords(row.second)) for row in rows]
            short = [shortened(*pair, glue.max_subwords - MARKS) for pair in pairs]
            counts = Counter(row.label for row in rows)
            facts[task]["rows"][split] = [counts[0], counts[1]]
            facts[task]["shortened"][split] = sum(pair != cut for pair, cut in zip(pairs, short, strict=True))
            for side, name in enumerate(("input0", "input1")):
                binarize(folder / task / name, split, dictionary, (pair[side] for pair in short))
            binarize(folder / task / "label", split, labels, ([str(row.label)] for row in rows))
    return {"name": "GLUE", "origin": glue.origin, "tasks": facts}


def binarize(folder: Path, split: str, dictionary, sentences: Iterator[list[str]]) -> None:
    """Write sentences as fairseq-preprocess would: numbers of their words and the end mark, and the dictionary beside them."""
    from fairseq.data import indexed_dataset

    folder.mkdir(parents=True, exist_ok=True)
    dictionary.save(str(folder / "dict.txt"))
    builder = indexed_dataset.make_builder(str(folder / f"{split}.bin"), impl="mmap", vocab_size=len(dictionary))
    for sentence in sentences:
        builder.add_item(dictionary.encode_line(sentence, line_tokenizer=list, add_if_not_exist=False))
    builder.finalize(str(folder / f"{split}.idx"))


def summary(facts: dict) -> str:
    """One paragraph for the user about the tasks, from their facts."""
    return "; ".join(
        f"{name}: {sum(task['rows']['train']):,} rows of train, {sum(task['rows']['valid']):,} of valid, "
        f"{task['shortened']['train']:,} and {task['shortened']['valid']:,} of them shortened"
        for name, task in facts["tasks"].items()
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--from", type=Path, required=True, metavar="PATH", help="folder or archive with MRPC and RTE")
    add("--model", type=Path, required=True, metavar="FILE", help="sentencepiece model of masked_lm_text.py")
    add("--dict", type=Path, required=True, metavar="FILE", help="dictionary of the checkpoint's training data")
    add("--max-subwords", type=int, default=128, metavar="N", help="longest pair, as --max-positions (default 128)")
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser(), write, summary)
