"""Folders that one stage hands to the next: maps and labels of images, our own and those of other programs.

A label folder of ours holds ``label.json`` (what made it), ``maps/OUTPUT/NAME.npz`` and ``labels/OUTPUT/NAME.png``, and
``manifest.json``, which is written last. NAME is the image's name in the lists and may hold ``/``. A file of maps holds
``scores`` float [m, h, w], ``class_ids`` [m] (0 background, 1..K classes, rising) and ``size`` [2], the (H, W) of its
image.

Other programs' folders: PSA's and IRN's ``NAME.npy`` dictionaries, and plain masks ``NAME.png``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch

from afa.data.classes import MAX_CLASSES
from afa.data.files import find_files, missing_files, read_bytes, read_json, replacing
from afa.data.images import read_mask
from afa.data.names import image_key
from afa.data.pickles import read_pickled
from afa.errors import UserError
from afa.maps import Maps

LABEL_FACTS = "label.json"
LABEL_MANIFEST = "manifest.json"
MAPS_SUFFIX = ".npz"

_MAPS, _LABELS = "maps", "labels"
_MOST_VALUES = 2**28
"""Scores in one file: 1 GiB. A small file may unpack to any size."""
_LONGEST_SIDE = 2**20
# What zip, zlib and numpy's header reader say about broken bytes.
_BROKEN = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_SHOWN_KEYS = 12


class StoredMaps(NamedTuple):
    """What a file of maps holds.

    Attributes:
        maps: float32 [1, c, h, w], finite.
        size: (H, W) of the image.
    """

    maps: Maps
    size: tuple[int, int]


def maps_path(root: Path, output: str, name: str) -> Path:
    """Where a label folder keeps an image's maps.

    Raises:
        UserError: The name would lead out of the folder.
    """
    return root / _MAPS / output / f"{_inside(name)}{MAPS_SUFFIX}"


def label_path(root: Path, output: str, name: str) -> Path:
    """Where a label folder keeps an image's label.

    Raises:
        UserError: The name would lead out of the folder.
    """
    return root / _LABELS / output / f"{_inside(name)}.png"


def write_maps(path: Path, maps: Maps, size: Sequence[int], *, compress: bool) -> None:
    """Write the maps of one image, at once or not at all. Equal maps give equal bytes.

    Args:
        path: File with the suffix ``.npz``; its folder is made if needed.
        maps: [1, c, h, w], on any device; channels that do not count are left out. Scores are written as float32: a
            threshold may lie closer to 1 than float16 can tell.
        size: (H, W) of the image, whatever size the maps have.
        compress: Whether to deflate: smaller, and slower to write and read.

    Raises:
        UserError: A score is not finite.
        ValueError: These are the maps of several images.
    """
    if len(maps.scores) != 1:
        raise ValueError(f"a file holds the maps of one image, not of {len(maps.scores)}")
    counted = maps.counted[0].cpu()
    scores = maps.scores[0].detach().float().cpu()[counted]
    if not torch.isfinite(scores).all():
        raise UserError(f"the scores for {path} are not finite: the network that gave them is broken")
    save = np.savez_compressed if compress else np.savez
    with replacing(path) as temporary:
        save(
            temporary,
            scores=scores.numpy(),
            class_ids=maps.class_ids[0].cpu()[counted].numpy(),
            size=np.array(size, np.int64),
        )


def read_maps(path: Path) -> StoredMaps:
    """Read the maps of one image. Nothing in the file is executed, and its size is checked before it is unpacked.

    Args:
        path: As :func:`write_maps` writes it.

    Returns:
        The maps. Of an image without classes it is one channel of zeros that does not count.

    Raises:
        UserError: The file is missing or damaged, or is no such file.
    """
    content = read_bytes(path, "the file of maps", largest=5 * _MOST_VALUES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            scores, class_ids, size = (_read_array(archive, key) for key in ("scores", "class_ids", "size"))
    except _BROKEN as error:
        reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"the file of maps {path} cannot be read: {reason}") from error
    return StoredMaps(*_checked(scores, class_ids, size, path))


class MapFolder:
    """A folder of maps or labels that some stage made, opened once; what it is is found out by looking.

    Key 0 of a ``.npy`` dictionary is the first class in some files and the background in others. The images' labels
    tell which, and all files of a folder must agree.

    Args:
        root: A label folder of ours (it holds ``label.json``), a folder of ``.npy`` dictionaries, or one of ``.png``
            masks. Of the last two, sub-folders are searched, too.

    Attributes:
        root: The folder.
        kind: Which of these it is.
        map_outputs: What it holds maps of. Other programs' folders hold one output, called as the folder.
        label_outputs: What it holds labels of.

    Raises:
        UserError: There is no such folder, it is none of these, or it could be several.
    """

    root: Path
    kind: Literal["label folder", "dictionaries", "masks"]
    map_outputs: tuple[str, ...] = ()
    label_outputs: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: Mapping[str, Path] = {}
        self._background: bool | None = None
        self._background_seen_in: Path | None = None
        if not root.is_dir():
            raise UserError(f"the folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
        if (root / LABEL_FACTS).is_file():
            self.kind = "label folder"
            self.map_outputs, self.label_outputs = _sub_folders(root / _MAPS), _sub_folders(root / _LABELS)
            if not self.map_outputs and not self.label_outputs:
                raise UserError(f"the label folder {root} holds neither maps nor labels: has its stage run?")
            return
        dictionaries, masks = find_files(root, (".npy",)), find_files(root, (".png",))
        if dictionaries and masks:
            raise UserError(
                f"{root} holds .npy files ({_first(dictionaries)}) and .png files ({_first(masks)}): name the folder "
                "of one kind"
            )
        if not dictionaries and not masks:
            raise UserError(f"{root} holds no {LABEL_FACTS}, no .npy and no .png file{_instead(root)}")
        self._files = _by_key(dictionaries or masks)
        name = root.resolve().name
        if dictionaries:
            self.kind, self.map_outputs = "dictionaries", (name,)
        else:
            self.kind, self.label_outputs = "masks", (name,)

    @property
    def fingerprint(self) -> str:
        """Tells this folder's content from another's, as 32 hexadecimal digits; where it lies does not matter.

        Of a label folder it is what made it, ``label.json``. Of other folders it is the names, sizes and times of
        change of the files.
        """
        digest = hashlib.blake2b(digest_size=16)
        if self.kind == "label folder":
            digest.update(json.dumps(read_json(self.root / LABEL_FACTS, "the file"), sort_keys=True).encode("ascii"))
        for name, path in sorted(self._files.items()):
            status = path.stat()
            digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode("ascii"))
        return digest.hexdigest()

    @property
    def needs_class_labels(self) -> bool:
        """Whether maps cannot be read without the images' labels."""
        return self.kind == "dictionaries"

    @property
    def names(self) -> tuple[str, ...]:
        """The images that another program's folder has files of, sorted; empty for our own folders."""
        return tuple(sorted(self._files))

    def require_maps(
        self, names: Sequence[str], class_labels: Mapping[str, np.ndarray] | None = None, output: str | None = None
    ) -> None:
        """Refuse missing files before the work starts, and find out what key 0 is.

        After it, every process that this object is handed to reads dictionaries in the same way.

        Args:
            names: Of the images whose maps will be read.
            class_labels: Name -> labels [K] of 0 and 1, for dictionaries.
            output: See :meth:`read`.

        Raises:
            UserError: Files are missing; or as :meth:`read`, of the first image that has a class.
        """
        self._require("maps", names, [self.maps_file(name, output) for name in names])
        if self.needs_class_labels and class_labels is not None:
            telling = next((name for name in names if name in class_labels and class_labels[name].any()), None)
            if telling is not None:
                self.read(telling, class_labels[telling])

    def require_labels(self, names: Sequence[str], output: str | None = None) -> None:
        """Refuse missing files before the work starts.

        Raises:
            UserError: Files are missing, or there is no such output.
        """
        self._require("labels", names, [self.label_file(name, output) for name in names])

    def maps_file(self, name: str, output: str | None = None) -> Path:
        """Where an image's maps are, or would be.

        Raises:
            UserError: There is no such output, or there are several and none is named.
        """
        return self._file(name, self._output(output, self.map_outputs, "maps"), maps_path)

    def label_file(self, name: str, output: str | None = None) -> Path:
        """Where an image's label is, or would be.

        Raises:
            UserError: As :meth:`maps_file`.
        """
        return self._file(name, self._output(output, self.label_outputs, "labels"), label_path)

    def read(
        self,
        name: str,
        class_labels: np.ndarray | None = None,
        output: str | None = None,
        *,
        size: Sequence[int] | None = None,
    ) -> Maps:
        """Read an image's maps.

        Args:
            name: Of the image, as in the lists.
            class_labels: The image's labels, [K] of 0 and 1. Dictionaries cannot be read without; of others the class
                ids are checked with them.
            output: One of :attr:`map_outputs`; not needed where there is only one.
            size: (H, W) of the image where it is known: maps that say they are of an image of another size are refused.

        Returns:
            float32 [1, c, h, w], finite, in the size of the file: IRN's ``high_res`` where the file holds it, else its
            ``cam``. Of an image without classes it is one channel of zeros that does not count, of 1 x 1 where the
            file tells no size.

        Raises:
            UserError: The file is missing, damaged, ill-shaped, or does not fit the image's labels.
        """
        path = self.maps_file(name, output)
        if self.kind == "label folder":
            maps, stored_size = read_maps(path)
            if size is not None and stored_size != tuple(size):
                raise UserError(
                    f"the maps {path} are of an image of {stored_size[1]} x {stored_size[0]} pixels, "
                    f"'{name}' has {size[1]} x {size[0]}"
                )
            highest = int(maps.class_ids.max())
            if class_labels is not None and highest > len(class_labels):
                raise UserError(f"the maps {path} are of the class {highest}, but there are {len(class_labels)}")
            return maps
        if class_labels is None:
            raise UserError(f"{path} can only be read with the image's labels: what key 0 means depends on them")
        return self._read_dictionary(path, class_labels)

    def read_label(self, name: str, output: str | None = None) -> np.ndarray:
        """Read an image's label.

        Args:
            name: Of the image, as in the lists.
            output: One of :attr:`label_outputs`; not needed where there is only one.

        Returns:
            uint8 [H, W], as stored: class ids, or palette indices; 255 is open.

        Raises:
            UserError: The file is missing or damaged, or holds colours.
        """
        return read_mask(self.label_file(name, output))

    def _output(self, wanted: str | None, outputs: tuple[str, ...], what: str) -> str:
        if not outputs:
            other = "masks" if self.label_outputs else "maps"
            raise UserError(f"{self.root} holds no {what}, only {other}")
        if wanted is None:
            if len(outputs) > 1:
                raise UserError(f"{self.root} holds {what} of several outputs: name one of {', '.join(outputs)}")
            return outputs[0]
        if wanted not in outputs:
            raise UserError(f"{self.root} holds no {what} of '{wanted}', only of {', '.join(outputs)}")
        return wanted

    def _file(self, name: str, output: str, own: Callable[[Path, str, str], Path]) -> Path:
        if self.kind == "label folder":
            return own(self.root, output, name)
        suffix = ".npy" if self.kind == "dictionaries" else ".png"
        return self._files.get(name) or self._files.get(image_key(name)) or self.root / f"{_inside(name)}{suffix}"

    def _require(self, what: str, names: Sequence[str], paths: list[Path]) -> None:
        missing = missing_files(paths)
        if not missing:
            return
        hint = ""
        if self.kind == "label folder" and not (self.root / LABEL_MANIFEST).is_file():
            hint = ": its stage has not finished, start it again"
        elif self._files and len(missing) == len(names):
            hint = f"; there is, for example, {_first(self._files)}"
        raise UserError(f"{len(missing)} of the {len(names)} {what} are missing, the first is {missing[0]}{hint}")

    def _read_dictionary(self, path: Path, class_labels: np.ndarray) -> Maps:
        keys, scores = _dictionary_arrays(path, read_pickled(path, "the file of maps"))
        classes = [int(index) for index in np.flatnonzero(np.asarray(class_labels) > 0)]
        with_background = [0, *(index + 1 for index in classes)]
        if keys == with_background:
            background = True
        elif keys == classes:
            background = False
        else:
            raise UserError(
                f"{path} holds the keys {_listed(keys)}; the image's labels ask for {_listed(classes)} (key 0 is the "
                f"first class) or {_listed(with_background)} (key 0 is the background)"
            )
        if keys:
            if self._background is None:
                self._background, self._background_seen_in = background, path
            elif background != self._background:
                meanings = ("the background", "the first class")
                here, there = meanings if background else meanings[::-1]
                raise UserError(f"key 0 is {here} in {path}, but {there} in {self._background_seen_in}")
        if not keys:
            return _nothing((1, 1))
        ids = torch.tensor([keys if background else [key + 1 for key in keys]])
        return Maps(torch.from_numpy(scores)[None], ids, torch.ones_like(ids, dtype=torch.bool), background)


