#!/usr/bin/env bash
# Two machines on one: two network namespaces joined by a veth pair, each a node of one job that
# scripts/launch_multi_node.sh starts. Three runs of the same training: undisturbed; with node 1 killed in the middle;
# resumed from the last checkpoint. The last has to end where the first did. Needs root and iproute2; takes two minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if ((EUID != 0)) || ! command -v ip >/dev/null; then
    echo "two_nodes.sh: needs root and the ip command of iproute2" >&2
    exit 77
fi

space="emo$$"
folder="$(mktemp -d)"
cleanup() {
    for node in 0 1; do
        for pid in $(ip netns pids "$space-$node" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
        ip netns delete "$space-$node" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap cleanup EXIT
export TMPDIR="$folder"

set_up() {
    ip netns add "$space-0" && ip netns add "$space-1" &&
        ip link add "$space-a" netns "$space-0" type veth peer name "$space-b" netns "$space-1" &&
        ip -n "$space-0" address add 10.77.0.1/24 dev "$space-a" &&
        ip -n "$space-1" address add 10.77.0.2/24 dev "$space-b" &&
        ip -n "$space-0" link set lo up && ip -n "$space-1" link set lo up &&
        ip -n "$space-0" link set "$space-a" up && ip -n "$space-1" link set "$space-b" up &&
        ip netns exec "$space-0" true
}
if ! set_up; then
    echo "two_nodes.sh: may not make network namespaces here" >&2
    exit 77
fi

# start NODE LOG ARGUMENTS…: one node of the job, in the background; sets $started.
start() {
    local node="$1" log="$2" link=("$space-a" "$space-b")
    shift 2
    PYTHONPATH="$PWD" GLOO_SOCKET_IFNAME="${link[$node]}" OMP_NUM_THREADS=1 ip netns exec "$space-$node" \
        scripts/launch_multi_node.sh --cpu --as-is --nodes 2 --node-rank "$node" --address 10.77.0.1 --port 29500 \
        tests/launch/two_nodes_job.py "$@" >"$log" 2>&1 &
    started=$!
}

# job NAME ARGUMENTS…: both nodes, to their end.
job() {
    local name="$1"
    shift
    start 0 "$folder/$name.0" "$@"
    local first=$started
    start 1 "$folder/$name.1" "$@"
    if ! wait "$first" || ! wait "$started"; then
        tail -n 30 "$folder/$name".? >&2
        echo "two_nodes.sh: the job '$name' failed" >&2
        exit 1
    fi
}

echo "1. undisturbed"
job undisturbed "$folder/a"
grep ended "$folder/undisturbed.0"

echo "2. node 1 is killed once there is a checkpoint"
start 0 "$folder/killed.0" "$folder/b" slowly
first=$started
start 1 "$folder/killed.1" "$folder/b" slowly
second=$started
for _ in $(seq 3000); do
    [[ -f "$folder/b/checkpoint-10/trainer_state.json" ]] && break
    sleep 0.1
done
[[ -f "$folder/b/checkpoint-10/trainer_state.json" ]] || { tail -n 30 "$folder"/killed.? >&2; exit 1; }
for pid in $(ip netns pids "$space-1"); do kill -9 "$pid" 2>/dev/null || true; done
wait "$second" || true
begun=$SECONDS
if wait "$first"; then
    echo "two_nodes.sh: node 0 did not notice that node 1 is gone" >&2
    exit 1
fi
echo "node 0 ended $((SECONDS - begun)) seconds later and said:"
tail -n 1 "$folder/killed.0"
checkpoint="$(ls -d "$folder"/b/checkpoint-* | sort -t- -k2 -n | while read -r one; do
    [[ -f "$one/trainer_state.json" ]] && echo "$one"
done | tail -n 1)"

echo "3. resumed from $(basename "$checkpoint")"
job resumed "$folder/b" "$checkpoint"
grep ended "$folder/resumed.0"

one="$(grep -h ended "$folder/undisturbed.0" "$folder/undisturbed.1" "$folder/resumed.0" "$folder/resumed.1" | sort -u | wc -l)"
if ((one != 1)); then
    echo "two_nodes.sh: the resumed run did not end where the undisturbed one did" >&2
    exit 1
fi
echo "the same weights and the same emotion, to the last bit, on both nodes"
