"""Whether two runs' translations of one test set differ by more than chance: sacrebleu's paired bootstrap test.

The texts are those that fairseq-generate left in a run's folder, decode/epoch<N>.test.shard*.txt: its translations
(lines ``H-id``) and its own targets (``T-id``), which are the references here. A target's word that is not in the
dictionary is ``<<unk>>`` there, so BLEU may be some hundredths off the one in scores.tsv, which is of the original file.
"""

import re
from typing import NamedTuple

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from fairseq_lnplugin.study.score import COMPOUNDS_SPLIT, LINE, split_compounds
from fairseq_lnplugin.study.tables import TEST


class Difference(NamedTuple):
    """BLEU of a run and of another with one seed, in percent, and the p-value of their difference.

    ``refusal``: why there is no test, "" where there is one; the numbers and ``signature`` are None without.
    """

    name: str
    other: str
    seed: int
    bleu: float | None
    other_bleu: float | None
    p_value: float | None
    signature: str | None
    refusal: str = ""


class NoTestError(Exception):
    """Two runs cannot be tested; the message says why."""


def differences(pairs, groups):
    """A :class:`Difference` for each seed that both runs of a pair have finished.

    ``pairs``: (name, name of the other run); ``groups``: runs by name, as of tables.by_name.
    """
    texts, result = {}, []
    for name, other in dict.fromkeys(pairs):
        seeds = {run.seed: run for run in groups[other] if run.done}
        for run in groups[name]:
            if run.done and run.seed in seeds:
                result.append(difference(run, seeds[run.seed], texts))
    return result


def difference(run, other, texts):
    """The :class:`Difference` of two runs; ``texts`` keeps what was read, by folder."""
    names = (run.name, other.name, run.seed)
    try:
        for each in (run, other):
            if each.folder not in texts:
                texts[each.folder] = translations(each)
        (hypotheses, references, lowercase), (other_hypotheses, other_references, _) = texts[run.folder], texts[other.folder]
        same_references(references, other_references)
        if hypotheses == other_hypotheses:  # the test would call a difference of 0 significant
            raise NoTestError("both translate every sentence alike")
    except NoTestError as error:
        return Difference(*names, None, None, None, None, str(error))
    metric = BLEU(lowercase=lowercase, tokenize="none", force=True)
    systems = [(other.name, other_hypotheses), (run.name, hypotheses)]
    signatures, scores = PairedTest(systems, {"BLEU": metric}, [references], test_type="bs")()
    baseline, tested = scores["BLEU"]
    split = COMPOUNDS_SPLIT if run.score(run.best, TEST).bleu_signature.endswith(COMPOUNDS_SPLIT) else ""
    return Difference(*names, tested.score, baseline.score, tested.p_value, f"{signatures['BLEU']}{split}")


def translations(run):
    """Translations and targets of the test set at the best epoch, lists in the order of ids; and whether case is ignored.

    Raises:
        NoTestError: there are none, or they are not whole.

    """
    score = run.score(run.best, TEST)
    if score is None:
        raise NoTestError(f"{run.name} has no score on the test set")
    paths = sorted((run.folder / "decode").glob(f"epoch{score.epoch}.{TEST}.shard*.txt"))
    if not paths:
        raise NoTestError(f"the folder of {run.name} has no translations of epoch {score.epoch}")
    found = {"H": {}, "T": {}}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise NoTestError(f"{path} cannot be read") from None
        for match in filter(None, map(LINE.fullmatch, lines)):
            text = match[3].partition("\t")[2] if match[1] == "H" else match[3]
            found[match[1]][int(match[2])] = text.rstrip("\r")
    if any(set(texts) != set(range(score.lines)) for texts in found.values()):
        raise NoTestError(
            f"the translations of {run.name} are not whole: {len(found['H'])} of {score.lines} sentences, "
            f"{len(found['T'])} targets"
        )
    hypotheses, references = ([texts[number] for number in range(score.lines)] for texts in found.values())
    if score.bleu_signature.endswith(COMPOUNDS_SPLIT):
        hypotheses, references = split_compounds(hypotheses), split_compounds(references)
    return hypotheses, references, re.search(r"\bcase:lc\b", score.bleu_signature) is not None


def same_references(references, others):
    """Refuse two lists of references that are not the same text.

    Raises:
        NoTestError: they differ, in length or in a sentence.

    """
    if len(references) != len(others):
        raise NoTestError(f"the references differ: {len(references)} and {len(others)} sentences")
    for number, (text, other) in enumerate(zip(references, others, strict=True)):
        if text != other:
            raise NoTestError(f"the references differ, first in sentence {number}")
