# shellcheck shell=bash disable=SC2034  # much of what is set here is read in common.sh
# Figure 5 on the engine of common.sh: masked-LM text, pre-training counted in updates, fine-tuning on MRPC and RTE. Sourced by
# bert.sh after common.sh, of which it replaces what is about translation: describe, dictionary_hashes and is_done.
#
# A fine-tuning is a folder <run>/seed<k>/finetune/<TASK>/update<N>-batch<B>-lr<L>-epochs<E>-seed<S>/ with command.txt, train.log and,
# once it is finished, result.tsv (name, tab, value). It keeps no checkpoints: a killed one starts again.

# -- Devlin et al. 2018, whose settings the paper takes (section 4.1): what no run and no preset changes. No clipping, below, is
# fairseq's RoBERTa's: the paper's text has no word on it --
PRETRAINING=(--task masked_lm --criterion masked_lm --mask-prob 0.15 --sample-break-mode complete_doc
  --optimizer fused_adam --adam-betas "(0.9,0.999)" --adam-eps 1e-06 --weight-decay 0.01)
DROPOUT=0.1
WEIGHT_INIT=fairseq # of its RoBERTa: N(0, 0.02^2), as BERT's
# -- Fine-tuning: Liu et al. 2019b, which appendix A.3 follows; warm-up over 6 % of the updates, then linear decay, in both positions --
FINETUNING=(--task sentence_prediction --criterion sentence_prediction --num-classes 2 --init-token 0 --separator-token 2
  --report-acc-and-f1 --optimizer fused_adam --adam-betas "(0.9,0.98)" --adam-eps 1e-06 --weight-decay 0.1 --clip-norm 0.0)
WARMUP_PERCENT=6
declare -A FIGURES=([MRPC]=5b [RTE]=5c) # a run is fine-tuned on the tasks of its figures
TASKS=(MRPC RTE)

UNIT=update
PAIRS=

# masked_lm_settings: the preset's row of masked_lm.tsv, and the settings from outside that take its place, checked.
masked_lm_settings() {
  local value rate='^([0-9]+(\.[0-9]*)?|\.[0-9]+)(e-?[0-9]+)?$'
  declare -gA LENGTHS=()
  read_row LENGTHS recipes/masked_lm.tsv "preset=$PRESET" || die "recipes/masked_lm.tsv has no row of preset '$PRESET'"
  TOKENS_PER_SAMPLE=${LENGTHS[tokens_per_sample]} UPDATES=${LENGTHS[max_update]}
  read -r -a UPDATES_LIST <<<"${FINETUNE_UPDATES:-${LENGTHS[finetune_updates]}}"
  read -r -a BATCH_SIZE_LIST <<<"${FINETUNE_BATCH_SIZES:-${LENGTHS[batch_sizes]}}"
  read -r -a LR_LIST <<<"${FINETUNE_LRS:-${LENGTHS[lrs]}}"
  read -r -a EPOCHS_LIST <<<"${FINETUNE_EPOCHS:-${LENGTHS[epochs]}}"
  read -r -a FINETUNE_SEED_LIST <<<"${FINETUNE_SEEDS:-${LENGTHS[seeds]}}"
  for value in "${UPDATES_LIST[@]}" "${BATCH_SIZE_LIST[@]}" "${EPOCHS_LIST[@]}" "${FINETUNE_SEED_LIST[@]}"; do
    is_count "$value" || die "FINETUNE_UPDATES, _BATCH_SIZES, _EPOCHS and _SEEDS take whole numbers from 1 on, not '$value'"
  done
  for value in "${LR_LIST[@]}"; do
    [[ $value =~ $rate && $value =~ [1-9] ]] || die "FINETUNE_LRS takes learning rates such as 1e-5, not '$value'"
  done
  for value in "${UPDATES_LIST[@]}"; do
    ((value <= UPDATES && value % LENGTHS[save_interval_updates] == 0)) ||
      die "FINETUNE_UPDATES: no checkpoint at update $value; preset $PRESET keeps one each ${LENGTHS[save_interval_updates]}" \
        "updates up to $UPDATES"
  done
  ((WORKER_TOKENS >= TOKENS_PER_SAMPLE)) ||
    die "a worker's share of an update is $WORKER_TOKENS tokens (WORKERS=$WORKERS, UPDATE_FREQ=$UPDATE_FREQ), and a sample has up to" \
      "$TOKENS_PER_SAMPLE; use fewer workers or a smaller UPDATE_FREQ"
  [[ -z $MAX_EPOCH$MAX_UPDATE$AVERAGE ]] ||
    die "MAX_EPOCH, MAX_UPDATE and AVERAGE do not go with $RECIPE.sh: recipes/masked_lm.tsv has the lengths of its runs"
  GRID="updates ${UPDATES_LIST[*]}; batch ${BATCH_SIZE_LIST[*]}; lr ${LR_LIST[*]}; epochs ${EPOCHS_LIST[*]};"
  GRID+=" seeds ${FINETUNE_SEED_LIST[*]}"
}

