"""The pipelines of PSA and EDAM: their stages, in their order, after a kill, on several GPUs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from launching import calls, finished, start


def psa_calls(folder: str, configs: str, *, label: str = "python", end: str = "", batches: bool = True) -> list[str]:
    """What PSA's pipeline starts, in its order, with one process for a training."""
    cam, affinity, segment = f"{folder}/1_cam", f"{folder}/2_affinity", f"{folder}/3_segment"
    maps, masks = f"dataset.maps={cam}_labels", f"dataset.pixel_labels={affinity}_labels/labels/propagated_crf"
    init = f" train.init={cam}/checkpoints/last" if "demo" in configs else ""
    one, two, three = f"{configs}1_cam.yaml", f"{configs}2_affinity.yaml", f"{configs}3_segment.yaml"
    batch = [f"train.batch_size={images} train.accumulate=1 " if batches else "" for images in (16, 8, 10)]
    walk = "--outputs propagated propagated_crf"
    scores = f"{folder}/scores"
    return [
        f"python launch/stages.py {one} train.output={cam} a.b=1 -- {two} train.output={affinity} {maps}{init} a.b=1 "
        f"-- {three} train.output={segment} {masks}{init} a.b=1",
        f"python tools/train.py {one} {batch[0]}train.output={cam} a.b=1",
        f"{label} tools/label.py {cam} --outputs cam crf_low crf_high --output {cam}_labels{end}",
        f"{label} tools/label.py {cam} --split val --outputs cam --output {cam}_val{end}",
        f"python tools/score.py maps {cam}_labels --config {one} --split train --plot {scores}/cam_labels.svg "
        f"--outputs cam --output {scores}/cam_labels.json",
        f"python tools/score.py maps {cam}_val --config {one} --split val --plot {scores}/cam_val.svg "
        f"--outputs cam --output {scores}/cam_val.json",
        f"python tools/train.py {two} {batch[1]}train.output={affinity} {maps}{init} a.b=1",
        f"{label} tools/label.py {affinity} {maps} --no-maps {walk} --output {affinity}_labels{end}",
        f"{label} tools/label.py {affinity} dataset.maps={cam}_val --split val --no-maps {walk} "
        f"--output {affinity}_val{end}",
        f"python tools/score.py masks {affinity}_labels --config {two} --split train {walk} "
        f"--output {scores}/affinity_labels.json",
        f"python tools/score.py masks {affinity}_val --config {two} --split val {walk} "
        f"--output {scores}/affinity_val.json",
        f"python tools/train.py {three} {batch[2]}train.output={segment} {masks}{init} a.b=1",
        f"python tools/eval.py {segment}/checkpoints/last --crf --output {scores}/segment.json",
        f"python tools/summary.py CAM network={scores}/cam_labels.json CAM network={scores}/cam_val.json "
        f"AffinityNet={scores}/affinity_labels.json AffinityNet={scores}/affinity_val.json "
        f"segmentation network={scores}/segment.json --output {scores}/summary.json",
    ]


def test_the_stages_of_psa(checkout: Path) -> None:
    finished(checkout, "psa_voc.sh", "a.b=1")
    assert calls(checkout) == psa_calls("work_dirs/psa", "configs/psa/")


def test_the_stages_of_psa_on_the_built_in_data(checkout: Path) -> None:
    said = finished(checkout, "psa_demo.sh", "a.b=1", "train.output=runs/two & more", CORES="6")
    shared = "torchrun --standalone --nproc-per-node 4 --max-restarts 0"
    expected = psa_calls(
        "runs/two & more", "configs/psa/demo_", label=shared, end=" --device cpu --workers 0", batches=False
    )
    sheet = "tools/contact_sheet.py runs/two & more/3_segment/checkpoints/last dataset.root=data/shapes"
    made, picture = (
        "python tools/make_shapes.py --output data/shapes",
        f"python {sheet} --output runs/two & more/contact_sheet.png",
    )
    page = f"python {sheet.replace('contact_sheet', 'report')} --output runs/two & more/report.html"
    assert calls(checkout) == [made, *expected, picture, page]
    assert "runs/two & more/contact_sheet.png" in said and "runs/two & more/scores" in said


