"""The launch scripts, with stand-ins for the cluster's commands: what is started, and what a signal leads to."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored import CLASS_NAMES, small_config, small_method

from afa.errors import UserError
from afa.weights import pack_metadata, save_network

REPOSITORY = Path(__file__).parents[1]
INSTALLED_FROM = ("requirements.txt", "setup.py", "constraints.txt")

# Says what it was called with, as one line. CODE is its exit code. With SLEEP it runs on until it is told to end:
# always (1), or where its call holds that text, and the others end well. A call that FAIL fits ends as if it was
# killed. LISTS is what launch/stages.py says, FACTS what launch/recipe.py says. Labels and scores leave a file behind.
STAND_IN = """#!/bin/bash
if [ "$1" = -c ]; then exit 0; fi
echo "$(basename "$0") $*" >> "$CALLS"
if [ -n "${FAIL:-}" ] && [[ "$*" == $FAIL ]]; then exit 137; fi
call=" $*"
output=${call##* --output }
output=${output%% --*}
case $call in
*" launch/stages.py "*) printf '%s\\n' ${LISTS:-val val train train val}; exit ;;
*" launch/recipe.py "*) printf '%s\\n' ${FACTS:-8 4 work_dirs/own}; exit ;;
*" tools/label.py "*) mkdir -p "$output"; [ -e "$output/manifest.json" ] || : > "$output/manifest.json" ;;
*" tools/score.py "* | *" tools/eval.py "*) mkdir -p "$(dirname "$output")"; sleep 0.01; : > "$output" ;;
esac
trap 'exit "${CODE:-0}"' TERM
if [ -n "${SLEEP:-}" ] && [[ "$SLEEP" == 1 || "$*" == *"$SLEEP"* ]]; then while true; do sleep 0.05; done; fi
if [ -n "${SLEEP:-}" ] && [ "$SLEEP" != 1 ]; then exit; fi
exit "${CODE:-0}"
"""
STAND_INS = {
    "python": STAND_IN,
    "torchrun": STAND_IN,
    "srun": '#!/bin/bash\necho $$ > "$CALLS.srun"\nuntil [[ $1 =~ ^(python|torchrun)$ ]]; do shift; done\nexec "$@"\n',
    "nproc": '#!/bin/bash\necho "${CORES:-1}"\n',
    "nvidia-smi": '#!/bin/bash\nfor gpu in $(seq "${FOUND_GPUS:-0}"); do echo "GPU $gpu"; done\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo node7 || echo "scontrol $*" >> "$CALLS"\n',
    "scancel": '#!/bin/bash\necho "scancel $*" >> "$CALLS"\nkill -TERM "$(cat "$CALLS.srun")"\n',
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks installed, with stand-ins where programs would be."""
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    for name in INSTALLED_FROM:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    files = b"".join((tmp_path / name).read_bytes() for name in INSTALLED_FROM)
    stamp = subprocess.run(["cksum"], input=files, capture_output=True, check=True).stdout
    (tmp_path / ".venv" / "installed").write_text(f"{stamp.decode().strip()} {tmp_path}\n")
    return tmp_path


