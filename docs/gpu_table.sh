#!/bin/sh
# Print the table that docs/performance.md lacks, that of a GPU. Every command below prints one JSON list.
#     sh docs/gpu_table.sh [PRESET [PROMPT [NEW [DEPTHS]]]]
# The script runs on a CPU as well: sh docs/gpu_table.sh smollm2-135m 64 16 0,256
set -eu
preset=${1:-llama3-8b} prompt=${2:-512} new=${3:-128} depths=${4:-0,4096}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # otherwise JAX takes most of the memory, and the others need some

bench() {
    python -m jax_llama3 bench --preset "$preset" --dtype bfloat16 -o json "$@"
}

bench -p "$prompt" -n "$new" -d "$depths" --against transformers,torch.compile
bench -p "$prompt" -n "$new" --quantize int8
# Without command buffers every kernel is launched by itself; the difference is what launching costs.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" bench -p 0 -n "$new"