def _inside(name: str) -> str:
    """A name that stays below the folder that it is put into."""
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"the image name '{name}' would lead out of the folder: rename it in the list")
    return name


def _sub_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _first(found: Mapping[str, Path]) -> Path:
    return found[min(found)]


def _instead(root: Path) -> str:
    """What to say of a folder that is of no known kind."""
    if any((parent / LABEL_FACTS).is_file() for parent in root.resolve().parents[:2]):
        return f": name the folder that holds {LABEL_FACTS}"
    suffixes = sorted({path.suffix for path in root.iterdir() if path.is_file() and path.suffix})
    return f", only {' '.join(suffixes[:_SHOWN_KEYS])}" if suffixes else ""


def _by_key(found: Mapping[str, Path]) -> dict[str, Path]:
    """The files by the image's name: ``a.jpg.npy`` belongs to the image ``a``, too."""
    files: dict[str, Path] = {}
    for name, path in found.items():
        key = image_key(name[: -len(".npy")] if name.lower().endswith(".npy") else name)
        if key in files:
            raise UserError(f"{path} and {files[key]} both belong to the image '{key}': take one away")
        files[key] = path
    return files


def _read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        shape, fortran, dtype = _read_header(file)
        count = math.prod(shape)
        if dtype.kind not in "fiu" or any(side > _LONGEST_SIDE for side in shape) or count > _MOST_VALUES:
            raise ValueError(f"{key} is {dtype} of {shape}, which no maps are")
        content = file.read(count * dtype.itemsize + 1)
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"{key} is not as long as it says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"arrays of version {version} are not read")


