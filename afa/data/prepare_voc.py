"""PASCAL VOC 2012 with the additional masks of SBD: masks, lists and image-level labels in one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.error import URLError
from xml.etree import ElementTree

import numpy as np

from afa.data.archives import below, extract
from afa.data.classes import CLASS_NAMES_FILE, VOC_CLASS_NAMES
from afa.data.files import remove_unfinished, replacing
from afa.data.images import DamagedImage, read_mask
from afa.data.labels import classes_in_mask, image_key
from afa.data.layout import LISTS
from afa.data.manifest import Prepared
from afa.data.matlab import read_class_segmentation
from afa.data.own_files import (
    Preparation,
    check_size,
    labels_text,
    leads_out,
    lines_text,
    own_masks,
    place_mask,
)
from afa.data.parallel import map_files
from afa.errors import UserError

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC_TEST_ARCHIVE = "VOC2012test.tar"
SBD_ARCHIVE = "benchmark.tgz"
AUGMENTED = "SegmentationClassAug"
_MADE_BY = "prepare_voc"
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
    """Build ``SegmentationClassAug``, the list ``train_aug``, ``class_labels.json`` and ``manifest.json``.

    A mask is VOC's where VOC has one, else SBD's, else what ``SegmentationClassAug`` already held. train_aug is every
    image with a mask that is not in VOC's val. Started again, it goes on where it was interrupted.

    Nothing that this command did not make is written over: VOC's own lists never, and neither masks nor files that
    are there with other content. Nothing is written through a link that leaves the folder.

    Args:
        root: The VOC 2012 folder (with JPEGImages), a folder with ``VOCdevkit/VOC2012``, or one with the archives
            ``VOCtrainval_11-May-2012.tar`` and ``benchmark.tgz``.
        download: Fetch the archives that are missing, from the addresses that torchvision knows.
        sbd: Folder or archive of SBD where it is not in ``root``, or a folder of PNG masks that take its place.
        labels_from: ``masks``, or ``annotations`` (the XML files with boxes of all objects).
        workers: Processes.

    Returns:
        What was made.

    Raises:
        UserError: A source is missing, incomplete or damaged, or something that this command did not make is in the
            way; the message says what to put where.
    """
    root = Path(root)
    if download:
        _download(root, with_sbd=sbd is None)
    root = _find_voc(root)
    preparation = Preparation(root, _MADE_BY, {"labels_from": labels_from})
    if not leads_out(root, root / AUGMENTED):
        remove_unfinished(root / AUGMENTED)
    official = _official_lists(root)
    sources, stale, notes = _find_sources(root, None if sbd is None else Path(sbd), official)
    held_out = set(official["val"])
    lists = {
        "train": official["train"],
        "val": official["val"],
        "trainval": official.get("trainval") or sorted({*official["train"], *official["val"]}),
        "train_aug": [name for name in sources if name not in held_out],
    }
    files = {CLASS_NAMES_FILE: lines_text(VOC_CLASS_NAMES)}
    if "trainval" not in official:
        files[f"{LISTS}/trainval.txt"] = lines_text(lists["trainval"])
    if not _names_the_same(root / LISTS / "train_aug.txt", lists["train_aug"]):
        files[f"{LISTS}/train_aug.txt"] = lines_text(lists["train_aug"])
    preparation.check(files)

    preparation.begin()
    for path in stale:
        path.unlink()
    write = partial(_write_mask, root)
    found = map_files(write, list(sources.items()), workers=workers, description="masks")
    classes = dict(zip(sources, found, strict=True))

    if "test" in official:
        lists["test"] = official["test"]
    labels = {name: [VOC_CLASS_NAMES[class_id - 1] for class_id in ids] for name, ids in classes.items()}
    if labels_from == "annotations":
        labels = {name: _annotated_classes(root / "Annotations" / f"{name}.xml") for name in classes}
    preparation.write({**files, "class_labels.json": labels_text(labels)})
    counts = {split: len(names) for split, names in lists.items()}
    preparation.finish(counts)
    unlabelled = [name for name in lists["train_aug"] if not labels[name]]
    if unlabelled:
        notes.append(f"train_aug: {len(unlabelled)} images have no class, the first is '{unlabelled[0]}'")
    if "test" not in lists:
        notes.append(f"no test list: put {VOC_TEST_ARCHIVE} into {root} and start again to have it")
    return Prepared(root, counts, tuple(notes))


def _find_sources(
    root: Path, sbd: Path | None, official: Mapping[str, list[str]]
) -> tuple[dict[str, Path], list[Path], list[str]]:
    """What each mask is made from, sorted by image name; masks of an earlier start to delete; and notes.

    Raises:
        UserError: Masks or images are missing.
    """
    sbd_masks = _find_sbd(root, sbd)
    voc_masks = _masks(root / "SegmentationClass", ".png")
    augmented = _masks(root / AUGMENTED, ".png")
    images = {path.stem for path in (root / "JPEGImages").glob("*.jpg") if path.is_file()}

    imageless = [name for name, path in sbd_masks.items() if path.suffix == ".mat" and name not in images]
    if imageless:
        raise UserError(
            f"{root}: {len(imageless)} of SBD's masks have no image in JPEGImages, the first is '{imageless[0]}': "
            f"unpack the whole of {VOC_ARCHIVE}"
        )
    # A mask that an earlier start made and that would not be made now is out of date. Without any SBD, earlier masks
    # take its place.
    outdated = {
        name: path
        for name, path in augmented.items()
        if name not in images or (sbd_masks and name not in sbd_masks and name not in voc_masks)
    }
    stale = own_masks(root, outdated.values(), _MADE_BY)
    for path in stale:
        del augmented[path.stem]
    notes = (
        [f"{len(stale)} masks of an earlier start, whose image or source no longer exists, are deleted"]
        if stale
        else []
    )
    sources = {**augmented, **sbd_masks, **voc_masks}
    left_out = sorted(name for name in sources if name not in images)
    if left_out:
        notes.append(f"{len(left_out)} masks have no image and are left out, the first is '{left_out[0]}'")
    sources = {name: path for name, path in sorted(sources.items()) if name in images}

    missing = [name for split in ("train", "val") for name in official[split] if name not in sources]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} images of VOC's lists have no image or mask, the first is '{missing[0]}': "
            f"unpack the whole of {VOC_ARCHIVE}"
        )
    if not set(sources) - set(official["val"]) - set(official["train"]):
        raise UserError(
            f"no masks beyond VOC's own: put SBD's {SBD_ARCHIVE} (or its folder 'dataset') into {root}, "
            f"give it as --sbd, fetch it with --download, or put an existing {AUGMENTED} there"
        )
    return sources, stale, notes


def _masks(folder: Path, suffix: str) -> dict[str, Path]:
    """The masks in a folder by their image's name."""
    masks = {path.stem: path for path in sorted(folder.glob(f"*{suffix}")) if not path.name.startswith(".")}
    for name, path in masks.items():
        if not path.is_file():
            raise UserError(f"the mask {path} is no plain file")
        if image_key(name) != name or not name.isprintable():
            raise UserError(f"{str(path)!a}: '{image_key(name)!a}' is what a list would make of its name: rename it")
    return masks


