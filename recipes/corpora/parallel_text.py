"""What every corpus script of this folder shares: read, check, clean, tokenize, hold out, segment, write.

Not a command. A script makes a `Corpus` of aligned sentences and hands its arguments to `run`, which leaves the corpus
folder that the recipes read::

    DIR/corpus.json                        names, counts, origin, licence, tokenizer, what was dropped, sha256 of every file
    DIR/{train,valid,test,valid500}.LANG   tokenized text before BPE; valid500 is the first 500 lines of valid
    DIR/code                               joint BPE codes (subword-nmt)
    DIR/bpe/{train,valid,test,valid500}.LANG, and DIR/bpe/dict.LANG.txt where official dictionaries came with the corpus

Rules that hold for every corpus: text is UTF-8 with plain line ends; a pair is dropped on both sides or not at all, and
counted; test lines are never dropped; one tokenizer for all splits; nothing half-made is left by a killed run.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Pair = tuple[str, str]  # (source sentence, target sentence)

MAX_WORDS = 175  # of either side, as fairseq's IWSLT14 preparation
MAX_RATIO = 1.5  # longer side / shorter side, the same
MAX_SUBWORDS = 1000  # fairseq's models take 1,024 positions: a longer line would stop the first validation
MAX_PROCESSED = 0.01  # share of raw pairs that may hold such a trace by accident
SEGMENT = re.compile(r"<seg id=\"\d+\">(.*?)</seg>")  # a sentence of a campaign's dev or test file
ALREADY_PROCESSED = re.compile(r"&apos;|@@(?: |$)")  # what a Moses tokenizer and subword-nmt leave in a text

#: How an input is named among a corpus' arguments, before its flag: by its content, wherever it lies.
CONTENT_OF = "content of "


class CorpusError(Exception):
    """A corpus that cannot be made: one sentence for the user, and the exit status of the command."""

    def __init__(self, sentence: str, status: int = 1):
        super().__init__(sentence)
        self.status = status


@dataclass
class Corpus:
    """Aligned, tokenized sentences in three splits, and what `corpus.json` tells about them."""

    name: str
    source_lang: str
    target_lang: str
    origin: str
    licence: str
    tokenizer: str
    lowercase: bool
    splits: dict[str, list[Pair]]  # train, valid, test
    merges: int  # BPE merges to learn where `code` is not given
    note: str = ""
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> pairs
    code: str | None = None  # official BPE codes, else learned on train
    dictionaries: dict[str, str] = field(default_factory=dict)  # language -> official dict.LANG.txt


def say(message: str) -> None:
    """Print a message for the user on standard error."""
    print(message, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------- reading


def read_text(path: Path) -> str:
    """Text of a UTF-8 file without byte-order mark; a `CorpusError` names the file and the line that is not UTF-8."""
    if not path.is_file():
        raise CorpusError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}, line {line}: not UTF-8; convert the file, for example with iconv") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, whitespace normalized to single spaces, which also takes a CR before the line end away.

    Only LF ends a line (`str.splitlines` would also split at U+2028 and the like, on one side only). An empty file is
    refused: it is what a failed earlier program leaves behind.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    if not any(line.strip() for line in lines):
        raise CorpusError(f"{path} is empty; make it again and check the program that wrote it")
    return [" ".join(line.split()) for line in lines]


def check_equal(name: str, source: list[str], other: str, target: list[str]) -> None:
    """Refuse two sides of a text that differ in their number of lines."""
    if len(source) != len(target):
        raise CorpusError(
            f"{name} has {len(source):,} lines and {other} has {len(target):,}; line n of one must translate line n of "
            "the other, so make both again from the same text"
        )


def sides(prefix: Path, source_lang: str, target_lang: str) -> list[Path]:
    """The files `PREFIX.SOURCE_LANG` and `PREFIX.TARGET_LANG`."""
    return [Path(f"{prefix}.{lang}") for lang in (source_lang, target_lang)]


def read_pairs(prefix: Path, source_lang: str, target_lang: str) -> list[Pair]:
    """Aligned lines of the two files of a prefix."""
    paths = sides(prefix, source_lang, target_lang)
    source, target = map(read_lines, paths)
    check_equal(str(paths[0]), source, str(paths[1]), target)
    return list(zip(source, target, strict=True))


def segments(path: Path) -> list[str]:
    """Sentences of a dev or test file in XML or SGML; a typographic apostrophe becomes a plain one, as fairseq's scripts do."""
    found = filter(None, map(SEGMENT.search, read_lines(path)))
    return [segment.group(1).strip().replace("’", "'") for segment in found]


