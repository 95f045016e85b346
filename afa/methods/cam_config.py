"""Settings that methods with PSA's classifier share: augmentation, optimiser, DenseCRF. No PyTorch is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from afa.config.settings import CropConfig, OptimiserConfig, setting


@dataclass
class JitteredCropConfig(CropConfig):
    """Mirror, colour jitter and crop, as released."""

    crop_size: int = setting(448, "side of the square training crop in pixels", minimum=16, maximum=8192)
    brightness: float = setting(0.3, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    contrast: float = setting(0.3, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    saturation: float = setting(0.3, "colour jitter: random factor, 1 - value to 1 + value", minimum=0, maximum=1)
    hue: float = setting(0.1, "colour jitter: random shift of the hue; 0.5 is half a turn", minimum=0, maximum=0.5)


@dataclass
class CAMAugmentationConfig(JitteredCropConfig):
    """As for AffinityNet, with a random resize before the crop."""

    long_side_min: int = setting(256, "smallest long side that an image is resized to", minimum=1, maximum=8192)
    long_side_max: int = setting(512, "largest long side that an image is resized to", minimum=1, maximum=8192)

    def problems(self) -> Iterator[str]:
        """See :meth:`CropConfig.problems`."""
        if self.long_side_min > self.long_side_max:
            yield f"augmentation: long_side_min {self.long_side_min} is above long_side_max {self.long_side_max}"


@dataclass
class ReleasedOptimiserConfig(OptimiserConfig):
    """As for every method; the defaults are those of the released program."""

    name: str = setting("sgd", "how weights are updated", choices=("adamw", "sgd"))
    lr: float = setting(0.01, "learning rate of the encoder (the released README has 0.1, for VGG-16 only)", above=0)
    weight_decay: float = setting(5e-4, "weight decay; biases have none", minimum=0)
    freeze: str = setting(
        "released",
        "parameters that are not trained: released, the first layers and all BatchNorms of the encoder, or none, for "
        "training from scratch",
        choices=("released", "none"),
    )
    bias_lr_factor: float = setting(2.0, "learning rate of biases, as a multiple of the weights' rate", above=0)
    momentum: float = setting(
        5e-4,
        "SGD's momentum; the released program passes its weight decay here by mistake, 0.9 was intended",
        minimum=0,
        below=1,
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", minimum=0, of_steps=True)
    power: float = setting(0.9, "exponent of the polynomial decay", minimum=0)


@dataclass
class CRFConfig:
    """DenseCRF of this method; ``test.crf_*`` is for segmentations."""

    iterations: int = setting(10, "mean-field iterations", minimum=1)
    gaussian_sxy: float = setting(3.0, "bandwidth of the smoothness kernel in pixels", minimum=0.5)
    gaussian_weight: float = setting(3.0, "weight of the smoothness kernel", minimum=0)
    bilateral_sxy: float = setting(80.0, "bandwidth of the bilateral kernel in pixels", minimum=0.5)
    bilateral_srgb: float = setting(13.0, "bandwidth of the bilateral kernel in colour", minimum=0.5)
    bilateral_weight: float = setting(10.0, "weight of the bilateral kernel", minimum=0)
