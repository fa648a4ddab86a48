"""Tests of recipes/corpora/masked_lm_text.py and glue.py: the text and the tasks of figure 5 (section 4.1, appendix A.2, A.3).

The scripts are run as a user runs them, on a few lines made here. Oracles: the lines that went in, invariants of a split, BERT's
own rule for long pairs written as its loop, and fairseq's reader of what was written.
"""

import bz2
import gzip
import json
import lzma
import math
import os
import random
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import ROOT
from corpus_scripts import refused

CORPORA = ROOT / "recipes" / "corpora"
sys.path.insert(0, str(CORPORA))

import glue  # noqa: E402  the scripts are no package
import masked_lm_text  # noqa: E402
from parallel_text import CorpusError  # noqa: E402

WORDS = "the a river house bird tree old new small sees finds has over under with".split()
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
RTE = "index\tsentence1\tsentence2\tlabel"


def call(script, *arguments, **environment):
    """Run a script; the finished process with its text."""
    command = [sys.executable, CORPORA / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=100)


def sentence(pick):
    """A made-up sentence."""
    return " ".join(pick.choices(WORDS, k=pick.randint(3, 9))).capitalize() + "."


def documents(count, seed=1):
    """Made-up documents of two lines of two sentences."""
    pick = random.Random(seed)
    return [[f"{sentence(pick)} {sentence(pick)}" for _ in range(2)] for _ in range(count)]


def plain(path, docs):
    """Write documents as plain text."""
    path.write_text("\n\n".join("\n".join(doc) for doc in docs) + "\n", encoding="utf-8")
    return path


