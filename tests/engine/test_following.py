"""What somebody sees of a training: the live line, log and records, and what a finished run says last."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import faults
import pytest
import torch
from golden import small_config, small_method

from afa.engine.ending import next_commands, whereabouts
from afa.engine.log import LOG, RunLog
from afa.engine.records import Progress
from afa.errors import UserError
from afa.progress import clock, live_line, speed, track

logger = logging.getLogger("afa.following")


class Terminal(io.StringIO):
    """Keeps what a terminal is sent."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def lines(self) -> list[str]:
        """What stands on it in the end: a carriage return writes over the line, ESC [A goes up."""
        screen, row, column = [""], 0, 0
        for part in re.split(r"(\r|\n|\x1b\[A)", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                screen += [""] * (row + 1 - len(screen))
            elif part == "\x1b[A":
                row = max(0, row - 1)
            else:
                screen[row] = screen[row][:column].ljust(column) + part + screen[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in screen]


@contextmanager
def watched_terminal(columns: int = 300, rows: int = 40) -> Iterator[Terminal]:
    """Within the block, messages and bars go to a terminal of some size."""
    size = os.terminal_size((columns, rows))
    terminal, root, package = Terminal(), logging.getLogger(), logging.getLogger("afa")
    handlers, level = root.handlers[:], package.level
    with patch("sys.stderr", terminal), patch("os.get_terminal_size", lambda *_: size):
        root.handlers[:] = [logging.StreamHandler(terminal)]
        package.setLevel(logging.INFO)
        try:
            yield terminal
        finally:
            root.handlers[:] = handlers
            package.setLevel(level)


def progress(enabled: bool = True, seconds_before: float = 3600) -> Progress:
    return Progress(2, 10, seconds_before=seconds_before, device=torch.device("cpu"), enabled=enabled)


VALUES = {"loss/cls": 0.5, "loss/total": 1.25, "lr/encoder": 6e-5, "gradient_norm": 2.0, "time/images_per_second": 3.0}


def test_log_lines_stand_above_the_live_line() -> None:
    shown = progress()
    with watched_terminal() as terminal:
        shown.open()
        for step in range(3, 6):
            shown.step({"total": torch.tensor(1.0)})
            shown.record(step, VALUES)
            logger.warning("something odd at step %d", step)
            assert list(track([1, 2], 2, "validating")) == [1, 2]
        shown.close()
        logger.info("afterwards")
    lines = [line for line in terminal.lines() if line]
    for number, step in enumerate(range(3, 6)):
        assert lines[2 * number].startswith(f"step {step}/10  loss 1.2500 (cls 0.5000)  lr 6e-05  gradient norm 2")
        assert lines[2 * number + 1] == f"something odd at step {step}"
    assert len(lines) == 8 and lines[-1] == "afterwards", lines
    live = lines[-2]
    assert re.search(r" 5/10 steps, loss 1\.2500, \S+ s/step, \d+:\d\d:\d\d remaining, 1:00:0\d elapsed", live), live
    assert live.endswith("cls 0.5000")


@pytest.mark.parametrize(("columns", "shown"), [(86, 0), (110, 1), (124, 2), (300, 3), (0, 3)])
def test_a_narrow_terminal_is_shown_whole_figures(columns: int, shown: int) -> None:
    figures = ["12.3 GB", "aff 0.3376", "cls 0.6105"]
    with (
        watched_terminal(columns, min(columns, 40)) as terminal,
        live_line(20000, "", "step", per_item=True, stays=True) as bar,
    ):
        bar.say("loss 1.2500", figures)
        bar.update(12000)
    live = terminal.lines()[0]
    assert re.search(r"12000/20000 steps, loss 1\.2500, \S+ s/step, 0:00:00 remaining", live), live
    assert len(live) < columns or not columns
    assert [figure for figure in figures if figure in live] == figures[:shown], live


def test_memory_on_a_gpu_is_told() -> None:
    with watched_terminal() as terminal, patch("torch.cuda.max_memory_allocated", lambda _: 12_345_678_901):
        shown = Progress(0, 10, seconds_before=0, device=torch.device("cuda:0"), enabled=True)
        shown.open()
        shown.step({"total": torch.tensor(1.0)})
        shown.record(1, {**VALUES, "memory/gpu_peak_gb": 12.345678901})
        shown.close()
    assert "  12.3 GB  0:00:0" in terminal.getvalue() and ", 12.3 GB, cls 0.5000" in terminal.getvalue()


def test_without_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "afa")
    shown = progress()
    shown.open()
    shown.step({"total": torch.tensor(1.0)})
    shown.record(3, VALUES)
    shown.close()
    assert capsys.readouterr().err == ""
    assert re.search(r"3\.0 images/s  1:00:0\d elapsed, \d:\d\d:\d\d remaining$", caplog.messages[0])


