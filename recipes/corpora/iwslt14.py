"""Make the IWSLT14 De-En corpus of the paper (appendix A.1) from a local copy of the data, or from an address.

    python recipes/corpora/iwslt14.py --out DIR (--from PATH | --download URL [--cache DIR]) [--train-pairs N]

PATH is a folder or a tar archive, in one of three layouts, told apart by their files:

1. `train/valid/test.{de,en}` tokenized, lower-cased, before BPE, with `code` and `dict.{de,en}.txt`: the official BPE codes
   and dictionaries are used, so the vocabulary is the paper's even where train is only a part;
2. the output folder of fairseq's prepare-iwslt14.sh (`iwslt14.tokenized.de-en`, with or without its `tmp`);
3. the original archive de-en.tgz (`train.tags.de-en.{de,en}`, `IWSLT14.TED*.xml`): prepared as prepare-iwslt14.sh does, with
   sacremoses instead of the Perl tokenizer, so lines and scores are close to the official ones but not equal.

prepare-iwslt14.sh has http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz as the address of 3. Licence of the text:
CC BY-NC-ND 3.0, so do not pass it on. Numbers of pairs are checked against fairseq's 160,239 / 7,283 / 6,750.

Two examples::

    python recipes/corpora/iwslt14.py --out data/iwslt14 --from ~/Downloads/de-en.tgz
    python recipes/corpora/iwslt14.py --out data/iwslt14-smoke --from iwslt14.tokenized.de-en --train-pairs 5000
"""

import argparse
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import archives
import parallel_text
from parallel_text import CorpusError, Pair

LANGS = ("de", "en")
TAGGED = "train.tags.de-en"  # the original archive's training text
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")  # joined in this order
MERGES = 10000
VALID_EVERY = 23  # each 23rd pair of the original training text is valid
OFFICIAL = "160239/7283/6750"
LAYOUTS = "--from takes train/valid/test.{de,en} with code, the folder iwslt14.tokenized.de-en, or the archive de-en.tgz"


@dataclass
class Source:
    """What was found at `--from`: lower-cased tokenized pairs of the three splits, and the official BPE files if any."""

    splits: dict[str, list[Pair]]
    layout: str
    tokenizer: str = "Moses tokenizer.perl, lowercase.perl, as prepare-iwslt14.sh (the text came tokenized)"
    code: str | None = None
    dictionaries: dict[str, str] = field(default_factory=dict)
    tolerance: float = 0.0  # share by which the numbers of train and valid may differ from the official ones
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> pairs


# ------------------------------------------------------------------------------------------------------ the three layouts


def find(root: Path) -> Source:
    """Tell the layout of the files below `root` and read it."""
    folders = sorted((root, *(path for path in root.rglob("*") if path.is_dir())), key=lambda path: len(path.parts))
    for folder in folders:
        if any((folder / f"{TAGGED}.{lang}").is_file() for lang in LANGS):
            return read_original(folder)
    for folder in folders:
        if any((folder / f"train.{lang}").is_file() for lang in LANGS):
            return read_prepared(folder)
    for folder in folders:
        if (folder / "train.tags.en-de.en").is_file():
            raise CorpusError(f"{folder} holds the En-De data (train.tags.en-de); this needs the De-En data, de-en.tgz")
    raise CorpusError(f"found no IWSLT14 text below {root}; {LAYOUTS}")


