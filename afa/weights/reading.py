"""Tensors from files: formats, damage, and refusing to run code."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afa.errors import UserError
from afa.weights.facts import CHECKPOINTS_FOLDER, WEIGHTS_FILE

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CHECKSUM = "sha256"
_WAY_OUT = (
    "open it where you trust it and save the bare tensors: "
    "torch.save(model.state_dict(), FILE) or safetensors.torch.save_file(model.state_dict(), FILE)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class WeightsFile(NamedTuple):
    """What a file holds.

    Attributes:
        path: The file itself, also where a folder or a name on the Hugging Face hub was given.
        tensors: Name -> tensor on the CPU.
        metadata: The texts of a safetensors file; empty for others.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors without running code that a file may hold.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote (.pth, .pt, .bin). A ``state_dict`` or ``model``
            entry around the tensors and a ``module.`` in front of every name are taken off.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        UserError: No such file, a damaged one, one that needs code to be read, or one that holds anything but tensors.
    """
    return read_weights_file(Path(path)).tensors


def read_weights_file(path: Path) -> WeightsFile:
    """As :func:`read_tensors`, with the metadata."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path} is empty: fetch or copy it again")
    # Eight bytes of length and a JSON header: safetensors, whatever the suffix says.
    if path.suffix == ".safetensors" or head[8:] == b"{":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _bare_tensors(_read_torch(path, head), path), {}
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return WeightsFile(path, _without_prefix(tensors), metadata)


def find_weights(source: str | Path) -> Path:
    """The weights file that an argument names.

    Args:
        source: A file, a run's output folder (its checkpoint ``best``, else ``last``), or a folder with one weights
            file.

    Raises:
        UserError: Nothing there, or several candidates.
    """
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    raise UserError(f"{path}: no such file or folder; pretrained/README.md says where to get weights")


def find_pretrained(source: str | Path) -> Path:
    """As :func:`find_weights`, or a name on the Hugging Face hub such as ``nvidia/mit-b1``.

    Raises:
        UserError: As :func:`find_weights`, or it is not in the cache and there is no network for a download.
    """
    path = Path(source)
    is_hub_name = _HUB_NAME.fullmatch(str(source)) and path.suffix not in WEIGHTS_SUFFIXES
    if is_hub_name and not path.exists() and not path.parent.exists():
        return _download(str(source))
    return find_weights(path)


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
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
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:6])
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
        f"{name}: no such file or folder, and not to be had from the Hugging Face hub ({type(reason).__name__}): "
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({_brief(error)}): fetch or copy it again"
        ) from error
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != content_checksum(tensors, metadata):
        raise UserError(f"{path} is damaged: its content does not match its checksum; fetch or copy it again")
    return tensors, metadata


def _read_torch(path: Path, head: bytes) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; an error follows where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    # The reader meets arbitrary bytes: what it raises on them is no narrower than this.
    except Exception as error:
        text = str(error)
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        if foreign:
            raise UserError(
                f"{path} holds more than tensors ('{foreign[1]}') and would have to run code to be read, which is "
                f"refused; {_WAY_OUT}"
            ) from error
        if head[:1] == b"\x80" and "Weights only" in text:
            raise UserError(f"{path} is a pickle that could run code, which is refused; {_WAY_OUT}") from error
        raise UserError(
            f"{path} is damaged or no weights file ({_brief(error)}): fetch or copy it again; {_suffixes()} are read"
        ) from error


def _bare_tensors(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, not named tensors; {_WAY_OUT}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds '{name}' ({type(value).__name__}) among its tensors; {_WAY_OUT}")
    return {str(name): value.detach() for name, value in content.items()}


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod.", "model."):  # of DistributedDataParallel, torch.compile, Lightning
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _suffixes() -> str:
    return ", ".join(WEIGHTS_SUFFIXES)


def _brief(error: Exception) -> str:
    """The first sentence of another library's message."""
    lines = str(error).strip().splitlines()
    return re.split(r"[.:] ", lines[0])[0][:120].rstrip(".:") if lines else type(error).__name__
