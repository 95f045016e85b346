from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_tool import Result, RunTool

from afa.config import config_differences, config_to_dict, describe_settings
from afa.errors import UserError
from afa.methods import config_from_dict, load_config
from afa.methods.afa.config import AFAConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PRESETS = ("voc", "voc_paper", "coco")

# Every constant of the released program, by setting. What differs between the presets follows below.
RELEASED: dict[str, Any] = {
    # network
    "model.encoder": "mit_b1",
    "model.pretrained": "pretrained/mit_b1.pth",
    "model.widths": None,
    "model.depths": None,
    "model.heads": None,
    "model.reductions": [8, 4, 2, 1],
    "model.strides": [4, 2, 2, 1],
    "model.mlp_ratio": 4.0,
    "model.drop_path": 0.1,
    "model.pooling": "gmp",
    "model.pooling_share": 0.1,
    "model.cam_block": 0,
    "model.decoder_width": 256,
    "model.decoder_dropout": 0.1,
    "model.affinity_blocks": 2,
    # multi-scale CAM
    "cam.scales": [1.0, 0.5, 1.5],
    "cam.epsilon": 1e-5,
    # labels
    "cam.low": 0.35,
    "cam.high": 0.55,
    "cam.centred": False,
    "cam.background": 0.45,
    "dataset.ignore_index": 255,
    "par.image_scale": 0.5,
    # random walk
    "affinity.radius": 8,
    "affinity.power": 2.0,
    "affinity.epsilon": 0.1,
    # PAR
    "par.dilations": [1, 2, 4, 8, 12, 24],
    "par.temperature": 0.3,
    "par.position_weight": 0.01,
    # losses
    "loss.cls": 1.0,
    "loss.seg": 0.1,
    "loss.aff": 0.1,
    "loss.seg_background_share": 0.5,
    "loss.aff_positive_share": 0.5,
    "loss.normalisation": "process",
    "loss.reg.energy_weight": 1e-7,
    "loss.reg.sigma_rgb": 15.0,
    "loss.reg.sigma_xy": 100.0,
    "loss.reg.scale": 0.5,
    # optimisation
    "optimiser.lr": 6e-5,
    "optimiser.head_lr_factor": 10.0,
    "optimiser.weight_decay": 0.01,
    "optimiser.name": "adamw",
    "optimiser.freeze": "released",
    "optimiser.beta1": 0.9,
    "optimiser.beta2": 0.999,
    "optimiser.epsilon": 1e-8,
    "optimiser.warmup_steps": 1500,
    "optimiser.warmup_ratio": 1e-6,
    "optimiser.power": 1.0,
    "optimiser.decay_from": "start",
    "train.batch_size": 2,
    "train.accumulate": 1,
    "train.precision": "float32",
    "train.sync_batchnorm": True,
    # data
    "dataset.image_mean": [123.675, 116.28, 103.53],
    "dataset.image_std": [58.395, 57.12, 57.375],
    "augmentation.crop_size": 512,
    "augmentation.scale_min": 0.5,
    "augmentation.scale_max": 2.0,
    "augmentation.mirror_probability": 0.5,
    "augmentation.brightness": 0.0,
    "augmentation.contrast": 0.0,
    "augmentation.saturation": 0.0,
    "augmentation.hue": 0.0,
    # evaluation
    "validation.propagation_background": 0.35,
    "validation.outputs": None,
    "test.long_side": 512,
    "test.scales": [1.0, 0.5, 0.75],
    "test.mirror": True,
    "test.precision": "float32",
    "test.crf_iterations": 10,
    "test.crf_gaussian_sxy": 3.0,
    "test.crf_gaussian_weight": 3.0,
    "test.crf_bilateral_sxy": 64.0,
    "test.crf_bilateral_srgb": 5.0,
    "test.crf_bilateral_weight": 4.0,
}
VOC: dict[str, Any] = {
    "dataset.type": "voc",
    "dataset.root": "data/VOC2012",
    "dataset.train_split": "train_aug",
    "dataset.val_split": "val",
    "par.iterations": 10,
    "schedule.cls_until": 2000,
    "schedule.refined_until": 6000,
    "schedule.affinity_label_switches": False,
    "train.steps": 20_000,
    "validation.every": 2000,
}
COCO: dict[str, Any] = {
    "dataset.type": "coco",
    "dataset.root": "data/COCO2014",
    "dataset.train_split": "train",
    "dataset.val_split": "val",
    "par.iterations": 15,
    "schedule.cls_until": 5000,
    "schedule.refined_until": 15_000,
    "schedule.affinity_label_switches": True,
    "train.steps": 80_000,
}
EXPECTED = {
    "voc": {**RELEASED, **VOC, "loss.reg.weight": 0.0},
    "voc_paper": {**RELEASED, **VOC, "loss.reg.weight": 0.01},
    "coco": {**RELEASED, **COCO, "loss.reg.weight": 0.0},
}
# Settings of this project that the released program has no value for.
OWN = (
    r"method|dataset\.(name_list_dir|mask_dir|labels|mask_palette|class_names|pixel_labels|maps|saliency|pairs|bad_image|max_pixels|read_timeout)"
    r"|augmentation\.resampling|cam\.reuse_training_forward|schedule\.released_decoder_passes"
    r"|model\.(fused_attention|base_width|block_dropout|output_stride|token_stride)"
    r"|validation\.(every|batch_size)|test\.batch_size|optimiser\.momentum"
    r"|train\.(output|workers|seed|device|threads|compile|channels_last|deterministic|non_finite.*|.*_every|init|"
    r"keep_checkpoints|resume|.*timeout.*)"
)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_reference_constants(preset: str) -> None:
    settings = flat(config_to_dict(load_config(CONFIGS / f"{preset}.yaml")))
    wrong = {key: (settings[key], value) for key, value in EXPECTED[preset].items() if settings[key] != value}
    assert not wrong
    unpinned = [key for key in settings if key not in EXPECTED[preset] and not re.fullmatch(OWN, key)]
    assert not unpinned, "a new setting: either a constant of the released program, or one of ours"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_open_with_command_score_time_and_memory(preset: str) -> None:
    text = (CONFIGS / f"{preset}.yaml").read_text()
    header = text[: re.search(r"^[a-z]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert f"afa train {preset}" in header
    assert re.search(rf"afa train {preset} .*\w+\.\w+=", header), "an override example"
    for word in ("Expected", "Time:", "Memory:"):
        assert word in header
    assert "published" in header or "measured" in header


def test_paper_differs_from_the_released_program_only_in_the_regularised_loss() -> None:
    one, other = (config_to_dict(load_config(CONFIGS / f"{name}.yaml")) for name in ("voc", "voc_paper"))
    lines = config_differences(one, other)
    assert [line.split(":")[0] for line in lines] == ["loss.reg.weight", "train.output"]


# Mistakes: each one clear line.

MISTAKES = {
    "model.encodr=mit_b1": "did you mean 'model.encoder'",
    "optimizer.lr=1": "did you mean 'optimiser'",
    "lr=1e-4": "did you mean 'optimiser.lr'",
    "train.crop_size=320": "unknown key 'train.crop_size'",
    "zzz.very=1": "unknown key 'zzz'; known here: method",
    "train=5": "'train' is a section",
    "train.steps.more=5": "train.steps",
    "train.steps=many": "train.steps",
    "train.steps=1.5": "train.steps",
    "train.steps=0": "train.steps: 0 is below 1",
    "train.resume=perhaps": "train.resume",
    "optimiser.lr=-1": "optimiser.lr: -1",
    "optimiser.lr=nan": "not a finite number",
    "optimiser.lr=": "optimiser.lr",
    "optimiser.beta1=1": "optimiser.beta1: 1.0 must be less than 1",
    "train.seed=99999999999999999999": "train.seed: 99999999999999999999 must be less than 9223372036854775808",
    "model.mlp_ratio=0.001": "leaves the MLPs of 64 channels no hidden one",
    "loss.reg.sigma_rgb=1e-4": "loss.reg.sigma_rgb: 0.0001 is below 0.5",
    "model.encoder=mit_b9": "did you mean 'mit_b",
    "model.pooling=max": "none of gmp, gap, topk",
    "model.encoder=custom": "needs model.widths",
    "model.strides=[4,2,2]": "model.strides needs four values",
    "model.reductions=[8,4,2,2]": "square attention",
    "model.affinity_blocks=3": "square attention",
    "augmentation.crop_size=500": "not a multiple of 16, the encoder's stride; the nearest is 496",
    "augmentation.scale_min=3": "scale_min 3.0 is above scale_max",
    "cam.scales=[0.5,1.5]": "cam.scales must contain 1",
    "test.scales=[0.5]": "test.scales must contain 1",
    "cam.scales=[1,1,0.5]": "holds a scale twice",
    "cam.scales=[1,0.01]": "less than 16 pixels",
    "cam.low=0.6": "cam.low 0.6 is above cam.high",
    "cam.high=1.2": "cam.high: 1.2 is above 1",
    "par.dilations=[]": "par.dilations is empty",
    "par.dilations=[0]": "par.dilations: 0 is below 1",
    "dataset.image_mean=[1,2]": "needs three values",
    "dataset.type=pascal": "none of voc, coco, folder",
    "train.steps": "not of the form key=value",
    "=5": "not of the form key=value",
    "train.steps=[1": "train.steps",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_are_one_line(override: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(CONFIGS / "voc.yaml", [override])
    message = str(raised.value)
    assert MISTAKES[override] in message
    assert "\n" not in message


def test_several_mistakes_together() -> None:
    overrides = ["train.device=cpu", "train.precision=fp16"]
    with pytest.raises(UserError, match="needs a GPU"):
        load_config(CONFIGS / "voc.yaml", overrides)
    widths = ["model.encoder=custom", "model.widths=[8,16,20,30]", "model.depths=[1,1,1,2]", "model.heads=[1,2,5,8]"]
    with pytest.raises(UserError, match="cannot be shared by 8 heads"):
        load_config(CONFIGS / "voc.yaml", widths)
    with pytest.raises(UserError, match=r"strides\[3\]=1"):
        load_config(
            CONFIGS / "voc.yaml",
            ["model.reductions=[8,4,1,1]", "model.affinity_blocks=3", "model.strides=[4,2,2,2]"],
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2]", "'train' is a section"),
        ("- a\n- b", "not sections"),
        ("train: {steps: 5", "not readable as YAML"),
        ("base: nowhere.yaml", "base: nowhere.yaml: neither a file nor a recipe"),
        ("base: itself.yaml", "leads back"),
        ("base: 5\ntrain: {steps: 5}", "base: '5' is no file name: put it in quotes"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "itself.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_missing_file_and_folder_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a recipe"):
        load_config(tmp_path / "voc.yaml")
    with pytest.raises(UserError, match="a folder, and no recipe"):
        load_config(tmp_path)


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 7, seed: 3}\npar: {dilations: [1, 2]}")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrain: {steps: 8}")
    config = load_config(tmp_path / "b.yaml", ["train.seed=4", "par.dilations=[5]", "model.pretrained=a=b.pth"])
    assert (config.train.steps, config.train.seed) == (8, 4)
    assert config.par.dilations == [5]
    assert config.model.pretrained == "a=b.pth"


def test_there_and_back() -> None:
    config = load_config(CONFIGS / "coco.yaml")
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert AFAConfig() == config_from_dict({})


def test_every_setting_is_described() -> None:
    lines = describe_settings(AFAConfig).splitlines()
    keys = {line.split()[0] for line in lines}
    assert keys == set(flat(config_to_dict(AFAConfig())))
    assert all(len(line.split()) > 3 for line in lines)


# Settings of earlier versions.

RENAMED = {
    ("optimiser", "freeze_norms", True): ("optimiser", "freeze", "released"),
    ("optimiser", "freeze_norms", False): ("optimiser", "freeze", "none"),
    ("validation", "cam", True): ("validation", "outputs", None),
    ("validation", "cam", False): ("validation", "outputs", ["segmentation"]),
}


@pytest.mark.parametrize("old", RENAMED)
def test_settings_of_earlier_versions_are_read_everywhere(old: tuple[str, str, bool], tmp_path: Path) -> None:
    section, name, value = old
    new_section, new_name, new_value = RENAMED[old]
    path = tmp_path / "old.yaml"
    path.write_text(f"{section}: {{{name}: {str(value).lower()}}}\n")
    found = [
        config_from_dict({section: {name: value}}),  # as a checkpoint holds it
        config_from_dict({}, overrides=[f"{section}.{name}={str(value).lower()}"]),
        load_config(path),
    ]
    (tmp_path / "child.yaml").write_text("base: old.yaml\ntrain: {steps: 5000}\n")
    found.append(load_config(tmp_path / "child.yaml"))
    for config in found:
        assert getattr(getattr(config, new_section), new_name) == new_value
        assert name not in flat(config_to_dict(config))
    other = load_config(path, [f"{new_section}.{new_name}={'none' if name == 'freeze_norms' else '[cam]'}"])
    assert getattr(getattr(other, new_section), new_name) in ("none", ["cam"]), "the command line wins"


def test_configurations_share_no_list() -> None:
    one, other = (config_from_dict({"validation": {"cam": False}}) for _ in range(2))
    one.validation.outputs.append("more")
    one.test.scales.append(2.0)
    assert other.validation.outputs == ["segmentation"] and 2.0 not in other.test.scales


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda: config_from_dict({"validation": {"cam": "maybe"}}),
            "validation.cam: 'maybe' is neither true nor false",
        ),
        (lambda: config_from_dict({"optimiser": {"freeze_norms": 3}}), "optimiser.freeze_norms: '3' is neither true"),
        (
            lambda: config_from_dict({}, overrides=["optimiser.freeze_norms=perhaps"]),
            "'optimiser.freeze_norms=perhaps' on the command line: optimiser.freeze_norms: 'perhaps' is neither true "
            "nor false",
        ),
        (
            lambda: config_from_dict({"validation": {"cam": False, "outputs": ["cam"]}}),
            "validation.cam is validation.outputs by now, which is given, too: leave validation.cam out",
        ),
        (lambda: config_from_dict({"method": "segment", "validation": {"cam": True}}), "unknown key 'validation.cam'"),
    ],
)
def test_wrong_values_of_earlier_settings_are_one_line(read: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        read()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# The command.


@pytest.fixture
def run_training(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """The command, called in a folder that is empty."""
    monkeypatch.chdir(tmp_path)
    return partial(run_tool, "train.py")


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for part in parts:
        assert part in errors[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_training_without_data_says_what_is_missing(tmp_path: Path, run_training: RunTool, preset: str) -> None:
    result = run_training(str(CONFIGS / f"{preset}.yaml"))
    tool = "coco" if preset == "coco" else "voc"
    assert_one_line(result, "does not exist", f"'afa prepare {tool}'", "dataset.root")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_training_without_the_encoder_says_what_is_missing(tmp_path: Path, run_training: RunTool) -> None:
    root = tmp_path / "data/VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in ("one", "two"):
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(np.ones((40, 50), np.uint8)).save(root / f"SegmentationClassAug/{name}.png")
    for split in ("train_aug", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("one\ntwo\n")
    result = run_training(str(CONFIGS / "voc.yaml"), "train.device=cpu", "train.workers=0")
    assert_one_line(result, "pretrained/mit_b1.pth")
    assert not (tmp_path / "work_dirs/voc/checkpoints").exists()


def test_command_reports_a_mistake_before_it_does_anything(tmp_path: Path, run_training: RunTool) -> None:
    result = run_training(str(CONFIGS / "voc.yaml"), "trian.steps=5")
    assert_one_line(result, "unknown key 'trian'; did you mean 'train'?")
    assert list(tmp_path.iterdir()) == []