def edam_calls(
    folder: str, configs: str, *, settings: str = "", label: str = "python", end: str = "", batches: bool = True
) -> list[str]:
    """What EDAM's pipeline starts where all images have saliency maps, in its order."""
    edam, segment, scores = f"{folder}/1_edam", f"{folder}/2_segment", f"{folder}/scores"
    masks, one, two = (
        f"dataset.pixel_labels={edam}_labels/labels/with_saliency",
        *(f"{configs}{name}.yaml" for name in ("1_edam", "2_segment")),
    )
    init = f" train.init={edam}/checkpoints/last" if "demo" in configs else ""
    batch = [f"train.batch_size={images} train.accumulate=1 " if batches else "" for images in (8, 10)]
    wanted, titles = "--outputs cam crf with_saliency", {"cam": "EDAM network", "crf": "and CRF"}
    titles["saliency"] = "and saliency"
    calls = [
        f"python launch/stages.py {one} train.output={edam}{settings} a.b=1 "
        f"-- {two} train.output={segment} {masks}{init}{settings} a.b=1",
        f"python tools/train.py {one} {batch[0]}train.output={edam}{settings} a.b=1",
        f"{label} tools/label.py {edam}{settings} {wanted} --output {edam}_labels{end}",
        f"{label} tools/label.py {edam}{settings} --split val {wanted} --output {edam}_val{end}",
    ]
    for name, kind, output in (("cam", "maps", "cam"), ("crf", "masks", "crf"), ("saliency", "masks", "with_saliency")):
        for ours, split in (("labels", "train"), ("val", "val")):
            file = f"{scores}/{name}_{ours}"
            plot = f" --plot {file}.svg" if kind == "maps" else ""
            calls.append(
                f"python tools/score.py {kind} {edam}_{ours}{settings} --config {one} --split {split}{plot} "
                f"--outputs {output} --output {file}.json"
            )
    return [
        *calls,
        f"python tools/train.py {two} {batch[1]}train.output={segment} {masks}{init}{settings} a.b=1",
        f"python tools/eval.py {segment}/checkpoints/last{settings} --crf --output {scores}/segment.json",
        "python tools/summary.py "
        + "".join(f"{title}={scores}/{name}_{of}.json " for name, title in titles.items() for of in ("labels", "val"))
        + f"segmentation network={scores}/segment.json --output {scores}/summary.json",
    ]


def test_the_stages_of_edam(checkout: Path) -> None:
    finished(checkout, "edam_voc.sh", "dataset.saliency=maps of mine", "a.b=1")
    assert calls(checkout) == edam_calls("work_dirs/edam", "configs/edam/", settings=" dataset.saliency=maps of mine")


def test_the_stages_of_edam_on_the_built_in_data(checkout: Path) -> None:
    made = checkout / "runs/two & more/1_edam_val/labels/with_saliency"
    made.mkdir(parents=True)  # what the stand-in for tools/label.py does not make
    said = finished(checkout, "edam_demo.sh", "a.b=1", "train.output=runs/two & more", CORES="6")
    expected = edam_calls(
        "runs/two & more",
        "configs/edam/demo_",
        settings=" dataset.saliency=data/shapes/Saliency",
        label="torchrun --standalone --nproc-per-node 4 --max-restarts 0",
        end=" --device cpu --workers 0",
        batches=False,
    )
    sheet, edam, scores = (f"runs/two & more/{name}" for name in ("contact_sheet.png", "1_edam", "scores"))
    data = "dataset.saliency=data/shapes/Saliency"
    assert calls(checkout) == [
        "python tools/make_shapes.py --output data/shapes",
        *expected,
        f"torchrun --standalone --nproc-per-node 4 --max-restarts 0 tools/label.py {edam} {data} edam.rule=released "
        f"--split val --outputs with_saliency --no-maps --output {edam}_val_no_crf --device cpu --workers 0",
        f"python tools/score.py masks {edam}_val_no_crf {data} --config configs/edam/demo_1_edam.yaml --split val "
        f"--outputs with_saliency --output {scores}/saliency_no_crf_val.json",
        f"python tools/summary.py distribution={scores}/cam_val.json "
        f"distribution, saliency={scores}/saliency_no_crf_val.json CRF={scores}/crf_val.json "
        f"CRF, saliency={scores}/saliency_val.json --supervision distribution=I distribution, saliency=I+S CRF=I "
        "CRF, saliency=I+S",
        "python tools/contact_sheet.py runs/two & more/2_segment/checkpoints/last dataset.root=data/shapes "
        f"--output {sheet}",
        "python tools/report.py runs/two & more/2_segment/checkpoints/last dataset.root=data/shapes "
        "--output runs/two & more/report.html",
    ]
    assert sheet in said and "runs/two & more/1_edam_labels/labels/with_saliency" in said


