#!/bin/sh
# Train the adapter that `--model default` means: pairs, four short runs, the mean of their weights, and long texts.
#
#   scripts/default_adapter.sh FOLDER       # some two and a half hours on two cores; goes on where it was stopped
#
# LLMINDEX_SHARED names the folder that holds data/. Then `python scripts/ship_adapter.py FOLDER/adapter` puts the
# adapter into the package.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?usage: scripts/default_adapter.sh FOLDER}
mkdir -p "$folder" && cd "$folder"

[ -e lengths.parquet ] ||
  python "$here/benchmarks/default_adapter_pairs.py" natural.parquet topics.parquet texts.parquet lengths.parquet
llmindex pairs texts.parquet -o generated.parquet --method instruct \
  --instruction detail --instruction simpler --instruction teacher --instruction question

# train RUN PAIRS... -- SETTING...: the default recipe, without its whitening, with these changes.
train() {
  run=$1 && shift
  pairs=
  while [ "$1" != -- ]; do pairs="$pairs $1.parquet" && shift; done
  shift
  settings=
  for setting; do settings="$settings --set $setting"; done
  # shellcheck disable=SC2086 # lists of words without spaces
  [ -e "$run/adapter/encoder.json" ] || llmindex train $pairs -o "$run" --recipe default \
    --set model.whitening=0 --set data.held_out=64 --set optim.gradient_caching=false $settings
}

short="optim.steps=30 optim.schedule=constant optim.warmup_steps=4 optim.evaluate_every=5 data.max_per_source=900"

# These three begin with the same random factors, so that a mean of theirs is an adapter, too.
train a natural topics -- $short model.pooling=last data.max_tokens=48 optim.learning_rate=1e-3
train b natural topics generated -- model.pooling=last data.max_per_source=1500
train c natural topics generated -- $short model.pooling=last data.max_tokens=48 optim.learning_rate=1e-3 \
  data.batches=source loss.false_negative_margin=0.1
[ -e mean/encoder.json ] || python "$here/scripts/average_adapters.py" mean a/adapter b/adapter c/adapter

# Trained for the last token so far; the last quarter of the way with the pooling that it is used with.
train d natural topics generated -- $short model.base=mean data.max_tokens=48 optim.learning_rate=5e-4 data.seed=5
[ -e averaged/encoder.json ] ||
  python "$here/scripts/average_adapters.py" averaged mean mean d/adapter --pairs natural.parquet --dim 320

# All of these were trained on short texts.
[ -e weighed/encoder.json ] || python "$here/scripts/weigh_beginnings.py" weighed averaged lengths.parquet
python "$here/scripts/average_adapters.py" adapter weighed --pairs natural.parquet
