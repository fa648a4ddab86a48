"""Make the text of masked-LM pre-training (figure 5): documents, a subword vocabulary learned on them, a 199:1 split.

    python recipes/corpora/masked_lm_text.py --out DIR [--from PATH] [--vocabulary N] [--max-subwords N]

PATH is a file of plain text (also .gz, .bz2, .xz), a folder of such files, or an archive (.tar, .tar.gz, .zip) of them. Of a
folder all `*.tokens` are read, or where there are none all `*.raw`, `*.txt`, or every file; what is left out is told, and kept
as the `note` of corpus.json. A document ends at a blank line; in WikiText, told by its headings ` = Title = `, it ends where the
next title begins. Without --from: the English help pages of LibreOffice, from a Debian or Ubuntu package (see
libreoffice_help.py; exit status 3 where it cannot be had).

Every 200th document, by a hash of its text, is valid. A line is cut into sentences; punctuation marks become words of their
own, as in BERT's tokenizer, so that tokenized text and raw text come out alike; BPE with sentencepiece lower-cases. (The paper
took Spacy, Moses and BPE, appendix A.2.) DIR gets::

    DIR/corpus.json             names, counts, origin, sha256 of every file; `unigram_loss` is what knowing the subwords'
                                frequencies alone gives on valid, in bits a subword
    DIR/sentencepiece.model     the vocabulary
    DIR/dict.txt                the same for fairseq-preprocess --only-source --srcdict, all of it, with counts in train
    DIR/{train,valid}           subwords, a sentence a line, a blank line after each document

Two examples::

    python recipes/corpora/masked_lm_text.py --out data/masked-lm
    python recipes/corpora/masked_lm_text.py --out data/wikitext --from wikitext-2.tar.gz --vocabulary 8000
"""

import argparse
import bz2
import gzip
import hashlib
import io
import lzma
import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import archives
import libreoffice_help
import parallel_text
from parallel_text import CorpusError

Document = list[str]  # its lines, none of them blank

SPLIT = 200  # 199 documents of train for each one of valid (paper, section 4.1)
KINDS = ("*.tokens", "*.raw", "*.txt", "*")  # of the files of a folder, the first kind that is there
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MAX_BYTES = 1_000_000  # of a line
LOOK_AT = 100  # lines that tell WikiText from plain text
TITLE = re.compile(r"\s*= (?!=)\S.* =\s*(?<!= =)$|\s*= (?!=)\S =\s*$")
WIKITEXT_JOIN = re.compile(r" @([-,.])@ ")
PUNCTUATION = re.compile(r"([^\w\s])")
SENTENCE_END = re.compile(r"""(?<=[.!?])\s+(?=["'(\[<]*[^\W\d_])""")
UNKNOWN = "<unk>"
VOCABULARY_LINES = 2_000_000  # at most so many sentences, drawn from all, teach the vocabulary
HELP_PACKAGE = "libreoffice-help-en-us"


class Source(NamedTuple):
    """Where documents come from; `documents()` begins again at the first one."""

    documents: Callable[[], Iterator[Document]]
    name: str
    origin: str
    note: str = ""


@dataclass
class Text:
    """What to make: `path` is None for LibreOffice's help."""

    path: Path | None
    vocabulary: int
    max_subwords: int


# ---------------------------------------------------------------------------------------------------------- reading


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """A folder as it is; an archive unpacked into a folder that vanishes at the end; any other file in its own folder."""
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    with tempfile.TemporaryDirectory(prefix="corpus-") as scratch:
        if path.is_file() and zipfile.is_zipfile(path):
            with archives.whole(path, "zip"), zipfile.ZipFile(path) as archive:
                archive.extractall(scratch)
            yield Path(scratch)
        elif path.is_file() and re.search(r"\.(tar|tgz|tbz2?|txz|tar\.\w+)$", path.name):
            archives.unpack(path, Path(scratch))
            yield Path(scratch)
        else:
            yield path


def text_files(path: Path) -> tuple[list[Path], str]:
    """The file itself, or the files of a folder, of the first kind of `KINDS` that it has; and what of it is left out."""
    if path.is_file():
        return [path], ""
    there = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    for kind in KINDS:
        if files := [file for file in there if file.match(kind)]:
            others = [file.relative_to(path).as_posix() for file in there if not file.match(kind)]
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            return files, f"{len(files):,} files {kind} read, {len(others):,} left out ({shown})" if others else ""
    raise CorpusError(f"{path} holds no file; give a text file, a folder of them or an archive")


def lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, read one by one, with single spaces; a `CorpusError` names the file and the line."""
    with ExitStack() as stack:
        opened = COMPRESSED.get(path.suffix)
        if opened:
            stack.enter_context(archives.whole(path, path.suffix[1:]))
        file = stack.enter_context(opened(path) if opened else path.open("rb"))
        for number, raw in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), start=1):
            if len(raw) > MAX_BYTES:
                raise CorpusError(
                    f"{path}, line {number}: longer than {MAX_BYTES:,} bytes; give text with a sentence or a paragraph a line"
                )
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{path}, line {number}: not UTF-8; convert the file, for example with iconv") from error
            yield " ".join(line.removeprefix("\ufeff").split())


def is_wikitext(path: Path) -> bool:
    """Whether one of the first lines is a title, ` = Title = `."""
    return any(TITLE.match(line) for _, line in zip(range(LOOK_AT), lines(path), strict=False))


def file_documents(path: Path) -> Iterator[Document]:
    """Documents of one file."""
    wikitext = is_wikitext(path)
    document: Document = []
    for line in lines(path):
        if document and (TITLE.match(line) if wikitext else not line):
            yield document
            document = []
        if line:
            document.append(WIKITEXT_JOIN.sub(r"\1", line) if wikitext else line)
    if document:
        yield document


def help_documents(root: Path) -> Iterator[Document]:
    """A document for each English help page of LibreOffice that has text."""
    folder = root / libreoffice_help.HELP / "en-US"
    for page in sorted(folder.rglob("*.html")):
        if document := list(libreoffice_help.paragraphs(page).values()):
            yield document


@contextmanager
def source(path: Path | None) -> Iterator[Source]:
    """The documents of a path, or of LibreOffice's help."""
    with ExitStack() as stack:
        if path is not None:
            files, left_out = text_files(stack.enter_context(folder_of(path)))
            if left_out:
                parallel_text.say(f"{path}: {left_out}")
            name = path.name.split(".")[0] or path.name
            yield Source(lambda: (document for file in files for document in file_documents(file)), name, path.name, left_out)
            return
        cache, root = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-"))) for _ in range(2))
        advice = "give your own text with --from, or run `apt-get update` first"
        libreoffice_help.unpack(libreoffice_help.download(cache, [HELP_PACKAGE], advice), root)
        origin = f"Debian package {HELP_PACKAGE} {libreoffice_help.version(root, HELP_PACKAGE)}, MPL-2.0"
        yield Source(lambda: help_documents(root), "libreoffice-help-en", origin)


# ------------------------------------------------------------------------------------------ splits, words, subwords


def digest(document: Document) -> bytes:
    """A hash of a document's text."""
    return hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()


def last_of_valid(text: Source) -> bytes:
    """The largest hash of a document of valid: documents in order of their hashes, the first of each `SPLIT` (at least one)."""
    hashes = sorted(map(digest, text.documents()))
    if not hashes:
        raise CorpusError(f"{text.origin} is empty; give text with a blank line between documents")
    last = hashes[max(1, round(len(hashes) / SPLIT)) - 1]
    if last == hashes[-1]:
        raise CorpusError(
            f"{text.origin} is a single document, which leaves none for train or none for valid; put a blank line between "
            "documents, or give more text"
        )
    return last


def sentences(document: Document) -> Iterator[str]:
    """The sentences of a document, in their order."""
    for line in document:
        yield from SENTENCE_END.split(line)


def isolated(text: str) -> str:
    """Text with every punctuation mark a word of its own."""
    return " ".join(PUNCTUATION.sub(r" \1 ", text).split())


class Subwords:
    """A sentencepiece model as a function from raw text to the words of fairseq's dictionary."""

    def __init__(self, model: bytes):
        import sentencepiece  # an extra of the plug-in: nothing else here needs it

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __call__(self, text: str) -> list[str]:
        """Subwords; `<unk>` in the text (WikiText has it for rare words) stays one."""
        parts = [self.processor.encode(isolated(part), out_type=str) for part in text.split(UNKNOWN)]
        return [piece for i, part in enumerate(parts) for piece in ([UNKNOWN] if i else []) + part]

    def all(self) -> list[str]:
        """Every subword but the unknown one, in the model's order."""
        return [self.processor.id_to_piece(i) for i in range(len(self.processor)) if not self.processor.is_unknown(i)]