def _checked(scores: np.ndarray, class_ids: np.ndarray, size: np.ndarray, path: Path) -> tuple[Maps, tuple[int, int]]:
    def refuse(what: str) -> UserError:
        return UserError(f"the file of maps {path}: {what}")

    if scores.dtype.kind != "f" or scores.ndim != 3 or 0 in scores.shape[1:]:
        raise refuse(f"scores are {scores.dtype} {list(scores.shape)}, float [classes, height, width] is needed")
    if class_ids.dtype.kind not in "iu" or class_ids.shape != scores.shape[:1]:
        raise refuse(f"class_ids are {class_ids.dtype} {list(class_ids.shape)} for {len(scores)} maps")
    ids = [int(number) for number in class_ids]
    if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] <= MAX_CLASSES):
        raise refuse(f"class_ids are {_listed(ids)}: each once, rising, 0 to {MAX_CLASSES} are needed")
    if size.dtype.kind not in "iu" or size.shape != (2,) or int(size.min()) < 1:
        raise refuse("size is not the height and width of an image")
    image_size = (int(size[0]), int(size[1]))
    if not ids:
        return _nothing((scores.shape[1], scores.shape[2])), image_size
    numbers = _finite_float32(scores, path)
    index = torch.tensor([ids])
    maps = Maps(torch.from_numpy(numbers)[None], index, torch.ones_like(index, dtype=torch.bool), ids[0] == 0)
    return maps, image_size


