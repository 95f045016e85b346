"""A contact sheet of evaluation images: from image-level labels to the segmentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from afa.evaluation.predictor import Predictor
from afa.visual import contact_sheet, overlay_cams, overlay_label

_TITLES = ("image", "ground truth", "CAM", "propagated CAM", "refined label", "prediction")


def evaluation_sheet(predictor: Predictor, samples: Iterable[dict[str, Any]], *, heading: str, cell: int) -> np.ndarray:
    """One row per image: image, ground truth, CAM, propagated CAM, refined label, prediction.

    CAMs and refined label are those of the true classes, the prediction is the network's alone. A predictor with
    DenseCRF adds a column: the prediction after it.

    Args:
        predictor: Looks at the images.
        samples: Of :class:`afa.data.dataset.EvaluationImages`.
        heading: Line above everything.
        cell: Width of a picture in pixels.

    Returns:
        uint8 RGB [H, W, 3].
    """
    rows: list[list[np.ndarray | None]] = []
    row_titles: list[str] = []
    shown: set[int] = set()
    for sample in samples:
        image, label = sample["image_uint8"].numpy(), sample["label"].numpy()
        seen = predictor.predict(
            image,
            sample["class_labels"].numpy(),
            unrefined_mask=predictor.crf is not None,
            propagated_cams=True,
            pseudo_labels=("refined",),
        )
        masks = [mask for mask in (seen.unrefined_mask, seen.mask) if mask is not None]
        assert seen.cams is not None and seen.propagated_cams is not None
        refined = seen.pseudo_labels["refined"]
        rows.append(
            [
                image,
                overlay_label(image, label),
                overlay_cams(image, seen.cams.astype(np.float32)),
                overlay_cams(image, seen.propagated_cams.astype(np.float32)),
                overlay_label(image, refined),
                *(overlay_label(image, mask) for mask in masks),
            ]
        )
        row_titles.append(f"{sample['name']}: {', '.join(seen.class_names) or 'background only'}")
        for labels in (label, refined, *masks):
            shown.update(np.unique(labels).tolist())
    names = dict(enumerate(predictor.class_names, 1)) | {255: "ignored"}
    legend = [(names[class_id], class_id) for class_id in sorted(shown - {0})]
    titles: tuple[str, ...] = _TITLES if predictor.crf is None else (*_TITLES, "after DenseCRF")
    return contact_sheet(rows, titles, row_titles=row_titles, heading=heading, legend=legend, cell=cell)
