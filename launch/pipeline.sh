# Sourced by the scripts of pipelines, after distributed.sh: the settings of their stages, and where their commands run.
# Written for bash 3.2, too, in which an empty array counts as unset: hence ${array[@]+"${array[@]}"}.

# Usage: afa_folder KEY=PATH      the path as tools/train.py reads it: the text as it stands, but for a ~ at its start
afa_folder() {
    local path=${1#*=}
    # shellcheck disable=SC2088 # the tilde itself is meant
    case $path in
    '')
        echo "error: $1: give a folder" >&2
        return 2
        ;;
    '~' | '~/'*) path=$HOME${path#'~'} ;;
    '~'*)
        echo "error: $1: write the home folder out, or ./${path} for a folder of that name" >&2
        return 2
        ;;
    esac
    printf '%s' "$path"
}

# Usage: pipeline_read FOLDER STAGE ... -- [argument ...]
# Reads a pipeline's arguments: key=value is for all stages, STAGE:key=value for that one, where it wins. A value may hold
# anything: only what stands before the first = is looked at. train.output=FOLDER names the folder of the whole pipeline.
# Sets pipeline_folder, and what pipeline_settings reads.
# shellcheck disable=SC2034 # the sourcing script reads it
pipeline_read() {
    local argument shown key stage
    pipeline_folder=$1
    shift
    pipeline_stages=" "
    while [ "$1" != -- ]; do
        pipeline_stages+="$1 "
        shift
    done
    shift
    pipeline_arguments=()
    for argument in "$@"; do
        shown=${argument//$'\n'/ }
        key=${argument%%=*}
        stage=
        if [[ $key == *:* ]]; then
            stage=${key%%:*}
            key=${key#*:}
            if [ -z "$stage" ] || [[ $stage == *' '* ]] || [[ $pipeline_stages != *" $stage "* ]]; then
                echo "error: $shown: '${stage//$'\n'/ }' is no stage of this pipeline; there are:$pipeline_stages" >&2
                return 2
            fi
        fi
        if [[ $argument != *=* ]] || ! [[ $key =~ ^[A-Za-z_][A-Za-z0-9_.]*$ ]]; then
            echo "error: $shown: give key=value for all stages, or STAGE:key=value for one of:$pipeline_stages" >&2
            return 2
        fi
        case $stage:$key in
        :train.output)
            pipeline_folder=$(afa_folder "$argument") || return
            continue
            ;;
        *:train.output)
            echo "error: $shown: all stages share one folder: give train.output=FOLDER without a stage" >&2
            return 2
            ;;
        :dataset.maps | :dataset.pixel_labels)
            echo "error: $shown: the pipeline sets this for each stage; for one stage, give STAGE:key=value" >&2
            return 2
            ;;
        esac
        pipeline_arguments+=("$argument")
    done
}

# Usage: pipeline_settings STAGE [SECTION ...]
# Sets settings: those of a stage, or of some sections of it; the general ones first.
pipeline_settings() {
    local stage=$1 argument section owner whose
    shift
    settings=()
    for owner in "" "$stage:"; do
        for argument in ${pipeline_arguments[@]+"${pipeline_arguments[@]}"}; do
            whose=${argument%%=*}
            if [[ $whose == *:* ]]; then
                whose=${whose%%:*}:
            else
                whose=
            fi
            if [ "$whose" = "$owner" ]; then
                for section in "${@:-}"; do
                    if [[ ${argument#"$owner"} == "${section:+$section.}"* ]]; then
                        settings+=("${argument#"$owner"}")
                    fi
                done
            fi
        done
    done
}

# Usage: pipeline_place gpus|cores|slurm
# Says where the commands run: on the GPUs of this machine (GPUS: at most so many), on its processor cores, or as steps of a
# SLURM job of one node. Sets pipeline_processes, in how many processes they may run.
pipeline_place() {
    pipeline_on=$1
    case $pipeline_on in
    gpus) pipeline_processes=$(afa_wanted_gpus) || return ;;
    cores)
        pipeline_processes=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) || return
        pipeline_processes=$((pipeline_processes > 4 ? 4 : pipeline_processes))
        ;;
    slurm)
        if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
            echo "error: a pipeline runs on one node, with all of its GPUs: submit it with --nodes=1" >&2
            return 2
        fi
        pipeline_processes=${SLURM_GPUS_ON_NODE:-1}
        ;;
    esac
}

