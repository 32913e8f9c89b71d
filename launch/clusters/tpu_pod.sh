#!/usr/bin/env bash
# A run on a TPU pod slice with gcloud alone, from the folder of the checkout:
#
#     NFS=10.0.0.2:/share launch/clusters/tpu_pod.sh --config.train.num_steps=1000000
#
# Asks for a slice of spot machines, waits for it, and starts the same command on every host, which
# finds the other hosts from the pod's own metadata and continues from the last checkpoint. When the
# slice is taken away the next one is asked for. When the run ends the slice is given back; when it
# fails the slice is kept, to be looked at, and the same command uses it again.
set -euo pipefail

: "${NFS:?must name a share that the slice can mount, such as 10.0.0.2:/share of Filestore}"
NAME=${NAME:-ddpm}
ZONE=${ZONE:-us-east1-d}
TYPE=${TYPE:-v6e-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e}
DATASET=${DATASET:-cifar10} # and config: digits, fashion_mnist or cifar10
POLL=${POLL:-30}            # seconds

state() {
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
        --format='value(state.state)' 2>/dev/null || echo NONE
}

give_back() {
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

acquire() {
    case $(state) in
        NONE) ;;
        FAILED | SUSPENDING | SUSPENDED) give_back ;;
        *) return ;;
    esac
    gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --node-id="$NAME" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
}

on_every_host() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

fail() {
    printf '%s\n    gcloud compute tpus queued-resources %s %s --zone=%s\n' "$1" "$2" "$NAME" "$ZONE" >&2
    exit 1
}

install() {
    gcloud compute tpus tpu-vm scp "$bundle" "$NAME:ddpm.bundle" --zone="$ZONE" --worker=all &&
        on_every_host "set -e
            sudo apt-get install --yes --quiet nfs-common
            sudo mkdir -p /shared
            mountpoint --quiet /shared || sudo mount -t nfs $NFS /shared
            rm -rf ddpm ddpm-venv && git clone --quiet ddpm.bundle ddpm && cd ddpm
            python3 -m pip install --quiet --user uv
            python3 -m uv venv --quiet --python 3.11 ~/ddpm-venv
            python3 -m uv pip install --quiet --python ~/ddpm-venv/bin/python \
                --constraint constraints.txt --editable '.[tpu]'
            ~/ddpm-venv/bin/python -m experiments.prepare --dataset=$DATASET"
}

bundle=$(mktemp)
trap 'rm -f "$bundle"' EXIT
git bundle create --quiet "$bundle" HEAD
options=$(printf '%q ' "--config=experiments/configs/$DATASET.py" \
    "--workdir=/shared/runs/$DATASET" --config.distributed=auto "$@")

while true; do
    acquire
    while now=$(state) && [ "$now" != ACTIVE ]; do
        case $now in
            FAILED) fail "The slice cannot be had. Why:" describe ;;
            SUSPENDING | SUSPENDED) continue 2 ;;
        esac
        sleep "$POLL"
    done
    if install && on_every_host "cd ddpm && exec ~/ddpm-venv/bin/python -m experiments.main $options"; then
        give_back
        exit
    fi
    sleep "$POLL" # until a slice that was taken away is known to be
    if [ "$(state)" = ACTIVE ]; then
        fail "The run failed, see above, and its slice is kept. To give it back:" delete
    fi
done