def start(checkout: Path, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "CALLS": str(checkout / "calls"),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_SUBMIT_DIR": str(checkout),
        **variables,
    }
    return subprocess.Popen(
        ["bash", f"launch/{script}", *arguments],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("train_voc.sh", {}, "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1"),
        (
            "train_voc.sh",
            {"FOUND_GPUS": "8"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/voc.yaml "
            "train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        (
            "train_voc.sh",
            {"GPUS": "4", "RESTARTS": "3"},
            "torchrun --standalone --nproc-per-node 4 --max-restarts 3 tools/train.py configs/voc.yaml "
            "train.batch_size=1 train.accumulate=1 a.b=1",
        ),
        (
            "train_coco.sh",
            {"FOUND_GPUS": "2"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/coco.yaml "
            "train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "train_voc.sh",
            {"FOUND_GPUS": "8", "CUDA_VISIBLE_DEVICES": "3"},
            "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "train_coco.sh",  # three cannot share 8 images
            {"FOUND_GPUS": "8", "CUDA_VISIBLE_DEVICES": "0,1,5"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/coco.yaml "
            "train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "slurm_voc.sh",
            {"SLURM_GPUS_ON_NODE": "2"},
            "torchrun --nnodes 1 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id 12 "
            "--rdzv-endpoint node7:20012 tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        (
            "slurm_coco.sh",
            {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NUM_NODES": "2"},
            "torchrun --nnodes 2 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id 12 "
            "--rdzv-endpoint node7:20012 tools/train.py configs/coco.yaml train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        ("slurm_voc.sh", {}, "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1"),
    ],
)
def test_what_is_started(checkout: Path, script: str, variables: dict[str, str], expected: str) -> None:
    process = start(checkout, script, "a.b=1", **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert calls(checkout) == [expected]


def test_demo_hands_its_arguments_on(checkout: Path) -> None:
    lists = checkout / "my data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{number}\n" for number in range(6)))
    overrides = ["train.seed=2", "train.output=runs/two & more", "dataset.root=my data"]
    process = start(checkout, "demo.sh", *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    last, pictures = "runs/two & more/checkpoints/last", " ".join(f"my data/JPEGImages/{i}.jpg" for i in range(4))
    assert calls(checkout) == [
        "python tools/make_shapes.py --output my data",
        f"python tools/train.py configs/demo.yaml {' '.join(overrides)}",
        f"python tools/eval.py {last} dataset.root=my data --output runs/two & more/evaluation.json",
        f"python tools/contact_sheet.py {last} dataset.root=my data --output runs/two & more/contact_sheet.png",
        f"python tools/infer.py {last} {pictures} --output runs/two & more/inference",
        f"python tools/report.py {last} dataset.root=my data --output runs/two & more/report.html",
    ]


def test_demo_uses_the_folders_that_the_training_uses(checkout: Path) -> None:
    home = checkout / "home"
    (home / "data" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (home / "data" / "ImageSets" / "Segmentation" / "val.txt").write_text("1\n")
    output, data = ("~/2024_01_01 #2", "~/data")
    process = start(checkout, "demo.sh", f"train.output={output}", f"dataset.root={data}", HOME=str(home))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert calls(checkout)[0] == f"python tools/make_shapes.py --output {home}/data"
    assert calls(checkout)[1] == f"python tools/train.py configs/demo.yaml train.output={output} dataset.root={data}"
    for call in calls(checkout)[2:]:
        assert f"{home}/2024_01_01 #2/checkpoints/last" in call
        assert "~" not in call


@pytest.mark.parametrize("override", ["train.output=", "dataset.root=", "train.output=~nobody/x", "dataset.root=~a"])
def test_demo_refuses_what_the_training_would_refuse_before_it_makes_anything(checkout: Path, override: str) -> None:
    process = start(checkout, "demo.sh", override)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.startswith(f"error: {override}: ")
    assert said.count("\n") == 1
    assert not calls(checkout)


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


def finished(checkout: Path, script: str, *arguments: str, code: int = 0, **variables: str) -> str:
    process = start(checkout, script, *arguments, **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


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


def test_the_comparison_runs_all_demonstrations_and_says_what_each_was_taught_with(checkout: Path) -> None:
    lists = checkout / "my data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("1\n")
    finished(checkout, "compare_demo.sh", "train.seed=2", "dataset.root=my data", "train.output=runs")
    trained = [call.split()[2] for call in calls(checkout) if "tools/train.py" in call]
    assert trained == [
        "configs/demo.yaml",
        *(f"configs/psa/demo_{stage}.yaml" for stage in ("1_cam", "2_affinity", "3_segment")),
        *(f"configs/edam/demo_{stage}.yaml" for stage in ("1_edam", "2_segment")),
        "configs/segment/demo.yaml",
    ]
    for call in calls(checkout):
        assert "tools/train.py" not in call or ("train.seed=2" in call and "dataset.root=my data" in call)
    *_, bound, _, sheet, summary = calls(checkout)
    assert sheet == (
        "python launch/compare_sheet.py runs/compare_demo/contact_sheet.png my data AFA=runs/demo "
        "PSA=runs/psa_demo/3_segment EDAM=runs/edam_demo/2_segment true masks=runs/segment_demo"
    )
    assert "dataset.pixel_labels=my data/SegmentationClass train.output=runs/segment_demo" in bound
    assert summary == (
        "python tools/summary.py AFA=runs/demo/evaluation.json PSA=runs/psa_demo/scores/cam_val.json "
        "PSA=runs/psa_demo/scores/affinity_val.json PSA=runs/psa_demo/scores/segment.json "
        "EDAM without saliency=runs/edam_demo/scores/cam_val.json "
        "EDAM without saliency=runs/edam_demo/scores/crf_val.json "
        "EDAM without CRF=runs/edam_demo/scores/saliency_no_crf_val.json "
        "EDAM=runs/edam_demo/scores/saliency_val.json EDAM=runs/edam_demo/scores/segment.json "
        "true masks=runs/segment_demo/evaluation.json --supervision AFA=I PSA=I EDAM without saliency=I "
        "EDAM without CRF=I+S EDAM=I+S true masks=pixels --output runs/compare_demo/summary.json"
    )


def test_masks_of_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path / "shapes")
    weights, sheet = str(tmp_path / "weights.safetensors"), tmp_path / "sheet.png"
    save_network(small_method(config).network, Path(weights), pack_metadata(config, CLASS_NAMES, 7))
    draw = runpy.run_path(str(REPOSITORY / "launch" / "compare_sheet.py"))["main"]
    draw([str(sheet), str(tmp_path / "shapes"), f"one={weights}", f"the same={weights}"])
    assert "5 images in" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width == 2 * 20 + 4 * 160 + 3 * 10
        columns = [np.array(image)[190:600, 20 + at * 170 : 20 + at * 170 + 160] for at in range(1, 4)]
    assert (columns[1] == columns[2]).all() and (columns[0] != columns[1]).any()
    with pytest.raises(UserError, match=r"give OUTPUT.png DATA TITLE=RUN"):
        draw([str(sheet), "data", weights])


def seed_calls(folder: str, *seeds: int, train: str = "python", batch: str = "") -> list[str]:
    found = ["python launch/recipe.py my recipe.yaml a.b=1 dataset.root=my data"]
    for seed in seeds:
        run, given = f"{folder}/seed_{seed}", f"a.b=1 dataset.root=my data {batch}train.seed={seed}"
        found += [
            f"{train} tools/train.py my recipe.yaml {given} train.output={run}",
            f"python tools/eval.py {run}/checkpoints/last dataset.root=my data --output {run}/evaluation.json",
        ]
    runs = " ".join(f"{folder}/seed_{seed}" for seed in seeds)
    output = f"--output {folder}/comparison.json {folder}/comparison.md"
    return [*found, f"python tools/compare.py {runs} {output}"]


def test_seeds_are_trained_evaluated_and_compared(checkout: Path) -> None:
    settings = ("a.b=1", "dataset.root=my data")
    finished(checkout, "seeds.sh", "my recipe.yaml", "1", "20", *settings)
    assert calls(checkout) == seed_calls("work_dirs/own_seeds", 1, 20)
    (checkout / "calls").unlink()
    # Again, with one more: what was scored is not scored again, and trainings end at once.
    finished(checkout, "seeds.sh", "my recipe.yaml", "1", "20", "3", *settings)
    expected = seed_calls("work_dirs/own_seeds", 1, 20, 3)
    assert calls(checkout) == [call for call in expected if "eval.py" not in call or "seed_3" in call]


def test_seeds_lie_in_the_named_folder_and_share_the_gpus(checkout: Path) -> None:
    settings = ("a.b=1", "train.output=my runs", "dataset.root=my data")
    finished(checkout, "seeds.sh", "my recipe.yaml", "7", *settings, FOUND_GPUS="3")
    start, batch = "torchrun --standalone --nproc-per-node 2 --max-restarts 0", "train.batch_size=4 train.accumulate=1 "
    assert calls(checkout) == seed_calls("my runs", 7, train=start, batch=batch)
    (checkout / "calls").unlink()
    finished(checkout, "seeds.sh", "my recipe.yaml", "7", *settings, FOUND_GPUS="3", FACTS="4x2 8 x")
    batch = "train.batch_size=4 train.accumulate=1 "
    assert [call for call in calls(checkout) if "train.py" in call] == [
        call for call in seed_calls("my runs", 7, train=start, batch=batch) if "train.py" in call
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a recipe and seeds"),
        (["a.yaml"], "give seeds after the recipe"),
        (["a.yaml", "a.b=1"], "give seeds after the recipe"),
        (["a.yaml", "1", "1"], "the seed 1 is given twice"),
        (["a.yaml", "1", "two"], "two: give seeds"),
        (["a.yaml", "1", "-3"], "-3: give seeds"),
        (["a.yaml", "1", "train.seed=3"], "train.seed=3: give the seeds after the recipe"),
    ],
)
def test_a_mistake_in_seeds_is_one_line(checkout: Path, arguments: list[str], said: str) -> None:
    output = finished(checkout, "seeds.sh", *arguments, code=2)
    assert output.startswith(f"error: {said}") and output.count("\n") == 1
    assert not calls(checkout)


def test_a_mistake_in_a_recipe_is_said_before_the_first_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = runpy.run_path(str(REPOSITORY / "launch" / "recipe.py"))["main"]
    root = small_config(tmp_path / "shapes").dataset.root
    recipe = str(REPOSITORY / "configs" / "demo.yaml")
    ask([recipe, f"dataset.root={root}", "train.batch_size=3", "train.accumulate=2", "train.output=my runs"])
    assert capsys.readouterr().out == "6\n3\nmy runs\n"
    edam = str(REPOSITORY / "configs" / "edam" / "demo_1_edam.yaml")
    ask([edam, f"dataset.root={root}", "train.batch_size=4"])
    assert capsys.readouterr().out.startswith("2x2\n4\n")
    segment = str(REPOSITORY / "configs" / "segment" / "demo.yaml")
    for arguments, said in (
        ([recipe, f"dataset.root={root}", "a.b=1"], "a.b"),
        ([recipe, f"dataset.root={tmp_path / 'nothing'}"], "nothing"),
        ([segment, f"dataset.root={root}", f"dataset.pixel_labels={tmp_path / 'none'}"], "there is no folder"),
    ):
        with pytest.raises(UserError, match=said):
            ask(arguments)


@pytest.mark.parametrize("argument", ["cam.scales=[1]", "edam:train.seed=1", "train.seed", "dataset.saliency=null"])
def test_what_is_compared_shares_its_settings(checkout: Path, argument: str) -> None:
    said = finished(checkout, "compare_demo.sh", argument, code=2)
    assert said.startswith(f"error: {argument}: only train.seed=N") and said.count("\n") == 1
    assert not calls(checkout)


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


def own_data(root: Path, **lists: str) -> list[str]:
    """A configuration of own data with two images of which ``a`` has a mask."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for name in ("a", "b") if folder == "images" else ("a",):
            Image.new("RGB" if folder == "images" else "L", (8, 8)).save(root / folder / f"{name}.png")
    (root / "classes.txt").write_text("cat\n")
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text)
    (root / "own.yaml").write_text(f"dataset: {{type: folder, root: {root}, train_split: train, val_split: held_out}}")
    return [str(root / "own.yaml")]


def test_a_pipeline_asks_which_lists_have_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_data(tmp_path, train="a\nb\n", held_out="a\n")
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    stages([*config, "--", *config, "train.seed=2"])
    said = capsys.readouterr()
    assert said.out.splitlines() == ["held_out", "held_out", "-", "-", "-"]
    assert said.err.startswith("note: 'train' gets no scores: 1 of the 2 true masks are missing")


def test_a_pipeline_asks_which_lists_have_saliency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_data(tmp_path, train="a\n", held_out="b\n")
    folder = tmp_path / "maps"
    folder.mkdir()
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    with pytest.raises(UserError, match="1 of the 1 images of 'train' have no saliency map"):
        stages([*config, f"dataset.saliency={folder}"])
    assert not capsys.readouterr().out
    Image.new("L", (8, 8)).save(folder / "a.png")
    stages([*config, f"dataset.saliency={folder}"])
    said = capsys.readouterr()
    assert said.out.splitlines()[3:] == ["train", "-"]
    assert "note: 'held_out' is labelled without saliency: 1 of the 1 images" in said.err
    Image.new("L", (8, 8)).save(folder / "b.png")
    stages([*config, f"dataset.saliency={folder}"])
    assert capsys.readouterr().out.splitlines()[3:] == ["train", "held_out"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--", "CONFIG", "train.sead=2"], "did you mean 'train.seed'"),
        (["--", "CONFIG", "dataset.bad_image=jump"], "none of stop, skip"),
        (
            ["dataset.train_split=other"],
            "there is no split 'other': .*images.other holds no images, and the list .*other.txt is missing",
        ),
        (["dataset.root=nowhere"], "the data set folder nowhere does not exist"),
    ],
)
def test_a_mistake_in_the_last_stage_is_said_before_the_first(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    config = own_data(tmp_path, train="a\n", held_out="a\n")
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    with pytest.raises(UserError, match=message):
        stages([*config, *(config[0] if item == "CONFIG" else item for item in settings)])


@pytest.mark.parametrize("script", ["demo.sh", "psa_demo.sh", "edam_demo.sh", "compare_demo.sh", "train_voc.sh"])
def test_an_old_environment_is_brought_up_to_date_without_the_arguments(checkout: Path, script: str) -> None:
    (checkout / ".venv" / "installed").write_text("of another place\n")
    process = start(checkout, script, "train.seed=2", CODE="1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: the installation failed")
    assert calls(checkout) == [
        f"python -m pip install --quiet --disable-pip-version-check -c {checkout}/constraints.txt -e {checkout}"
    ]


def test_an_unusable_environment_that_a_script_made_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv" / "made_by_afa").touch()
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    (checkout / "python3").write_text('#!/bin/bash\n[ "$1" = -c ] || { echo "$*" >> "$CALLS"; exit 1; }\n')
    (checkout / "python3").chmod(0o755)
    process = start(checkout, "train_voc.sh", PYTHON=f"{checkout}/python3")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: python3 could not make a virtual environment")
    assert calls(checkout) == [f"-m venv {checkout}/.venv"]
    assert not (checkout / ".venv").exists()


def test_images_that_cannot_be_shared_out(checkout: Path) -> None:
    process = start(checkout, "train_voc.sh", GPUS="3")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == "error: 3 processes cannot share 4 images per step evenly: take another number of GPUs\n"


@pytest.mark.parametrize("gpus", ["0", "two", "-1"])
def test_a_number_of_gpus_that_is_none(checkout: Path, gpus: str) -> None:
    process = start(checkout, "train_voc.sh", GPUS=gpus)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == f"error: GPUS={gpus}: give a number of processes, 1 or more\n"


@pytest.mark.parametrize(("gpus", "code"), [("1", "75"), ("2", "1")])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_requeues(checkout: Path, gpus: str, code: str, number: signal.Signals) -> None:
    process = start(checkout, "slurm_voc.sh", SLURM_GPUS_ON_NODE=gpus, SLEEP="1", CODE=code)
    end = time.monotonic() + 300
    while not calls(checkout) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert calls(checkout)[1:] == ["scancel --signal=TERM 12", "scontrol requeue 12"]


def test_a_failure_is_not_requeued(checkout: Path) -> None:
    process = start(checkout, "slurm_voc.sh", CODE="2")
    process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(calls(checkout)) == 1


@pytest.mark.parametrize("script", sorted((REPOSITORY / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_every_script_opens_with_its_usage(script: Path) -> None:
    first = script.read_text().split("\n\n")[0]
    assert "Usage:" in script.read_text() or f"launch/{script.name}" in script.read_text()
    assert first.startswith("#")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck() -> None:
    scripts = sorted(str(path) for path in (REPOSITORY / "launch").glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", "-s", "bash", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
