"""What stands in the environment about other processes is right, or one line: nobody waits for the others in vain."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import faults
import pytest

from afa.engine.launch import Launch, read_launch
from afa.errors import UserError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NAMES = tuple(WHOLE)
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "12"}


def outcome(environment: dict[str, str]) -> Launch | str:
    try:
        return read_launch(environment)
    except UserError as error:
        return str(error)


def test_what_a_launcher_sets() -> None:
    assert read_launch(WHOLE) == Launch(rank=1, world_size=2, local_rank=1)
    assert read_launch({**WHOLE, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) == Launch()


@pytest.mark.parametrize("environment", [{}, SLURM, dict.fromkeys(NAMES, ""), dict.fromkeys(NAMES, " ")])
def test_without_a_launcher_there_is_one_process(environment: dict[str, str]) -> None:
    assert read_launch(environment) == Launch()


def test_every_incomplete_environment_is_one_process_or_says_what_is_missing() -> None:
    for count in range(len(NAMES)):
        for names in itertools.combinations(NAMES, count):
            for empty in (False, True):
                given = {name: WHOLE[name] for name in names}
                if empty:
                    given |= {name: "" for name in NAMES if name not in names}
                found = outcome(given)
                if "WORLD_SIZE" in names:
                    missing = [name for name in NAMES if name not in names]
                    assert isinstance(found, str) and all(name in found for name in missing)
                elif names and {"RANK", "LOCAL_RANK"} & set(names):
                    assert isinstance(found, str) and "RANK=1" in found
                else:
                    assert found == Launch()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("text", ["two", "-1", "1.5", "1_0", "٣", "99999999999", "0x1", "70000"])
def test_what_is_no_number_or_out_of_range_names_the_variable(name: str, text: str) -> None:
    found = outcome({**WHOLE, name: text})
    if (name, text) == ("WORLD_SIZE", "70000"):
        assert isinstance(found, Launch)
    else:
        assert isinstance(found, str) and f"{name}=" in found


def test_ranks_lie_below_their_number() -> None:
    assert "RANK=2, which must be from 0 to 1" in str(outcome({**WHOLE, "RANK": "2"}))
    assert "LOCAL_RANK=5" in str(outcome({**WHOLE, "LOCAL_RANK": "5"}))
    assert "WORLD_SIZE=0" in str(outcome({**WHOLE, "WORLD_SIZE": "0"}))
    assert "RANK=0" not in str(outcome({"RANK": "0", "LOCAL_RANK": "0"}))


def test_a_port_that_is_taken_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {**WHOLE, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        done = faults.run_here(config)
    assert done.code == 2
    assert done.text.startswith("error: the processes of this run cannot connect to each other (MASTER_ADDR=127.0.0.1")
    assert faults.is_one_line(done.text)
