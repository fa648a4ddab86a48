#!/usr/bin/env bash
# Figure 3 of the paper: gradients of the FFN matrices, before training and after the warm-up stage, on IWSLT14 De-En.
#
#   IWSLT14=~/Downloads/de-en.tgz bash recipes/gradients.sh
#   COMPUTE_DTYPE=bfloat16 CHECKPOINT=runs/iwslt14-paper/RUN/seed1/checkpoints/checkpoint14.pt bash recipes/gradients.sh --stage after
#
# Stages: 1=prepare    the corpus: tokenized, BPE, binarized (as recipes/iwslt14.sh, which may have done it)
#         2=gradients  before training: both positions, all depths, SEEDS; then the other inits with OTHER_SEEDS
#         3=warmup     trains Post-LN for its warm-up stage (unless CHECKPOINT is set)
#         4=after      the same measurement of that checkpoint
#         5=report     RESULTS.md, figure3.tsv, figures (measures first what stage 2 has not)
# Flags: --stage N, --stop-stage N (number or name); --only RUN: of recipes/runs.tsv, whose warm-up stage to train (may be given
#        several times; default: iwslt14-post-adam-lr5e-4-warmup4000); --seeds "1 2 3"; --dry-run; --help
# Settings: IWSLT14 as in recipes/iwslt14.sh, which stage 1 starts;
#           PRESET=paper (default: 512/1024/4, 4096 tokens), cpu (smaller model) or smoke (minutes);
#           LAYERS ("6 8 10 12 14"), SEEDS ("1 2 ... 10"), BATCHES (mini-batches a model, 16), WEIGHT_INIT (xavier_uniform),
#           OTHER_INITS ("xavier_normal fairseq") with OTHER_SEEDS ("1 2 3"), JOBS (processes that measure at a time, 2),
#           MAX_UPDATE (of stage 3; default: the run's warm-up), WARMUP_TOKENS (tokens an update of stage 3; default: the preset's),
#           CHECKPOINT (a file to measure in stage 4, or several with spaces between them), COMPUTE_DTYPE, DATA, RUNS
# Writes: runs/gradients-<preset>/RESULTS.md, figure3.tsv, figure3_trained.tsv, figure3.json, figures, measurements.jsonl
# Time:   stage 2 with PRESET=paper COMPUTE_DTYPE=bfloat16 about an hour on 2 idle CPU cores, two and a half in float32;
#         4000 updates of stage 3 about an hour and a half in bfloat16, an hour with WARMUP_TOKENS=512 in float32.
#         Killed, every stage goes on where it was.
# Expect: Post-LN's last W2 about 1.6 at every depth in the paper, Pre-LN falling with depth; after warm-up Post-LN very small
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PRESET=${PRESET:-paper}
JOBS=${JOBS:-2}
if [[ $PRESET == smoke ]]; then
  SEEDS=${SEEDS:-1 2} LAYERS=${LAYERS:-2 3} BATCHES=${BATCHES:-3} OTHER_SEEDS=${OTHER_SEEDS-1}
else
  SEEDS=${SEEDS:-1 2 3 4 5 6 7 8 9 10} LAYERS=${LAYERS:-6 8 10 12 14} BATCHES=${BATCHES:-16} OTHER_SEEDS=${OTHER_SEEDS-1 2 3}
fi
OTHER_INITS=${OTHER_INITS-xavier_normal fairseq}
CHOSEN_INIT=${WEIGHT_INIT:-xavier_uniform} CHOSEN_UPDATES=${MAX_UPDATE:-}
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=iwslt14
STAGES=(prepare gradients warmup after report)
WARMUP_RUN=iwslt14-post-adam-lr5e-4-warmup4000
start "$@"
WEIGHT_INIT=$CHOSEN_INIT # common.sh has a default of its own
[[ " $* " == *' --only '* ]] || RUN_NAMES=("$WARMUP_RUN")
CORPUS=$DATA/iwslt14
RUNS=${RUNS:-runs/gradients-$PRESET}
read -r -a LAYER_LIST <<<"$LAYERS"
read -r -a INIT_LIST <<<"$OTHER_INITS"
read -r -a OTHER_SEED_LIST <<<"$OTHER_SEEDS"
CHECKPOINT_LIST=(${CHECKPOINT:+"$CHECKPOINT"})
from_caller CHECKPOINT_LIST
if [[ ${CHECKPOINT:-} && ! -f ${CHECKPOINT_LIST[0]} ]]; then # several
  read -r -a CHECKPOINT_LIST <<<"$CHECKPOINT"
  for i in "${!CHECKPOINT_LIST[@]}"; do from_caller "CHECKPOINT_LIST[$i]"; done
fi
for number in "${LAYER_LIST[@]}" "$BATCHES" ${OTHER_SEED_LIST[@]+"${OTHER_SEED_LIST[@]}"}; do
  is_count "$number" || die "LAYERS, BATCHES and OTHER_SEEDS take whole numbers from 1 on, not '$number'"