def check_languages(pairs: Iterable[Pair], source_lang: str, target_lang: str) -> None:
    """Refuse text whose two sides are swapped, by the commonest words of English; text without English passes."""
    langs = (source_lang, target_lang)
    if "en" not in langs:
        return
    pairs = list(pairs)
    counts = [sum(f" {word} " in f" {pair[side]} " for pair in pairs for word in ("the", "and", "of")) for side in (0, 1)]
    english = langs.index("en")
    if counts[1 - english] > counts[english]:
        raise CorpusError(
            f"the .{langs[1 - english]} files hold more English than the .en files: the language pair is the other way round"
        )


def refuse_processed(lines: Iterable[str], name: str) -> None:
    """Refuse text that was tokenized and escaped (`&apos;`) or BPE'd (`@@ `) before: tokenizing twice corrupts it."""
    for number, line in enumerate(lines, start=1):
        if found := ALREADY_PROCESSED.search(line):
            raise CorpusError(
                f"{name}, line {number}: {found.group().strip()!r} shows that this text was already tokenized or "
                "BPE'd; give the text as it was before that"
            )


def without_processed(pairs: list[Pair], names: list[str], dropped: Counter[str]) -> list[Pair]:
    """Pairs of train or valid without what looks like an escape or a BPE mark, which raw text has here and there.

    A text where that is common is refused, by the names of its two files. `dropped` counts the pairs left out.
    """
    kept = [pair for pair in pairs if not any("@@" in line or "&apos;" in line for line in pair)]
    if len(pairs) - len(kept) > MAX_PROCESSED * len(pairs):
        for side, name in enumerate(names):
            refuse_processed((pair[side] for pair in pairs), name)
        raise CorpusError(
            f"{' and '.join(names)}: {len(pairs) - len(kept):,} of {len(pairs):,} pairs hold @@, which BPE takes for its own "
            "mark; give text without it"
        )
    if len(kept) < len(pairs):
        dropped["a side holds &apos; or @@"] += len(pairs) - len(kept)
    return kept


# --------------------------------------------------------------------------------------- tokenizing, cleaning, splits


def tokenizer_name() -> str:
    """Name and version of the one tokenizer of all splits."""
    return f"sacremoses {importlib.metadata.version('sacremoses')} (Moses rules, &apos; escapes; not tokenizer.perl)"


def tokenize(pairs: list[Pair], source_lang: str, target_lang: str, lowercase: bool) -> list[Pair]:
    """Pairs of space-separated tokens with Moses' rules and escapes, lower-cased where asked for."""
    from sacremoses import MosesTokenizer  # takes a second to import, and nothing else here needs it

    def side(lines: list[str], lang: str) -> list[str]:
        moses = MosesTokenizer(lang)
        tokenized = (" ".join(moses.tokenize(line)) for line in lines)
        return [line.lower() if lowercase else line for line in tokenized]

    source, target = zip(*pairs, strict=True)
    return list(zip(side(source, source_lang), side(target, target_lang), strict=True))


def clean(
    pairs: list[Pair], dropped: Counter[str], max_words: int = MAX_WORDS, max_ratio: float = MAX_RATIO, min_words: int = 1
) -> list[Pair]:
    """Pairs of train or valid without blank, short, over-long and lopsided ones; never call it for test.

    Counts are in tokens, and a pair at a limit stays. `dropped` counts the others by reason.
    """
    kept = []
    for source, target in pairs:
        short, long = sorted((len(source.split()), len(target.split())))
        if not short:
            dropped["a side is blank"] += 1
        elif short < min_words:
            dropped[f"a side has fewer than {min_words} words"] += 1
        elif long > max_words:
            dropped[f"a side has more than {max_words} words"] += 1
        elif long > max_ratio * short:
            dropped[f"one side is more than {max_ratio:g} times as long as the other"] += 1
        else:
            kept.append((source, target))
    return kept


