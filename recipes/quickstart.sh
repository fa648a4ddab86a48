#!/usr/bin/env bash
# The paper's main result on one screen and in minutes: a small 6-6 Transformer on real De-En text, trained three times.
# Post-LN with warm-up trains, Post-LN without it falls behind or fails, Pre-LN needs none.
#
#   bash recipes/quickstart.sh
#   bash recipes/quickstart.sh --only quickstart-pre-adam-lr1e-3-held --dry-run
#
# Stages: 1=prepare  the environment; the help texts of LibreOffice, or made-up text where apt-get cannot download them
#         2=train    the three quickstart rows of recipes/runs.tsv
#         3=score    validation loss and BLEU of every epoch, fairseq-generate with beam 5
#         4=report   RESULTS.md, results.tsv, figures
# Flags: --stage N, --stop-stage N (number or name), --only RUN (may be given several times), --seeds "1 2 3", --dry-run, --help
# Settings: PRESET=cpu (default) or smoke; DATA, RUNS: folders; all others are at the top of recipes/common.sh
# Writes: runs/quickstart/RESULTS.md and results.tsv, figures; runs/quickstart/<run>/seed<k>/: logs, scores, checkpoints
# Time: 15 to 20 minutes on 2 CPU cores with AVX-512, 40 with AVX2, after about 5 minutes of set-up at the first start
# Expect: BLEU as in results/quickstart: Pre-LN without warm-up 21.15, far ahead of Post-LN with it, 6.87; Post-LN without it 0.01
#         (the paper on the whole of IWSLT14: about 34, 34, at most 8.45)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=quickstart
STAGES=(prepare train score report)
PRESET=${PRESET:-cpu}
start "$@"
RUNS=${RUNS:-runs/quickstart$([[ $PRESET == cpu ]] || echo "-$PRESET")}
REAL=$DATA/libreoffice-help # what stage 1 tries first
MADE_UP=$DATA/grammar       # and what it falls back on
CORPUS=$REAL
# a study stays with the corpus that it began with
began=$(cat "$RUNS"/*/seed*/settings.tsv 2>/dev/null | awk -F '\t' '$1 == "data" { print $2; exit }' || true)
if [[ $began == grammar || (! $began && -f $MADE_UP/corpus.json && ! -f $REAL/corpus.json) ]]; then CORPUS=$MADE_UP; fi
enter_environment

if stage 1; then
  status=0
  if [[ $DRY_RUN || ! -f $CORPUS/corpus.json ]]; then
    do_or_show python recipes/corpora/libreoffice_help.py --out "$REAL" || status=$?
  fi
  if ((status == 3)); then
    log "the LibreOffice packages cannot be had here; taking MADE-UP text from the built-in grammar instead"
    CORPUS=$MADE_UP
    python recipes/corpora/grammar.py --out "$MADE_UP" || die "recipes/corpora/grammar.py failed; see above"
  elif ((status > 0)); then
    die "recipes/corpora/libreoffice_help.py failed; see above"
  fi
  [[ $CORPUS == "$REAL" ]] || log "the text is MADE UP: scores say nothing about real language"
  binarize
fi
if between 2 3; then use_corpus; fi
if stage 2; then each_run train; fi
if stage 3; then each_run score; fi
if stage 4; then report; fi
finish