def learn(texts: Iterator[str], vocabulary: int, name: str) -> bytes:
    """A sentencepiece BPE model of `vocabulary` subwords, the unknown one among them; text is lower-cased (NFKC_CF).

    `name`: of the text, for what is said when it is too small.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(1)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            normalization_rule_name="nmt_nfkc_cf",
            input_sentence_size=VOCABULARY_LINES,
            max_sentence_length=MAX_BYTES,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"<= (\d+)", str(error))
        reason = f"it has {most.group(1)} at most" if most else str(error).strip().rpartition("] ")[2] or "it has no words"
        raise CorpusError(
            f"{name}: no vocabulary of {vocabulary:,} subwords can be learned on this text ({reason}); give more text, or "
            "another --vocabulary"
        ) from error
    return model.getvalue()


def unigram_loss(train: Counter[str], valid: Counter[str], types: int) -> float:
    """Cross-entropy of valid under train's frequencies, each count plus one, in bits a subword."""
    total = train.total() + types
    return math.fsum(count * math.log2(total / (train[piece] + 1)) for piece, count in valid.items()) / valid.total()


# ---------------------------------------------------------------------------------------------------------- writing


def write(text: Text, folder: Path) -> dict:
    """Write what is described at the top of this file into the existing, empty `folder`; return its facts."""
    with source(text.path) as found:
        last = last_of_valid(found)
        parallel_text.say(f"{found.origin}: learning {text.vocabulary:,} subwords on train ...")
        of_train = (document for document in found.documents() if digest(document) > last)
        lines_of_train = (isolated(line.replace(UNKNOWN, " ")) for document in of_train for line in sentences(document))
        model = learn((line for line in lines_of_train if line), text.vocabulary, found.origin)
        subwords = Subwords(model)
        counts = encode(found, last, subwords, text.max_subwords, folder)
    (folder / "sentencepiece.model").write_bytes(model)
    pieces = {split: counts[split].pop("pieces") for split in counts}
    dictionary = "".join(f"{piece} {pieces['train'][piece]}\n" for piece in subwords.all())
    (folder / "dict.txt").write_text(dictionary, encoding="utf-8", newline="\n")
    return {
        "name": found.name,
        "origin": found.origin,
        **{name: {split: counts[split][name] for split in counts} for name in counts["train"]},
        "vocabulary": len(subwords.all()) + 1,
        "unigram_loss": round(unigram_loss(pieces["train"], pieces["valid"], len(subwords.all()) + 2), 4),
        "note": found.note,
    }


def encode(found: Source, last: bytes, subwords: Subwords, max_subwords: int, folder: Path) -> dict[str, dict]:
    """Write both splits as subwords; for each its documents, words as the text came, sentences, subwords and their counts.

    A sentence of more than `max_subwords` is cut there: what follows is the next line. The counts have fairseq's end mark.
    """
    counts = {split: dict.fromkeys(("documents", "words", "sentences", "subwords"), 0) for split in ("train", "valid")}
    with ExitStack() as stack:
        files = {split: stack.enter_context((folder / split).open("w", encoding="utf-8", newline="\n")) for split in counts}
        for split in counts:
            counts[split]["pieces"] = Counter()
        for document in found.documents():
            split = "valid" if digest(document) <= last else "train"
            count, file = counts[split], files[split]
            count["documents"] += 1
            count["words"] += sum(len(line.split()) for line in document)
            for sentence in sentences(document):
                pieces = subwords(sentence)
                for start in range(0, len(pieces), max_subwords):
                    part = pieces[start : start + max_subwords]
                    file.write(" ".join(part) + "\n")
                    count["sentences"] += 1
                    count["subwords"] += len(part)
                    count["pieces"].update(part)
                    count["pieces"]["</s>"] += 1
            file.write("\n")
    return counts


def summary(facts: dict) -> str:
    """One paragraph for the user about a text, from its facts."""
    splits = "; ".join(
        f"{split} {facts['documents'][split]:,} documents, {facts['words'][split]:,} words, {facts['subwords'][split]:,} subwords"
        for split in ("train", "valid")
    )
    return f"{facts['name']}: {splits}; vocabulary {facts['vocabulary']:,}"


def make(args: argparse.Namespace) -> Text:
    """Check the arguments."""
    for name in ("vocabulary", "max_subwords"):
        if getattr(args, name) < 1:
            raise CorpusError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more")
    return Text(getattr(args, "from"), args.vocabulary, args.max_subwords)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--from", type=Path, metavar="PATH", help="text file, folder or archive (default: LibreOffice's help)")
    add("--vocabulary", type=int, default=32000, metavar="N", help="subwords to learn (default 32000)")
    add(
        "--max-subwords",
        type=int,
        default=126,
        metavar="N",
        help="longest line: --tokens-per-sample less 2, for the marks at its ends (default 126)",
    )
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser(), write, summary)