# -- Text and tasks --

dictionary_hashes() { sha256 "$1/dict.txt"; }

# binarize_text: the subwords in CORPUS to BIN, with the whole vocabulary as dictionary.
binarize_text() {
  local work=$BIN.partial
  if is_binarized; then return; fi
  if [[ $DRY_RUN ]]; then work=$BIN; else work_alone "$work"; fi
  preprocess "$work" --only-source --trainpref "$CORPUS/train" --validpref "$CORPUS/valid" --srcdict "$CORPUS/dict.txt" \
    --destdir "$work" --workers "$CORES"
  [[ ! $DRY_RUN ]] || return 0
  [[ -s $work/dict.txt && -s $work/valid.bin ]] || die "fairseq-preprocess wrote no dict.txt or valid.bin; see $work/output.log"
  work_is_bin "$work"
}

# make_tasks: MRPC and RTE in the subwords of BIN's dictionary.
make_tasks() {
  local before=''
  [[ ! -f $TASKS_FOLDER/corpus.json ]] || before=yes
  do_or_show python recipes/corpora/glue.py --out "$TASKS_FOLDER" --from "$GLUE" --model "$CORPUS/sentencepiece.model" \
    --dict "$BIN/dict.txt" --max-subwords "$TOKENS_PER_SAMPLE" || die "the tasks could not be made from $GLUE; see above"
  [[ $before || $DRY_RUN ]] || WORKED=yes
}

# use_text: what the stages after the first need to know of the text.
use_text() {
  local facts
  CORPUS_NAME='' WORDS='' UNIGRAM_LOSS=''
  [[ $DRY_RUN && ! -f $CORPUS/corpus.json ]] && return
  [[ -f $CORPUS/corpus.json && -f $BIN/dict.txt ]] || die "$CORPUS holds no prepared text; start with stage 1"
  facts=$(any_python recipes/facts.py text "$CORPUS/corpus.json") || exit 1
  { read -r CORPUS_NAME && read -r WORDS && read -r UNIGRAM_LOSS; } <<<"$facts"
}

# use_tasks: ROWS, how many rows each task has: "MRPC train", and of each class of valid: "MRPC valid 0", "MRPC valid 1".
use_tasks() {
  local name value facts
  declare -gA ROWS=()
  if [[ $DRY_RUN && ! -f $TASKS_FOLDER/corpus.json ]]; then
    for name in "${TASKS[@]}"; do ROWS["$name train"]=1; done
    return
  fi
  [[ -f $TASKS_FOLDER/corpus.json ]] || die "$TASKS_FOLDER holds no prepared tasks; give GLUE=PATH"
  facts=$(any_python recipes/facts.py tasks "$TASKS_FOLDER/corpus.json") || exit 1
  while IFS=$'\t' read -r name value; do ROWS["$name"]=$value; done <<<"$facts"
}

# -- Pre-training --