def test_processes_that_do_not_speak_show_nothing() -> None:
    shown = progress(enabled=False)
    with watched_terminal() as terminal:
        shown.open()
        shown.step({"total": torch.tensor(1.0)})
        shown.record(3, VALUES)
        shown.close()
    assert terminal.getvalue() == ""


def test_a_terminal_that_is_lost_stops_nothing() -> None:
    shown = progress()

    def gone(_: str = "") -> int:
        raise OSError(5, "Input/output error")

    with watched_terminal() as terminal:
        shown.open()
        with patch.object(terminal, "write", gone), patch.object(terminal, "flush", gone):
            for step in range(3, 11):
                shown.step({"total": torch.tensor(1.0)})
                shown.record(step, VALUES)
            shown.close()


def test_times_and_speeds_are_told_in_one_way() -> None:
    with watched_terminal() as terminal, live_line(None, "unpacking", "file", stays=True) as bar:
        bar.update(3)
    assert re.match(r"unpacking: 3 files, \S+ \S+, 0:00:00 elapsed", terminal.lines()[0])
    assert (clock(None), clock(3725.4), speed(0, "image")) == ("-:--:--", "1:02:05", "- s/image")
    assert speed(4, "image") == "4.0 images/s"
    assert (speed(0.25, "image"), speed(4, "step", per_item=True)) == ("4 s/image", "0.25 s/step")


def test_the_log_has_the_lines_of_the_screen(undisturbed: Path) -> None:
    lines = (undisturbed / LOG).read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) ", line) for line in lines)
    text = "\n".join(lines)
    for step in faults.recorded_steps():
        assert f" INFO step {step}/14  loss " in text
    assert re.search(
        r"INFO validation at step 14: mIoU in %: cam \d+\.\d, propagated_cam \d+\.\d, segm\w+ \d+\.\d;", text
    )
    assert lines[-1].endswith(f"tensorboard --logdir {undisturbed}/tensorboard")


def test_every_record_has_what_a_training_is_followed_by(undisturbed: Path) -> None:
    for record in faults.records(undisturbed):
        assert {"lr/encoder", "lr/heads", "gradient_norm", "time/seconds"} <= set(record)
        assert record["gradient_norm"] > 0
        assert record["time/images_per_second"] * record["time/seconds_per_step"] == pytest.approx(4)
        assert not any(key.startswith("memory/") for key in record), "there is no GPU"
        for key in (key for key in record if key.endswith("_miou")):
            assert 0 <= record[key] <= 1, "files keep fractions"