def _nothing(size: tuple[int, int]) -> Maps:
    """The maps of an image without classes."""
    return Maps(torch.zeros(1, 1, *size), torch.tensor([[1]]), torch.tensor([[False]]), has_background=False)


def _finite_float32(scores: np.ndarray, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = np.array(scores, np.float32)
    if not np.isfinite(numbers).all():
        raise UserError(f"{path} holds scores that are not finite")
    return numbers


def _dictionary_arrays(path: Path, content: object) -> tuple[list[int], np.ndarray]:
    """Keys, rising, and maps float32 [m, h, w] of PSA's ``{key: map}`` or IRN's ``{"keys", "cam", "high_res"}``."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no dictionary of maps, as PSA and IRN write them")
    if "keys" in content:
        maps = content.get("high_res", content.get("cam"))
        if maps is None:
            raise UserError(f"{path} holds 'keys' but neither 'high_res' nor 'cam', as IRN's files do")
        return _in_order(path, _array(path, content["keys"]), _array(path, maps))
    numbers = [key for key in content if isinstance(key, (int, np.integer)) and not isinstance(key, bool)]
    if len(numbers) != len(content) or any(not 0 <= key <= MAX_CLASSES for key in numbers):
        raise UserError(
            f"{path} holds the keys {_listed(content)}: class numbers from 0 (PSA) or 'keys' and 'cam' (IRN) are needed"
        )
    arrays = [_array(path, content[key]) for key in numbers]
    if len({array.shape for array in arrays}) > 1:
        shapes = _listed(sorted({"x".join(map(str, array.shape)) for array in arrays}))
        raise UserError(f"{path} holds maps of different shapes: {shapes}")
    return _in_order(path, np.array(numbers, np.int64), np.stack(arrays) if arrays else np.zeros((0, 1, 1), np.float32))


def _array(path: Path, value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds lists that are no array of numbers") from error


def _in_order(path: Path, keys: np.ndarray, maps: np.ndarray) -> tuple[list[int], np.ndarray]:
    if keys.ndim != 1 or (len(keys) and keys.dtype.kind not in "iu"):
        raise UserError(f"{path}: its keys are {keys.dtype} {list(keys.shape)}, a list of class numbers is needed")
    if maps.dtype.kind != "f" or maps.ndim != 3 or maps.shape[0] != len(keys) or 0 in maps.shape[1:]:
        raise UserError(
            f"{path}: its maps are {maps.dtype} {list(maps.shape)} for {len(keys)} keys; float [keys, height, width] "
            "is needed"
        )
    if len(set(keys.tolist())) != len(keys):
        raise UserError(f"{path} holds a key twice: {_listed(keys.tolist())}")
    order = np.argsort(keys, kind="stable")
    return [int(key) for key in keys[order]], _finite_float32(maps[order], path)


def _listed(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    return (" ".join(texts[:_SHOWN_KEYS]) + (" ..." if len(texts) > _SHOWN_KEYS else "")) if texts else "no key"
