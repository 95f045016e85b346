"""Every setting there is, with its help text and, where it applies, its choices or range.

References such as "sec. 3.2" point into the AFA paper (CVPR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_PIXELS = 65_000_000
"""Pixels of an image or mask up to which a loader process takes some 1.5 GB at most, besides PyTorch."""


@dataclass(frozen=True)
class EncoderVariant:
    """What tells the Mix Transformer's variants apart; all else they share."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)


VARIANTS = {
    "mit_b0": EncoderVariant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": EncoderVariant((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": EncoderVariant((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": EncoderVariant((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": EncoderVariant((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": EncoderVariant((64, 128, 320, 512), (3, 6, 40, 3)),
}


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A configuration field with its help text and, where given, its choices or range (for lists: of each item).

    ``path`` says that it is the path of a file or folder.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, "path": path, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DatasetConfig:
    """Images, image-level labels and, for evaluation only, masks."""

    type: str = setting("voc", "layout of the files", choices=("voc", "coco", "folder"))
    root: str = setting("data/VOC2012", "folder of the data set", path=True)
    train_split: str = setting("train_aug", "name of the training list")
    val_split: str = setting("val", "name of the validation list")
    name_list_dir: str | None = setting(
        None, "folder of the lists SPLIT.txt; default: where the layout keeps them", path=True
    )
    mask_dir: str | None = setting(
        None, "folder of the masks, in root or as it is; default: where the layout keeps them", path=True
    )
    labels: str | None = setting(
        None,
        "image-level labels (.txt .csv .json, or the released .npy); default: labels file of the layout, else masks",
        path=True,
    )
    mask_palette: str | None = setting(
        None,
        "for masks that are colour images: file that lists the classes' colours (docs/data.md), in root or as it is",
        path=True,
    )
    class_names: str | None = setting(None, "file with one class name per line, background left out", path=True)
    image_mean: list[float] = setting([123.675, 116.28, 103.53], "mean of the R, G, B values, 0-255")
    image_std: list[float] = setting([58.395, 57.12, 57.375], "standard deviation of the R, G, B values", above=0)
    ignore_index: int = setting(255, "mask value that counts for nothing", minimum=0, maximum=255)
    bad_image: str = setting(
        "stop",
        "a damaged image: stop, or say so and skip it (in training another is drawn, in evaluation it is left out)",
        choices=("stop", "skip"),
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "images and masks of more pixels are refused before they are decoded; a loader process takes up to 10 bytes "
        "per pixel in training, 25 in evaluation",
        minimum=1,
        maximum=10_000_000_000,
    )
    read_timeout: float = setting(
        120.0,
        "seconds that images are waited for at most, in training and evaluation; 0: for ever",
        minimum=0,
        maximum=86_400,
    )


@dataclass
class AugmentationConfig:
    """The training transform: scale, mirror, pad, crop."""

    crop_size: int = setting(512, "side of the square training crop in pixels", minimum=16, maximum=8192)
    scale_min: float = setting(0.5, "smallest random scale", above=0, maximum=16)
    scale_max: float = setting(2.0, "largest random scale", above=0, maximum=16)
    mirror_probability: float = setting(0.5, "how often an image is mirrored", minimum=0, maximum=1)
    resampling: str = setting(
        "pil", "bilinear resampling: pil antialiases when shrinking, opencv does not", choices=("pil", "opencv")
    )


@dataclass
class ModelConfig:
    """Mix Transformer encoder, classifier, affinity head and MLP decoder (sec. 3.1-3.3)."""

    encoder: str = setting(
        "mit_b1",
        "MiT variant; custom needs widths, depths and heads",
        choices=(*VARIANTS, "custom"),
    )
    pretrained: str | None = setting(
        None, "encoder weights: a file, a folder, or a name such as nvidia/mit-b1", path=True
    )
    widths: list[int] | None = setting(None, "channels of the four stages; default: the variant's", minimum=1)
    depths: list[int] | None = setting(None, "blocks of the four stages; default: the variant's", minimum=1)
    heads: list[int] | None = setting(None, "attention heads of the four stages; default: the variant's", minimum=1)
    reductions: list[int] = setting([8, 4, 2, 1], "spatial reduction of keys and values in the four stages", minimum=1)
    strides: list[int] = setting([4, 2, 2, 1], "strides of the four patch embeddings (SegFormer: 4 2 2 2)", minimum=1)
    mlp_ratio: float = setting(4.0, "hidden width of the MLPs over their input's", above=0)
    drop_path: float = setting(0.1, "stochastic depth, rising linearly to this over the blocks", minimum=0, maximum=0.9)
    pooling: str = setting("gmp", "pooling before the classifier: global max or mean", choices=("gmp", "gap"))
    decoder_width: int = setting(256, "channels of the decoder", minimum=1)
    decoder_dropout: float = setting(0.1, "Dropout2d before the decoder's last layer", minimum=0, maximum=0.9)
    fused_attention: bool = setting(
        True, "false writes attention out: slower, but it rounds as the released program does"
    )
    affinity_blocks: int = setting(2, "how many last blocks hand their raw attention to the affinity head", minimum=1)


@dataclass
class CamConfig:
    """Class activation maps over scales, and the thresholds that turn them into labels."""

    scales: list[float] = setting([1.0, 0.5, 1.5], "scales of the CAM passes, in their order", above=0, maximum=16)
    epsilon: float = setting(1e-5, "added to the maximum when a CAM is normalised", above=0)
    background: float = setting(0.45, "background score of the plain label", minimum=0, maximum=1)
    low: float = setting(0.35, "below it both results must say background", minimum=0, maximum=1)
    high: float = setting(0.55, "above it a class is certain", minimum=0, maximum=1)
    reuse_training_forward: bool = setting(
        True, "take the un-mirrored pass at scale 1 from the training forward (its drop-path sample, no second run)"
    )


@dataclass
class AffinityConfig:
    """Affinity and its random walk (sec. 3.3, eq. 4-6)."""

    radius: int = setting(8, "pairs further apart than this many tokens in y or x do not count", minimum=1)
    power: float = setting(2.0, "alpha of T = D^-1 A^alpha", above=0)
    epsilon: float = setting(0.1, "added to the sums of the transition matrix's columns", above=0)


@dataclass
class ParConfig:
    """Pixel-adaptive refinement (sec. 3.4, eq. 7-9)."""

    iterations: int = setting(10, "how often the masks are refined (VOC 10, COCO 15)", minimum=0)
    dilations: list[int] = setting(
        [1, 2, 4, 8, 12, 24], "distances of the 8 neighbours in pixels", minimum=1, maximum=8192
    )
    image_scale: float = setting(0.5, "size of the image given to PAR over the crop's", above=0, maximum=1)
    temperature: float = setting(0.3, "w1 and w2: scale of colour and position distances", above=0)
    position_weight: float = setting(0.01, "w3: weight of the position kernel", minimum=0)


@dataclass
class RegularisedLossConfig:
    """Dense energy of the segmentation (regularised loss)."""

    weight: float = setting(0.0, "weight in the total loss (paper 0.01, released program 0: off)", minimum=0)
    energy_weight: float = setting(1e-7, "factor of the energy itself", above=0)
    sigma_rgb: float = setting(15.0, "bandwidth in colour, 0-255", minimum=0.5)
    sigma_xy: float = setting(100.0, "bandwidth in pixels of the crop", minimum=0.5)
    scale: float = setting(0.5, "size at which the energy is computed over the crop's", above=0, maximum=1)


@dataclass
class LossConfig:
    """Total = cls + seg + aff + reg with these weights (eq. 12); during the first steps cls alone."""

    cls: float = setting(1.0, "weight of the classification loss", minimum=0)
    seg: float = setting(0.1, "weight of the segmentation loss", minimum=0)
    aff: float = setting(0.1, "weight of the affinity loss", minimum=0)
    reg: RegularisedLossConfig = field(default_factory=RegularisedLossConfig)
    seg_background_share: float = setting(0.5, "share of the background in the segmentation loss", minimum=0, maximum=1)
    aff_positive_share: float = setting(0.5, "share of the positive pairs in the affinity loss", minimum=0, maximum=1)
    normalisation: str = setting(
        "process",
        "means and counts of the losses are those of each process (released program) or of all together",
        choices=("process", "global"),
    )


@dataclass
class ScheduleConfig:
    """Which losses and labels are used when. Step s counts from 0."""

    cls_until: int = setting(2000, "while s <= this, only the classification loss counts", minimum=-1)
    refined_until: int = setting(6000, "while s <= this, the refined label supervises the decoder, then the propagated")
    affinity_label_switches: bool = setting(
        False, "from then on the affinity label, too, comes from the propagated label (COCO)"
    )
    released_decoder_passes: bool = setting(
        False,
        "run every pass and the decoder in it, as the released program does, also where only BatchNorm's running "
        "statistics notice; no loss or weight changes",
    )


@dataclass
class OptimiserConfig:
    """AdamW over encoder, its norms, heads and decoder; linear warm-up, polynomial decay."""

    lr: float = setting(6e-5, "learning rate of the encoder", above=0)
    head_lr_factor: float = setting(
        10.0, "learning rate of classifier, affinity head and decoder over the encoder's", above=0
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", minimum=0)
    freeze_norms: bool = setting(True, "encoder parameters whose name holds 'norm': lr 0, decay 0 (released program)")
    beta1: float = setting(0.9, "AdamW's first beta", minimum=0, below=1)
    beta2: float = setting(0.999, "AdamW's second beta", minimum=0, below=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon", above=0)
    warmup_steps: int = setting(1500, "steps of linear warm-up", minimum=0)
    warmup_ratio: float = setting(1e-6, "factor of the learning rate at step 0", above=0, maximum=1)
    power: float = setting(1.0, "exponent of the polynomial decay, which counts from step 0", minimum=0)


@dataclass
class TrainConfig:
    """How long, where, how often."""

    output: str = setting("work_dirs/voc", "folder that receives everything the run writes", path=True)
    steps: int = setting(20000, "training steps", minimum=1)
    batch_size: int = setting(2, "images per process and forward pass", minimum=1)
    accumulate: int = setting(1, "forward passes whose gradients are averaged into one step", minimum=1)
    workers: int = setting(2, "loader processes per training process", minimum=0)
    seed: int = setting(1, "seed of weights, sample order, augmentation and dropout", minimum=0, below=2**63)
    device: str = setting("auto", "auto, cpu, cuda, or cuda:N")
    threads: int = setting(0, "CPU threads of each process; 0: what PyTorch chooses", minimum=0, maximum=1024)
    precision: str = setting(
        "float32",
        "arithmetic of the networks in training; labels, losses and validation stay float32. tf32: float32 with "
        "products of 10 bits, on GPUs that have it",
        choices=("float32", "tf32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "torch.compile the networks; falls back with a warning")
    channels_last: bool = setting(False, "memory format of images and convolutions")
    deterministic: bool = setting(False, "deterministic algorithms on the GPU (the CPU always is)")
    sync_batchnorm: bool = setting(True, "synchronise BatchNorm over processes where it works (GPU only)")
    non_finite: str = setting("stop", "a non-finite loss or gradient: stop, or skip the step", choices=("stop", "skip"))
    non_finite_limit: int = setting(10, "so many steps of one run may be skipped, the next one stops it", minimum=0)
    log_every: int = setting(50, "steps between records", minimum=1)
    pictures_every: int = setting(1000, "steps between picture grids in TensorBoard; 0: none", minimum=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)
    keep_checkpoints: int = setting(2, "how many of the latest checkpoints stay, the best besides", minimum=1)
    resume: bool = setting(True, "go on from the output folder's latest checkpoint where there is one")


@dataclass
class ValidationConfig:
    """Validation during training: native resolution, stored BatchNorm statistics."""

    every: int = setting(2000, "steps between validations; the last step is always validated", minimum=1)
    cam: bool = setting(True, "also score CAM and propagated CAM (mirrors and all scales)")
    propagation_background: float = setting(0.35, "background score of the propagated CAM", minimum=0, maximum=1)
    batch_size: int = setting(1, "images of one size that run together; rounding differs above 1", minimum=1)


@dataclass
class TestConfig:
    """Test-time prediction: what tools/eval.py and tools/infer.py do unless told otherwise."""

    __test__ = False  # not a pytest class

    long_side: int = setting(512, "images are resized to this long side first; 0: native size", minimum=0)
    scales: list[float] = setting([1.0, 0.5, 0.75], "scales of the prediction", above=0, maximum=16)
    mirror: bool = setting(True, "average the logits with those of the mirrored image")
    batch_size: int = setting(1, "images of one size that run together; rounding differs above 1", minimum=1)
    crf_iterations: int = setting(10, "DenseCRF: mean-field iterations", minimum=1)
    crf_gaussian_sxy: float = setting(3.0, "DenseCRF: bandwidth of the smoothness kernel in pixels", minimum=0.5)
    crf_gaussian_weight: float = setting(3.0, "DenseCRF: weight of the smoothness kernel", minimum=0)
    crf_bilateral_sxy: float = setting(64.0, "DenseCRF: bandwidth of the bilateral kernel in pixels", minimum=0.5)
    crf_bilateral_srgb: float = setting(5.0, "DenseCRF: bandwidth of the bilateral kernel in colour", minimum=0.5)
    crf_bilateral_weight: float = setting(4.0, "DenseCRF: weight of the bilateral kernel", minimum=0)


@dataclass
class Config:
    """One run."""

    method: str = setting("afa", "training method", choices=("afa",))
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    cam: CamConfig = field(default_factory=CamConfig)
    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    par: ParConfig = field(default_factory=ParConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    test: TestConfig = field(default_factory=TestConfig)


def each_setting(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every setting of a section: its key with dots, its value, and the field with its help text and limits."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from each_setting(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item


def describe_settings() -> str:
    """A text table of every setting: key, default, help."""
    rows = [(key, str(value), item.metadata["help"]) for key, value, item in each_setting(Config())]
    key_width, value_width = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return "\n".join(f"{key:<{key_width}}  {value:<{value_width}}  {help}" for key, value, help in rows)
