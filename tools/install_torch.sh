#!/bin/sh
# Install the pinned torch into the environment of the Python given as $1: without an NVIDIA GPU the CPU build, if an
# index has it, which saves gigabytes of CUDA. If TORCH_INDEX_URL is set, only that package index is used.
# Beside a CPU build comes the Triton that $2 in requirements/ names (default: triton.txt).
set -eu
python=$1
requirements=$(dirname "$0")/../requirements
pin=$(grep '^torch==' "$requirements/torch.txt")

if [ -n "${TORCH_INDEX_URL:-}" ]; then
    "$python" -m pip install --index-url "$TORCH_INDEX_URL" "$pin"
elif ! nvidia-smi >/dev/null 2>&1 && "$python" -m pip install "$pin+cpu" 2>/dev/null; then
    : # the configured index has a CPU build
elif "$python" -m pip install -r "$requirements/uv.txt" &&
    "$python" -m uv pip install --python "$python" --torch-backend=auto "$pin"; then
    : # uv knows PyTorch's own indexes and chooses the build for the GPU driver, or the CPU build without a driver
else
    # sizes of torch 2.13.0
    echo "PyTorch's own index cannot be reached (see above). Installing $pin from the configured index instead." \
        'On Linux x86-64 this is the CUDA build: 2.7 GB to download, 4.7 GB on disk.' >&2
    "$python" -m pip install "$pin"
fi

# A CUDA build depends on its triton. With the CPU build, the tests need triton to run the kernels in its interpreter.
"$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
    "$python" -m pip install --no-deps -r "$requirements/${2:-triton.txt}"
