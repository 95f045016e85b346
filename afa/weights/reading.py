"""Tensors from files: formats, damage, and refusing to run code."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afa.errors import UserError, is_out_of_memory
from afa.weights.facts import CHECKPOINTS_FOLDER, WEIGHTS_FILE
from afa.weights.files import UnreadableError, file_mode, parse_json, require_file, shown
from afa.weights.mxnet import MXNET_BEGINNING, read_mxnet
from afa.weights.onnx_files import ONNX_SUFFIX, read_onnx
from afa.weights.versions import choose, listed, split_entry

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".params", ONNX_SUFFIX)
LARGEST_FILE = 8 << 30
"""Bytes. A training of the largest encoder, its optimiser and an average of its weights take a fifth of it."""

_MOST_TENSORS = 20_000  # the largest encoder has a thousand
_LARGEST_HEADER = 16 << 20
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CHECKSUM = "sha256"
_WAY_OUT = (
    "open it where you trust it and save the bare tensors: "
    "torch.save(model.state_dict(), FILE) or safetensors.torch.save_file(model.state_dict(), FILE)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OTHER_KINDS = {
    ".h5": "a Keras (HDF5) file",
    ".hdf5": "a Keras (HDF5) file",
    ".keras": "a Keras model",
    ".index": "a TensorFlow checkpoint",
    ".meta": "a TensorFlow checkpoint",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".npz": "an archive of numpy arrays",
    ".npy": "a numpy array",
    ".pdparams": "PaddlePaddle parameters",
    ".pdopt": "a PaddlePaddle optimiser",
    ".msgpack": "Flax parameters",
    ".caffemodel": "a Caffe model",
    ".mlmodel": "a Core ML model",
    ".gguf": "a GGUF model",
    ".json": "a JSON file",
    ".yaml": "a YAML file",
    ".yml": "a YAML file",
    ".gz": "a compressed file: unpack it first",
    ".xz": "a compressed file: unpack it first",
    ".7z": "a compressed file: unpack it first",
    ".rar": "a compressed file: unpack it first",
}
_OTHER_BEGINNINGS = {
    b"\x89HDF\r\n": "a Keras (HDF5) file",
    b"\x93NUMPY": "a numpy array",
    b"GGUF": "a GGUF model",
    b"\x1f\x8b": "a compressed file: unpack it first",
    b"\xfd7zXZ": "a compressed file: unpack it first",
    b"7z\xbc\xaf": "a compressed file: unpack it first",
    b"Rar!": "a compressed file: unpack it first",
}
_LFS_POINTER = b"version https://git-lfs"


class WeightsFile(NamedTuple):
    """What a file holds.

    Attributes:
        path: The file itself, also where a folder or a name on the Hugging Face hub was given.
        tensors: Name -> tensor on the CPU.
        metadata: The texts of a safetensors file; empty for others.
        version: Which of several sets of weights in the file they are; empty where it holds one.
        left_out: Names of counters that stood among the weights and belong to no network.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    version: str = ""
    left_out: tuple[str, ...] = ()


class Unread:
    """Stands where a file holds something plain that is no tensor, such as the arguments of the training."""

    def __new__(cls, *_: object) -> Unread:
        """Whatever the file says about it is passed over."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, _: object) -> None:
        """Nothing is kept."""


# What training programs often store beside the weights. Their own classes are not called: only the stand-in is.
_PASSED_OVER: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Unread, name)
    for name in (
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
    )
]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors without running code that a file may hold.

    Args:
        path: A safetensors file, one that ``torch.save`` wrote (.pth, .pt, .bin, .ckpt), MXNet's parameters (.params),
            or an ONNX file (.onnx). Entries around the tensors such as ``state_dict`` and prefixes of all names such as
            ``module.`` are taken off. ``FILE#ENTRY`` names one of several versions, for example
            ``model.pth#model_ema``.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        UserError: No such file, a damaged one, one that needs code to be read, one that holds anything but tensors, or
            several versions none of which is plain.
    """
    return read_source(path, Path).tensors


