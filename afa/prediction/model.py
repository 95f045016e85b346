"""A trained method, opened for use: the public interface of the project."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from afa.config import RunConfig, TestConfig, config_to_dict
from afa.config.reading import given_by
from afa.data.images import Decoded, read_image, to_rgb
from afa.data.inputs import CLASS_LABELS
from afa.data.layout import find_class_names
from afa.data.notices import say
from afa.device import allow_tf32, choose_device, require_precision
from afa.errors import UserError
from afa.methods import config_from_dict
from afa.methods.base import Method, SegmentationProtocol, named_outputs
from afa.ops.dense_crf import DenseCRF
from afa.prediction.images import find_pictures
from afa.prediction.predictor import Prediction, Predictor
from afa.weights import open_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike: TypeAlias = str | Path | np.ndarray | Image

# What a run is stays as it was trained; how it is used may change.
_FIXED_SECTIONS = frozenset({"method", "model", "augmentation", "optimiser", "train", "loss", "schedule"})


@dataclass(frozen=True)
class Model:
    """A trained method on its device, and the settings to use it with.

    Attributes:
        method: Its network is in evaluation mode.
        config: Its configuration, with the changes for this use.
        class_names: K names, without the background.
        step: Training steps done; None if unknown.
        device: The device of the network.
        weights: The file of the weights.
    """

    method: Method
    config: RunConfig
    class_names: tuple[str, ...]
    step: int | None
    device: torch.device
    weights: Path

    @property
    def protocol(self) -> SegmentationProtocol:
        """The protocol of segmentations in the ``test`` settings."""
        test = self.config.test
        return SegmentationProtocol(test.long_side, tuple(test.scales), test.mirror)

    def predictor(self, crf: DenseCRF | None = None, inputs: Collection[str] = ()) -> Predictor:
        """A predictor for images of any size; ``crf`` refines the masks, ``inputs`` names what every image brings."""
        return Predictor(self.method, self.config, device=self.device, crf=crf, inputs=inputs)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        maps: Sequence[str] | None = None,
        crf: bool = False,
        batch_size: int = 1,
    ) -> Any:
        """Predict images: masks, maps and classes.

        Args:
            images: A path, an array (uint8 RGB [H, W, 3], or grey [H, W]), a PIL image, or a list of those. A folder
                stands for all images in it. Files are turned upright as their EXIF orientation says, arrays and PIL
                images are used unchanged.
            labels: Names of the classes that an image shows; for several images a list of such lists. Default: the
                classes that the classifier predicts.
            maps: Outputs whose maps are returned; default: all except logits.
            crf: Refine the masks with DenseCRF.
            batch_size: Images of one size, one after the other, that run together.

        Returns:
            One :class:`Prediction` for one image; a list of them for a list or a folder.

        Raises:
            UserError: An image cannot be read, there is no such class or output, or the output needs more than images.
        """
        predictor = self.predictor(
            build_crf(self.config.test) if crf else None, () if labels is None else (CLASS_LABELS,)
        )
        wanted = _map_outputs(predictor, maps)
        found, single = _read_images(images, self.config.dataset.max_pixels)
        given = self._class_labels(labels, len(found), single)
        predictions: list[Prediction] = []
        start = 0
        while start < len(found):
            end = start + 1
            while end < len(found) and end - start < batch_size and found[end].shape == found[start].shape:
                end += 1
            predictions += predictor.predict_batch(found[start:end], given and given[start:end], maps=wanted)
            start = end
        return predictions[0] if single else predictions

    def _class_labels(
        self, labels: Sequence[str] | Sequence[Sequence[str]] | None, count: int, single: bool
    ) -> list[np.ndarray] | None:
        if labels is None:
            return None
        rows: Sequence[Any] = [labels] if single else labels
        if len(rows) != count or any(isinstance(row, str) for row in rows):
            raise UserError(f"labels: give one list of class names for each of the {count} images")
        return [self._one_hot(row) for row in rows]

    def _one_hot(self, names: Sequence[str]) -> np.ndarray:
        row = np.zeros(len(self.class_names), np.float32)
        for name in names:
            if name not in self.class_names:
                raise UserError(f"labels: '{name}' is none of the network's classes: {', '.join(self.class_names)}")
            row[self.class_names.index(name)] = 1
        return row


def load(
    source: str | Path,
    *,
    config: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Model:
    """Open a trained method.

    Args:
        source: A run's output folder, a checkpoint folder, or a file of weights, as
            :func:`afa.weights.open_checkpoint` takes it.
        config: Configuration (YAML) instead of the one that came with the weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overrides: ``section.key=value`` strings, for settings of its use; the network itself cannot be changed.

    Raises:
        UserError: The checkpoint, the device or a setting is wrong.
    """
    chosen_device = choose_device(device, "--device")
    allow_tf32(False)
    opened = open_checkpoint(source, config, lambda trained: override_config(trained, overrides))
    method, precision = opened.method, opened.config.test.precision
    if precision != "float32" and not method.low_precision:
        raise UserError(f"test.precision={precision}: the method '{method.name}' predicts in float32 alone; take that")
    require_precision(precision, chosen_device, "test.precision")
    method.precision = precision
    method.network.to(chosen_device).requires_grad_(False)
    return Model(method, opened.config, tuple(opened.class_names), opened.step, chosen_device, opened.path)


def _map_outputs(predictor: Predictor, wanted: Sequence[str] | None) -> list[str]:
    """The names of the outputs whose maps are wanted."""
    offered = [output for output in predictor.outputs if output.kind == "maps"]
    if wanted is None:
        return [output.name for output in offered if not output.logits]
    if isinstance(wanted, str):
        raise UserError(f"maps: give a list of names, such as ['{wanted}']")
    for name in wanted:
        predictor.require(name)
    return [output.name for output in named_outputs(offered, wanted, "maps")]


def scored_class_names(model: Model) -> tuple[str, ...]:
    """The K class names of the data set that a model is scored on.

    Raises:
        UserError: The network has another number of classes; or the names cannot be read.
    """
    names = tuple(find_class_names(model.config.dataset))
    if len(names) != len(model.class_names):
        raise UserError(
            f"the network knows {len(model.class_names)} classes, the data set {model.config.dataset.root} has "
            f"{len(names)}: set dataset.root to the one it was trained for"
        )
    for own, other in zip(model.class_names, names, strict=True):
        if own != other:
            say(f"the network's class '{own}' is '{other}' in the data set: the classes should agree")
            break
    return names


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration with some settings changed that concern how a network is used.

    Raises:
        UserError: An override is malformed, unknown, or of a section that is fixed by the training.
    """
    tree = config_to_dict(config)
    for override in overrides:
        section = override.partition("=")[0].partition(".")[0]
        if section in tree and section in _FIXED_SECTIONS:
            open_sections = ", ".join(name for name in tree if name not in _FIXED_SECTIONS)
            raise UserError(f"{given_by(override)}: {section} is fixed by the checkpoint; open are {open_sections}")
    changed: RunConfig = config_from_dict(tree, source="the checkpoint's configuration", overrides=overrides)
    return changed


