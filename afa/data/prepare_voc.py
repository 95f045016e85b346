"""PASCAL VOC 2012 with the additional masks of SBD: masks, lists and image-level labels in one folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from urllib.error import URLError
from xml.etree import ElementTree

import numpy as np

from afa.data.archives import below, extract
from afa.data.classes import CLASS_NAMES_FILE, VOC_CLASS_NAMES
from afa.data.files import remove_unfinished, replacing, write_json, write_lines
from afa.data.images import DamagedImage, read_mask
from afa.data.labels import classes_in_mask, write_labels
from afa.data.layout import LISTS
from afa.data.manifest import MANIFEST, Prepared
from afa.data.palette import palette_image
from afa.data.parallel import map_files
from afa.errors import UserError

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC_TEST_ARCHIVE = "VOC2012test.tar"
SBD_ARCHIVE = "benchmark.tgz"
AUGMENTED = "SegmentationClassAug"
LABEL_SOURCES = ("masks", "annotations")
_VOC_MEMBER = r"(?:VOCdevkit/)?VOC2012/((?:JPEGImages|SegmentationClass|Annotations|ImageSets/Segmentation)/[^/]+)"
_SBD_MEMBER = r"(?:benchmark_RELEASE/)?dataset/(cls/[^/]+\.mat|train\.txt|val\.txt)"


def prepare_voc(
    root: str | Path,
    *,
    download: bool = False,
    sbd: str | Path | None = None,
    labels_from: str = "masks",
    workers: int = 1,
) -> Prepared:
    """Build ``SegmentationClassAug``, the lists, ``class_labels.json`` and ``manifest.json``.

    A mask is VOC's where VOC has one, else SBD's, else what ``SegmentationClassAug`` already held. train_aug is every
    image with a mask that is not in VOC's val. Started again, it goes on where it was interrupted.

    Args:
        root: The VOC 2012 folder (with JPEGImages), a folder with ``VOCdevkit/VOC2012``, or one with the archives
            ``VOCtrainval_11-May-2012.tar`` and ``benchmark.tgz``.
        download: Fetch the archives that are missing, from the addresses that torchvision knows.
        sbd: Folder or archive of SBD where it is not in ``root``.
        labels_from: ``masks``, or ``annotations`` (the XML files with boxes of all objects).
        workers: Processes.

    Returns:
        What was made.

    Raises:
        UserError: A source is missing or damaged; the message says what to put where.
    """
    root = Path(root)
    if download:
        _download(root, with_sbd=sbd is None)
    root = _find_voc(root)
    remove_unfinished(root / AUGMENTED)
    official = _official_lists(root)
    sbd_masks = _find_sbd(root, None if sbd is None else Path(sbd))

    voc_masks = {path.stem: path for path in sorted((root / "SegmentationClass").glob("*.png"))}
    own_masks = {path.stem: path for path in sorted((root / AUGMENTED).glob("*.png"))}
    sources = {**own_masks, **sbd_masks, **voc_masks}
    sources = {name: path for name, path in sorted(sources.items()) if (root / "JPEGImages" / f"{name}.jpg").is_file()}
    held_out = set(official["val"])
    missing = [name for name in (*official["train"], *official["val"]) if name not in sources]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} images of VOC's lists have no image or mask, the first is '{missing[0]}': "
            f"unpack the whole of {VOC_ARCHIVE}"
        )
    if not set(sources) - held_out - set(official["train"]):
        raise UserError(
            f"no masks beyond VOC's own: put SBD's {SBD_ARCHIVE} (or its folder 'dataset') into {root}, "
            f"give it as --sbd, fetch it with --download, or put an existing {AUGMENTED} there"
        )

    (root / MANIFEST).unlink(missing_ok=True)  # It says that all is whole.
    write = partial(_write_mask, root / AUGMENTED)
    found = map_files(write, list(sources.items()), workers=workers, description="masks")
    classes = dict(zip(sources, found, strict=True))

    lists = {
        "train": official["train"],
        "val": official["val"],
        "trainval": sorted({*official["train"], *official["val"]}),
        "train_aug": [name for name in sources if name not in held_out],
    }
    if "test" in official:
        lists["test"] = official["test"]
    for split, names in lists.items():
        write_lines(root / LISTS / f"{split}.txt", names)
    labels = {name: [VOC_CLASS_NAMES[class_id - 1] for class_id in ids] for name, ids in classes.items()}
    if labels_from == "annotations":
        labels = {name: _annotated_classes(root / "Annotations" / f"{name}.xml") for name in classes}
    write_labels(root / "class_labels.json", labels)
    write_lines(root / CLASS_NAMES_FILE, list(VOC_CLASS_NAMES))
    counts = {split: len(names) for split, names in lists.items()}
    write_json(root / MANIFEST, {"made_by": "prepare_voc", "counts": counts, "labels_from": labels_from})
    notes = [] if "test" in lists else [f"no test list: put {VOC_TEST_ARCHIVE} into {root} and start again to have it"]
    return Prepared(root, counts, tuple(notes))


def _download(root: Path, *, with_sbd: bool) -> None:
    from torchvision.datasets import SBDataset
    from torchvision.datasets.utils import download_url
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    wanted: list[tuple[str, str, str]] = []
    voc = DATASET_YEAR_DICT["2012"]
    if not _voc_folders(root):
        wanted.append((voc["url"], voc["filename"], voc["md5"]))
    if with_sbd and not any((folder / AUGMENTED).is_dir() for folder in _voc_folders(root)):
        wanted.append((SBDataset.url, SBDataset.filename, SBDataset.md5))
    for url, file, md5 in wanted:
        try:
            download_url(url, str(root), file, md5)
        except (OSError, RuntimeError, URLError) as error:
            raise UserError(f"{url} cannot be fetched ({error}): fetch it elsewhere and put it into {root}") from error


def _voc_folders(root: Path) -> list[Path]:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return [folder for folder in candidates if (folder / "JPEGImages").is_dir()]


def _find_voc(root: Path) -> Path:
    """The VOC folder, unpacked from the archives in ``root`` where they are."""
    archive = root / VOC_ARCHIVE
    folders = _voc_folders(root)
    if archive.is_file() and folders in ([], [root]):
        # Also where the folder is there: an interrupted extraction goes on.
        extract(archive, below(_VOC_MEMBER, root))
        folders = [root]
    if not folders:
        raise UserError(
            f"no VOC 2012 in {root}: put {VOC_ARCHIVE} (or what it unpacks to) and SBD's {SBD_ARCHIVE} there, "
            "or let --download fetch both"
        )
    if (root / VOC_TEST_ARCHIVE).is_file():
        extract(root / VOC_TEST_ARCHIVE, below(_VOC_MEMBER, folders[0]))
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        if not (folders[0] / folder).is_dir():
            raise UserError(f"{folders[0] / folder} is missing: unpack the whole of {VOC_ARCHIVE}")
    return folders[0]


def _official_lists(root: Path) -> dict[str, list[str]]:
    lists = {}
    for split in ("train", "val", "test"):
        path = root / LISTS / f"{split}.txt"
        if path.is_file():
            lists[split] = path.read_text(encoding="utf-8").split()
        elif split != "test":
            raise UserError(f"VOC's list {path} is missing: unpack the whole of {VOC_ARCHIVE}")
    return lists


def _find_sbd(root: Path, given: Path | None) -> dict[str, Path]:
    """SBD's masks by image name; empty where there is no SBD."""
    parents = [given] if given is not None else [root, root.parent, root.parent.parent]
    archives = [path for path in (given, *(parent / SBD_ARCHIVE for parent in parents)) if path and path.is_file()]
    if archives:
        extract(archives[0], below(_SBD_MEMBER, root / "SBD"))
        parents = [root]
    for parent in parents:
        for folder in ("cls", "dataset/cls", "SBD/cls", "SBD/dataset/cls", "benchmark_RELEASE/dataset/cls"):
            masks = {path.stem: path for path in sorted((parent / folder).glob("*.mat"))}
            if masks:
                return masks
    if given is not None:
        raise UserError(f"{given} is neither SBD's {SBD_ARCHIVE} nor a folder with its cls/*.mat")
    return {}