def read_source(source: str | Path, find: Callable[[str], Path]) -> WeightsFile:
    """Find and read what a user names.

    Args:
        source: As ``find`` takes it, perhaps with ``#ENTRY`` behind it.
        find: Gives the file.

    Raises:
        UserError: As ``find`` and :func:`read_tensors`.
    """
    name, entry = split_entry(source)
    return read_weights_file(find(name), entry)


def read_weights_file(path: Path, entry: str | None = None) -> WeightsFile:
    """As :func:`read_tensors`, with what else the file says.

    Args:
        path: The file.
        entry: Which of several versions in it is wanted.
    """
    head, size = _beginning(path)
    # Eight bytes of length and a JSON header: safetensors, whatever the suffix says.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        content, metadata = _read_safetensors(path, size)
        chosen = choose(content, entry, path)
    elif head.startswith(MXNET_BEGINNING):
        metadata = {}
        chosen = choose(read_mxnet(path, most_arrays=_MOST_TENSORS), entry, path)
    elif path.suffix.lower() == ONNX_SUFFIX:
        metadata = {}
        chosen = choose(_read_onnx(path), entry, path)
    else:
        unpickled, metadata = _read_torch(path, head, size), {}
        if not isinstance(unpickled, Mapping):
            raise UserError(f"{path} holds {type(unpickled).__name__}, not named tensors; {_WAY_OUT}")
        chosen = choose(unpickled, entry, path)
    tensors = _plain_tensors(chosen.tensors, path, size)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    if chosen.others:
        logger.warning(
            "%s holds several sets of weights: '%s' is taken; %s#%s would take '%s'",
            *(path, shown(chosen.taken), path, shown(chosen.others[0].split(".")[-1]), listed(chosen.others)),
        )
    return WeightsFile(path, tensors, metadata, chosen.taken, tuple(chosen.left_out))


def find_weights(source: str | Path) -> Path:
    """The weights file that an argument names.

    Args:
        source: A file, a run's output folder (its checkpoint ``best``, else ``last``), or a folder with one weights
            file.

    Raises:
        UserError: Nothing there, or several candidates.
    """
    path = Path(source)
    mode = file_mode(path)
    if mode is None:
        reason = "the link leads nowhere" if path.is_symlink() else "no such file or folder"
        raise UserError(f"{path}: {reason}; pretrained/README.md says where to get weights")
    if not stat.S_ISDIR(mode):
        return path
    try:
        return _in_folder(path)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def last_checkpoint(source: str | Path) -> Path:
    """The last checkpoint of a run's output folder; anything else as it is.

    Later trainings build on the last weights: the best ones were chosen by masks, which are more supervision.
    """
    last = Path(source) / CHECKPOINTS_FOLDER / "last"
    return last if last.exists() else Path(source)


def find_pretrained(source: str | Path) -> Path:
    """As :func:`find_weights`, or a name on the Hugging Face hub such as ``nvidia/mit-b1``.

    Raises:
        UserError: As :func:`find_weights`, or it is not in the cache and there is no network for a download.
    """
    path = Path(source)
    is_hub_name = _HUB_NAME.fullmatch(str(source)) and not path.name.lower().endswith(WEIGHTS_SUFFIXES)
    if is_hub_name and file_mode(path) is None and file_mode(path.parent) is None:
        return _download(str(source))
    return find_weights(path)


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        UnreadableError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def content_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and values of tensors and over texts, whatever their order in a file."""
    digest = hashlib.sha256()
    for key in sorted(metadata):
        if key != _CHECKSUM:
            digest.update(f"{key}={metadata[key]}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata to write beside the tensors, so that :func:`read_tensors` notices a changed bit."""
    return {**metadata, _CHECKSUM: content_checksum(tensors, metadata)}


