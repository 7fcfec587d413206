#!/usr/bin/env bash
# dist_run.sh SCRIPT GPUS [ARGUMENTS]: run a script of this folder in one process per GPU; dist_train.sh and dist_test.sh
# call it. On a machine without GPUs, the processes share the CPU. For several machines set NNODES, NODE_RANK, PORT and
# MASTER_ADDR, as in mmseg. PYTHON is the interpreter.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 SCRIPT GPUS [arguments of the script]" >&2
    exit 2
fi
case $2 in *[!0-9]* | '') echo "error: the number of GPUs must be a number, got '$2'" >&2 && exit 2 ;; esac
script=$1 gpus=$2
shift 2
tools=$(dirname "$(readlink -f "$0")")
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" # as in mmseg: a checkout need not be installed
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$gpus" \
    "$tools/$script" "$@" --launcher pytorch