# describe RUN SEED: sets RUN_FOLDER, the arguments TRAIN of fairseq-train, and SETTINGS (name, tab, value).
describe() {
  local run=$1 seed=$2 warmup schedule=()
  declare -gA ROW=()
  read_row ROW recipes/runs.tsv "study=$STUDY" "run=$run" || die "there is no run '$run' in recipes/runs.tsv"
  [[ ${ROW[optimizer]} == adam ]] || die "recipes/runs.tsv: $run has optimizer '${ROW[optimizer]}', and BERT is trained with adam"
  RUN_FOLDER=$RUNS/$run/seed$seed
  LENGTH=$UPDATES
  preset_sizes encoder
  warmup=${ROW[warmup_updates]}
  [[ -z $warmup ]] || warmup=$(scaled_warmup "$warmup")
  case ${ROW[schedule]}-${ROW[decay]} in
    polynomial_decay-) schedule=(--warmup-updates "$warmup" --total-num-update "$UPDATES") ;;
    no_warmup-linear) schedule=(--decay linear --total-updates "$UPDATES") ;;
    *) die "recipes/runs.tsv: unknown schedule '${ROW[schedule]}' of $run" ;;
  esac
  # epochs' checkpoints are kept too: an update whose checkpoint is wanted may be the last one of an epoch, and has that name then
  TRAIN=("$BIN" --user-dir "$USER_DIR" "${PRETRAINING[@]}" --tokens-per-sample "$TOKENS_PER_SAMPLE"
    --max-positions "$TOKENS_PER_SAMPLE" --arch "${PRESET_ROW[arch]}" ${SIZES[@]+"${SIZES[@]}"}
    --ln-position "${ROW[ln_position]}"
    --weight-init "$WEIGHT_INIT" --compute-dtype "$COMPUTE_DTYPE" --dropout "$DROPOUT" --attention-dropout "$DROPOUT"
    --clip-norm 0.0 --lr "${ROW[lr]}" --lr-scheduler "${ROW[schedule]}" "${schedule[@]}"
    --max-tokens "$WORKER_TOKENS" --update-freq "$UPDATE_FREQ" --distributed-world-size "$WORKERS" "${EVERY_SENTENCE[@]}"
    --max-update "$UPDATES" --save-interval-updates "${LENGTHS[save_interval_updates]}" --seed "$seed"
    --save-dir "$RUN_FOLDER/checkpoints" --grad-norm-interval "${PRESET_ROW[grad_norm_interval]}"
    --log-format json --log-interval "${PRESET_ROW[log_interval]}")
  SETTINGS=$(
    printf '%s\t%s\n' study "$STUDY" run "$run" figure "${ROW[figure]}" data "$CORPUS_NAME" pairs "$PAIRS" words "$WORDS" \
      unigram_loss "$UNIGRAM_LOSS" preset "$PRESET" task masked_lm arch "$ARCH" ln_position "${ROW[ln_position]}" \
      weight_init "$WEIGHT_INIT" compute_dtype "$COMPUTE_DTYPE" optimizer "${ROW[optimizer]}" lr "${ROW[lr]}" \
      schedule "${ROW[schedule]}" warmup_updates "$warmup" hold_epochs '' decay "${ROW[decay]}" \
      dropout "$DROPOUT" label_smoothing 0 tokens_per_sample "$TOKENS_PER_SAMPLE" batch "$BATCH" max_tokens "$MAX_TOKENS" \
      update_freq "$UPDATE_FREQ" max_epoch '' max_update "$UPDATES" seed "$seed" note "${ROW[note]}"
  )
}

# -- Fine-tuning --

# is_done FOLDER: whether a run is fine-tuned with all of this grid.
is_done() { [[ -f $1/done && $(<"$1/done") == "$GRID" ]]; }

