"""Names on the Hugging Face hub, with a hub on this machine."""

from __future__ import annotations

import http.server
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file
from samples import MEAN, STD, refused

from afa.errors import run_command
from afa.methods.afa.config import ModelConfig
from afa.methods.afa.network import build_network
from afa.weights import load_encoder, save_huggingface


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Hugging Face hub on this machine that serves files below a folder."""
    folder = tmp_path / "hub"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            path = folder / self.path.lstrip("/").replace("resolve/main/", "").replace(f"resolve/{'a' * 40}/", "")
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", '"1234"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if send:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def load_from_hub(name: str) -> None:
    """Load an encoder by its name on the hub, as a training does."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("afa").setLevel(logging.INFO)
    for module in [module for module in sys.modules if module.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[module]  # reads the environment when it is imported
    run_command(lambda: load_encoder(build_network(ModelConfig(encoder="mit_b0"), 21).encoder, name))


def run_load_from_hub(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    return Forked(load_from_hub, "nvidia/mit-b0", cwd=tmp_path, variables=variables).wait()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_name_on_the_hub_is_downloaded_once(file: str, hub: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = hub
    network = build_network(ModelConfig(encoder="mit_b0"), 21)
    exported = tmp_path / "exported"
    save_huggingface(network, exported, class_names=[str(i) for i in range(20)], image_mean=MEAN, image_std=STD)
    target = folder / "nvidia/mit-b0" / file
    target.parent.mkdir(parents=True)
    if file.endswith(".bin"):
        torch.save(load_file(exported / "model.safetensors"), target)
    else:
        (exported / "model.safetensors").rename(target)
    outcome = run_load_from_hub(tmp_path, HF_ENDPOINT=address)
    assert outcome.returncode == 0, outcome.stderr
    assert "nvidia/mit-b0 downloaded: " in outcome.stderr and "sha256" in outcome.stderr
    if file.endswith(".bin"):
        again = run_load_from_hub(tmp_path, HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr
        assert "nvidia/mit-b0 from the cache: " in again.stderr


def test_without_network_a_name_on_the_hub_is_one_line(tmp_path: Path) -> None:
    line = refused(run_load_from_hub(tmp_path, HF_HUB_OFFLINE="1"))
    assert "nvidia/mit-b0: no such file or folder" in line and "network" in line and "give that file's path" in line


@pytest.mark.slow
def test_when_nobody_answers_a_name_on_the_hub_is_one_line(tmp_path: Path) -> None:
    assert "check name and network" in refused(run_load_from_hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))


def test_a_name_that_the_hub_does_not_have_is_one_line(hub: tuple[str, Path], tmp_path: Path) -> None:
    assert "check name and network" in refused(run_load_from_hub(tmp_path, HF_ENDPOINT=hub[0]))