def _in_folder(folder: Path) -> Path:
    checkpoints = folder / CHECKPOINTS_FOLDER
    for place in (checkpoints / "best", checkpoints / "last", folder / "best", folder / "last"):
        if (place / WEIGHTS_FILE).is_file():
            return place / WEIGHTS_FILE
    if checkpoints.is_dir():
        raise UserError(f"{folder} holds no finished checkpoint yet: neither best nor last in {CHECKPOINTS_FOLDER}/")
    for name in (WEIGHTS_FILE, *_HUB_FILES):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(WEIGHTS_SUFFIXES) and path.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        names = listed([path.name for path in found])
        raise UserError(f"{folder} holds several weights files ({names}): name one of them")
    raise UserError(f"{folder} holds no weights: no {_suffixes()} file")


def _download(name: str) -> Path:
    """From the cache if it is there, else from the hub: weights that a run started with do not change under it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reason: Exception | None = None
    for file, from_cache in [*((file, True) for file in _HUB_FILES), *((file, False) for file in _HUB_FILES)]:
        try:
            with _quiet_hub():
                path = Path(hf_hub_download(name, file, local_files_only=from_cache))
        except LocalEntryNotFoundError as error:
            reason = error
            if not from_cache:
                break  # no way to the hub: another file would not fare better
        except EntryNotFoundError as error:
            reason = error
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
            break
        else:
            logger.info("%s %s: %s", name, "from the cache" if from_cache else "downloaded", path)
            return path
    raise UserError(
        f"{name}: no such file or folder, and not available from the Hugging Face hub ({type(reason).__name__}): "
        f"check name and network, or fetch its {' or '.join(_HUB_FILES)} elsewhere and give that file's path"
    ) from reason


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's own warnings of each retry: one line of ours says how it ended."""
    hub_logger = logging.getLogger("huggingface_hub")
    level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub_logger.setLevel(level)


def _beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size; only what can be weights goes further."""
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path} is empty: fetch or copy it again")
    if head == _LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: fetch it with git lfs pull")
    if size > LARGEST_FILE:
        raise UserError(
            f"{path} has {size >> 30} GB, more than any network that is known here: save its bare tensors alone "
            "with torch.save(model.state_dict(), FILE)"
        )
    return head, size


def _read_safetensors(path: Path, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            if length > min(size, _LARGEST_HEADER):
                raise ValueError("the header is longer than it can be")
            names = parse_json(raw.read(length))
        if not isinstance(names, dict) or len(names) > _MOST_TENSORS:
            raise ValueError("the header does not list the tensors of a network")
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        intact = _CHECKSUM not in metadata or metadata[_CHECKSUM] == content_checksum(tensors, metadata)
    except OSError as error:
        # The library's own errors of this kind carry no reason of the system.
        if error.errno:
            raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
        raise _damaged(path, b"", error, "no safetensors file") from error
    # The reader meets arbitrary bytes: what it raises on types of numbers that it does not know is no narrower.
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise _damaged(path, b"", error, "no safetensors file") from error
    if not intact:
        raise UserError(f"{path} is damaged: its content does not match its checksum; fetch or copy it again")
    return tensors, metadata


def _read_torch(path: Path, head: bytes, size: int) -> object:
    try:
        if head.startswith(b"PK"):
            _check_archive(path, size)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PASSED_OVER):
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; an error follows where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # The reader meets arbitrary bytes: what it raises on them is no narrower than this.
    except Exception as error:
        text = str(error)
        if isinstance(error, OSError) and error.errno:
            raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
        if is_out_of_memory(error):
            raise UserError(
                f"{path} is damaged, or larger than the memory of this machine ({_brief(error)}): "
                "fetch or copy it again, or save its bare tensors alone"
            ) from error
        if path.suffix.lower() in _OTHER_KINDS:
            raise _damaged(path, head, error, "no weights file") from error
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        if foreign:
            raise UserError(
                f"{path} holds more than tensors ('{shown(foreign[1])}') and would have to run code to be read, which "
                f"is refused; {_WAY_OUT}"
            ) from error
        if "legacy .tar" in text:
            raise UserError(
                f"{path} was written by one of the first versions of PyTorch and would have to run code to be read, "
                f"which is refused; {_WAY_OUT}"
            ) from error
        if head.startswith(b"PK") and "Unsupported operand 149" in text:
            raise UserError(
                f"{path} was saved with pickle protocol 4 or newer, which PyTorch's safe reader does not know; "
                f"{_WAY_OUT}"
            ) from error
        if head[:1] == b"\x80" and "Weights only" in text:
            raise UserError(f"{path} is a pickle that could run code, which is refused; {_WAY_OUT}") from error
        raise _damaged(path, head, error, "no weights file") from error


def _read_onnx(path: Path) -> dict[str, Tensor]:
    try:
        return read_onnx(path, most_tensors=_MOST_TENSORS)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def _check_archive(path: Path, size: int) -> None:
    """PyTorch compresses nothing, so an archive never grows when it is read."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        kind = _OTHER_KINDS[".npz"] if all(name.endswith(".npy") for name in names) else "another archive (zip)"
        raise UserError(_not_read(path, _OTHER_KINDS.get(path.suffix.lower(), kind)))
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise UserError(f"{path} is a TorchScript program, which would have to be run; {_WAY_OUT}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{path} is compressed, which torch.save never does: unpack it and save it with torch.save")
    if sum(member.file_size for member in members) > size:
        raise ValueError("it claims to hold more than it has bytes")


