"""The settings that every run has, with their help texts and, where it applies, their choices or ranges.

A method's own sections stand beside it, in ``afa/methods/NAME/config.py``: a class that inherits from
:class:`RunConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

IGNORE = 255
"""Value of pixels of no class, in every label that this project makes and scores."""

MAX_PIXELS = 65_000_000
"""Pixels of an image or mask up to which a loader process takes some 1.5 GB at most, besides PyTorch."""


SHARE_HELP = "; also as a share of train.steps, such as 10%"


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
    of_steps: bool = False,
) -> Any:
    """A configuration field with its help text and, where given, its choices or range (for lists: of each item).

    ``path`` says that it is the path of a file or folder; ``of_steps`` that it counts training steps, and may be given
    as a share of ``train.steps``, such as ``10%``.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, "path": path, "of_steps": of_steps, **limits}
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
        None, "folder of the lists SPLIT.txt; default: the folder of the layout", path=True
    )
    mask_dir: str | None = setting(
        None, "folder of the masks, in root or a full path; default: the folder of the layout", path=True
    )
    labels: str | None = setting(
        None,
        "image-level labels (.txt .csv .json, or the released .npy); default: labels file of the layout, else masks",
        path=True,
    )
    mask_palette: str | None = setting(
        None,
        "for masks that are colour images: file with the colours of the classes (docs/data.md), in root or a full path",
        path=True,
    )
    class_names: str | None = setting(None, "file with one class name per line, without the background", path=True)
    pixel_labels: str | None = setting(
        None, "folder of pixel labels NAME.png that training reads: true masks, or those of an earlier stage", path=True
    )
    maps: str | None = setting(
        None,
        "folder of maps that training or prediction reads: a label folder, or PSA's or IRN's .npy files",
        path=True,
    )
    saliency: str | None = setting(None, "folder of grey saliency images NAME.png", path=True)
    pairs: str | None = setting(
        None,
        "for methods that train on pairs: list of pairs in EDAM's format, IMAGE IMAGE CLASS_INDEX per line, used in "
        "this order; default: random pairs",
        path=True,
    )
    image_mean: list[float] = setting(
        [123.675, 116.28, 103.53], "mean of the R, G, B values, 0-255; with a timm encoder, the default is its own"
    )
    image_std: list[float] = setting(
        [58.395, 57.12, 57.375], "standard deviation of the R, G, B values; default as for the mean", above=0
    )
    ignore_index: int = setting(255, "mask value of ignored pixels", minimum=0, maximum=255)
    bad_image: str = setting(
        "stop",
        "a damaged image: stop, or skip it with a warning (training takes another image, evaluation takes none)",
        choices=("stop", "skip"),
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "images and masks with more pixels are refused before decoding; a loader process needs up to 10 bytes of "
        "memory per pixel in training, 25 in evaluation",
        minimum=1,
        maximum=10_000_000_000,
    )
    read_timeout: float = setting(
        120.0,
        "longest time to wait for images in training and evaluation, in seconds; 0: no limit",
        minimum=0,
        maximum=86_400,
    )


