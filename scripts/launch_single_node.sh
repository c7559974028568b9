#!/usr/bin/env bash
# One machine, one or several processes, any training script.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

usage() {
    cat <<TEXT
usage: scripts/launch_single_node.sh [OPTIONS] SCRIPT.py [ARGS ...]
       scripts/launch_single_node.sh [OPTIONS] -m MODULE [ARGS ...]

Runs a training script below \`accelerate launch\`, with --optim emonavi, emofact and emolynx known to the Trainer.

  --config NAME      a name from configs/accelerate or a file (default: ddp)
  --processes N      processes, one per GPU (default: the config's)
  --precision P      no, bf16, fp16 (default: the config's)
  --port P           port on which the processes meet (default: 29500)
  --cpu              train on the CPU; the script has to ask for it too (--use_cpu true in a Trainer script)
  --as-is            run the script without registering the optimizers first: it does so itself
  --dry-run          check and print the plan and the command, run nothing
TEXT
}

name=ddp processes="" precision="" port=29500 cpu=0 as_is=0 dry_run=0
while (($# > 0)); do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --cpu) cpu=1 && shift ;;
        --as-is) as_is=1 && shift ;;
        --dry-run) dry_run=1 && shift ;;
        --config | --processes | --precision | --port)
            (($# > 1)) || fail "$1 takes a value"
            case "$1" in
                --config) name="$2" ;;
                --processes) processes="$2" ;;
                --precision) precision="$2" ;;
                --port) port="$2" ;;
            esac
            shift 2
            ;;
        *) break ;;
    esac
done

find_config "$name"
check_target "$@"
processes="${processes:-$(from_config num_processes)}"
precision="${precision:-$(from_config mixed_precision)}"
check_number --processes "$processes" 1 1024
check_number --port "$port" 1 65535
check_port_is_free "$port"
strategy="$(from_config distributed_type) ($(basename "$config"))"
((cpu)) && use_cpu
((as_is)) && target=() || target=(-m emo_hf.run)

print_plan 1 "$processes" "$precision" "$strategy" "$@"
run_job accelerate launch --config_file "$config" --num_processes "$processes" --mixed_precision "$precision" \
    --main_process_port "$port" "${target[@]}" "$@"
