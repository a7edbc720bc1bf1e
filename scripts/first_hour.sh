#!/usr/bin/env bash
# What a newcomer brings in a first hour, from an empty folder: a net, samples, a checkpoint, a loss and a strategy of one's own.
# Each ends in a spectrum of certified matrices, or this ends with status 1. docs/howto/own_data.md and its neighbors explain the commands.
#   scripts/first_hour.sh                     all (those whose library is not installed are left out, and named)
#   scripts/first_hour.sh dataset focal       these alone
#   PYTHON=…/python scripts/first_hour.sh     another environment than .venv
#   OPTIONS="training.num_steps=20" scripts/first_hour.sh     with these options more in each run
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHON=${PYTHON:-$here/../.venv/bin/python} PYTHONPATH=$here/..:$here/first_hour${PYTHONPATH:+:$PYTHONPATH}
folder=$(mktemp -d "${TMPDIR:-/tmp}/first_hour.XXXXXX")
[ -n "${KEEP:-}" ] && echo "kept: $folder" || trap 'rm -rf "$folder"' EXIT
cd "$folder"
status=0

first_hour() {  # name, the library that it needs or "", what is done before, and the options of the run
  local name=$1 library=$2 before=$3 start=$SECONDS
  shift 3
  [ ${#asked[@]} -eq 0 ] || [[ " ${asked[*]} " == *" $name "* ]] || return 0
  if [ -n "$library" ] && ! "$PYTHON" -c "import $library" 2>/dev/null; then
    echo "left out  $name: $library is not installed"
    return 0
  fi
  echo "          $name: python -m pipeline.run $*"
  if { [ -z "$before" ] || "$PYTHON" "$here/first_hour/$before"; } > "$name.log" 2>&1 &&
    "$PYTHON" -m pipeline.run "$@" dtype=float64 tracking=none ${OPTIONS:-} "hydra.run.dir=$folder/$name" >> "$name.log" 2>&1 &&
    "$PYTHON" "$here/first_hour/check.py" "$name"; then
    echo "done      $name in $((SECONDS - start)) s"
  else
    tail -n 5 "$name.log"
    echo "FAILED    $name"
    status=1
  fi
}

asked=("$@")
first_hour tokens "" make_tokens.py data=arrays data.path=tokens.npz data.inputs=tokens data.targets=even model._target_=mine.TokenLSTM
first_hour dataset "" "" data=own data._target_=mine.Rings model.hidden_sizes=[12] strategy=hvp
first_hour timm timm "" data=own data._target_=mine.Shapes model=timm model.name=test_vit 'parameters=head.*' training.num_steps=20
first_hour huggingface transformers make_tokens.py data=arrays data.path=tokens.npz data.inputs=tokens data.targets=even \
  model=huggingface model.config=gpt2 model.head=SequenceClassification +model.vocab_size=12 +model.n_layer=1 +model.n_embd=8 \
  +model.n_head=2 +model.n_positions=7 +model.pad_token_id=0 training.num_steps=50
first_hour lightning lightning train_lightning.py data=own data._target_=mine.Rings model._target_=train_lightning.net \
  training=pretrained "training.path='checkpoints/epoch=2-step=9.ckpt'"
first_hour focal "" "" data=own data._target_=mine.Rings criterion._target_=mine.FocalLoss +criterion.gamma=2.0
first_hour strategy "" "" data=own data._target_=mine.Rings model.hidden_sizes=[6] strategy._target_=mine.CentralDifferences +strategy.step=1e-5
exit $status