@dataclass
class CropConfig:
    """Settings of all training transforms: colours, mirror, crop."""

    crop_size: int = setting(512, "side of the square training crop in pixels", minimum=16, maximum=8192)
    mirror_probability: float = setting(0.5, "probability that an image is mirrored", minimum=0, maximum=1)
    brightness: float = setting(0.0, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    contrast: float = setting(0.0, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    saturation: float = setting(0.0, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    hue: float = setting(0.0, "colour jitter: random shift of the hue; 0.5 is half a turn", minimum=0, maximum=0.5)

    def problems(self) -> Iterator[str]:
        """Contradictions between settings of the section, one line each."""
        yield from ()


@dataclass
class AugmentationConfig(CropConfig):
    """The training transform: scale, mirror, colours, pad, crop."""

    scale_min: float = setting(0.5, "smallest random scale", above=0, maximum=16)
    scale_max: float = setting(2.0, "largest random scale", above=0, maximum=16)
    resampling: str = setting(
        "pil", "bilinear resampling: pil antialiases when shrinking, opencv does not", choices=("pil", "opencv")
    )

    def problems(self) -> Iterator[str]:
        """See :meth:`CropConfig.problems`."""
        if self.scale_min > self.scale_max:
            yield f"augmentation: scale_min {self.scale_min} is above scale_max {self.scale_max}"


@dataclass
class OptimiserConfig:
    """AdamW or SGD over a method's groups of parameters; linear warm-up, polynomial decay."""

    name: str = setting("adamw", "how weights are updated", choices=("adamw", "sgd"))
    lr: float = setting(6e-5, "learning rate of layers with pretrained weights", above=0)
    head_lr_factor: float = setting(10.0, "learning rate of all other layers, as a multiple of lr", above=0)
    weight_decay: float = setting(0.01, "weight decay; AdamW's is decoupled", minimum=0)
    freeze: str = setting(
        "released",
        "parameters that are not trained: released, those that the method's released program freezes (AFA: encoder "
        "parameters with 'norm' in their name), or none, for training from scratch",
        choices=("released", "none"),
    )
    beta1: float = setting(0.9, "AdamW's first beta", minimum=0, below=1)
    beta2: float = setting(0.999, "AdamW's second beta", minimum=0, below=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon", above=0)
    momentum: float = setting(0.9, "SGD's momentum", minimum=0, below=1)
    warmup_steps: int = setting(1500, "steps of linear warm-up", minimum=0, of_steps=True)
    warmup_ratio: float = setting(1e-6, "factor of the learning rate at step 0", above=0, maximum=1)
    power: float = setting(1.0, "exponent of the polynomial decay", minimum=0)
    decay_from: str = setting(
        "start",
        "first step of the decay: start of training (the rate then drops at the end of the warm-up), or end of warm-up",
        choices=("start", "warmup"),
    )


@dataclass
class TrainConfig:
    """Length, output folder, batches, precision, and intervals of logs and checkpoints."""

    output: str = setting("work_dirs/voc", "output folder of the run", path=True)
    steps: int = setting(20000, "training steps", minimum=1)
    batch_size: int = setting(2, "images per process and forward pass", minimum=1)
    accumulate: int = setting(1, "forward passes whose gradients are averaged into one step", minimum=1)
    workers: int = setting(2, "loader processes per training process", minimum=0)
    seed: int = setting(1, "seed of weights, sample order, augmentation and dropout", minimum=0, below=2**63)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    threads: int = setting(0, "CPU threads of each process; 0: PyTorch decides", minimum=0, maximum=1024)
    precision: str = setting(
        "float32",
        "number format of the networks in training; labels, losses and validation stay float32. tf32: float32, "
        "with products of 10-bit precision, on GPUs that support it",
        choices=("float32", "tf32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "use torch.compile; where it fails, a warning, and training without it")
    channels_last: bool = setting(False, "use the memory format channels_last for images and convolutions")
    deterministic: bool = setting(False, "deterministic algorithms on the GPU (the CPU always uses them)")
    sync_batchnorm: bool = setting(True, "synchronise BatchNorm over processes where it works (GPU only)")
    non_finite: str = setting("stop", "a non-finite loss or gradient: stop, or skip the step", choices=("stop", "skip"))
    non_finite_limit: int = setting(10, "most steps that a run may skip; one more stops the run", minimum=0)
    log_every: int = setting(50, "steps between records", minimum=1, of_steps=True)
    pictures_every: int = setting(1000, "steps between image grids in TensorBoard; 0: none", minimum=0, of_steps=True)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1, of_steps=True)
    keep_checkpoints: int = setting(2, "how many of the latest checkpoints to keep, besides the best one", minimum=1)
    init: str | None = setting(None, "start from weights of another run: all that fit by name and shape", path=True)
    resume: bool = setting(True, "continue from the latest checkpoint in the output folder, if any")


@dataclass
class ValidationConfig:
    """Validation during training: native resolution, stored BatchNorm statistics."""

    every: int = setting(2000, "steps between validations; the last step is always validated", minimum=1, of_steps=True)
    outputs: list[str] | None = setting(None, "outputs of the method to score; default: all that are scored")
    batch_size: int = setting(1, "images of the same size per batch; rounding differs above 1", minimum=1)


@dataclass
class TestConfig:
    """Test-time prediction: what 'afa eval' and 'afa predict' do unless told otherwise."""

    __test__ = False  # not a pytest class

    long_side: int = setting(512, "images are resized to this long side first; 0: native size", minimum=0)
    scales: list[float] = setting([1.0, 0.5, 0.75], "scales of the prediction", above=0, maximum=16)
    mirror: bool = setting(True, "average the logits with those of the mirrored image")
    batch_size: int = setting(1, "images of the same size per batch; rounding differs above 1", minimum=1)
    precision: str = setting(
        "float32",
        "number format of the networks in 'afa label', 'eval', 'predict', 'report', 'sheet' and 'export'; all that "
        "follows the network stays float32, and so does validation. tf32: float32, with products of 10-bit precision, "
        "on GPUs that support it",
        choices=("float32", "tf32", "bf16"),
    )
    crf_iterations: int = setting(10, "DenseCRF: mean-field iterations", minimum=1)
    crf_gaussian_sxy: float = setting(3.0, "DenseCRF: bandwidth of the smoothness kernel in pixels", minimum=0.5)
    crf_gaussian_weight: float = setting(3.0, "DenseCRF: weight of the smoothness kernel", minimum=0)
    crf_bilateral_sxy: float = setting(64.0, "DenseCRF: bandwidth of the bilateral kernel in pixels", minimum=0.5)
    crf_bilateral_srgb: float = setting(5.0, "DenseCRF: bandwidth of the bilateral kernel in colour", minimum=0.5)
    crf_bilateral_weight: float = setting(4.0, "DenseCRF: weight of the bilateral kernel", minimum=0)


@dataclass(frozen=True)
class Renamed:
    """A setting that was renamed.

    Attributes:
        key: Its name.
        values: Old value -> new value.
    """

    key: str
    values: Mapping[bool, Any]


@dataclass
class RunConfig:
    """One run: the sections that every method has."""

    renamed: ClassVar[Mapping[str, Renamed]] = {}
    """Keys of earlier versions -> what they became."""

    method: str = setting("afa", "training method")
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augmentation: CropConfig = field(default_factory=CropConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def problems(self) -> Iterator[str]:
        """Contradictions between settings, one line each; the user sees the first."""
        for name in ("image_mean", "image_std"):
            if len(getattr(self.dataset, name)) != 3:
                yield f"dataset.{name} needs three values: R, G, B"
        yield from self.augmentation.problems()
        yield from scale_problems("test.scales", self.test.scales)
        if self.train.device == "cpu" and self.train.precision == "fp16":
            yield "train.precision=fp16 needs a GPU; on the CPU use bf16 or float32"

    def training_problems(self) -> Iterator[str]:
        """What makes a training pointless, one line each: a part that is scored and stored, but never trained."""
        yield from ()

    def training_remarks(self) -> Iterator[str]:
        """Settings that are allowed in a training but rarely intended, one line each."""
        optimiser, unset = self.optimiser, type(self.optimiser)()
        for name, others in (("adamw", ("momentum",)), ("sgd", ("beta1", "beta2", "epsilon"))):
            for setting_name in others if optimiser.name == name else ():
                if getattr(optimiser, setting_name) != getattr(unset, setting_name):
                    yield f"optimiser.{setting_name} changes nothing with optimiser.name={name}"
        steps, warmup = self.train.steps, optimiser.warmup_steps
        if warmup >= steps:
            yield (
                f"optimiser.warmup_steps={warmup} is not below train.steps={steps}: the learning rate never reaches "
                "optimiser.lr"
            )


def scale_problems(name: str, scales: Sequence[float]) -> Iterator[str]:
    """What is wrong with a list of scales."""
    if 1.0 not in scales:
        yield f"{name} must contain 1, not only {list(scales)}"
    if len(set(scales)) != len(scales):
        yield f"{name} holds a scale twice: {list(scales)}"


def each_setting(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every setting of a section: its key with dots, its value, and the field with its help text and limits."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from each_setting(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item


def describe_settings(kind: type[RunConfig]) -> str:
    """A text table of every setting of a configuration class: key, default, help."""
    rows = [
        (key, str(value), f"{item.metadata['help']}{SHARE_HELP if item.metadata['of_steps'] else ''}")
        for key, value, item in each_setting(kind())
    ]
    key_width, value_width = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return "\n".join(f"{key:<{key_width}}  {value:<{value_width}}  {help}" for key, value, help in rows)
