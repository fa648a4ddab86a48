#!/usr/bin/env bash
# Figure 4 of the paper on WMT14 En-De: Post-LN with warm-up against Pre-LN without, at two learning rates.
#
#   WMT14=~/Downloads/wmt14 LAUNCH="torchrun --nproc_per_node 8" WORKERS=8 bash recipes/wmt14.sh
#   WMT14=wmt14-en-de.tar.gz PRESET=cpu bash recipes/wmt14.sh --only wmt14-pre-adam-lr7e-4-inverse_sqrt
#
# Stages: 1=prepare  the corpus: train of Europarl v7, Common Crawl and News Commentary v9, valid newstest2013, test newstest2014;
#                    tokenized, 37K joint BPE, one dictionary, binarized
#         2=train    the figure's rows of recipes/runs.tsv, settings of appendix A.1
#         3=score    epochs' checkpoints on 500 valid sentences, the last and the best on the test set
#         4=report   RESULTS.md, results.tsv, figures
# Flags: --stage N, --stop-stage N (number or name); --only RUN (may be given several times); --seeds "1 2 3"; --dry-run; --help
# Settings: WMT14=PATH (folder with the official archives or their members, or one archive: see recipes/corpora/wmt14.py) or an address
#           that has wmt13/ and wmt14/ with the archives, such as http://statmt.org; needed until data/wmt14-bpe<merges> is there;
#           PRESET=paper (default: as printed), cpu (smaller model, 12,000 pairs, 8K BPE, warm-up scaled) or smoke (400 pairs, to try
#           the machinery);
#           LAUNCH and WORKERS: 8192 tokens x 16 workers an update are the paper's; with fewer workers UPDATE_FREQ makes up for it;
#           AVERAGE=N: also scores the average of the last N epochs; DATA, RUNS; all others are at the top of recipes/common.sh
# Writes: runs/wmt14-<preset>/RESULTS.md, results.tsv and figures, and <run>/seed<k>/ with logs, scores, checkpoints
# Time:   PRESET=paper has not been run; cpu takes about 40 minutes a run on one core; smoke minutes
# Expect: BLEU is tokenized with hyphenated words split, as papers on WMT14 print it, beside sacreBLEU. The paper gives curves and
#         no number in its text: Pre-LN reaches Post-LN's level, and earlier.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=wmt14
STAGES=(prepare train score report)
PRESET=${PRESET:-paper}
SRC=en TGT=de
SHARED_EMBEDDINGS=all
BEAM=4 LENPEN=0.6 # of Vaswani et al. 2017, whose base model this is; the paper names none for WMT14
SCORING=(--compound-split)
start "$@"
MERGES=${PRESET_ROW[bpe_merges]}
CORPUS=$DATA/wmt14-bpe$MERGES
RUNS=${RUNS:-runs/wmt14-$PRESET}
find_source WMT14 "the official archives are below http://statmt.org"
enter_environment

if stage 1; then make_corpus wmt14.py --merges "$MERGES" --cache "$DATA/wmt14-archives"; fi
if between 2 3; then use_corpus; fi
if stage 2; then each_run train; fi
if stage 3; then each_run score; fi
if stage 4; then report; fi
finish