# finetune RUN SEED LABEL: every task, checkpoint and cell of the grid with every seed; then the run is done.
finetune() {
  local task updates tasks=() number=0 checkpoint cell label ran=0 began=$SECONDS
  describe "$1" "$2"
  for task in "${TASKS[@]}"; do [[ ,${ROW[figure]}, != *,${FIGURES[$task]},* ]] || tasks+=("$task"); done
  cells_of ${tasks[@]+"${tasks[@]}"}
  if [[ $DRY_RUN ]]; then
    log "$3: ${#CELLS[@]} fine-tunings, of which the first of each checkpoint and task is shown"
    show_finetunings ${tasks[@]+"${tasks[@]}"}
    return
  fi
  finished train "$1" "$2" || die "$1, seed $2, is not pre-trained; start with stage pretrain"
  lock_run
  claim
  if finished finetune "$1" "$2"; then
    log "$3: fine-tuned already"
    unlock_run
    return
  fi
  if [[ -f $RUN_FOLDER/diverged ]]; then
    log "$3: diverged, so it is not fine-tuned"
    CELLS=()
  fi
  rm -f "$RUN_FOLDER/done" # of a smaller grid: until this one is whole, the report takes none of it
  for cell in ${CELLS[@]+"${CELLS[@]}"}; do
    number=$((number + 1)) label="$3: fine-tuning $number of ${#CELLS[@]}"
    read -r _ updates _ <<<"$cell"
    checkpoint=$(checkpoint_at "$updates") || exit 1
    # shellcheck disable=SC2086  # six words
    describe_finetuning $cell "$checkpoint"
    if is_finetuned; then continue; fi
    ((ran == 0)) || log "$label: about $(minutes $(((SECONDS - began) * (${#CELLS[@]} - number + 1) / ran))) left of this run"
    finetune_once "$label"
    ran=$((ran + 1))
  done
  printf '%s\n' "$GRID" | write "$RUN_FOLDER/done"
  unlock_run
}