def need(folder: Path, names: list[str]) -> None:
    """Refuse a folder that lacks some of its files."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CorpusError(f"{folder} lacks {', '.join(missing)}; {LAYOUTS}")


def read_prepared(folder: Path) -> Source:
    """Layouts 1 and 2: three splits, tokenized and lower-cased; BPE joins are undone where there are any."""
    if folder.name == "tmp":  # the BPE files lie above, or this is a copy of tmp alone
        folder = folder.parent
    text = folder / "tmp" if (folder / "tmp" / "train.de").is_file() else folder
    need(text, [f"{split}.{lang}" for split in ("train", "valid", "test") for lang in LANGS])
    splits = {split: parallel_text.read_pairs(text / split, *LANGS) for split in ("train", "valid", "test")}
    layout = "tokenized text before BPE"
    if any("@@ " in line for pairs in splits.values() for pair in pairs for line in pair):
        layout = "BPE'd text, joins undone"
        join = parallel_text.join_subwords
        splits = {split: [(join(source), join(target)) for source, target in splits[split]] for split in splits}
    for split, pairs in splits.items():
        for number, pair in enumerate(pairs, start=1):
            if any(line != line.lower() for line in pair):
                raise CorpusError(f"{text / split}, line {number} has capitals; this layout is lower-cased text; {LAYOUTS}")
    source = Source(splits, layout)
    for split in ("train", "valid"):
        splits[split] = parallel_text.clean(splits[split], source.dropped)
    dictionaries = [f"dict.{lang}.txt" for lang in LANGS]
    if any((folder / name).is_file() for name in dictionaries):
        need(folder, ["code", *dictionaries])
        source.dictionaries = {lang: parallel_text.read_text(folder / f"dict.{lang}.txt") for lang in LANGS}
    if (folder / "code").is_file():
        source.code = parallel_text.read_text(folder / "code")
        parallel_text.check_codes(source.code, str(folder / "code"))
    return source


def read_original(folder: Path) -> Source:
    """Layout 3, prepared as prepare-iwslt14.sh does: tokenize, clean, lower-case, each 23rd pair to valid, five test sets."""
    parts = [f"IWSLT14.{name}.de-en.{lang}.xml" for name in TEST_SETS for lang in LANGS]
    need(folder, [f"{TAGGED}.{lang}" for lang in LANGS] + parts)
    sides = [tagged_lines(folder / f"{TAGGED}.{lang}") for lang in LANGS]
    parallel_text.check_equal(f"{folder / TAGGED}.de", sides[0], f"{folder / TAGGED}.en", sides[1])
    dropped: Counter[str] = Counter()
    names = [str(folder / f"{TAGGED}.{lang}") for lang in LANGS]
    train = parallel_text.without_processed(list(zip(*sides, strict=True)), names, dropped)
    test: list[Pair] = []
    for name in TEST_SETS:
        paths = [folder / f"IWSLT14.{name}.de-en.{lang}.xml" for lang in LANGS]
        sides = [parallel_text.segments(path) for path in paths]
        parallel_text.check_equal(str(paths[0]), sides[0], str(paths[1]), sides[1])
        test += zip(*sides, strict=True)
    parallel_text.say(f"tokenizing {len(train):,} pairs of train and valid, {len(test):,} of test ...")
    lines = parallel_text.clean(parallel_text.tokenize(train, *LANGS, lowercase=True), dropped)
    splits: dict[str, list[Pair]] = {"train": [], "valid": [], "test": parallel_text.tokenize(test, *LANGS, lowercase=True)}
    for number, pair in enumerate(lines, start=1):
        splits["train" if number % VALID_EVERY else "valid"].append(pair)
    return Source(splits, "original archive", parallel_text.tokenizer_name(), tolerance=0.01, dropped=dropped)


def tagged_lines(path: Path) -> list[str]:
    """Lines of `train.tags.de-en.LANG` without the url, talkid and keywords lines and without title and description tags."""
    lines = (line for line in parallel_text.read_lines(path) if not re.search("<(url|talkid|keywords)>", line))
    return [re.sub("</?(title|description)>", "", line).strip() for line in lines]


# -------------------------------------------------------------------------------------------------------------- checks


def check_counts(source: Source, expected: dict[str, int]) -> str:
    """Refuse wrong numbers of pairs; a part of train is allowed, and the returned note says how much of it there is."""
    counts = {split: len(pairs) for split, pairs in source.splits.items()}
    for split in ("valid", "test"):
        if abs(counts[split] - expected[split]) > (source.tolerance * expected[split] if split == "valid" else 0):
            raise CorpusError(
                f"{split} has {counts[split]:,} pairs, not {expected[split]:,} as IWSLT14 De-En; get the data again, or "
                "say with --expect-pairs what it should have"
            )
    have, all_pairs = counts["train"], expected["train"]
    if have > all_pairs * (1 + source.tolerance):
        raise CorpusError(f"train has {have:,} pairs, more than the {all_pairs:,} of IWSLT14 De-En; is this another year?")
    if have < all_pairs * (1 - source.tolerance):
        return f"train is a part: {have:,} of {all_pairs:,} pairs ({100 * have / all_pairs:.1f} %)"
    return "" if have == all_pairs else f"train has {have:,} pairs, {all_pairs:,} with tokenizer.perl"


def check_dictionaries(source: Source) -> None:
    """Refuse official dictionaries that miss a subword of train: fairseq made them from all subwords of train."""
    apply = parallel_text.segmenter(source.code)
    for side, lang in enumerate(LANGS):
        known = {line.rsplit(" ", 1)[0] for line in source.dictionaries[lang].splitlines()}
        subwords = Counter(word for pair in source.splits["train"] for word in apply(pair[side]).split(" "))
        if missing := sorted(subwords.keys() - known):
            raise CorpusError(
                f"{len(missing):,} subwords of train.{lang} are not in dict.{lang}.txt, for example {missing[0]!r}: text, "
                "code and dictionaries are not of the same preparation"
            )
        parallel_text.say(f"train.{lang}: {subwords.total():,} subwords, none outside the official dictionary")


def make(args: argparse.Namespace) -> parallel_text.Corpus:
    """Find, read and check the text."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as scratch, archives.cache_folder(args.cache) as cache:
        given = getattr(args, "from") or archives.download(args.download, cache)
        if not given.exists():
            raise CorpusError(f"{given}: no such file or folder; {LAYOUTS}")
        root = given if given.is_dir() else Path(scratch)
        if root != given:
            archives.unpack(given, root)
        source = find(root)
    if source.code is not None and args.merges is not None:
        raise CorpusError("the data brings its own BPE codes; leave --merges out")
    for pairs in source.splits.values():
        parallel_text.check_languages(pairs, *LANGS)
    notes = [f"read as: {source.layout}", check_counts(source, args.expect_pairs)]
    if args.train_pairs is not None:
        if not 1 <= args.train_pairs <= len(source.splits["train"]):
            raise CorpusError(f"--train-pairs {args.train_pairs:,}: train has {len(source.splits['train']):,} pairs")
        source.splits["train"] = source.splits["train"][: args.train_pairs]
        notes.append(f"only the first {args.train_pairs:,} of these train pairs are used")
    if source.dictionaries:
        check_dictionaries(source)
    notes.append("official BPE codes" if source.code else "BPE codes learned here")
    notes.append("official dictionaries" if source.dictionaries else "no official dictionaries")
    return parallel_text.Corpus(
        name="iwslt14-de-en",
        source_lang="de",
        target_lang="en",
        origin=f"IWSLT 2014 evaluation campaign, TED talks; from {args.download or given.name}",
        licence="CC BY-NC-ND 3.0 (TED Conferences LLC)",
        tokenizer=source.tokenizer,
        lowercase=True,
        splits=source.splits,
        merges=MERGES if args.merges is None else args.merges,
        note="; ".join(note for note in notes if note),
        dropped=source.dropped,
        code=source.code,
        dictionaries=source.dictionaries,
    )


def pair_counts(text: str) -> dict[str, int]:
    """Numbers of pairs of train, valid and test from `TRAIN/VALID/TEST`, for argparse."""
    if not re.fullmatch(r"\d+/\d+/\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not TRAIN/VALID/TEST, for example {OFFICIAL}")
    return dict(zip(("train", "valid", "test"), map(int, text.split("/")), strict=True))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = result.add_mutually_exclusive_group(required=True)
    where.add_argument("--from", type=Path, metavar="PATH", help="folder or tar archive in one of the three layouts")
    where.add_argument("--download", metavar="URL", help="address of the original archive")
    add = result.add_argument
    add("--cache", type=Path, metavar="DIR", help="folder to keep the downloaded archive in (default: not kept)")
    add("--train-pairs", type=int, metavar="N", help="use only the first N train pairs (default: all)")
    add("--merges", type=int, metavar="N", help=f"joint BPE merges where the data has no codes (default {MERGES})")
    add(
        "--expect-pairs",
        type=pair_counts,
        default=OFFICIAL,
        metavar="TRAIN/VALID/TEST",
        help=f"numbers of pairs to check against (default {OFFICIAL}; train may have fewer)",
    )
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser())
