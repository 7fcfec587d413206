#!/bin/sh
# Install the pinned torch into the environment of the Python given as $1, without gigabytes of CUDA where there is
# no NVIDIA GPU. TORCH_INDEX_URL, if set, is the package index to take it from.
set -eu
python=$1
pin=$(grep '^torch==' "$(dirname "$0")/../requirements/torch.txt")

if [ -n "${TORCH_INDEX_URL:-}" ]; then
    "$python" -m pip install --index-url "$TORCH_INDEX_URL" "$pin"
elif ! nvidia-smi >/dev/null 2>&1 && "$python" -m pip install "$pin+cpu" 2>/dev/null; then
    : # the configured index has a CPU build
else
    # uv knows PyTorch's own indexes and chooses by the GPU driver that it finds, or the CPU build without one
    "$python" -m pip install -r "$(dirname "$0")/../requirements/uv.txt"
    "$python" -m uv pip install --python "$python" --torch-backend=auto "$pin"
fi

# A CUDA build brings the triton it was made with. Beside the CPU build the tests run the kernels in its interpreter.
"$python" -c 'import triton' 2>/dev/null || "$python" -m pip install --no-deps -r "$(dirname "$0")/../requirements/triton.txt"