def made(out, done):
    """The facts of what a call left, once it is checked that all went well."""
    assert done.returncode == 0, done.stderr
    return json.loads((out / "corpus.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The folder that masked_lm_text.py makes of 400 documents, and its facts."""
    folder = tmp_path_factory.mktemp("masked-lm")
    source = plain(folder / "novels.txt", documents(400))
    done = call("masked_lm_text.py", "--out", folder / "out", "--from", source, "--vocabulary", 60, "--max-subwords", 20)
    return folder / "out", made(folder / "out", done)


# -- text --


def split_documents(path):
    """The documents of a split as lists of lines."""
    return [doc.split("\n") for doc in path.read_text(encoding="utf-8").removesuffix("\n\n").split("\n\n")]


def joined(pieces):
    """The text that lines of subwords were made from, lower-cased and with punctuation apart."""
    return "".join("".join(pieces).split()).replace("▁", " ").strip()


def test_one_of_two_hundred_documents_is_valid_and_none_is_in_both(text):
    """199:1 by document (section 4.1): 398 and 2 of 400."""
    folder, facts = text
    train, valid = (["\n".join(doc) for doc in split_documents(folder / name)] for name in ("train", "valid"))
    assert (len(train), len(valid)) == (398, 2) == tuple(facts["documents"].values())
    assert not set(train) & set(valid)


def test_every_sentence_is_there_in_its_order_within_its_document(text):
    """Joined subwords of a document are its text, lower-cased, a mark apart from its word."""
    folder, _ = text
    found = sorted(joined(doc) for name in ("train", "valid") for doc in split_documents(folder / name))
    assert found == sorted(" ".join(doc).lower().replace(".", " .") for doc in documents(400))


def test_no_line_is_longer_than_asked_for(text):
    """--max-subwords: a longer sentence goes on in the next line."""
    folder, _ = text
    lengths = [len(line.split()) for name in ("train", "valid") for line in (folder / name).read_text().splitlines()]
    assert max(lengths) == 20


def test_words_are_counted_as_the_text_came(text):
    """Separated by spaces, over both splits: what is compared with the paper's 3.4B."""
    _, facts = text
    assert sum(facts["words"].values()) == sum(len(line.split()) for doc in documents(400) for line in doc)


def test_the_dictionary_is_the_whole_vocabulary_with_its_counts_in_train(text):
    """--vocabulary subwords, one of them the unknown one, which fairseq adds itself."""
    folder, facts = text
    entries = [line.rsplit(" ", 1) for line in (folder / "dict.txt").read_text(encoding="utf-8").splitlines()]
    assert len(entries) + 1 == 60 == facts["vocabulary"]
    train = (folder / "train").read_text(encoding="utf-8").split()
    assert {piece: int(count) for piece, count in entries if int(count)} == {piece: train.count(piece) for piece in set(train)}


def test_unigram_loss_is_the_cross_entropy_of_the_frequencies():
    """Equal counts over n types are log2(n) bits each."""
    counts = dict.fromkeys("abcd", 999)
    counter = masked_lm_text.Counter(counts)
    assert masked_lm_text.unigram_loss(counter, masked_lm_text.Counter("aab"), 4) == pytest.approx(math.log2(4))


def test_wikitext_documents_begin_at_titles_and_its_joins_are_undone(tmp_path):
    """` = X = ` begins one, ` = = X = = ` and blank lines do not; @-@ is a hyphen; <unk> stays one word."""
    wiki = " \n = First = \n \n A well @-@ known <unk> . \n \n = = Part = = \n \n More . \n = Second = \n \n End . \n"
    (tmp_path / "wiki.train.tokens").write_text(wiki, encoding="utf-8")
    docs = list(masked_lm_text.file_documents(tmp_path / "wiki.train.tokens"))
    assert docs == [["= First =", "A well-known <unk> .", "= = Part = =", "More ."], ["= Second =", "End ."]]


def test_tokenized_and_raw_text_become_the_same_words():
    """What lets WikiText's vocabulary serve MRPC and RTE."""
    raw, tokenized = 'He said "no", twice: it\'s 3.5%.', 'He said " no " , twice : it \'s 3.5 % .'
    assert masked_lm_text.isolated(raw) == masked_lm_text.isolated(tokenized)


def test_unknown_words_of_the_text_stay_unknown(text):
    """<unk> is one subword, fairseq's own."""
    folder, _ = text
    subwords = masked_lm_text.Subwords((folder / "sentencepiece.model").read_bytes())
    assert subwords("The <unk> tree").count("<unk>") == 1
    assert subwords("the tree") == [piece for piece in subwords("the <unk> tree") if piece != "<unk>"]


def test_of_a_folder_only_the_first_kind_of_file_is_read(tmp_path):
    """*.tokens before *.raw before *.txt: WikiText-2's folder has the same text twice. The others are told."""
    for name in ("wiki.valid.raw", "wiki.valid.tokens", "wiki.train.tokens", "notes.txt"):
        (tmp_path / name).write_text("x\n")
    files, left_out = masked_lm_text.text_files(tmp_path)
    assert [path.name for path in files] == ["wiki.train.tokens", "wiki.valid.tokens"]
    assert left_out == "2 files *.tokens read, 2 left out (notes.txt, wiki.valid.raw)"
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "wiki.valid.raw").unlink()
    assert masked_lm_text.text_files(tmp_path)[1] == ""


@pytest.mark.parametrize(("suffix", "opened"), [("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)])
def test_compressed_text_is_read_as_it_is(suffix, opened, tmp_path):
    """A dump as it is passed on; a damaged one is refused in a sentence."""
    source, path = plain(tmp_path / "a.txt", documents(3)), tmp_path / f"a.txt.{suffix}"
    with opened(path, "wb") as file:
        file.write(source.read_bytes())
    assert list(masked_lm_text.file_documents(path)) == documents(3)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusError, match=f"is not a whole {suffix} archive"):
        list(masked_lm_text.file_documents(path))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_gives_the_same_documents_as_its_folder(kind, tmp_path):
    """.tar.gz and .zip."""
    source = plain(tmp_path / "a.txt", documents(3))
    if kind == "tar":
        archive = tmp_path / "text.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(source, "text/a.txt")
    else:
        archive = tmp_path / "text.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.write(source, "text/a.txt")
    with masked_lm_text.source(archive) as packed, masked_lm_text.source(source) as unpacked:
        assert list(packed.documents()) == list(unpacked.documents()) == documents(3)


def test_a_zip_archive_with_a_changed_byte_is_refused(tmp_path):
    """Wherever the byte is in the compressed text, zlib or the checksum tells."""
    with zipfile.ZipFile(tmp_path / "text.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(plain(tmp_path / "a.txt", documents(300)), "a.txt")
    content = (tmp_path / "text.zip").read_bytes()
    for at in range(100, len(content) - 200, len(content) // 20):
        (tmp_path / "bad.zip").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(masked_lm_text.CorpusError, match="bad.zip is not a whole zip archive"):
            with masked_lm_text.folder_of(tmp_path / "bad.zip"):
                pass


def test_a_second_run_does_nothing_and_another_vocabulary_is_refused(text):
    """Finished is finished; a folder is of one making."""
    folder, _ = text
    arguments = ["--out", folder, "--from", folder.parent / "novels.txt", "--max-subwords", 20]
    assert "nothing to do" in call("masked_lm_text.py", *arguments, "--vocabulary", 60).stderr
    refused(call("masked_lm_text.py", *arguments, "--vocabulary", 61), "was made with --vocabulary 60, not 61")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"One document.\nOf two lines.\n", "is a single document"),
        (b"Good.\n\ncaf\xe9\n", "line 3: not UTF-8"),
        (b"word " * 2_000_000, "line 1: longer than 1,000,000 bytes"),
        (b"One.\n\nTwo.\n", "no vocabulary of 32,000 subwords can be learned on this text (it has 13 at most)"),
    ],
)
def test_bad_text_is_refused_in_one_sentence_and_leaves_nothing(content, words, tmp_path):
    """Empty, one document, not UTF-8 (with the line), a line of 10 MB, too little text."""
    (tmp_path / "bad.txt").write_bytes(content)
    refused(call("masked_lm_text.py", "--out", tmp_path / "out", "--from", tmp_path / "bad.txt"), "bad.txt", words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt"]


def test_a_missing_path_is_named(tmp_path):
    """One sentence."""
    refused(call("masked_lm_text.py", "--out", tmp_path / "out", "--from", tmp_path / "no"), "no such file or folder")


def test_without_text_the_help_package_is_taken_and_its_lack_has_a_status_of_its_own(tmp_path):
    """Exit status 3, as libreoffice_help.py, and what else to give."""
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 1\n")
    (tmp_path / "apt-get").chmod(0o755)
    done = call("masked_lm_text.py", "--out", tmp_path / "out", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    refused(done, "libreoffice-help-en-us", "--from", status=3)


def test_a_help_page_is_a_document(tmp_path):
    """Its paragraphs in their order, without the macOS variant."""
    folder = tmp_path / masked_lm_text.libreoffice_help.HELP / "en-US" / "text"
    folder.mkdir(parents=True)
    (folder / "a.html").write_text(
        '<h1 id="par_1">Opening</h1><p id="par_2">Press <span class="MAC">Cmd</span>Ctrl.</p><p>No id.</p>', encoding="utf-8"
    )
    (folder / "b.html").write_text("<p>Nothing</p>", encoding="utf-8")
    assert list(masked_lm_text.help_documents(tmp_path)) == [["Opening", "Press Ctrl."]]


# -- MRPC and RTE --


def write_glue(folder, rows=None):
    """Write GLUE's four files; ``rows``: file -> its text, instead of the good one."""
    good = {
        "MRPC/train.tsv": f'{MRPC}\n1\t1\t2\tThe old house.\tA house.\n0\t3\t4\tA "bird.\tThe tree\n1\t5\t6\tA river\tA bird\n',
        "MRPC/dev.tsv": f"{MRPC}\n1\t1\t2\tThe river\tA river\n0\t1\t2\tThe tree\tA tree\n1\t1\t2\tThe bird\tA bird\n",
        "RTE/train.tsv": f"{RTE}\n0\tThe old house.\tA house.\tentailment\n1\tThe bird.\tA tree.\tnot_entailment\n",
        "RTE/dev.tsv": f"{RTE}\n0\tThe house.\tA house.\tnot_entailment\n1\tThe bird.\tA tree.\tentailment\n",
    }
    for name, content in (good | (rows or {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def glue_arguments(text, source, out, *more):
    """The arguments of glue.py for the text's model and dictionary."""
    return ["--out", out, "--from", source, "--model", text[0] / "sentencepiece.model", "--dict", text[0] / "dict.txt", *more]


@pytest.fixture(scope="module")
def tasks(text, tmp_path_factory):
    """The folder that glue.py makes of a few rows, with CRLF and a byte-order mark in one file, and its facts."""
    folder = tmp_path_factory.mktemp("glue")
    odd = write_glue(folder / "source") / "RTE" / "train.tsv"
    odd.write_bytes(b"\xef\xbb\xbf" + odd.read_bytes().replace(b"\n", b"\r\n"))
    done = call("glue.py", *glue_arguments(text, folder / "source", folder / "out", "--max-subwords", 12))
    return folder / "out", made(folder / "out", done)


def read_back(folder, split):
    """Numbers of every sentence of an input folder, read with fairseq."""
    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(folder / split), dictionary)
    return dictionary, [dataset[i].tolist() for i in range(len(dataset))]


def test_inputs_are_the_subwords_in_the_checkpoints_dictionary(text, tasks):
    """input0 and input1 row by row; the dictionary is, byte for byte, the one given."""
    subwords = masked_lm_text.Subwords((text[0] / "sentencepiece.model").read_bytes())
    for side, sentence in (("input0", "The river"), ("input1", "A river")):
        folder = tasks[0] / "MRPC" / side
        dictionary, rows = read_back(folder, "valid")
        assert dictionary.string(rows[0]).split() == subwords(sentence)
        assert rows[0][-1] == dictionary.eos()
        assert (folder / "dict.txt").read_bytes() == (text[0] / "dict.txt").read_bytes()


def test_labels_are_the_classes_as_sentence_prediction_counts_them(tasks):
    """Its class is the label's number less the dictionary's special symbols; entailment and paraphrase are 1."""
    for task, split, expected in (("MRPC", "train", [1, 0, 1]), ("RTE", "train", [1, 0]), ("RTE", "valid", [0, 1])):
        dictionary, rows = read_back(tasks[0] / task / "label", split)
        assert [row[0] - dictionary.nspecial for row in rows] == expected


def test_a_quotation_mark_is_text_and_byte_order_mark_and_crs_are_not(text, tasks):
    """No quoting in GLUE; RTE/train.tsv came with CRLF and a BOM."""
    dictionary, rows = read_back(tasks[0] / "MRPC" / "input0", "train")
    assert len(rows) == 3 and dictionary.string(rows[1]).replace(" ", "").startswith("▁a▁")
    _, rte = read_back(tasks[0] / "RTE" / "input0", "train")
    _, mrpc = read_back(tasks[0] / "MRPC" / "input0", "train")
    assert rte[0] == mrpc[0]


def test_rows_of_each_class_are_counted_for_the_majority(tasks):
    """Class 0 and class 1, of train and of dev."""
    assert tasks[1]["tasks"]["MRPC"]["rows"] == {"train": [1, 2], "valid": [1, 2]}


def test_a_long_pair_loses_the_end_of_its_longer_sentence_as_in_bert():
    """The loop of Devlin et al.'s code: pop from the first while it is longer, else from the second."""
    pick = random.Random(3)
    for _ in range(300):
        first, second = (list(range(pick.randint(1, 20))) for _ in range(2))
        limit = pick.randint(2, 24)
        a, b = list(first), list(second)
        while len(a) + len(b) > limit:
            (a if len(a) > len(b) else b).pop()
        assert glue.shortened(first, second, limit) == (a, b)


def test_no_pair_is_longer_than_the_models_positions(tasks):
    """--max-subwords counts <s> and three </s> in; each input here has one of these."""
    for task in ("MRPC", "RTE"):
        for split in ("train", "valid"):
            sides = [read_back(tasks[0] / task / side, split)[1] for side in ("input0", "input1")]
            assert max(len(a) + len(b) + 2 for a, b in zip(*sides, strict=True)) <= 12


def test_an_archive_of_glue_is_taken_as_well(text, tmp_path):
    """At any depth in it; the folder that it becomes is that of the plain files."""
    source = write_glue(tmp_path / "glue_data")
    with tarfile.open(tmp_path / "glue.tar.gz", "w:gz") as tar:
        tar.add(source, "some/glue_data")
    sums = []
    for name, given in (("plain", source), ("packed", tmp_path / "glue.tar.gz")):
        made = call("glue.py", *glue_arguments(text, given, tmp_path / name))
        assert made.returncode == 0, made.stderr
        sums.append(json.loads((tmp_path / name / "corpus.json").read_text())["sha256"])
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("MRPC/dev.tsv", f"{MRPC}\n1\t1\t2\tonly one\n", "line 2: 4 columns instead of 5"),
        ("MRPC/dev.tsv", f'{MRPC}\n1\t1\t2\t"a\tb"\tc\n', "line 2: 6 columns instead of 5"),
        ("MRPC/dev.tsv", f"{MRPC}\n1\t1\t2\ta\tb\n\n0\t1\t2\ta\tb\n", "line 3: 1 columns instead of 5"),
        ("MRPC/train.tsv", f"{MRPC}\n2\t1\t2\ta\tb\n", "line 2: the label '2' is none of 0, 1"),
        ("RTE/train.tsv", f"{RTE}\n0\ta\tb\tEntailment\n", "the label 'Entailment' is none of not_entailment, entailment"),
        ("RTE/train.tsv", f"{RTE}\n0\ta\t \tentailment\n", "line 2: a sentence is empty"),
        ("RTE/train.tsv", "0\ta\tb\tentailment\n", "the first line has no column 'sentence1'"),
        ("RTE/train.tsv", "", "the first line has no column"),
        ("RTE/train.tsv", f"{RTE}\n0\ta\tb\tentailment\n", "has not a row of each class"),
        ("RTE/dev.tsv", f"{RTE}\n0\tcaf".encode() + b"\xe9\tb\tentailment\n", "line 2: not UTF-8"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(name, content, words, text, tmp_path):
    """Missing columns, a tab inside quotes, a blank row, unknown labels, an empty sentence, no header, not UTF-8."""
    source = write_glue(tmp_path / "glue", {name: content})
    refused(call("glue.py", *glue_arguments(text, source, tmp_path / "out")), name, words)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_task_is_refused(text, tmp_path):
    """It names the task that is not there."""
    (tmp_path / "glue" / "MRPC").mkdir(parents=True)
    write_glue(tmp_path / "whole")
    (tmp_path / "whole" / "RTE").rename(tmp_path / "RTE")
    refused(call("glue.py", *glue_arguments(text, tmp_path / "whole", tmp_path / "out")), "has no folder RTE")


def test_a_file_that_is_no_sentencepiece_model_is_refused(text, tmp_path):
    """By its name."""
    (tmp_path / "some.model").write_text("no model\n")
    arguments = glue_arguments(text, write_glue(tmp_path / "glue"), tmp_path / "out", "--model", tmp_path / "some.model")
    refused(call("glue.py", *arguments), "some.model is not a sentencepiece model")


def test_fewer_subwords_than_a_pair_with_its_marks_has_are_refused(text, tmp_path):
    """Four marks and a subword of each sentence."""
    arguments = glue_arguments(text, write_glue(tmp_path / "glue"), tmp_path / "out", "--max-subwords", 5)
    refused(call("glue.py", *arguments), "--max-subwords 5: give 6 or more")


def test_a_dictionary_of_another_model_is_refused(text, tmp_path):
    """Its subwords have other numbers."""
    lines = (text[0] / "dict.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    arguments = glue_arguments(text, write_glue(tmp_path / "glue"), tmp_path / "out", "--dict", tmp_path / "dict.txt")
    refused(call("glue.py", *arguments), "dict.txt is not the dictionary of")


def test_tasks_of_another_dictionary_are_not_taken_for_finished(text, tasks, tmp_path):
    """The same path with other content: counts differ, so its sha256 does."""
    arguments = glue_arguments(text, tasks[0].parent / "source", tasks[0], "--max-subwords", 12)
    assert "nothing to do" in call("glue.py", *arguments).stderr
    lines = (text[0] / "dict.txt").read_text(encoding="utf-8").splitlines()
    piece, count = lines[0].rsplit(" ", 1)
    (tmp_path / "dict.txt").write_text("\n".join([f"{piece} {int(count) + 1}", *lines[1:]]) + "\n", encoding="utf-8")
    refused(call("glue.py", *arguments, "--dict", tmp_path / "dict.txt"), "was made with")
