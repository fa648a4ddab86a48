"""Print what the recipes need to know of a corpus.json, a value a line: `python recipes/facts.py {corpus,text,tasks} FILE`.

Needs nothing but Python 3, since a dry run makes no environment.
"""

import json
import sys
from pathlib import Path


def corpus(facts):
    """Of a parallel text: name, languages, the flag of fairseq-ln score where it is lower-cased, note."""
    lowercase = "--lowercase" if facts["lowercase"] else ""
    return facts["name"], facts["source_lang"], facts["target_lang"], lowercase, facts.get("note", "")


def text(facts):
    """Of a masked LM's text: name, words, loss of knowing the subwords' frequencies alone."""
    return facts["name"], sum(facts["words"].values()), facts["unigram_loss"]


def tasks(facts):
    """Of GLUE: name and number, a tab between them, of the rows of each task's train and of each class of its valid."""
    for name, task in facts["tasks"].items():
        yield f"{name} train\t{sum(task['rows']['train'])}"
        for label, rows in enumerate(task["rows"]["valid"]):
            yield f"{name} valid {label}\t{rows}"


def main(kind, path):
    """Print them; exit with one sentence where the file is damaged."""
    try:
        values = list({"corpus": corpus, "text": text, "tasks": tasks}[kind](json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{path} is damaged ({type(error).__name__}: {error}); delete {path.parent} and start again")
    for value in values:
        print(*str(value).splitlines())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
