"""What lies beside a run's checkpoints: never removed unless it is the run's own, never taken for what it is not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from afa.engine.checkpoint import CheckpointStore
from afa.errors import UserError
from afa.weights.facts import FACTS_FILE, TRAINING_FILE, WEIGHTS_FILE


def save(store: CheckpointStore, *steps: int) -> None:
    network = nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(network.parameters())
    for step in steps:
        assert store.save(step, network, optimiser, {"best_step": None})


def test_a_copy_under_a_higher_number_costs_no_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2)
    shutil.copytree(store.path(2), store.path(9))
    for step in (3, 4, 5):
        save(store, step)
        assert step in store.steps(), "what was just written stays"
    assert store.steps() == [4, 5, 9]
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.facts["step"] == 5
    assert "step_00000009 holds step 2" in caplog.text
    assert (store.folder / "aside_step_00000009").is_dir()
    save(store, 6, 7, 8, 9, 10)
    assert (store.folder / "aside_step_00000009").is_dir(), "it is the user's"
    assert (store.folder / "last").resolve() == store.path(10)


def test_a_copy_in_the_way_is_renamed_not_written_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    for _ in range(2):
        shutil.copytree(store.path(1), store.path(2))
        save(store, 2)
        assert store.holds(2)
        shutil.move(store.path(2), store.path(1))
        save(store, 1)
    assert {"aside_step_00000002", "aside_step_00000002_2"} <= {path.name for path in store.folder.iterdir()}


def test_an_older_copy_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 3)
    shutil.copytree(store.path(1), store.path(2))
    save(store, 4, 5)
    assert store.steps() == [2, 4, 5]


@pytest.mark.parametrize("name", ["step_9", "step_²", "step_00000009x", "step_000000009", "step_٠٠٠٠٠٠٠٩", "step_1e9"])
def test_names_that_the_store_does_not_give_are_left_alone(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    shutil.copytree(store.path(1), store.folder / name)
    others = [f"damaged_{name}", f"replaced_{name}", f".part_{name}", ".part_notes", "replaced_notes", "notes"]
    for other in others:
        (store.folder / other).mkdir()
    save(store, 2, 3)
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.facts["step"] == 3
    assert store.steps() == [3] and f"left alone: {name}" in caplog.text
    assert all((store.folder / other).is_dir() for other in (name, *others))


def test_links_are_not_the_stores_but_last_and_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", keep=1)
    elsewhere = CheckpointStore(tmp_path / "elsewhere")
    save(elsewhere, 1)
    save(store, 1)
    store.path(2).symlink_to(elsewhere.path(1))
    store.path(3).symlink_to(tmp_path / "nowhere")
    assert store.steps() == [1] and not store.holds(2) and not store.mark_best(2)
    save(store, 2, 3, 4)
    assert store.steps() == [4]
    assert (store.folder / "aside_step_00000002").is_symlink() and (store.folder / "aside_step_00000003").is_symlink()
    assert elsewhere.holds(1)


def test_last_that_is_a_copy_is_renamed_and_leads_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    for name in ("last", "best"):
        (store.folder / name).unlink(missing_ok=True)
        shutil.copytree(store.path(1), store.folder / name)
    save(store, 2)
    assert store.mark_best(2)
    for name in ("last", "best"):
        assert (store.folder / name).resolve() == store.path(2)
        assert (store.folder / f"aside_{name}").is_dir()


def test_best_that_leads_in_a_circle_is_mended(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    (store.folder / "best").symlink_to("best")
    save(store, 2)
    assert store.load_latest() is not None
    assert not (store.folder / "best").is_symlink()


@pytest.mark.parametrize("name", [FACTS_FILE, WEIGHTS_FILE, TRAINING_FILE])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_damaged(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2)
    before = sorted(path.name for path in store.folder.iterdir())
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == store.path(2) / name:
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", fail)
        with pytest.raises(UserError, match=rf"{name}: cannot be read \({os.strerror(code)}\): start again once"):
            store.load_latest()
    assert sorted(path.name for path in store.folder.iterdir()) == before
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.facts["step"] == 2


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)

    def fail(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(UserError, match=r"checkpoints: cannot be read \(Permission denied\)"):
        store.load_latest()


def test_nothing_but_copies_is_one_line(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    store.path(1).rename(store.path(7))
    with pytest.raises(UserError, match="is not the step in their name"):
        store.load_latest()
    assert store.steps() == [7]


def test_pipes_and_folders_among_the_files_are_no_hang(tmp_path: Path) -> None:
    for name in (FACTS_FILE, WEIGHTS_FILE, TRAINING_FILE):
        for make in (os.mkfifo, os.mkdir):
            store = CheckpointStore(tmp_path / f"{name}_{make.__name__}", keep=2)
            save(store, 1, 2)
            (store.path(2) / name).unlink()
            make(store.path(2) / name)
            checkpoint = store.load_latest()
            assert checkpoint is not None and checkpoint.facts["step"] == 1
            assert (store.folder / "damaged_step_00000002").is_dir()