def _download(root: Path, *, with_sbd: bool) -> None:
    from torchvision.datasets import SBDataset
    from torchvision.datasets.utils import check_md5, download_url
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    wanted: list[tuple[str, str, str]] = []
    voc = DATASET_YEAR_DICT["2012"]
    if not _voc_folders(root):
        wanted.append((voc["url"], voc["filename"], voc["md5"]))
    if with_sbd and not any((folder / AUGMENTED).is_dir() for folder in _voc_folders(root)):
        wanted.append((SBDataset.url, SBDataset.filename, SBDataset.md5))
    for url, file, md5 in wanted:
        path = root / file
        if path.exists() or path.is_symlink():
            if not path.is_file() or not check_md5(str(path), md5):
                raise UserError(f"{path} is not the published file (its MD5 differs): move it away, start again")
            continue
        try:
            with replacing(path) as temporary:
                download_url(url, str(root), temporary.name, md5)
        except (OSError, RuntimeError, URLError) as error:
            raise UserError(f"{url} cannot be fetched ({error}): fetch it elsewhere and put it into {root}") from error


def _voc_folders(root: Path) -> list[Path]:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return [folder for folder in candidates if (folder / "JPEGImages").is_dir()]


def _find_voc(root: Path) -> Path:
    """The VOC folder, unpacked from the archives in ``root`` where they are."""
    archive = root / VOC_ARCHIVE
    folders = _voc_folders(root)
    if archive.exists() and folders in ([], [root]):
        # Also where the folder is there: an interrupted extraction goes on.
        extract(archive, below(_VOC_MEMBER, root), root=root)
        folders = [root]
    if not folders:
        raise UserError(
            f"no VOC 2012 in {root}: put {VOC_ARCHIVE} (or what it unpacks to) and SBD's {SBD_ARCHIVE} there, "
            "or let --download fetch both"
        )
    folder = folders[0]
    if leads_out(root, folder):
        raise UserError(
            f"{folder} leads out of {root} through a link, and this command writes only inside it: "
            f"give {folder.resolve()} itself, if you want to write there"
        )
    if (root / VOC_TEST_ARCHIVE).exists():
        extract(root / VOC_TEST_ARCHIVE, below(_VOC_MEMBER, folder), root=folder)
    for name in ("JPEGImages", "SegmentationClass", LISTS):
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name} is missing: unpack the whole of {VOC_ARCHIVE}")
    return folder


