#!/usr/bin/env bash
# Train on several GPUs: mmseg's tools/dist_train.sh with its arguments.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
exec "$(dirname "$(readlink -f "$0")")/dist_run.sh" train.py "$gpus" "$config" "$@"