def _damaged(path: Path, head: bytes, error: Exception, otherwise: str) -> UserError:
    """Another kind of file is called by its name, not damaged."""
    kinds = [kind for beginning, kind in _OTHER_BEGINNINGS.items() if head.startswith(beginning)]
    kind = next(iter(kinds), _OTHER_KINDS.get(path.suffix.lower()))
    if kind is None and ".data-0" in path.name:
        kind = _OTHER_KINDS[".index"]
    if kind is not None:
        return UserError(_not_read(path, kind))
    advice = f"; {_suffixes()} are read" if otherwise == "no weights file" else ""
    return UserError(f"{path} is damaged or {otherwise} ({_brief(error)}): fetch or copy it again{advice}")


def _not_read(path: Path, kind: str) -> str:
    return (
        f"{path}: this kind of file is not read ({kind}); give a file of PyTorch or safetensors with the same weights "
        f"({_suffixes()})"
    )


def _plain_tensors(content: Mapping[str, Any], path: Path, size: int) -> dict[str, Tensor]:
    """Refuse what is no tensor, and tensors that are no plain block of numbers."""
    if len(content) > _MOST_TENSORS:
        raise UserError(f"{path} holds {len(content)} tensors: no network that is known here has as many")
    claimed = 0
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds '{shown(name)}' ({type(value).__name__}) among its tensors; {_WAY_OUT}")
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            kind = "quantised" if value.is_quantized else "nested" if value.is_nested else "sparse"
            kind = "empty (meta)" if value.device.type == "meta" else kind
            raise UserError(f"{path} holds '{shown(name)}' as a {kind} tensor; only plain ones are read: {_WAY_OUT}")
        claimed += value.numel() * value.element_size()
    # Shapes may claim more than there is: tensors that share memory. What is built after them would be real.
    if claimed > 4 * size + (1 << 30):
        raise UserError(f"{path} is damaged: its tensors claim {claimed >> 20} MB, the file has {size >> 20} MB")
    return {name: value.detach() for name, value in content.items()}


def _suffixes() -> str:
    return ", ".join(WEIGHTS_SUFFIXES)


def _brief(error: Exception) -> str:
    """The first sentence of another library's message."""
    lines = str(error).strip().splitlines()
    return shown(re.split(r"[.:] ", lines[0])[0].rstrip(".:")) if lines else type(error).__name__