def test_saliency_of_the_built_in_data_lies_with_it_unless_another_folder_is_named(checkout: Path) -> None:
    finished(checkout, "edam_demo.sh", "dataset.root=my data", "dataset.saliency=elsewhere")
    labels = [call for call in calls(checkout) if "tools/label.py" in call]
    for call in labels:
        assert "dataset.saliency=my data/Saliency dataset.root=my data dataset.saliency=elsewhere" in call


def test_edam_without_saliency(checkout: Path) -> None:
    said = finished(checkout, "edam_voc.sh", LISTS="val val train - -")
    assert "note: no dataset.saliency: the segmentation network learns from the labels of the CRF" in said
    *_, train = (call for call in calls(checkout) if "tools/train.py" in call)
    assert "dataset.pixel_labels=work_dirs/edam/1_edam_labels/labels/crf" in train
    assert all("with_saliency" not in call for call in calls(checkout)[1:])
    assert "work_dirs/edam/1_edam_labels/labels/crf" in said


def test_edam_with_saliency_of_the_training_images_alone(checkout: Path) -> None:
    finished(checkout, "edam_voc.sh", LISTS="val val train train -")
    labels = [call for call in calls(checkout) if "tools/label.py" in call]
    assert ["with_saliency" in call for call in labels] == [True, False]
    scored = [call.rsplit("/", 1)[1] for call in calls(checkout) if "tools/score.py" in call or "tools/eval.py" in call]
    names = "cam_labels", "cam_val", "crf_labels", "crf_val", "saliency_labels", "segment"
    assert scored == [f"{name}.json" for name in names]


def test_pairs_are_not_split_over_gpus(checkout: Path) -> None:
    finished(checkout, "edam_voc.sh", FOUND_GPUS="8")
    first, second = (call for call in calls(checkout) if "tools/train.py" in call)
    assert "--nproc-per-node 4" in first and "train.batch_size=2 train.accumulate=1" in first
    assert "--nproc-per-node 5" in second and "train.batch_size=2 train.accumulate=1" in second


@pytest.mark.parametrize("at", [1, 3, 8, 11])
def test_edam_goes_on_after_it_was_killed(checkout: Path, at: int) -> None:
    expected = edam_calls("work_dirs/edam", "configs/edam/")
    finished(checkout, "edam_voc.sh", "a.b=1", FAIL=expected[at].removeprefix("python "), code=137)
    assert calls(checkout) == expected[: at + 1]
    (checkout / "calls").unlink()
    finished(checkout, "edam_voc.sh", "a.b=1")
    made = [call for call in expected[:at] if "tools/score.py" in call or "tools/eval.py" in call]
    assert calls(checkout) == [call for call in expected if call not in made]


def test_gpus_share_the_images_of_a_step_and_the_labelling(checkout: Path) -> None:
    finished(checkout, "psa_voc.sh", FOUND_GPUS="4", RESTARTS="3")
    start, batch = "torchrun --standalone --nproc-per-node {} --max-restarts 3 tools/{}", "train.batch_size={}"
    of_stage = [call for call in calls(checkout) if "tools/train.py" in call]
    assert [call.split(" configs")[0] for call in of_stage] == [start.format(n, "train.py") for n in (4, 4, 2)]
    for call, images in zip(of_stage, (4, 2, 5), strict=True):
        assert batch.format(images) in call and "train.accumulate=1" in call
    labels = [call for call in calls(checkout) if "tools/label.py" in call]
    assert len(labels) == 4 and all(call.startswith(start.format(4, "label.py")) for call in labels)