done
for file in ${CHECKPOINT_LIST[@]+"${CHECKPOINT_LIST[@]}"}; do
  [[ -f $file ]] || die "CHECKPOINT=$file does not exist; give a checkpoint of this plug-in's Transformer"
done
WARMUP_TOKENS=${WARMUP_TOKENS:-$MAX_TOKENS}
is_count "$WARMUP_TOKENS" || die "WARMUP_TOKENS must be a whole number from 1 on, but is '$WARMUP_TOKENS'"
((WORKERS == 1 && UPDATE_FREQ == 1)) || die "gradients are measured by single processes; leave LAUNCH, WORKERS and UPDATE_FREQ out"

# measure SEEDS FLAG...: fairseq-ln gradients into RUNS, the seeds shared out among JOBS processes.
measure() {
  local seeds share i j pid before pids=() failed=''
  local command=(fairseq-ln gradients "$BIN" --out "$RUNS" --source-lang "$SRC" --target-lang "$TGT" --batches "$BATCHES"
    --max-tokens "$MAX_TOKENS" --compute-dtype "$COMPUTE_DTYPE" --dropout "$DROPOUT" --label-smoothing "$LABEL_SMOOTHING"
    "${@:2}")
  read -r -a seeds <<<"$1"
  if [[ $DRY_RUN ]]; then
    quoted "${command[@]}" --seeds "${seeds[@]}"
    return
  fi
  before=$(measurements)
  threads $((CORES / JOBS > 0 ? CORES / JOBS : 1))
  for ((i = 0; i < JOBS && i < ${#seeds[@]}; i++)); do
    share=()
    for ((j = i; j < ${#seeds[@]}; j += JOBS)); do share+=("${seeds[j]}"); done
    (
      use_gpu "$i"
      exec "${command[@]}" --seeds "${share[@]}"
    ) </dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=yes; done
  [[ -z $failed ]] || die "fairseq-ln gradients failed; see above, and start again to go on"
  [[ $(measurements) == "$before" ]] || WORKED=yes
}

measurements() { if [[ -f $RUNS/measurements.jsonl ]]; then wc -l <"$RUNS/measurements.jsonl"; else echo 0; fi; }

initial() { measure "$1" --arch "${PRESET_ROW[arch]}" --layers "${LAYER_LIST[@]}" --ln-position post pre --weight-init "${@:2}"; }

# warm_up RUN: sets RUN_FOLDER; trains the run for its warm-up stage, and no further.
warm_up() {
  local seed=${SEED_LIST[0]} MAX_TOKENS=$WARMUP_TOKENS WORKER_TOKENS BATCH
  share_tokens "$MAX_TOKENS"
  describe "$1" "$seed"
  MAX_UPDATE=${CHOSEN_UPDATES:-$(awk -F '\t' '$1 == "warmup_updates" { print $2 }' <<<"$SETTINGS")}
  is_count "$MAX_UPDATE" || die "$1 has no warm-up stage; set MAX_UPDATE, or choose another --only"
  if [[ ! $DRY_RUN ]] && ! finished train "$1" "$seed"; then WORKED=yes; fi
  threads "$CORES"
  train "$1" "$seed" "$1, $MAX_UPDATE updates of warm-up"
  [[ ! -f $RUN_FOLDER/diverged ]] || die "$1 diverged in its warm-up stage, so there is nothing to measure; see $RUN_FOLDER/train.log"
}

enter_environment
[[ $DRY_RUN ]] || check_environment train

if stage 1; then
  PRESET=$PRESET bash recipes/iwslt14.sh --stop-stage 1 ${DRY_RUN:+--dry-run} || exit 1
fi
if between 2 5; then use_corpus; fi
if stage 2; then
  initial "$SEEDS" "$WEIGHT_INIT"
  if ((${#INIT_LIST[@]} && ${#OTHER_SEED_LIST[@]})); then initial "$OTHER_SEEDS" "${INIT_LIST[@]}"; fi
fi
TRAINED=(${CHECKPOINT_LIST[@]+"${CHECKPOINT_LIST[@]}"})
if between 3 4 && ((${#TRAINED[@]} == 0)); then
  if stage 3; then warming=yes; else warming=; fi
  for run in "${RUN_NAMES[@]}"; do
    if [[ $warming ]]; then warm_up "$run"; else describe "$run" "${SEED_LIST[0]}"; fi
    [[ -f $RUN_FOLDER/trained || $DRY_RUN ]] || die "$run is not warmed up; start with stage warmup, or set CHECKPOINT"
    TRAINED+=("$RUN_FOLDER/checkpoints/checkpoint_last.pt")
  done
fi
if stage 4; then measure "$SEEDS" --checkpoint "${TRAINED[@]}"; fi
if stage 5; then
  JOBS=1
  initial "$SEEDS" "$WEIGHT_INIT"
fi
finish
