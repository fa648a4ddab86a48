"""Tests of fairseq_lnplugin/study/score.py: BLEU of fairseq-generate's output (Xiong et al. 2020, section 4)."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest
from sentences import sentence_of

from fairseq_lnplugin import cli
from fairseq_lnplugin.study.run_folder import SCORE_COLUMNS
from fairseq_lnplugin.study.score import read_hypotheses, read_lines, same_sentence, scores

SENTENCES = [f"the number {i} is {'even' if i % 2 == 0 else 'odd'} , they say ." for i in range(12)]


def multi_bleu(hypotheses, references):
    """Corpus BLEU-4 of tokens as Papineni et al. 2002 define it, in percent; every order needs a match."""
    log_precision = 0
    for n in range(1, 5):
        matches = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            grams, others = (
                Counter(zip(*(line.split()[i:] for i in range(n)), strict=False)) for line in (hypothesis, reference)
            )
            matches += sum((grams & others).values())
            total += sum(grams.values())
        log_precision += math.log(matches / total) / 4
    length, wanted = (sum(len(line.split()) for line in lines) for lines in (hypotheses, references))
    return 100 * math.exp(log_precision + min(0, 1 - wanted / length))


def generate_output(hypotheses, targets=SENTENCES):
    """What fairseq-generate prints for these sentences, given by id."""
    blocks = [
        f"S-{i}\tquelle\nT-{i}\t{targets[i]}\nH-{i}\t-0.25\t{text}\nD-{i}\t-0.25\t{text}\nP-{i}\t-0.1 -0.4\n"
        for i, text in hypotheses.items()
    ]
    return "2020-01-01 00:00:00 | INFO | fairseq_cli.generate | a log line\n" + "".join(blocks) + "Generate done\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with test.en, the reference, and perfect translations of it, in two shards and out of order."""
    (tmp_path / "test.en").write_text("".join(line + "\n" for line in SENTENCES), encoding="utf-8")
    order = list(range(12))
    random.Random(0).shuffle(order)
    for shard in (0, 1):
        text = generate_output({i: SENTENCES[i] for i in order[shard::2]})
        (tmp_path / f"out.shard{shard}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def score(folder, *outputs, epoch=3, subset="test", flags=()):
    """Run ``fairseq-ln score`` on outputs in ``folder`` (default: both shards); returns its status."""
    outputs = outputs or ("out.shard0.txt", "out.shard1.txt")
    argv = ["score", "--reference", folder / "test.en", "--lang", "en", "--subset", subset, "--epoch", epoch]
    argv += ["--updates", 870, "--checkpoint", f"checkpoint{epoch}.pt", "--out", folder / "scores.tsv", *flags]
    return cli.main([str(word) for word in [*argv, *(folder / output for output in outputs)]])


def table(folder):
    """The rows of scores.tsv as dicts."""
    header, *rows = (line.split("\t") for line in read_lines(folder / "scores.tsv"))
    return [dict(zip(header, row, strict=True)) for row in rows]


def refusal(folder, *outputs, **settings):
    """The sentence that ``fairseq-ln score`` ends with; nothing may be written."""
    return sentence_of(score, folder, *outputs, begins="fairseq-ln score: ", unchanged=folder, **settings)


# The numbers


def test_tokenized_bleu_is_the_papers_multi_bleu():
    """Against BLEU-4 written from its definition; text with &apos; counts as its tokens."""
    references = [*SENTENCES, "it &apos;s a & quot test , is it not ?"]
    hypotheses = [line.replace("even", "odd").replace(" ,", "") for line in references]
    found = scores(hypotheses, references, "en", lowercase=False)
    assert float(found["bleu"]) == pytest.approx(multi_bleu(hypotheses, references), abs=0.006)


def test_lowercase_makes_case_irrelevant_and_the_signature_says_so():
    """case:lc, and 100 for the same words."""
    found = scores([line.upper() for line in SENTENCES], SENTENCES, "en", lowercase=True)
    assert found["bleu"] == "100.00" and "case:lc" in found["bleu_signature"]
    found = scores([line.upper() for line in SENTENCES], SENTENCES, "en", lowercase=False)
    assert float(found["bleu"]) < 50 and "case:mixed" in found["bleu_signature"]


def test_each_number_has_the_signature_of_its_tokenization():
    """tok:none and tok:13a."""
    found = scores(SENTENCES, SENTENCES, "en", lowercase=False)
    assert "tok:none" in found["bleu_signature"] and "tok:13a" in found["sacrebleu_signature"]
    assert "version:" in found["bleu_signature"]


def test_sacrebleu_sees_detokenized_text_on_both_sides():
    """'it &apos;s' and "it 's" are one text once detokenized and unescaped, and two tokenized ones."""
    found = scores(["it &apos;s a test , is it not ?"], ["it 's a test , is it not ?"], "en", lowercase=False)
    assert found["sacrebleu"] == "100.00" and float(found["bleu"]) < 100


def test_compounds_split_at_their_hyphens_are_three_tokens_on_both_sides():
    """O29: BLEU-4 by definition of text where x-y stands as x ##AT##-##AT## y; a lone hyphen stays; the signature says so."""
    references = [*SENTENCES, "a well-known re-election - as they say"]
    hypotheses = [*SENTENCES, "a well-known vote - as they say-so"]
    found = scores(hypotheses, references, "en", lowercase=False, compound_split=True)
    words = {word: word.replace("-", " ##AT##-##AT## ") for word in ("well-known", "re-election", "say-so")}
    sides = [[" ".join(words.get(word, word) for word in line.split()) for line in side] for side in (hypotheses, references)]
    assert float(found["bleu"]) == pytest.approx(multi_bleu(*sides), abs=0.006)
    plain = scores(hypotheses, references, "en", lowercase=False)
    assert found["bleu_signature"] == f"{plain['bleu_signature']}|compounds:split"
    assert (found["sacrebleu"], found["sacrebleu_signature"]) == (plain["sacrebleu"], plain["sacrebleu_signature"])
    assert found["bleu"] != plain["bleu"]


@pytest.mark.parametrize("text", ["", "the the the the the"])
def test_a_collapsed_model_scores_near_zero_and_does_not_crash(text):
    """Empty or identical translations are results of Post-LN without warm-up."""
    found = scores([text] * len(SENTENCES), SENTENCES, "en", lowercase=True)
    assert 0 <= float(found["bleu"]) < 3 and 0 <= float(found["sacrebleu"]) < 3


@pytest.mark.parametrize("what", ["translations", "reference lines"])
def test_text_tokenized_twice_is_warned_of(what, capsys):
    """&amp;apos; is still escaped after detokenization, on one side only."""
    sides = [["it &amp;apos;s"], ["it &apos;s"]]
    scores(*(sides if what == "translations" else reversed(sides)), "en", lowercase=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"1 {what} hold" in line and "tokenized twice" in line


def test_the_flag_of_compounds_reaches_the_table(folder):
    """--compound-split."""
    assert not score(folder, flags=("--compound-split",))
    assert table(folder)[0]["bleu_signature"].endswith("|compounds:split")


# Order, and every sentence once


def test_translations_are_put_into_the_references_order(folder):
    """Shards, the order of generation and ids above 9 do not matter."""
    paths = [str(folder / f"out.shard{shard}.txt") for shard in (1, 0)]
    assert read_hypotheses(paths, SENTENCES, "test.en") == SENTENCES


def test_perfect_translations_score_100(folder, capsys):
    """In two shards and out of order."""
    assert score(folder) == 0
    (row,) = table(folder)
    assert row["bleu"] == row["sacrebleu"] == "100.00" and row["lines"] == "12" and row["updates"] == "870"
    assert "BLEU 100.00" in capsys.readouterr().out


def test_a_line_separator_inside_a_sentence_does_not_shift_the_lines(folder):
    """U+2028 ends a line for str.splitlines, and for nobody else."""
    sentences = ["one\u2028two three four five", *SENTENCES[1:]]
    (folder / "test.en").write_text("".join(line + "\n" for line in sentences), encoding="utf-8")
    text = generate_output(dict(enumerate(sentences)), sentences)
    (folder / "one.txt").write_text(text, encoding="utf-8")
    score(folder, "one.txt")
    assert table(folder)[0]["lines"] == "12"


def test_a_missing_shard_is_refused_with_its_ids(folder):
    """Six of twelve sentences are missing; five are named."""
    told = refusal(folder, "out.shard0.txt")
    present = read_lines(folder / "out.shard0.txt")
    missing = [i for i in range(12) if f"T-{i}\t{SENTENCES[i]}" not in present]
    assert f"sentences {', '.join(map(str, missing[:5]))} and 1 more" in told and "out.shard0.txt" in told


def test_a_shard_given_twice_is_refused(folder):
    """Double ids, with both files named."""
    told = refusal(folder, "out.shard0.txt", "out.shard1.txt", "out.shard1.txt")
    assert "is there twice" in told and told.count("out.shard1.txt") == 2


def test_several_translations_of_a_sentence_are_refused(folder):
    """--nbest 2 prints two H lines after each T line."""
    text = generate_output(dict(enumerate(SENTENCES))) + "H-4\t-0.5\tanother one\n"
    (folder / "nbest.txt").write_text(text)
    told = refusal(folder, "nbest.txt")
    assert "sentence 4 is there twice" in told and "--nbest 1" in told


def test_more_sentences_than_the_reference_has_are_refused(folder):
    """The outputs of another subset."""
    sentences = [*SENTENCES, "one more", "and one more"]
    (folder / "longer.txt").write_text(generate_output(dict(enumerate(sentences)), sentences))
    told = refusal(folder, "longer.txt")
    assert "sentences 12, 13" in told and "only 12 lines" in told


def test_the_reference_of_another_subset_is_refused(folder):
    """fairseq-generate prints its own targets: as many lines, other ones."""
    (folder / "test.en").write_text("".join(f"quite another sentence {i}\n" for i in range(12)))
    assert "is not the reference of these translations" in refusal(folder)


def test_words_outside_the_dictionary_do_not_make_it_another_reference(folder):
    """The targets that fairseq prints have <<unk>> for them."""
    targets = [line.replace("they", "<<unk>>").replace("number", "num<<unk>>er") for line in SENTENCES]
    (folder / "unk.txt").write_text(generate_output(dict(enumerate(SENTENCES)), targets))
    assert score(folder, "unk.txt") == 0


@pytest.mark.parametrize(
    ("target", "same"),
    [
        ("das <<unk>> haus .", True),
        ("das <<unk>> haus", False),
        ("das <<unk>> te haus <<unk>>", True),  # the first subwords of "bunte" are unknown, and the end
        ("<<unk>>", True),
        ("das <<unk>> hund", False),
        ("ein <<unk>> haus .", False),
        ("das bunte haus . das <<unk>> haus .", False),
    ],
)
def test_an_unknown_subword_of_a_small_dictionary_stands_for_any_text(target, same):
    """Of "das bunte haus ."; what is known has to be there, in order, at its end of the line."""
    assert same_sentence(target, "das bunte haus .") is same


def test_bpe_marks_are_refused(folder):
    """Subword pairs would count as matches."""
    texts = {**dict(enumerate(SENTENCES)), 7: "the num@@ ber 7"}
    (folder / "bpe.txt").write_text(generate_output(texts))
    told = refusal(folder, "bpe.txt")
    assert "sentence 7" in told and "--remove-bpe" in told


def test_an_output_without_translations_is_refused(folder):
    """A shard whose fairseq-generate died."""
    (folder / "empty.txt").write_text("Traceback\n")
    told = refusal(folder, "out.shard0.txt", "empty.txt")
    assert "empty.txt holds no line H-" in told


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n"])
def test_a_reference_that_is_missing_empty_or_not_text_is_refused(folder, content):
    """With its name."""
    (folder / "test.en").unlink()
    if content is not None:
        (folder / "test.en").write_bytes(content)
    assert "test.en" in refusal(folder)


# scores.tsv


def test_rows_are_sorted_by_epoch_as_a_number_and_by_subset(folder):
    """Epoch 10 comes after epoch 9, whatever was scored first."""
    for epoch, subset in ((10, "test"), (9, "test1"), (9, "test")):
        score(folder, epoch=epoch, subset=subset)
    rows = [(row["epoch"], row["subset"]) for row in table(folder)]
    assert rows == [("9", "test"), ("9", "test1"), ("10", "test")]


def test_scoring_again_replaces_the_row(folder):
    """One row an epoch and subset; no temporary file stays."""
    score(folder)
    (folder / "worse.txt").write_text(generate_output({i: "the number" for i in range(12)}))
    score(folder, "worse.txt")
    (row,) = table(folder)
    assert float(row["bleu"]) < 50 and not list(folder.glob("*.new"))


def test_the_header_is_the_contracts(folder):
    """What `fairseq-ln report` reads."""
    score(folder)
    assert read_lines(folder / "scores.tsv")[0].split("\t") == SCORE_COLUMNS
    assert SCORE_COLUMNS == [
        *("epoch", "updates", "subset", "lines", "bleu", "bleu_signature"),
        *("sacrebleu", "sacrebleu_signature", "checkpoint"),
    ]


@pytest.mark.parametrize("content", ["", "epoch\tbleu\n3\t20\n", "\t".join(SCORE_COLUMNS) + "\nlast" + "\tx" * 8 + "\n"])
def test_a_file_that_is_not_such_a_table_is_left_alone(folder, content):
    """Nothing of the user's is overwritten."""
    (folder / "scores.tsv").write_text(content)
    assert "move it away" in refusal(folder)
    assert (folder / "scores.tsv").read_text() == content


def test_a_folder_that_is_not_there_is_told(folder):
    """--out in a missing folder."""
    assert "cannot be written" in refusal(folder, flags=("--out", folder / "missing" / "scores.tsv"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--epoch", "-1"), "argument --epoch: '-1' is not a whole number from 0 on"),
        (("--updates", "1.5"), "argument --updates: '1.5' is not a whole number from 0 on"),
        (("--subset", "a b"), "argument --subset: 'a b' is not a name without spaces"),
        (("--checkpoint", ""), "argument --checkpoint: '' is not a name without spaces"),
    ],
)
def test_what_fits_no_cell_of_the_table_is_refused(folder, capsys, flags, sentence):
    """By the flag's name, with status 2, before any work."""
    with pytest.raises(SystemExit) as end:
        score(folder, flags=flags)
    assert end.value.code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "scores.tsv").exists()


# For real


def test_a_trained_models_own_outputs_are_scored(text_corpus, data_bin, fairseq_train, tmp_path, repo_root):
    """fairseq-train for 2 updates, fairseq-generate in two shards, fairseq-ln score."""
    args = [
        data_bin,
        "--arch",
        "transformer_ln_study_tiny",
        "--ln-position",
        "pre",
        "--optimizer",
        "adam",
        "--lr",
        "0.003",
    ]
    args += ["--criterion", "label_smoothed_cross_entropy", "--max-tokens", 2000, "--max-update", 2]
    trained = fairseq_train([*args, "--save-dir", tmp_path, "--no-epoch-checkpoints"])
    assert trained.rc == 0, trained.log
    outputs = []
    for shard in (0, 1):
        command = [sys.executable, "-m", "fairseq_cli.generate", data_bin, "--user-dir", repo_root / "fairseq_lnplugin"]
        command += ["--path", tmp_path / "checkpoint_last.pt", "--beam", 2, "--max-len-b", 12, "--batch-size", 10]
        command += ["--distributed-world-size", 2, "--distributed-rank", shard, "--required-batch-size-multiple", 1]
        run = subprocess.run([str(word) for word in [*command, "--remove-bpe"]], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        outputs.append(tmp_path / f"shard{shard}.txt")
        outputs[-1].write_text(run.stdout, encoding="utf-8")
    (tmp_path / "test.en").write_bytes((text_corpus / "test.en").read_bytes())
    assert score(tmp_path, *outputs) == 0
    (row,) = table(tmp_path)
    assert row["lines"] == "40"
