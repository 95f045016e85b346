# Sourced by the scripts of EDAM, after distributed.sh and pipeline.sh: its stages, the same for every data set.

# Usage: edam_pipeline CONFIGS FOLDER [KEY=VALUE]
# Trains, labels and scores, after pipeline_read and pipeline_place. CONFIGS is how the names of the two configurations
# begin, FOLDER receives everything. KEY=VALUE is a setting of the segmentation network; @ in it is the folder of the first
# network's run.
# With dataset.saliency the segmentation network learns from the labels with saliency, without it from those of the CRF.
# segment_batch: images of a step of the segmentation network (10, if it is not set).
# Returns the exit code of the first command that fails. If started again, it makes only what is missing.
edam_pipeline() {
    local configs=$1 folder=$2 settings said val scored_val scored_train salient_train salient_val scored=()
    local edam=$folder/1_edam segment=$folder/2_segment lists scores=$folder/scores outputs=(cam crf) val_outputs=(cam crf)
    local start=(${3:+"${3%%@*}$edam${3#*@}"})
    local of_segment=("train.output=$segment" "dataset.pixel_labels=${edam}_labels/labels/with_saliency")

    # Report a mistake in the settings of the last stage before the first stage runs for hours.
    local stages=("${configs}1_edam.yaml" "train.output=$edam")
    pipeline_settings edam
    stages+=(${settings[@]+"${settings[@]}"} -- "${configs}2_segment.yaml" "${of_segment[@]}" ${start[@]+"${start[@]}"})
    pipeline_settings segment
    said=$(python launch/stages.py "${stages[@]}" ${settings[@]+"${settings[@]}"}) || return
    { read -r val && read -r scored_val && read -r scored_train && read -r salient_train && read -r salient_val; } <<<"$said"
    if [ "$salient_train" != - ]; then
        outputs+=(with_saliency)
    else
        of_segment[1]="dataset.pixel_labels=${edam}_labels/labels/crf"
        echo "note: no dataset.saliency: the segmentation network learns from the labels of the CRF, without saliency" >&2
    fi
    if [ "$salient_val" != - ]; then
        val_outputs+=(with_saliency)
    fi

    # The images of the validation list are labelled as well: the labels are scored on both lists.
    pipeline_train edam "${configs}1_edam.yaml" 4x2 "train.output=$edam" || return
    pipeline_settings edam dataset
    pipeline_label "$edam" ${settings[@]+"${settings[@]}"} --outputs "${outputs[@]}" --output "${edam}_labels" || return
    pipeline_label "$edam" ${settings[@]+"${settings[@]}"} --split "$val" \
        --outputs "${val_outputs[@]}" --output "${edam}_val" || return
    lists=("$scored_train" "$scored_val")
    pipeline_score_labels "EDAM network" "$scores/cam" "$edam" maps "${configs}1_edam.yaml" "${lists[@]}" cam || return
    pipeline_score_labels "and CRF" "$scores/crf" "$edam" masks "${configs}1_edam.yaml" "${lists[@]}" crf || return
    if [ "$salient_val" = - ]; then
        lists[1]=-
    fi
    if [ "$salient_train" != - ]; then
        pipeline_score_labels "and saliency" "$scores/saliency" "$edam" masks "${configs}1_edam.yaml" \
            "${lists[@]}" with_saliency || return
    fi

    pipeline_train segment "${configs}2_segment.yaml" "${segment_batch:-10}" \
        "${of_segment[@]}" ${start[@]+"${start[@]}"} || return
    pipeline_settings segment dataset test
    if [ "$scored_val" != - ]; then
        pipeline_score "$scores/segment.json" "$segment/checkpoints/last" \
            tools/eval.py "$segment/checkpoints/last" ${settings[@]+"${settings[@]}"} --crf || return
        scored+=("segmentation network=$scores/segment.json")
    fi

    if ((${#scored[@]})); then
        pipeline_run 1 tools/summary.py "${scored[@]}" --output "$scores/summary.json" || return
    fi
    echo
    echo "scores       $scores"
    echo "pseudo masks ${of_segment[1]#*=}"
    echo "checkpoints  $segment/checkpoints/last"
}
