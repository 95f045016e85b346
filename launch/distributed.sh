# Sourced by train_*.sh, slurm_*.sh and pipeline.sh: starts a training on the GPUs of this machine, or of a SLURM job.
# The global batch of a recipe stays what it is, whatever the number of processes.

# Usage: afa_batch GLOBAL_BATCH PROCESSES      prints the settings that share the images out, two at a time if possible
afa_batch() {
    local images=$1 processes=$2
    if ((images % (2 * processes) == 0)); then
        echo "train.batch_size=2 train.accumulate=$((images / (2 * processes)))"
    elif ((images % processes == 0)); then
        echo "train.batch_size=$((images / processes)) train.accumulate=1"
    else
        echo "error: $processes processes cannot share $images images per step evenly: take another number of GPUs" >&2
        return 2
    fi
}

# Usage: afa_share GLOBAL_BATCH MOST      prints the largest number of processes, MOST at most, that can share the images out
afa_share() {
    local images=$1 processes=$2
    while ((images % processes)); do
        processes=$((processes - 1))
    done
    echo "$processes"
}

# Usage: afa_gpus      prints how many GPUs there are, or how many of them CUDA_VISIBLE_DEVICES names where it is set
afa_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    else
        nvidia-smi -L 2>/dev/null | grep -c ^GPU || true
    fi
}

# Usage: afa_wanted_gpus      prints GPUS where it is set, else how many GPUs there are, 1 at least
afa_wanted_gpus() {
    local processes=${GPUS:-}
    if [ -z "$processes" ]; then
        processes=$(afa_gpus)
        echo "$((processes < 1 ? 1 : processes))"
    elif [[ $processes =~ ^[1-9][0-9]*$ ]]; then
        echo "$processes"
    else
        echo "error: GPUS=$processes: give a number of processes, 1 or more" >&2
        return 2
    fi
}

# Usage: afa_launcher PROCESSES RESTARTS      sets launcher: what starts a Python file in so many processes of this machine
afa_launcher() {
    launcher=(python)
    if (($1 > 1)); then
        launcher=(torchrun --standalone --nproc-per-node "$1" --max-restarts "$2")
    fi
}

# Usage: afa_train_here CONFIG GLOBAL_BATCH MOST_PROCESSES [key=value ...]
# GPUS: how many to use (default: as many as can share the images out, MOST_PROCESSES at most); RESTARTS: how often a
# crashed run is started again.
afa_train_here() {
    local config=$1 images=$2 most=$3 processes batch launcher
    shift 3
    processes=$(afa_wanted_gpus) || return
    if [ -z "${GPUS:-}" ]; then
        processes=$(afa_share "$images" $((processes > most ? most : processes)))
    fi
    batch=$(afa_batch "$images" "$processes") || return
    afa_launcher "$processes" "${RESTARTS:-0}"
    # shellcheck disable=SC2086 # two settings
    "${launcher[@]}" tools/train.py "$config" $batch "$@"
}

# Usage: afa_slurm_listen
# From here on SIGUSR1, which SLURM sends before the time is up, and SIGTERM, with which it pre-empts, end the job's steps:
# a training saves and leaves. torchrun hands SIGTERM on to its processes; SIGUSR1 would end it.
afa_slurm_listen() {
    if ! type torchrun >/dev/null 2>&1; then
        echo "error: AFA is not installed in ${AFA_VENV:-$PWD/.venv}: run bash launch/test.sh there once" >&2
        return 2
    fi
    afa_asked_to_stop=
    trap 'afa_asked_to_stop=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM
}

# Usage: afa_slurm_step COMMAND ...      once per node of the job, after afa_slurm_listen
# Returns 75 where the job was asked to stop, else what the command returns.
afa_slurm_step() {
    local nodes=${SLURM_JOB_NUM_NODES:-1} step code=0
    if [ -n "$afa_asked_to_stop" ]; then
        return 75
    fi
    srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" "$@" &
    step=$!
    # A trapped signal interrupts wait, not what is waited for.
    while kill -0 "$step" 2>/dev/null; do
        code=0
        wait "$step" || code=$?
    done
    # 75: the run was asked to stop and has saved. torchrun reports 1 instead, and what cannot save just ends.
    if [ -n "$afa_asked_to_stop" ] && ((code != 0)); then
        return 75
    fi
    return "$code"
}

# Usage: afa_slurm_end CODE      puts a job that was asked to stop (75) back into the queue; returns any other code
afa_slurm_end() {
    trap - USR1 TERM
    if (($1 == 75)); then
        echo "asked to stop: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
        return
    fi
    return "$1"
}

# Usage: afa_train_slurm CONFIG GLOBAL_BATCH [key=value ...]
# Asked to stop, the run saves; the job is then put into the queue again and goes on from there. RESTARTS: how often torchrun
# starts processes again that end with an error; it cannot tell a mistake, which is then said as often.
afa_train_slurm() {
    local config=$1 images=$2 nodes gpus batch head code=0
    shift 2
    afa_slurm_listen || return
    nodes=${SLURM_JOB_NUM_NODES:-1}
    gpus=${SLURM_GPUS_ON_NODE:-1}
    batch=$(afa_batch "$images" $((nodes * gpus))) || return
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

    local launcher=(python)
    if ((nodes * gpus > 1)); then
        launcher=(
            torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "${RESTARTS:-3}"
            --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))"
        )
    fi
    # shellcheck disable=SC2086 # two settings
    afa_slurm_step "${launcher[@]}" tools/train.py "$config" $batch "$@" || code=$?
    afa_slurm_end "$code"
}