def _official_lists(root: Path) -> dict[str, list[str]]:
    """VOC's lists train and val, and trainval and test where they are."""
    lists = {}
    for split in ("train", "val", "trainval", "test"):
        path = root / LISTS / f"{split}.txt"
        if path.exists():
            lists[split] = _read_list(path)
        elif split in ("train", "val"):
            raise UserError(f"VOC's list {path} is missing: unpack the whole of {VOC_ARCHIVE}")
    both = set(lists["train"]) & set(lists["val"])
    if both:
        raise UserError(f"{root / LISTS}: train.txt and val.txt both name '{min(both)}': take VOC's own lists")
    return lists


def _read_list(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError("it is no plain file")
        names = [image_key(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not names:
            raise ValueError("it is empty")
        if len(set(names)) < len(names):
            raise ValueError(f"it names '{Counter(names).most_common(1)[0][0]}' twice")
    except (OSError, ValueError) as error:
        raise UserError(f"the list {path} cannot be used ({error}): take VOC's own, with one name per line") from error
    return names


def _names_the_same(path: Path, names: list[str]) -> bool:
    """Whether a list is there and names the same images; their order is its maker's."""
    try:
        return path.is_file() and set(_read_list(path)) == set(names)
    except UserError:
        return False


def _find_sbd(root: Path, given: Path | None) -> dict[str, Path]:
    """SBD's masks by image name; empty where there is no SBD."""
    parents = [given] if given is not None else [root, root.parent, root.parent.parent]
    archives = [path for path in (given, *(parent / SBD_ARCHIVE for parent in parents)) if path and path.exists()]
    archives = [path for path in archives if not path.is_dir()]
    if archives:
        extract(archives[0], below(_SBD_MEMBER, root / "SBD"), root=root)
        parents = [root]
    for parent in parents:
        for folder in ("cls", "dataset/cls", "SBD/cls", "SBD/dataset/cls", "benchmark_RELEASE/dataset/cls"):
            masks = _masks(parent / folder, ".mat")
            if masks:
                _check_sbd_is_whole((parent / folder).parent, masks)
                return masks
    masks = {} if given is None else _masks(given, ".png")
    if given is not None and not masks:
        raise UserError(f"{given} is neither SBD's {SBD_ARCHIVE} nor a folder with its cls/*.mat or PNG masks")
    return masks


def _check_sbd_is_whole(folder: Path, masks: Mapping[str, Path]) -> None:
    """Compare SBD's masks with its lists, which lie beside them."""
    for name in ("train.txt", "val.txt"):
        path = folder / name
        missing = [name for name in _read_list(path) if name not in masks] if path.is_file() else []
        if missing:
            raise UserError(
                f"{folder / 'cls'}: {len(missing)} masks that {path} names are missing, the first is '{missing[0]}': "
                f"unpack the whole of {SBD_ARCHIVE}"
            )


def _write_mask(root: Path, item: tuple[str, Path]) -> list[int]:
    """Write one mask unless it is there already; returns its classes."""
    name, source = item
    mask = read_sbd_mask(source) if source.suffix == ".mat" else read_mask(source)
    classes = classes_in_mask(mask, len(VOC_CLASS_NAMES), path=source)
    height, width = mask.shape
    check_size(root / "JPEGImages" / f"{name}.jpg", (height, width), lambda: f"the mask {source}")
    advice = ", and give that as --sbd to use its masks"
    place_mask(root, root / AUGMENTED / f"{name}.png", mask, made_by=_MADE_BY, advice=advice)
    return classes


def read_sbd_mask(path: Path) -> np.ndarray:
    """Read the class mask of an SBD ``cls/NAME.mat`` file.

    Args:
        path: MATLAB file with the structure ``GTcls`` and its field ``Segmentation``.

    Returns:
        uint8 [H, W]; 0 background, 1 to 20 classes.

    Raises:
        DamagedImage: The file is damaged or not SBD's, or holds a value that is no class.
    """
    try:
        values = read_class_segmentation(path)
    except (OSError, ValueError) as error:
        raise DamagedImage(f"{path} is not one of SBD's cls files or damaged: {error}") from error
    wrong = values[~np.isin(values, np.arange(len(VOC_CLASS_NAMES) + 1))]
    if wrong.size:
        raise DamagedImage(f"{path}: the value {wrong.flat[0]} is no class: SBD has 0 to {len(VOC_CLASS_NAMES)}")
    return values.astype(np.uint8)


def _annotated_classes(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError("it is missing, or no plain file")
        objects = ElementTree.parse(path).getroot().iter("object")
        names = {found.findtext("name", "").strip() for found in objects}
        unknown = sorted(names.difference(VOC_CLASS_NAMES))
        if unknown:
            raise ValueError(f"'{unknown[0][:80]}' is none of VOC's classes")
    except (OSError, ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be used ({error}): unpack the whole of {VOC_ARCHIVE}") from error
    return [name for name in VOC_CLASS_NAMES if name in names]
