# What the launch scripts share; sourced, not run. Needs bash, python and accelerate on the PATH.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
configs="$here/configs/accelerate"

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# A whole number in a range: check_number OPTION VALUE LOW HIGH
check_number() {
    [[ "$2" =~ ^[0-9]+$ ]] && (($2 >= $3 && $2 <= $4)) || fail "$1 takes a whole number from $3 to $4, got '$2'"
}

# The file of a config given by name or path; sets $config.
find_config() {
    config="$1"
    [[ -f "$config" ]] || config="$configs/$1.yaml"
    [[ -f "$config" ]] || fail "config '$1' not found; known: $(cd "$configs" && ls ./*.yaml | sed 's|./||; s|.yaml||' | paste -sd ' ')"
}

# A value from the config: from_config KEY
from_config() {
    sed -n "s/^$1: *'\{0,1\}\([^'# ]*\).*/\1/p" "$config"
}

check_port_is_free() {
    python - "$1" <<'PYTHON' || fail "port $1 is taken on this machine: another job? Give another one with --port"
import socket, sys
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", int(sys.argv[1])))
    except OSError:
        sys.exit(1)
PYTHON
}

# accelerate takes the CPU from the config only: `accelerate launch --cpu` starts one process. Changes $config to a copy.
use_cpu() {
    copy="$(mktemp "${TMPDIR:-/tmp}/accelerate-XXXXXX.yaml")"
    trap 'rm -f "$copy"' EXIT
    sed 's/^use_cpu:.*/use_cpu: true/' "$config" >"$copy"
    config="$copy"
}

# Whether the training script is there: check_target SCRIPT ARGS… or -m MODULE ARGS…
check_target() {
    (($# > 0)) || fail "nothing to run: give a training script and its arguments (see --help)"
    if [[ "$1" == -m ]]; then
        (($# > 1)) || fail "-m takes the name of a module"
    elif [[ "$1" == -* ]]; then
        fail "unknown option $1 (see --help); options of the training script come after its name"
    elif [[ ! -f "$1" ]]; then
        fail "training script '$1' not found"
    fi
}

# The value of an argument of the training script, or a default: script_value NAME DEFAULT ARGS…
script_value() {
    local name="$1" value="$2" previous=""
    shift 2
    for argument in "$@"; do
        [[ "$previous" == "--$name" ]] && value="$argument"
        [[ "$argument" == "--$name="* ]] && value="${argument#*=}"
        previous="$argument"
    done
    echo "$value"
}

# print_plan NODES PROCESSES PRECISION STRATEGY ARGS…
print_plan() {
    local nodes="$1" processes="$2" precision="$3" strategy="$4"
    shift 4
    local batch accumulation
    batch="$(script_value per_device_train_batch_size "" "$@")"
    accumulation="$(script_value gradient_accumulation_steps 1 "$@")"
    echo "nodes:        $nodes"
    echo "processes:    $processes"
    echo "strategy:     $strategy"
    echo "precision:    $precision"
    if [[ "$batch" =~ ^[0-9]+$ && "$accumulation" =~ ^[0-9]+$ ]]; then
        echo "global batch: $((processes * batch * accumulation)) ($processes processes x $batch x $accumulation accumulated)"
    else
        echo "global batch: $processes x what the script takes per process (--per_device_train_batch_size not given)"
    fi
}

# Runs accelerate and says how the job ended: run_job COMMAND…
run_job() {
    echo "command:      $*"
    if [[ "$dry_run" == 1 ]]; then
        return
    fi
    "$@" || {
        code=$?
        echo "$(basename "$0"): the job failed with exit code $code. Ranks that were alive end when one is lost. Start" \
            "all nodes again with --resume_from_checkpoint (in a Trainer script) to go on from the last checkpoint." >&2
        exit "$code"
    }
}
