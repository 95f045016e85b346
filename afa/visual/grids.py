"""Picture grids of a training batch for TensorBoard.

Shapes: B images, K foreground classes, H x W crop, h x w token grid, N = h * w.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from afa.ops.cam import resize
from afa.visual.overlays import overlay_cams, overlay_label
from afa.visual.sheets import contact_sheet

_MOST_IMAGES = 4
_CELL = 160


def picture_grids(
    *,
    image: Tensor,
    cams: Tensor,
    class_labels: Tensor,
    initial_label: Tensor,
    refined_label: Tensor,
    propagated_label: Tensor,
    prediction: Tensor,
    affinity: Tensor,
    token_grid: tuple[int, int],
    propagated_cams: Tensor,
) -> dict[str, Tensor]:
    """What a method sees in a batch, one row per image, four images at most.

    Args:
        image: RGB values 0..255, [B, 3, H, W].
        cams: [B, K, H, W] in 0..1.
        class_labels: [B, K]; the CAMs of present classes are shown.
        initial_label, refined_label, propagated_label: [B, H, W] with 255 for ignored pixels.
        prediction: Arg max of the segmentation, [B, H, W].
        affinity: [B, N, N] in 0..1.
        token_grid: (h, w).
        propagated_cams: [B, K, *, *] scores in 0..1 after the walk.

    Returns:
        ``labels`` (image, CAM, labels, prediction) and ``attention`` (image, and the affinity of every token to the
        strongest token of the CAM and to the centre): uint8 [3, height, width].
    """
    count = min(_MOST_IMAGES, len(image))
    present = (class_labels[:count] > 0).to(cams)[:, :, None, None]
    pictures = image[:count].detach().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    strongest = (cams[:count] * present).amax(dim=1)  # [B, H, W]
    heat = strongest.float().cpu().numpy()

    walked = resize((propagated_cams[:count] * present).amax(dim=1, keepdim=True), heat.shape[-2:])[:, 0]
    spread = walked.float().cpu().numpy()

    columns: list[tuple[str, list[np.ndarray]]] = [
        ("image", list(pictures)),
        ("CAM", [overlay_cams(picture, cam) for picture, cam in zip(pictures, heat, strict=True)]),
        ("propagated CAM", [overlay_cams(picture, cam) for picture, cam in zip(pictures, spread, strict=True)]),
    ]
    for title, label in (
        ("initial label", initial_label),
        ("refined label", refined_label),
        ("propagated label", propagated_label),
        ("prediction", prediction),
    ):
        values = label[:count].cpu().numpy()
        columns.append(
            (title, [overlay_label(picture, value) for picture, value in zip(pictures, values, strict=True)])
        )
    return {
        "labels": _grid(columns),
        "attention": _grid([columns[0], *_attention_columns(pictures, strongest, affinity[:count], token_grid)]),
    }


def _attention_columns(
    pictures: np.ndarray, strongest: Tensor, affinity: Tensor, token_grid: tuple[int, int]
) -> list[tuple[str, list[np.ndarray]]]:
    """Rows of the affinity as heat, with the token they belong to marked."""
    height, width = pictures.shape[1:3]
    tokens = resize(strongest[:, None].float(), token_grid)[:, 0].flatten(1).argmax(dim=1).tolist()
    centre = token_grid[0] // 2 * token_grid[1] + token_grid[1] // 2
    columns = []
    for title, chosen in (("affinity to the mark", tokens), ("affinity to the centre", [centre] * len(tokens))):
        rows = torch.stack([affinity[index, token] for index, token in enumerate(chosen)])
        maps = resize(rows.float().view(len(chosen), 1, *token_grid), (height, width))[:, 0].cpu().numpy()
        shown = []
        for picture, values, token in zip(pictures, maps, chosen, strict=True):
            overlay = overlay_cams(picture, values)
            row, column = divmod(token, token_grid[1])
            _mark(overlay, row / token_grid[0], (row + 1) / token_grid[0], column / token_grid[1],
                  (column + 1) / token_grid[1])  # fmt: skip
            shown.append(overlay)
        columns.append((title, shown))
    return columns


def _mark(picture: np.ndarray, top: float, bottom: float, left: float, right: float) -> None:
    """Frame a token's cell in white; sides from 0 to 1."""
    height, width = picture.shape[:2]
    y0, y1 = int(top * height), max(int(top * height), int(bottom * height) - 1)
    x0, x1 = int(left * width), max(int(left * width), int(right * width) - 1)
    picture[[y0, y1], x0 : x1 + 1] = 255
    picture[y0 : y1 + 1, [x0, x1]] = 255


def _grid(columns: list[tuple[str, list[np.ndarray]]]) -> Tensor:
    rows = list(zip(*(pictures for _, pictures in columns), strict=True))
    sheet = contact_sheet(rows, [title for title, _ in columns], cell=_CELL)
    return torch.from_numpy(sheet.transpose(2, 0, 1).copy())
