#!/usr/bin/env bash
# Several machines, any training script: run the same command on each, with its own --node-rank.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

usage() {
    cat <<TEXT
usage: scripts/launch_multi_node.sh --nodes N --node-rank R --address HOST [OPTIONS] SCRIPT.py [ARGS ...]
       scripts/launch_multi_node.sh --nodes N --node-rank R --address HOST [OPTIONS] -m MODULE [ARGS ...]

Runs a training script below \`accelerate launch\` as one of several nodes, with --optim emonavi, emofact and emolynx
known to the Trainer.

  --nodes N               machines in the job
  --node-rank R           number of this one, 0 to N-1; node 0 is the one that --address names
  --address HOST          where the nodes meet: an address of node 0 that the others can reach
  --port P                and the port there (default: 29500)
  --processes-per-node N  processes on each node, one per GPU (default: 1)
  --config NAME           a name from configs/accelerate or a file (default: multi_node)
  --precision P           no, bf16, fp16 (default: the config's)
  --max-restarts N        start the processes anew so many times when one fails (default: 0); the script has to resume
                          from its last checkpoint by itself. More than 0 needs the elastic rendezvous (c10d)
  --cpu                   train on the CPU; the script has to ask for it too (--use_cpu true in a Trainer script)
  --as-is                 run the script without registering the optimizers first: it does so itself
  --dry-run               check and print the plan and the command, run nothing
TEXT
}

nodes="" rank="" address="" port=29500 per_node=1 name=multi_node precision="" restarts=0 cpu=0 as_is=0 dry_run=0
while (($# > 0)); do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --cpu) cpu=1 && shift ;;
        --as-is) as_is=1 && shift ;;
        --dry-run) dry_run=1 && shift ;;
        --nodes | --node-rank | --address | --port | --processes-per-node | --config | --precision | --max-restarts)
            (($# > 1)) || fail "$1 takes a value"
            case "$1" in
                --nodes) nodes="$2" ;;
                --node-rank) rank="$2" ;;
                --address) address="$2" ;;
                --port) port="$2" ;;
                --processes-per-node) per_node="$2" ;;
                --config) name="$2" ;;
                --precision) precision="$2" ;;
                --max-restarts) restarts="$2" ;;
            esac
            shift 2
            ;;
        *) break ;;
    esac
done

[[ -n "$nodes" ]] || fail "--nodes is missing (see --help)"
[[ -n "$rank" ]] || fail "--node-rank is missing (see --help)"
[[ -n "$address" ]] || fail "--address is missing (see --help)"
check_number --nodes "$nodes" 1 100000
check_number --node-rank "$rank" 0 $((nodes - 1))
check_number --processes-per-node "$per_node" 1 1024
check_number --port "$port" 1 65535
check_number --max-restarts "$restarts" 0 1000
find_config "$name"
check_target "$@"
if ((rank == 0)); then
    check_port_is_free "$port"
fi
precision="${precision:-$(from_config mixed_precision)}"
strategy="$(from_config distributed_type) ($(basename "$config"))"
processes=$((nodes * per_node))
((restarts > 0)) && rendezvous=(--rdzv_backend c10d --max_restarts "$restarts") || rendezvous=(--rdzv_backend static)
((cpu)) && use_cpu
((as_is)) && target=() || target=(-m emo_hf.run)

print_plan "$nodes (this is node $rank of them; they meet at $address:$port)" "$processes" "$precision" "$strategy" "$@"
run_job accelerate launch --config_file "$config" --num_machines "$nodes" --machine_rank "$rank" \
    --num_processes "$processes" --mixed_precision "$precision" --main_process_ip "$address" \
    --main_process_port "$port" "${rendezvous[@]}" "${target[@]}" "$@"