def test_a_run_in_two_starts_has_one_log_and_whole_records(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    stopped = faults.run_here(config, when={"step 4/": faults.stop_with(signal.SIGTERM)})
    assert stopped.code == 75
    with (tmp_path / "run" / LOG).open("a") as file:
        file.write("2026-11-30 12:00:00 INFO half a li")  # as a kill leaves it
    assert faults.run_here(config).code == 0
    text = (tmp_path / "run" / LOG).read_text(encoding="utf-8")
    places = [
        text.index(words) for words in ("starting in", "asked to stop", "half a li\n", "going on from", "trained")
    ]
    assert places == sorted(places)
    assert all("time/images_per_second" in record for record in faults.records(tmp_path / "run"))
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


@pytest.mark.parametrize(
    ("error", "words"),
    [(UserError("a.jpg is damaged"), "error: a.jpg"), (ValueError("x"), "Trace")],
)
def test_what_ends_a_run_is_the_last_line(tmp_path: Path, error: Exception, words: str) -> None:
    def run() -> None:
        with RunLog() as log:
            logger.warning("before the folder was known")
            log.open(tmp_path)
            raise error

    with pytest.raises(type(error)):
        run()
    text = (tmp_path / LOG).read_text()
    assert "WARNING before the folder was known\n" in text and f" ERROR {words}" in text
    assert text.rstrip().endswith(str(error))


def test_a_run_that_never_began_leaves_no_log_and_an_unwritable_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mistake"), RunLog():
        raise UserError("mistake")
    assert not list(tmp_path.iterdir())
    (tmp_path / LOG).mkdir()
    with pytest.raises(UserError, match=r"log\.txt cannot be written"), RunLog() as log:
        log.open(tmp_path)


def test_the_next_commands_can_be_copied(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = small_method(small_config())
    monkeypatch.chdir(tmp_path)
    run = Path("-it's my run")
    shutil.copytree(undisturbed, run, symlinks=True)
    commands = [shlex.split(line) for line in next_commands(run, method, has_masks=True)]
    assert [Path(words[1]).stem for words in commands] == ["eval", "label", "infer", "contact_sheet", "--logdir"]
    for words in commands[:-1]:
        assert Path(words[1]).is_file() and words[2] == "./-it's my run"
    assert Path(commands[-1][-1]).is_dir()
    assert not any("eval" in line for line in next_commands(run, method, has_masks=False))
    for line in whereabouts(run, 7):
        assert all(Path(path).exists() for path in line.partition(": ")[2].split(", ")), line
    assert len(whereabouts(run, None)) == 2


def test_a_longer_schedule_in_shares_extends_a_run(copied_run: Path, config: Path) -> None:
    done = faults.run_here(config, "train.steps=15", "optimiser.warmup_steps=30%", "validation.every=100%")
    assert done.code == 0 and "optimiser.warmup_steps: 3 -> 5" in done.text
    refused = faults.run_here(config, "train.steps=16", "optimiser.warmup_steps=30%", "optimiser.lr=0.5")
    assert refused.code == 2 and "optimiser.lr: 0.001 -> 0.5" in refused.text


def test_labels_without_many_of_the_classes_are_said_once(config: Path, tmp_path: Path) -> None:
    done = faults.run_here(config, "cam.low=1", "cam.high=1", "par.iterations=0", "train.log_every=1", "train.steps=8")
    (said,) = (line for line in done.text.splitlines() if "have no pixel in the labels" in line)
    shares = [record.get("classes/missing", 0) for record in faults.records(tmp_path / "run")]
    assert done.code == 0 and sum(share > 0.1 for share in shares) > 1
    assert "cam.high" in said and re.search(r"step \d+: \d+% of the images' classes have no pixel", said)


def test_labels_that_cover_the_images_are_said_once(config: Path, tmp_path: Path) -> None:
    done = faults.run_here(config, "cam.low=0", "cam.high=0", "par.iterations=0", "train.log_every=1", "train.steps=8")
    (said,) = (line for line in done.text.splitlines() if "of the pixels to classes" in line)
    shares = [record.get("pixels/foreground", 0) for record in faults.records(tmp_path / "run")]
    assert done.code == 0 and sum(share > 0.6 for share in shares) > 1
    assert "loss.seg" in said and re.search(r"step \d+: the labels give \d+% of the pixels", said)