def in_hash_order(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs once each, in the order of a hash of the target sentence without case: shuffled, the same on every machine.

    Equal target sentences stand together, so that a cut between two of them can be avoided.
    """

    def key(pair: Pair) -> tuple[str, str, str]:
        target = pair[1].lower()
        return hashlib.sha256(target.encode()).hexdigest(), target, pair[0]

    return sorted(dict.fromkeys(pairs), key=key)


def hold_out(pairs: list[Pair], lines: int, dropped: Counter[str]) -> dict[str, list[Pair]]:
    """Train, valid and test, the last two with `lines` pairs or a few more, no sentence of either side in two of them.

    Split by target sentence. A pair whose source sentence is already in an earlier split (test, then valid) is dropped.
    """
    if lines < 1 or len(pairs) < 4 * lines:
        raise CorpusError(
            f"cannot hold out {lines:,} pairs for valid and as many for test from {len(pairs):,} pairs; take a --heldout "
            "between 1 and a quarter of them"
        )
    splits: dict[str, list[Pair]] = {"train": [], "valid": [], "test": []}
    owner: dict[str, str] = {}  # source sentence -> the split that it is in
    split, last_target = "test", None
    for source, target in in_hash_order(pairs):
        if target.lower() != last_target and split != "train" and len(splits[split]) >= lines:
            split = "valid" if split == "test" else "train"
        last_target = target.lower()
        if owner.setdefault(source.lower(), split) == split:
            splits[split].append((source, target))
        else:
            dropped["source sentence is in another split"] += 1
    return splits


def repeated(splits: dict[str, list[Pair]], split: str) -> int:
    """How many pairs of a split have a target sentence that train also has."""
    train = {target for _, target in splits["train"]}
    return sum(target in train for _, target in splits[split])


# -------------------------------------------------------------------------------------------------------------- BPE


def learn_codes(pairs: list[Pair], merges: int) -> str:
    """Codes of at most `merges` joint BPE merges, learned with subword-nmt on both sides of the pairs."""
    from subword_nmt.learn_bpe import learn_bpe

    if merges < 1:
        raise CorpusError(f"--merges {merges} is not a number of BPE merges; give 1 or more")
    codes = io.StringIO()
    try:
        learn_bpe(io.StringIO("\n".join(text for pair in pairs for text in pair)), codes, merges)
    except ValueError as error:  # no two letters left to merge: subword-nmt takes the maximum of nothing
        if codes.getvalue().count("\n") < 2:
            raise CorpusError("the training text is too small to learn BPE from; give more text") from error
    return codes.getvalue()


def check_codes(codes: str, name: str) -> None:
    """Refuse BPE codes that subword-nmt cannot read (it would end the program with a message of its own)."""
    for number, line in enumerate(codes.rstrip("\n").split("\n"), start=1):
        if len(line.split(" ")) != 2 or (number == 1 and line.startswith("#version:") and line.split()[1] != "0.2"):
            raise CorpusError(f"{name}, line {number}: {line!r} is not a subword-nmt BPE merge; get the file again")


def segmenter(codes: str) -> Callable[[str], str]:
    """A function from a tokenized line to its subwords, joined by spaces; a subword that goes on ends in `@@`."""
    from subword_nmt.apply_bpe import BPE

    return BPE(io.StringIO(codes)).process_line


def join_subwords(line: str) -> str:
    """The tokenized line that a BPE'd line was made from."""
    return f"{line} ".replace("@@ ", "").rstrip()


def segment(corpus: Corpus, codes: str) -> dict[str, list[Pair]]:
    """BPE'd splits; train and valid pairs over `MAX_SUBWORDS` leave both the corpus and the result, and are counted."""
    apply = segmenter(codes)
    result = {}
    for split, pairs in corpus.splits.items():
        both = [(pair, (apply(pair[0]), apply(pair[1]))) for pair in pairs]
        short = [item for item in both if all(line.count(" ") < MAX_SUBWORDS for line in item[1])]
        if too_long := len(both) - len(short):
            if split == "test":
                say(f"warning: {too_long:,} pairs of test have more than {MAX_SUBWORDS} subwords; fairseq may not take them")
            else:
                corpus.dropped[f"a side has more than {MAX_SUBWORDS} subwords"] += too_long
                both = short
        for number, (pair, subwords) in enumerate(both, start=1):
            if pair != tuple(map(join_subwords, subwords)):
                raise CorpusError(f"pair {number} of {split} does not survive BPE: does it hold '@@'? {pair!r}")
        corpus.splits[split] = [pair for pair, _ in both]
        result[split] = [subwords for _, subwords in both]
    return result


# ---------------------------------------------------------------------------------------------------------- writing


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(corpus: Corpus, folder: Path) -> dict:
    """Write the corpus folder described at the top of this file into the existing, empty `folder`; return its facts."""
    if corpus.code is None:
        say(f"learning {corpus.merges:,} joint BPE merges on {len(corpus.splits['train']):,} pairs of train ...")
        codes = learn_codes(corpus.splits["train"], corpus.merges)
    else:
        codes = corpus.code
    bpe = segment(corpus, codes)
    for split in ("train", "valid", "test"):
        if not corpus.splits[split]:
            raise CorpusError(f"{split} has no pair left; dropped: {dict(corpus.dropped)}")

    (folder / "bpe").mkdir()
    langs = corpus.source_lang, corpus.target_lang
    for where, splits in (folder, corpus.splits), (folder / "bpe", bpe):
        for split, pairs in (splits | {"valid500": splits["valid"][:500]}).items():
            for side, lang in enumerate(langs):
                text = "".join(f"{pair[side]}\n" for pair in pairs)
                (where / f"{split}.{lang}").write_text(text, encoding="utf-8", newline="\n")
    (folder / "code").write_text(codes, encoding="utf-8", newline="\n")
    for lang, dictionary in corpus.dictionaries.items():
        (folder / "bpe" / f"dict.{lang}.txt").write_text(dictionary, encoding="utf-8", newline="\n")

    return {
        "name": corpus.name,
        "source_lang": corpus.source_lang,
        "target_lang": corpus.target_lang,
        "pairs": {split: len(corpus.splits[split]) for split in ("train", "valid", "test")},
        "origin": corpus.origin,
        "licence": corpus.licence,
        "tokenizer": corpus.tokenizer,
        "lowercase": corpus.lowercase,
        "bpe_merges": sum(not line.startswith("#version:") for line in codes.splitlines()),
        "dropped": dict(corpus.dropped),
        "also_in_train": {split: repeated(corpus.splits, split) for split in ("valid", "test")},
        "note": corpus.note,
    }


def is_finished(out: Path, arguments: dict) -> bool:
    """Whether `out` already holds this corpus, whole and made with these arguments; refuse to write over anything else.

    What only one of the two knows is not compared: an input that is gone was not read this time.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "corpus.json").is_file():
        raise CorpusError(f"{out} exists and is not a corpus folder; choose another --out")
    try:
        facts = json.loads(read_text(out / "corpus.json"))
        made_with, files = facts["arguments"], facts["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{out / 'corpus.json'} is not what this wrote; delete {out} and run this again") from error
    other = [key for key in arguments if key in made_with and arguments[key] != made_with[key]]
    if other:
        key = other[0]
        raise CorpusError(
            f"{out} was made with {key} {made_with[key]}, not {arguments[key]}; delete {out} to make it again, or "
            "choose another --out"
        )
    given = {key.removeprefix(CONTENT_OF) for key in arguments} - arguments.keys()
    for flag in sorted(given & made_with.keys()):  # an argument then, as it was not given
        raise CorpusError(f"{out} was made without {flag}; delete {out} to make it again, or choose another --out")
    for name, expected in files.items():
        if not (out / name).is_file() or sha256(out / name) != expected:
            raise CorpusError(f"{out / name} is missing or was changed; delete {out} and run this again")
    return True


def summary(facts: dict) -> str:
    """One paragraph for the user about a corpus, from its facts."""
    pairs = ", ".join(f"{split} {count:,}" for split, count in facts["pairs"].items())
    dropped = "; ".join(f"{count:,} where {reason}" for reason, count in facts["dropped"].items()) or "none"
    again = ", ".join(f"{count:,} of {split}" for split, count in facts["also_in_train"].items())
    return (
        f"{facts['name']}: {pairs} pairs; dropped: {dropped}; target sentence also in train: {again}\n"
        f"tokenizer: {facts['tokenizer']}; {facts['bpe_merges']:,} BPE merges"
        + (f"\nnote: {facts['note']}" if facts["note"] else "")
    )


def named_paths(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Flag -> the files and folders that it names; what `inputs` is where an argument is a path and nothing else."""
    values = {key: value if isinstance(value, list) else [value] for key, value in vars(args).items()}
    return {f"--{key.replace('_', '-')}": paths for key, paths in values.items() if isinstance(paths[0], Path)}


def content(paths: list[Path]) -> str:
    """What tells these inputs from others wherever they lie, and whatever a folder is called."""
    return ", ".join(sha256(path) if path.is_file() else listing(path) for path in paths)


def listing(folder: Path) -> str:
    """A sha256 of the names and sizes of all files of a folder: their contents may be gigabytes."""
    files = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def run(
    make: Callable[[argparse.Namespace], object],
    parser: argparse.ArgumentParser,
    write: Callable[[object, Path], dict] = write,
    summary: Callable[[dict], str] = summary,
    inputs: Callable[[argparse.Namespace], dict[str, list[Path]]] = named_paths,
) -> None:
    """Parse the command line, make the corpus, and leave the folder `--out` whole or not at all; then exit.

    `make` takes the parsed arguments and returns what `write` takes: a `Corpus`, unless a script of other data has its own
    `write` (which leaves all files but `corpus.json`, and returns what that is to tell of them) and `summary`. `inputs`
    gives, from the arguments, the files and folders that are read: they may lie elsewhere at the next start, so their
    contents are compared. All raise `CorpusError`. `--out` is added to the parser here. `--cache`, where a script has it,
    says where files may lie and not what the corpus is, so a second run may change it.
    """
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="corpus folder to write")
    args = parser.parse_args()
    out = args.out
    read = {flag: paths for flag, paths in inputs(args).items() if flag not in ("--out", "--cache")}
    arguments = {"script": Path(sys.argv[0]).name}
    for key, value in sorted(vars(args).items()):
        flag = f"--{key.replace('_', '-')}"
        if flag not in ("--out", "--cache", *read):
            arguments[flag] = value
    try:
        arguments |= {CONTENT_OF + flag: content(paths) for flag, paths in read.items() if all(path.exists() for path in paths)}
        if is_finished(out, arguments):
            say(f"{out} is finished: nothing to do")
            return
        with partial_folder(out) as partial:
            facts = write(make(args), partial)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            facts |= {
                "arguments": arguments,
                "sha256": {path.relative_to(partial).as_posix(): sha256(path) for path in files},
            }
            text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
            (partial / "corpus.json").write_text(text, encoding="utf-8")
            os.replace(partial, out)
    except CorpusError as error:
        stop(str(error), error.status)
    except OSError as error:
        stop(f"{error.filename or out}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        stop("interrupted; nothing was written", 130)
    say(summary(facts))
    say(f"wrote {out}")


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """The empty folder `OUT.partial`, which no other process works in; it vanishes at the end, unless it was moved."""
    partial = Path(f"{os.path.abspath(out)}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CorpusError(f"{out} is being made by another process; wait for it, or end it") from error
    try:
        for leftover in partial.iterdir():  # of a killed run
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def stop(sentence: str, status: int) -> None:
    """Say why, and exit."""
    say(f"{Path(sys.argv[0]).name}: {sentence}")
    sys.exit(status)
