#!/usr/bin/env bash
# The paper's main result on your own parallel text: Pre-LN without warm-up against Post-LN with and without it.
#
#   bash recipes/study.sh --src de --tgt en --train raw/train --valid raw/dev --test raw/test
#   PRESET=paper bash recipes/study.sh --src fr --tgt en --train a/train --valid a/valid --test a/test --out runs/fr-en
#
# Stages: 1=prepare  the corpus: checked, tokenized, joint BPE learned on it, binarized
#         2=train    the three rows of the study "own" in recipes/runs.tsv
#         3=score    epochs' checkpoints on 500 valid sentences, the last and the best on the test set
#         4=report   RESULTS.md, results.tsv, figures
# Flags: --src LANG, --tgt LANG; --train, --valid, --test PREFIX: raw text PREFIX.LANG, line n of one translating line n of the other
#        (all five for stage 1);
#        --out FOLDER (default runs/own-SRC-TGT): all that is made, to be given again at the next start;
#        --stage N, --stop-stage N (number or name); --only RUN (may be given several times); --seeds "1 2 3"; --dry-run; --help
# Settings: PRESET=cpu (default: small model), paper (the paper's IWSLT14 size) or smoke (400 pairs, to try the machinery);
#           all others are at the top of recipes/common.sh
# Writes: FOLDER/RESULTS.md, results.tsv and figures; FOLDER/corpus; FOLDER/<run>/seed<k>/ with logs, scores, checkpoints
# Time:   15 epochs of your text, three times; the log says how long that takes after the first updates
# Expect: Pre-LN without warm-up near Post-LN with it, Post-LN without it behind or failing. Warm-up is as in the paper in proportion
#         to the updates: 4000 of 17,000
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=own
STAGES=(prepare train score report)
PRESET=${PRESET:-cpu}
FLAGS=([src]='' [tgt]='' [train]='' [valid]='' [test]='' [out]='')
start "$@"
SOURCE=() SOURCE_HINT="check --train, --valid and --test"
for name in src tgt train valid test; do
  value=${FLAGS[$name]}
  [[ $value || $FIRST_STAGE -gt 1 ]] || die "--$name is missing; see bash recipes/study.sh --help"
  [[ $name == src || $name == tgt ]] || from_caller value
  SOURCE+=("--$name" "$value")
done
SRC=${FLAGS[src]} TGT=${FLAGS[tgt]} OUT=${FLAGS[out]}
from_caller OUT
[[ ${OUT:-${RUNS:-}} || ($SRC && $TGT) ]] || die "--out is missing: the folder of the study; or give --src and --tgt, as at its start"
RUNS=${OUT:-${RUNS:-$PWD/runs/own-$SRC-$TGT$([[ $PRESET == cpu ]] || echo "-$PRESET")}}
CORPUS=$RUNS/corpus
enter_environment

if stage 1; then make_corpus own.py ${PRESET_ROW[bpe_merges]:+--merges "${PRESET_ROW[bpe_merges]}"}; fi
if between 2 3; then use_corpus; fi
if stage 2; then each_run train; fi
if stage 3; then each_run score; fi
if stage 4; then report; fi
finish
