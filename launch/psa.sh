# Sourced by the scripts of PSA, after distributed.sh and pipeline.sh: its stages, the same for every data set.

# Usage: psa_pipeline CONFIGS FOLDER [KEY=VALUE]
# Trains, labels and scores, after pipeline_read and pipeline_place. CONFIGS is how the names of the three configurations
# begin, FOLDER receives everything. KEY=VALUE is a setting of the two networks that follow; @ in it is the folder of the CAM
# network's run.
# segment_batch: images of a step of the segmentation network (10, if it is not set).
# Returns the exit code of the first command that fails. If started again, it makes only what is missing.
psa_pipeline() {
    local configs=$1 folder=$2 settings lists val scored_val scored_train scored=()
    local cam=$folder/1_cam affinity=$folder/2_affinity segment=$folder/3_segment
    local start=(${3:+"${3%%@*}$cam${3#*@}"})
    local of_affinity=("train.output=$affinity" "dataset.maps=${cam}_labels" ${start[@]+"${start[@]}"})
    local of_segment=(
        "train.output=$segment" "dataset.pixel_labels=${affinity}_labels/labels/propagated_crf" ${start[@]+"${start[@]}"}
    )

    # Report a mistake in the settings of the last stage before the first stage runs for hours.
    local stages=("${configs}1_cam.yaml" "train.output=$cam")
    pipeline_settings cam
    stages+=(${settings[@]+"${settings[@]}"} -- "${configs}2_affinity.yaml" "${of_affinity[@]}")
    pipeline_settings affinity
    stages+=(${settings[@]+"${settings[@]}"} -- "${configs}3_segment.yaml" "${of_segment[@]}")
    pipeline_settings segment
    lists=$(python launch/stages.py "${stages[@]}" ${settings[@]+"${settings[@]}"}) || return
    { read -r val && read -r scored_val && read -r scored_train; } <<<"$lists"

    # The images of the validation list are labelled as well: the labels are scored on both lists.
    pipeline_train cam "${configs}1_cam.yaml" 16 "train.output=$cam" || return
    pipeline_settings cam dataset
    pipeline_label "$cam" ${settings[@]+"${settings[@]}"} --outputs cam crf_low crf_high --output "${cam}_labels" || return
    pipeline_label "$cam" ${settings[@]+"${settings[@]}"} --split "$val" --outputs cam --output "${cam}_val" || return
    pipeline_score_labels "CAM network" "$folder/scores/cam" "$cam" maps "${configs}1_cam.yaml" \
        "$scored_train" "$scored_val" cam || return

    pipeline_train affinity "${configs}2_affinity.yaml" 8 "${of_affinity[@]}" || return
    pipeline_settings affinity dataset
    pipeline_label "$affinity" "dataset.maps=${cam}_labels" ${settings[@]+"${settings[@]}"} --no-maps \
        --outputs propagated propagated_crf --output "${affinity}_labels" || return
    pipeline_label "$affinity" ${settings[@]+"${settings[@]}"} "dataset.maps=${cam}_val" --split "$val" --no-maps \
        --outputs propagated propagated_crf --output "${affinity}_val" || return
    pipeline_score_labels "AffinityNet" "$folder/scores/affinity" "$affinity" masks "${configs}2_affinity.yaml" \
        "$scored_train" "$scored_val" propagated propagated_crf || return

    pipeline_train segment "${configs}3_segment.yaml" "${segment_batch:-10}" "${of_segment[@]}" || return
    pipeline_settings segment dataset test
    if [ "$scored_val" != - ]; then
        pipeline_score "$folder/scores/segment.json" "$segment/checkpoints/last" \
            tools/eval.py "$segment/checkpoints/last" ${settings[@]+"${settings[@]}"} --crf || return
        scored+=("segmentation network=$folder/scores/segment.json")
    fi

    if ((${#scored[@]})); then
        pipeline_run 1 tools/summary.py "${scored[@]}" --output "$folder/scores/summary.json" || return
    fi
    echo
    echo "scores       $folder/scores"
    echo "pseudo masks ${affinity}_labels/labels/propagated_crf"
    echo "checkpoints  $segment/checkpoints/last"
}
