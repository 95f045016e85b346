"""Predicting a list of images into a folder of results, see :mod:`afa.prediction.results`."""

from __future__ import annotations

import errno
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from afa.data.files import replacing, write_json
from afa.data.images import read_image
from afa.data.inputs import Inputs
from afa.data.map_files import StoredForm, stored_scores
from afa.data.names import image_key, two_of_each
from afa.data.palette import palette_image
from afa.errors import UserError, is_out_of_memory
from afa.ops.cam import long_side_size
from afa.prediction.images import Picture, free_name
from afa.prediction.predictor import Prediction, Predictor
from afa.prediction.results import WantedResults
from afa.progress import track
from afa.visual import (
    class_legend,
    fitted_label,
    overlay_label,
    prediction_grid,
    with_legend,
    write_gif,
    write_picture,
)

_OVERLAY_LONG_SIDE = 1024
_MAP_WIDTH = 400
# What keeps every result from being written, not one alone.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Read(NamedTuple):
    """An image [H, W, 3], its image-level labels [K], where they are given, and its inputs."""

    picture: Picture
    image: np.ndarray
    class_labels: np.ndarray | None
    inputs: Mapping[str, Any]


class Inference:
    """One run over images.

    Args:
        predictor: Looks at the images.
        out: Folder of the results; those of the same names are replaced.
        wanted: Which results.
        labels: Image-level labels [K] by image key or bare name; None: the classifier's own. Images of folders
            that are not among them are left out: a training set is mostly a part of a folder.
        inputs: What else belongs to the images, by image key: the predictor's inputs.
    """

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        wanted: WantedResults,
        labels: Mapping[str, np.ndarray] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        self.predictor = predictor
        self.out = out
        self.wanted = wanted
        self.labels, self.inputs = labels, inputs
        self.failures: list[str] = []
        self.left_out = 0
        self.done: dict[str, Any] = {}

    def run(self, pictures: Sequence[Picture]) -> int:
        """Predict all images; one that fails, or whose results cannot be written, leaves the others unharmed.

        ``pictures.json`` says what was done, also where the run is ended early.

        Returns:
            Number of failures, which :attr:`failures` describes. :attr:`left_out` counts images without labels.

        Raises:
            UserError: No image has labels, some lack an input, or no results can be written: the disk is full, say.
        """
        if self.labels is not None:
            labelled = [picture for picture in pictures if picture.folder is None or self._is_labelled(picture)]
            self.left_out = len(pictures) - len(labelled)
            if not labelled:
                compared = two_of_each((picture.key for picture in pictures), self.labels)
                raise UserError(
                    f"the labels file names none of the {len(pictures)} images{compared}: compare their names"
                )
            pictures = labelled
        if self.inputs is not None:
            known = {picture.key: self._class_labels(picture) for picture in pictures if self._is_labelled(picture)}
            self.inputs.require([picture.key for picture in pictures], None, known)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out):
                pass  # That nothing can be written is said before hours of work, not after.
            try:
                self._predict(pictures)
            except BaseException:
                with suppress(OSError):
                    self._write_summary()
                raise
            self._write_summary()
        except OSError as error:
            raise UserError(f"results cannot be written to {self.out}: {error.strerror or error}") from error
        return len(self.failures)

    def _predict(self, pictures: Sequence[Picture]) -> None:
        gif_names: set[str] = set()
        waiting = iter(track(pictures, len(pictures), "predicting"))
        for folder, members in groupby(waiting, key=lambda picture: picture.folder):
            frames = self._frames(members)
            if self.wanted.gif and folder is not None:
                path = self.out / f"{free_name(folder.resolve().name or 'pictures', gif_names)}.gif"
                try:
                    write_gif(path, frames, frames_per_second=self.wanted.frames_per_second)
                except OSError as error:
                    self._fail_to_write(str(path), error)
            for _ in frames:
                pass

    def _write_summary(self) -> None:
        write_json(self.out / "pictures.json", self.done)

    def _frames(self, pictures: Iterator[Picture]) -> Iterator[np.ndarray]:
        """Work the images off, those of one size that follow one another together; give each one's overlay."""
        waiting: list[_Read] = []
        for picture in pictures:
            try:
                class_labels = self._class_labels(picture)
                max_pixels = self.predictor.config.dataset.max_pixels
                image = read_image(picture.path, max_pixels=max_pixels, upright=self.wanted.upright)
                inputs = {}
                if self.inputs is not None:
                    inputs = self.inputs.read(picture.key, image.shape[:2], class_labels)
                read = _Read(picture, image, class_labels, inputs)
            except UserError as error:
                self._fail(str(error))
                continue
            except MemoryError:
                self._too_large(picture)
                continue
            if waiting and waiting[0].image.shape != read.image.shape:
                yield from self._work_off(waiting)
                waiting = []
            waiting.append(read)
            if len(waiting) == self.predictor.config.test.batch_size:
                yield from self._work_off(waiting)
                waiting = []
        yield from self._work_off(waiting)

    def _work_off(self, group: Sequence[_Read]) -> Iterator[np.ndarray]:
        if not group:
            return
        class_labels = [read.class_labels for read in group if read.class_labels is not None]  # all, or none was given
        try:
            predictions = self.predictor.predict_batch(
                [read.image for read in group],
                class_labels or None,
                inputs=[read.inputs for read in group],
                maps=[] if self.wanted.maps is None else [self.wanted.maps],
                labels=self._labels(),
                maps_as_computed=True,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            predictions = None
        if predictions is not None:
            for read, prediction in zip(group, predictions, strict=True):
                overlay = self._written(read.picture, read.image, prediction)
                if overlay is not None:
                    yield overlay
        elif len(group) == 1:
            self._too_large(group[0].picture)
        else:
            for read in group:
                yield from self._work_off([read])

    def _labels(self) -> list[str]:
        """The outputs whose labels are needed: those that are written, and that of the maps that are drawn."""
        needed = list(self.wanted.pseudo_labels.values())
        maps = self.wanted.maps
        if maps is not None and self.wanted.overlays and self.predictor.method.output(maps).threshold is not None:
            needed.append(maps)
        return list(dict.fromkeys(needed))

    def _too_large(self, picture: Picture) -> None:
        self._fail(f"the image {picture.path} is too large for the memory: give --long-side")

    def _class_labels(self, picture: Picture) -> np.ndarray | None:
        if self.labels is None:
            return None
        for key in (picture.key, image_key(picture.path.name)):
            if key in self.labels:
                return self.labels[key]
        raise UserError(
            f"the image {picture.path} is not in the labels file: neither '{picture.key}' nor its bare name"
        )

    def _is_labelled(self, picture: Picture) -> bool:
        return self.labels is not None and (picture.key in self.labels or image_key(picture.path.name) in self.labels)

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        tqdm.write(f"failed: {message}", file=sys.stderr)

    def _fail_to_write(self, what: str, error: OSError) -> None:
        """Note that something cannot be written.

        Raises:
            OSError: The same, where nothing else can be written either.
        """
        if error.errno in _DISK_ERRORS:
            raise error
        self._fail(f"{what} cannot be written: {error.strerror or error}")

    def _written(self, picture: Picture, image: np.ndarray, prediction: Prediction) -> np.ndarray | None:
        """Write what is wanted; returns the overlay, None where it failed."""
        try:
            return self._write(picture, image, prediction)
        except OSError as error:
            self._fail_to_write(f"the results of {picture.path}", error)
        except MemoryError:
            self._too_large(picture)
        return None

    def _write(self, picture: Picture, image: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Write what is wanted; returns the overlay."""
        name, wanted = picture.name, self.wanted
        write_picture(self.out / "masks" / f"{name}.png", palette_image(prediction.mask))
        for kind, output in wanted.pseudo_labels.items():
            path = self.out / "pseudo_labels" / kind / f"{name}.png"
            write_picture(path, palette_image(prediction.labels[output]))
        height, width = long_side_size(image.shape[:2], min(_OVERLAY_LONG_SIDE, max(image.shape[:2])))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        overlay = overlay_label(small, fitted_label(prediction.mask, (height, width)))
        if wanted.maps is not None:
            cams = prediction.maps[wanted.maps]
            if wanted.write_maps:
                self._write_cams(self.out / "cams" / f"{name}.npz", prediction, cams)
            if wanted.overlays:
                write_picture(self.out / "cam_overlays" / f"{name}.jpg", self._map_panels(image, prediction))
        if wanted.overlays:
            legend = class_legend(np.unique(prediction.mask).tolist(), prediction.all_class_names)
            write_picture(self.out / "overlays" / f"{name}.jpg", with_legend(overlay, legend))
        scores = prediction.scores
        classes = zip(prediction.class_names, prediction.class_ids, strict=True)
        self.done[name] = {
            "picture": str(picture.path),
            "classes": {
                class_name: None if scores is None else round(float(scores[index - 1]), 4)
                for class_name, index in classes
            },
        }
        return overlay

    def _map_panels(self, image: np.ndarray, prediction: Prediction) -> np.ndarray:
        """The image beside each class's map."""
        assert self.wanted.maps is not None
        output = self.predictor.method.output(self.wanted.maps)

        def titled(of_outputs: Mapping[str, Any]) -> dict[str, Any]:
            return {output.title: of_outputs[output.name]} if output.name in of_outputs else {}

        return prediction_grid(
            image,
            titled(prediction.maps),
            titled(prediction.backgrounds),
            prediction.class_ids,
            prediction.all_class_names,
            labels=titled(prediction.labels),
            cell=_MAP_WIDTH,
        )

    def _write_cams(self, path: Path, prediction: Prediction, cams: np.ndarray) -> None:
        index = np.array(prediction.class_ids, np.int64)
        form = self.wanted.maps_form or StoredForm(bits=16)
        stored = stored_scores(cams, form if form.bits == 8 else form._replace(bits=32))
        values = stored.pop("scores")
        with replacing(path) as temporary:
            np.savez_compressed(
                temporary,
                cams=values if form.bits == 8 else values.astype(np.float16),
                **stored,  # type: ignore[arg-type]
                size=np.array(prediction.image.shape[:2], np.int64),
                class_ids=index,
                class_names=np.array(prediction.class_names, dtype=np.str_),
                scores=np.zeros(0, np.float32) if prediction.scores is None else prediction.scores[index - 1],
            )
