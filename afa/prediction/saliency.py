"""Saliency maps for images that have none: by minimum barrier distance, or by a network in an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from afa.config.settings import MAX_PIXELS
from afa.data.files import open_plain, read_bytes, read_json, remove_unfinished, replacing, write_json
from afa.data.images import DamagedImage, decode, read_image
from afa.data.own_files import is_free
from afa.data.parallel import map_files
from afa.errors import UserError
from afa.ops.minimum_barrier import minimum_barrier_saliency

FACTS_FILE = "saliency.json"
_VERSION = 1  # changes with what an image gives
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, of 1
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_LARGEST_NETWORK = 4 << 30  # bytes
_NOTE = "afa_image"  # key of the text in the PNG file that tells its image


class Made(NamedTuple):
    """What :func:`make_saliency` did.

    Attributes:
        written: How many maps.
        there: How many were there already.
        failures: One line for each image that could not be read.
    """

    written: int
    there: int
    failures: list[str]


def make_saliency(
    images: Mapping[str, Path],
    output: Path,
    *,
    network: Path | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
) -> Made:
    """Write a saliency map ``NAME.png`` for each image: grey, 8 bits, of the image's size as it is stored.

    Maps that are there stay, if they were made of the same image; started again, the same call does what is missing.

    Args:
        images: Name, which may hold ``/``, -> file.
        output: Folder of the maps. ``saliency.json`` in it says what made them.
        network: ONNX file, see :class:`SaliencyNetwork`; default: minimum barrier distance.
        max_pixels: Larger images are refused.
        workers: Processes.

    Raises:
        UserError: The folder holds something else, or maps that were made otherwise or of other images; or the network
            cannot be used.
    """
    facts: dict[str, Any] = {"made_by": "make_saliency", "version": _VERSION}
    if network is None:
        facts["method"] = "minimum barrier distance"
    else:
        open_network(network)  # before anything is written
        facts |= {"method": "network", "sha256": hashlib.sha256(_content(network)).hexdigest()}
    targets = {str(path): str(output / f"{name}.png") for name, path in images.items()}
    _begin(output, facts, {Path(target).parent for target in targets.values()})
    work = partial(_write_map, network, max_pixels)
    done = list(map_files(work, list(targets.items()), workers=workers, description="saliency"))
    failures = [line for line in done if isinstance(line, str)]
    return Made(done.count(True), done.count(False), failures)


class SaliencyNetwork:
    """A network for salient objects in an ONNX file.

    It takes one RGB image of a fixed square size, normalised with ImageNet's mean and standard deviation, and its first
    output is the saliency in 0..1. Images are brought to that long side and filled up with the mean colour.

    Args:
        path: The file.

    Raises:
        UserError: onnxruntime is not installed, cannot read the file, or the network is of another kind.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("--network needs onnxruntime: pip install onnxruntime, or -e .[saliency]") from error
        content, options = _content(path), onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"--network {path}: onnxruntime cannot read it: {reason}") from error
        self._path, self._session = path, session
        inputs = session.get_inputs()
        self._name, shape = inputs[0].name, list(inputs[0].shape)
        square = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
        if len(inputs) != 1 or not square:
            raise UserError(f"--network {path}: it takes {shape}; one that takes [1, 3, S, S] is needed")
        self._side = int(shape[2])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The saliency of every pixel.

        Args:
            image: uint8 RGB [H, W, 3].

        Returns:
            float32 [H, W] in 0..1.

        Raises:
            UserError: The network gives something else.
        """
        side, (height, width) = self._side, image.shape[:2]
        scale = side / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (side - rows) // 2, (side - columns) // 2
        batch = np.zeros((1, 3, side, side), np.float32)
        normal = (small.astype(np.float32) / 255 - _MEAN) / _STD
        batch[0, :, top : top + rows, left : left + columns] = normal.transpose(2, 0, 1)
        found = np.squeeze(np.asarray(self._session.run(None, {self._name: batch})[0], np.float32))
        if found.ndim != 2:
            raise UserError(
                f"--network {self._path}: it gives {list(found.shape)} values; one for each pixel is needed"
            )
        if not (found.min() >= -1e-3 and found.max() <= 1.001):
            raise UserError(
                f"--network {self._path}: it gives values from {found.min():g} to {found.max():g}; one that ends with "
                "a sigmoid, from 0 to 1, is needed"
            )
        whole = cv2.resize(found, (side, side), interpolation=cv2.INTER_LINEAR)
        part = np.ascontiguousarray(whole[top : top + rows, left : left + columns])
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


@cache
def open_network(path: Path) -> SaliencyNetwork:
    """The network of a file, once in each process."""
    return SaliencyNetwork(path)


def _content(path: Path) -> bytes:
    return read_bytes(path, "the network", largest=_LARGEST_NETWORK)


def _begin(output: Path, facts: Mapping[str, Any], folders: Collection[Path]) -> None:
    """Say what makes the maps, before the first one.

    Raises:
        UserError: The folder holds something else.
    """
    file = output / FACTS_FILE
    is_used = output.is_dir() and any(path != file for path in output.iterdir())
    if is_used and not file.exists():
        raise UserError(f"{output} is not empty and was not made by this command: choose another folder")
    if is_used and read_json(file) != facts:
        raise UserError(f"{output} holds maps that were made otherwise ({file} says how): choose another folder")
    write_json(file, facts)
    for folder in folders:
        remove_unfinished(folder)


def _write_map(network: Path | None, max_pixels: int, job: tuple[str, str]) -> bool | str:
    """Write one map, unless it is there.

    Returns:
        Whether it was written now; the line of an image that cannot be read.

    Raises:
        UserError: A map of another image is there.
    """
    image, target = Path(job[0]), Path(job[1])
    try:
        note = _fingerprint(image)
        if not is_free(target):
            if decode(target, "saliency map").image.info.get(_NOTE) == note:
                return False
            raise UserError(f"{target} is there and was not made of {image}: move it away, or choose another folder")
        pixels = read_image(image, max_pixels=max_pixels)
    except DamagedImage as error:
        return str(error)
    saliency = minimum_barrier_saliency(pixels) if network is None else open_network(network)(pixels)
    text = PngInfo()
    text.add_text(_NOTE, note)
    with replacing(target) as temporary:
        Image.fromarray((255 * saliency).round().astype(np.uint8)).save(temporary, pnginfo=text)
    return True


def _fingerprint(image: Path) -> str:
    """Of a file's content.

    Raises:
        DamagedImage: It cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_plain(image) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DamagedImage(f"the image {image} cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise DamagedImage(f"the image {error}") from error
    return digest.hexdigest()