def build_crf(settings: TestConfig, negligible: float | None = None) -> DenseCRF:
    """DenseCRF with the ``test`` section's settings.

    Raises:
        UserError: ``negligible`` is no probability.
    """
    try:
        return DenseCRF(
            iterations=settings.crf_iterations,
            gaussian_sxy=settings.crf_gaussian_sxy,
            gaussian_weight=settings.crf_gaussian_weight,
            bilateral_sxy=settings.crf_bilateral_sxy,
            bilateral_srgb=settings.crf_bilateral_srgb,
            bilateral_weight=settings.crf_bilateral_weight,
            negligible=negligible,
        )
    except ValueError as error:
        raise UserError(f"DenseCRF: {error}") from error


# Pillow's modes of 8 bits: others hold values whose range nobody can know.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")


def _read_images(images: Any, max_pixels: int) -> tuple[list[np.ndarray], bool]:
    """Images as uint8 RGB arrays, and whether a single one was meant."""
    if isinstance(images, (str, Path)):
        path = Path(images)
        if path.is_dir():
            found = find_pictures([path], without=path / ".none").pictures
            return [read_image(picture.path, max_pixels=max_pixels, upright=True) for picture in found], False
        return [read_image(path, max_pixels=max_pixels, upright=True)], True
    if isinstance(images, Sequence):
        arrays = []
        for image in images:
            arrays += _read_images(image, max_pixels)[0]
        return arrays, False
    return [_to_array(images)], True


def _to_array(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        mode = getattr(image, "mode", None)
        if mode is None or not hasattr(image, "convert"):
            raise UserError(f"a {type(image).__name__} is no image: give a path, an array or a PIL image")
        if mode not in _MODES or not all(image.size):
            raise UserError(f"a PIL image of mode {mode}, {image.size}, is not read: convert it to RGB, 8 bits")
        return to_rgb(Decoded(Path("that PIL holds"), image, image.format or ""))
    is_grey, is_rgb = image.ndim == 2, image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (is_grey or is_rgb) or not image.size:
        raise UserError(f"an array of {image.dtype}, {image.shape}, is no image: give uint8, [H, W, 3] or [H, W]")
    return image if is_rgb else np.repeat(image[:, :, None], 3, axis=2)