# cells_of TASK...: CELLS, every fine-tuning of these tasks: "TASK UPDATES BATCH_SIZE LR EPOCHS SEED", the last changing first.
cells_of() {
  CELLS=()
  (($#)) || return 0
  mapfile -t CELLS < <(printf '%s\n' "$@" | with_each "${UPDATES_LIST[@]}" | with_each "${BATCH_SIZE_LIST[@]}" |
    with_each "${LR_LIST[@]}" | with_each "${EPOCHS_LIST[@]}" | with_each "${FINETUNE_SEED_LIST[@]}")
}

# with_each WORD...: every line of standard input with the first word at its end, with the second, and so on.
with_each() {
  local line word
  while IFS= read -r line; do
    for word; do echo "$line $word"; done
  done
}

# show_finetunings TASK...: the command of each task's and checkpoint's first fine-tuning.
show_finetunings() {
  local task updates
  for task; do
    for updates in "${UPDATES_LIST[@]}"; do
      describe_finetuning "$task" "$updates" "${BATCH_SIZE_LIST[0]}" "${LR_LIST[0]}" "${EPOCHS_LIST[0]}" "${FINETUNE_SEED_LIST[0]}" \
        "checkpoint_EPOCH_$updates.pt"
      quoted fairseq-train "${FINETUNE[@]}"
    done
  done
}

# checkpoint_at UPDATE: the checkpoint's file; fairseq names it after its epoch where the epoch ended there.
checkpoint_at() {
  local folder=$RUN_FOLDER/checkpoints files line epoch
  files=("$folder"/checkpoint_*_"$1".pt)
  if [[ ! -f ${files[0]} ]]; then
    line=$(grep -F '| valid | {' "$RUN_FOLDER/train.log" | grep -E "\"valid_num_updates\": \"?$1[\",}]" | tail -n 1) &&
      epoch=$(json_field epoch "$line") && files=("$folder/checkpoint$epoch.pt")
  fi
  [[ -f ${files[0]} ]] || die "$folder holds no checkpoint of update $1; delete $RUN_FOLDER to train it again"
  printf '%s\n' "${files[0]}"
}

# describe_finetuning TASK UPDATES BATCH_SIZE LR EPOCHS SEED CHECKPOINT: sets FINETUNE_FOLDER, the arguments FINETUNE of
# fairseq-train, and FINETUNE_SETTINGS (name, tab, value).
describe_finetuning() {
  local task=$1 updates=$2 batch_size=$3 lr=$4 epochs=$5 seed=$6 checkpoint=$7 total warmup
  FINETUNE_FOLDER=$RUN_FOLDER/finetune/$task/update$updates-batch$batch_size-lr$lr-epochs$epochs-seed$seed
  total=$((epochs * ((ROWS["$task train"] + batch_size - 1) / batch_size)))
  warmup=$((total * WARMUP_PERCENT / 100))
  FINETUNE=("$TASKS_FOLDER/$task" --user-dir "$USER_DIR" "${FINETUNING[@]}" --restore-file "$checkpoint"
    --reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler --max-positions "$TOKENS_PER_SAMPLE"
    --arch "${PRESET_ROW[arch]}" ${SIZES[@]+"${SIZES[@]}"} --ln-position "${ROW[ln_position]}" --compute-dtype "$COMPUTE_DTYPE"
    --dropout "$DROPOUT" --attention-dropout "$DROPOUT" --lr "$lr" --lr-scheduler polynomial_decay
    --warmup-updates "$warmup" --total-num-update "$total" --batch-size "$batch_size" "${EVERY_SENTENCE[@]}"
    --max-epoch "$epochs" --validate-interval "$epochs" --no-save --save-dir "$FINETUNE_FOLDER" --seed "$seed"
    --distributed-world-size 1 --log-format json --log-interval 50)
  FINETUNE_SETTINGS=$(
    printf '%s\t%s\n' task "$task" updates "$updates" batch_size "$batch_size" lr "$lr" epochs "$epochs" seed "$seed" \
      rows_of_class_0 "${ROWS["$task valid 0"]:-}" rows_of_class_1 "${ROWS["$task valid 1"]:-}"
  )
}

# is_finetuned: whether the fine-tuning just described has its result; refuses one of other settings.
is_finetuned() {
  [[ -f $FINETUNE_FOLDER/result.tsv ]] || return 1
  need_same_settings "$FINETUNE_FOLDER" "$(<"$FINETUNE_FOLDER/command.txt")" "$(quoted fairseq-train "${FINETUNE[@]}")" \
    "fine-tune again"
}

# finetune_once LABEL: one fine-tuning to its result: accuracy and F1 on valid after the last epoch, in percent, or a divergence.
finetune_once() {
  local status found task=${FINETUNE[0]}
  [[ $(sha256 "$task/input0/dict.txt") == "$(<"$RUN_FOLDER/dictionaries.sha256")" ]] ||
    die "the dictionary in $task is not that of the checkpoint's training ($RUN_FOLDER); delete $TASKS_FOLDER and start again"
  mkdir -p "$FINETUNE_FOLDER"
  quoted fairseq-train "${FINETUNE[@]}" | write "$FINETUNE_FOLDER/command.txt"
  log "$1: ${FINETUNE_FOLDER#"$RUN_FOLDER/finetune/"}"
  set +e
  fairseq-train "${FINETUNE[@]}" </dev/null >"$FINETUNE_FOLDER/train.log" 2>&1
  status=$?
  set -e
  if ((status == 0)); then
    found=$(last_valid "$FINETUNE_FOLDER/train.log") ||
      die "fairseq-train ended without accuracy and F1; see $FINETUNE_FOLDER/train.log"
    log "$1: $(tr '\t\n' '  ' <<<"$found")"
  elif divergence "$FINETUNE_FOLDER/train.log" >/dev/null; then
    found=$(printf '%s\t%s\n' accuracy '' f1 '')
    log "$1: diverged; a result, going on"
  else
    die "the fine-tuning stopped with status $status ($(tail -n 1 "$FINETUNE_FOLDER/train.log" | cut -c 1-200)); see" \
      "$FINETUNE_FOLDER/train.log, and start again to go on"
  fi
  printf '%s\n' "$FINETUNE_SETTINGS" "$found" | write "$FINETUNE_FOLDER/result.tsv"
}

# last_valid LOG: accuracy and f1 of the last validation; status 1 where the log has none.
last_valid() {
  local line accuracy f1
  line=$(grep -F '| valid | {' "$1" | tail -n 1) && accuracy=$(json_field valid_accuracy "$line") &&
    f1=$(json_field valid_f1 "$line") && printf '%s\t%s\n' accuracy "$accuracy" f1 "$f1"
}