def _write_mask(folder: Path, item: tuple[str, Path]) -> list[int]:
    """Write one mask unless it is there already; returns its classes."""
    name, source = item
    mask = read_sbd_mask(source) if source.suffix == ".mat" else read_mask(source)
    classes = classes_in_mask(mask, len(VOC_CLASS_NAMES), path=source)
    path = folder / f"{name}.png"
    if not _holds(path, mask):
        with replacing(path) as temporary:
            palette_image(mask).save(temporary)
    return classes


def _holds(path: Path, mask: np.ndarray) -> bool:
    try:
        return bool(np.array_equal(read_mask(path), mask))
    except DamagedImage:
        return False


def read_sbd_mask(path: Path) -> np.ndarray:
    """Read the class mask of an SBD ``cls/NAME.mat`` file.

    Args:
        path: MATLAB file with the structure ``GTcls`` and its field ``Segmentation``.

    Returns:
        uint8 [H, W]; 0 background, 1 to 20 classes.

    Raises:
        DamagedImage: The file is damaged or not SBD's.
    """
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = loadmat(path)["GTcls"]["Segmentation"][0, 0]
        if mask.ndim != 2 or mask.dtype.kind not in "iuf":
            raise ValueError(f"its Segmentation has the shape {mask.shape}")
    except Exception as error:  # scipy names no exceptions: damaged files give many kinds
        raise DamagedImage(f"{path} is not one of SBD's cls files or damaged: {error}") from error
    return mask.astype(np.uint8)


def _annotated_classes(path: Path) -> list[str]:
    try:
        objects: Iterable[ElementTree.Element] = ElementTree.parse(path).getroot().iter("object")
        names = {found.findtext("name", "").strip() for found in objects}
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{path} cannot be read ({error}): unpack the whole of {VOC_ARCHIVE}") from error
    return [name for name in VOC_CLASS_NAMES if name in names]