def test_settings_go_to_their_stages_and_a_stages_own_win(checkout: Path) -> None:
    finished(
        checkout,
        "psa_voc.sh",
        *("cam:train.seed=2", "train.seed=1", "dataset.root=my data/cam:x=1", "affinity:dataset.bad_image=skip"),
        "segment:dataset.pixel_labels=elsewhere",
    )
    of = {
        tool: [call for call in calls(checkout) if f"tools/{tool}.py" in call] for tool in ("train", "label", "score")
    }
    root = "dataset.root=my data/cam:x=1"
    cam, affinity, segment = (call.split("train.output=")[1].split(" ", 1)[1] for call in of["train"])
    assert cam == f"train.seed=1 {root} train.seed=2"
    assert affinity == f"dataset.maps=work_dirs/psa/1_cam_labels train.seed=1 {root} dataset.bad_image=skip"
    assert segment.endswith(f"propagated_crf train.seed=1 {root} dataset.pixel_labels=elsewhere")
    for call in of["label"] + of["score"]:
        assert root in call and "train.seed" not in call
        assert ("dataset.bad_image=skip" in call) == ("2_affinity" in call)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("train.seed", "give key=value"),
        ("=1", "give key=value"),
        ("--limit=1", "give key=value"),
        ("cam:=1", "give key=value"),
        ("cam:train.seed", "give key=value"),
        ("edam:train.seed=1", "'edam' is no stage of this pipeline; there are: cam affinity segment"),
        (":train.seed=1", "'' is no stage"),
        ("cam affinity:train.seed=1", "'cam affinity' is no stage"),
        ("cam:affinity:train.seed=1", "give key=value"),
        ("cam:train.output=x", "give train.output=FOLDER without a stage"),
        ("train.output=", "give a folder"),
        ("train.output=~nobody/x", "write the home folder out"),
        ("dataset.maps=x", "the pipeline sets this for each stage"),
        ("dataset.pixel_labels=x", "the pipeline sets this for each stage"),
        ("a\nb", "give key=value"),
    ],
)
def test_a_mistaken_setting_of_a_pipeline_is_one_line(checkout: Path, argument: str, said: str) -> None:
    output = finished(checkout, "psa_demo.sh", "train.seed=1", argument, code=2)
    assert output.startswith("error: ") and output.count("\n") == 1 and said in output
    assert not calls(checkout)


@pytest.mark.parametrize("at", [0, 2, 5, 10, 13])
def test_a_pipeline_that_was_killed_goes_on(checkout: Path, at: int) -> None:
    expected = psa_calls("work_dirs/psa", "configs/psa/")
    finished(checkout, "psa_voc.sh", "a.b=1", FAIL=expected[at].removeprefix("python "), code=137)
    assert calls(checkout) == expected[: at + 1]
    (checkout / "calls").unlink()
    finished(checkout, "psa_voc.sh", "a.b=1")
    made = [call for call in expected[:at] if "tools/score.py" in call or "tools/eval.py" in call]
    assert calls(checkout) == [call for call in expected if call not in made]


def test_scores_of_before_are_made_again(checkout: Path) -> None:
    finished(checkout, "psa_voc.sh")
    labels = checkout / "work_dirs/psa/1_cam_val/manifest.json"
    os.utime(labels, (time.time(), time.time() + 60))
    (checkout / "calls").unlink()
    finished(checkout, "psa_voc.sh", "segment:test.scales=[1]", "segment:train.seed=1")
    scored = [call.split(" --")[0] for call in calls(checkout) if "tools/score.py" in call or "tools/eval.py" in call]
    assert scored == [
        "python tools/score.py maps work_dirs/psa/1_cam_val",
        "python tools/eval.py work_dirs/psa/3_segment/checkpoints/last test.scales=[1]",  # of another protocol
    ]


def test_lists_without_masks_are_not_scored(checkout: Path) -> None:
    finished(checkout, "psa_voc.sh", LISTS="mine - - - -")
    assert [call.split()[1] for call in calls(checkout)] == [
        "launch/stages.py",
        *["tools/train.py", "tools/label.py", "tools/label.py"] * 2,
        "tools/train.py",
    ]
    assert sum("--split mine" in call for call in calls(checkout)) == 2


@pytest.mark.parametrize("command", ["train.py", "label.py"])
def test_a_signal_ends_a_step_of_a_pipeline_and_requeues(checkout: Path, command: str) -> None:
    process = start(checkout, "slurm_psa_voc.sh", SLURM_GPUS_ON_NODE="2", SLEEP=command, CODE="1")
    end = time.monotonic() + 300
    while not any(command in call for call in calls(checkout)) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    before, *after = (call.split(" configs")[0] for call in calls(checkout)[-3:])
    assert command in before and after == ["scancel --signal=TERM 12", "scontrol requeue 12"]


def test_a_pipeline_takes_one_node(checkout: Path) -> None:
    said = finished(checkout, "slurm_psa_voc.sh", SLURM_JOB_NUM_NODES="2", code=2)
    assert said == "error: a pipeline runs on one node, with all of its GPUs: submit it with --nodes=1\n"
    assert not calls(checkout)
