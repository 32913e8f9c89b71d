#!/usr/bin/env bash
# The paper's Table 2 on Fashion-MNIST at 32x32: six rows, three seeds, one run at a time on one GPU.
# Never run as a whole: no GPU was at hand. --dry_run prints the runs; other options go to the sweep.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${WORKDIR:-runs/fashion_table2}

sweep() {
    python -m launch.sweep --config=experiments/configs/fashion_mnist.py --ablations=table2 \
        --seeds=0,1,2 --workdir="$workdir" \
        --config.data.pad_to=32 "--config.model.attention_resolutions=(16,)" \
        --config.train.preview_every=0 --config.train.diverged_above=10 \
        --config.sample.num_images=64 --config.evaluate.metrics=bpd,samples \
        --config.evaluate.num_images=0 --config.evaluate.num_samples=10000 "$@"
}

case " $* " in *" --dry_run "*) sweep "$@" && exit ;; esac
python -m experiments.prepare --dataset=fashion_mnist
sweep "$@"
python -m launch.report "$workdir"