# Usage: pipeline_run PROCESSES FILE [argument ...]      starts a Python file
pipeline_run() {
    local processes=$1 launcher
    shift
    afa_launcher "$processes" "${RESTARTS:-0}"
    if [ "$pipeline_on" = slurm ]; then
        afa_slurm_step "${launcher[@]}" "$@"
    else
        "${launcher[@]}" "$@"
    fi
}

# Usage: pipeline_train STAGE CONFIG GLOBAL_BATCH [key=value ...]
# Trains a stage; its own settings win over those given here. GLOBAL_BATCH counts the images of a step; 4x2 is 4 pairs, of
# which none is split. On GPUs as many processes as can share them out take one share each, none in two turns: some losses
# are means over all that a process sees at once.
pipeline_train() {
    local stage=$1 config=$2 shared=${3%x*} each=1 processes=1 settings
    if [[ $3 == *x* ]]; then
        each=${3#*x}
    fi
    shift 3
    pipeline_settings "$stage"
    if [ "$pipeline_on" != cores ]; then
        processes=$(afa_share "$shared" "$pipeline_processes")
        set -- "train.batch_size=$((shared * each / processes))" train.accumulate=1 "$@"
    fi
    pipeline_run "$processes" tools/train.py "$config" "$@" ${settings[@]+"${settings[@]}"}
}

# Usage: pipeline_label RUN [argument ...]      labels images with a run's last checkpoint, shared out over all processes
pipeline_label() {
    if [ "$pipeline_on" = cores ]; then
        OMP_NUM_THREADS=1 pipeline_run "$pipeline_processes" tools/label.py "$@" --device cpu --workers 0
    else
        pipeline_run "$pipeline_processes" tools/label.py "$@"
    fi
}

# Usage: pipeline_score FILE SOURCE TOOL [argument ...]
# Makes a file of scores, unless the same command made it after what is scored. FILE.command keeps the command.
pipeline_score() {
    local file=$1 source=$2
    shift 2
    if [ "$file" -nt "$source" ] && [ "$(cat "$file.command" 2>/dev/null)" = "$*" ]; then
        return
    fi
    rm -f "$file" "$file.command" || return # tools/eval.py would keep what the file holds
    pipeline_run 1 "$@" --output "$file" || return
    echo "$*" >"$file.command"
}

# Usage: pipeline_score_labels TITLE FILES RUN maps|masks CONFIG TRAIN VAL OUTPUT ...
# Scores RUN_labels on the list TRAIN in FILES_labels.json and RUN_val on the list VAL in FILES_val.json, with settings; - is no
# list. Adds "TITLE=FILE" to scored.
pipeline_score_labels() {
    local title=$1 files=$2 run=$3 kind=$4 config=$5 train=$6 val=$7 split labels file options
    shift 7
    for labels in labels val; do
        split=$train
        if [ "$labels" = val ]; then
            split=$val
        fi
        if [ "$split" != - ]; then
            file=${files}_$labels.json
            options=(--config "$config" --split "$split")
            if [ "$kind" = maps ]; then
                options+=(--plot "${file%.json}.svg")
            fi
            pipeline_score "$file" "${run}_$labels/manifest.json" \
                tools/score.py "$kind" "${run}_$labels" ${settings[@]+"${settings[@]}"} "${options[@]}" --outputs "$@" || return
            scored+=("$title=$file")
        fi
    done
}
