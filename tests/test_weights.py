"""Weights: every known file is recognised and loaded strictly, everything else is one clear line, and no code runs."""

from __future__ import annotations

import http.server
import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from forked import ForkedTool
from safetensors.torch import load_file, save_file
from torch import Tensor

from afa.config import Config, ModelConfig, config_to_dict
from afa.data.shapes import ShapesStyle, make_shapes
from afa.errors import UserError
from afa.models import VARIANTS, AFANet, build_network
from afa.weights import (
    describe_network,
    load_encoder,
    load_network,
    load_segmenter,
    open_checkpoint,
    pack_metadata,
    read_tensors,
    save_afa_layout,
    save_huggingface,
    save_network,
)

ROOT = Path(__file__).resolve().parents[1]
KEYS: dict[str, dict[str, list[int]]] = json.loads((ROOT / "tests/data/keys.json").read_text())
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NAMES = ["cat", "dog", "cow", "bus", "car"]


def small_settings() -> ModelConfig:
    return ModelConfig(
        encoder="custom", widths=[8, 16, 20, 32], depths=[1, 1, 1, 2], heads=[1, 2, 5, 8], decoder_width=16
    )


def small_network(seed: int = 0, num_classes: int = 6) -> AFANet:
    torch.manual_seed(seed)
    return build_network(small_settings(), num_classes).eval()


def published(name: str) -> dict[str, Tensor]:
    """A published checkpoint's names and shapes; its zeros take no room."""
    return {
        key: torch.zeros((), dtype=torch.long if key.endswith("num_batches_tracked") else torch.float32).expand(shape)
        for key, shape in KEYS[name].items()
    }


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


def refused(outcome: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    return lines[0]


# --- published key lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_encoder_has_the_names_and_shapes_of_the_published_files(variant: str) -> None:
    encoder = build_network(ModelConfig(encoder=variant), 21).encoder
    ours = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    theirs = {name: shape for name, shape in KEYS[f"segformer_{variant}"].items() if not name.startswith("head.")}
    assert ours == theirs


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b1"])
def test_network_has_the_names_and_shapes_of_the_released_checkpoints(variant: str) -> None:
    network = build_network(ModelConfig(encoder=variant), 21)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == KEYS[f"afa_{variant}_voc"]
    settings, num_classes = describe_network(network.state_dict())
    assert (settings, num_classes) == (ModelConfig(encoder=variant), 21)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_imagenet_file_of_another_variant_is_named(variant: str, tmp_path: Path) -> None:
    path = tmp_path / f"{variant}.pth"
    torch.save(published(f"segformer_{variant}"), path)
    wrong = "mit_b1" if variant != "mit_b1" else "mit_b0"
    encoder = build_network(ModelConfig(encoder=wrong), 21).encoder
    with pytest.raises(UserError, match=rf"SegFormer ImageNet weights \({variant}\).*is a {wrong}.*encoder={variant}"):
        load_encoder(encoder, path)


# --- loading -------------------------------------------------------------------------------------------------------


def test_imagenet_file_is_loaded_and_its_head_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = small_network(1), small_network(2)
    path = tmp_path / "mit.pth"
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    torch.save({**source.encoder.state_dict(), **head}, path)
    decoder_before = target.decoder.linear_pred.weight.clone()
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(target.encoder, path)
    assert same(source.encoder, target.encoder)
    assert torch.equal(target.decoder.linear_pred.weight, decoder_before)
    assert "head.weight and head.bias" in caplog.text and "sha256" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_released_checkpoint_with_and_without_wrapping(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    source, target = small_network(1), small_network(2)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "afa.pth")
    load_network(target, tmp_path / "afa.pth")
    assert same(source, target)
    encoder_only = small_network(3)
    load_encoder(encoder_only.encoder, tmp_path / "afa.pth")
    assert same(source.encoder, encoder_only.encoder) and not same(source, encoder_only)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    source, target = small_network(1).half(), small_network(2)
    save_afa_layout(source, tmp_path / "half.pth")
    load_network(target, tmp_path / "half.pth")
    assert target.classifier.weight.dtype == torch.float32
    assert torch.equal(target.classifier.weight, source.classifier.weight.float())


def test_missing_and_left_over_names_are_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    network, before = small_network(1), small_network(1)
    state = small_network(2).state_dict()
    for name in [name for name in state if name.startswith("decoder.linear_c")]:
        del state[name]
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError) as caught:
        load_network(network, tmp_path / "odd.safetensors")
    message = str(caught.value)
    assert "missing (8): decoder.linear_c4.proj.weight" in message and "..." in message
    assert "left over (1): extra.weight" in message and "AFA checkpoint" in message
    assert same(network, before)


def test_another_shape_another_type_and_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = small_network()
    for name, tensor, message in (
        ("attn_proj.weight", torch.zeros(1, 8, 1, 1), r"of another shape \(1\): attn_proj.weight 1x8x1x1 for 1x16x1x1"),
        ("attn_proj.bias", torch.zeros(1, dtype=torch.long), r"of another type \(1\): attn_proj.bias"),
        ("attn_proj.bias", torch.tensor([float("nan")]), r"not finite \(attn_proj.bias\)"),
    ):
        save_file({**network.state_dict(), name: tensor}, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match=message):
            load_network(small_network(1), tmp_path / "odd.safetensors")


def test_number_of_classes_is_compared(tmp_path: Path) -> None:
    save_afa_layout(small_network(num_classes=9), tmp_path / "nine.pth")
    with pytest.raises(UserError, match="has 9 classes with the background, but the network has 6"):
        load_network(small_network(), tmp_path / "nine.pth")
    load_encoder(small_network().encoder, tmp_path / "nine.pth")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conv1.weight", "bn1.weight", "fc.bias"] + [f"layer{s}.{b}.conv3.weight" for s, n in
         zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True) for b in range(n)] + ["layer1.0.conv1.weight"], "a ResNet-50"),
        (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"], "a Vision Transformer"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin Transformer"),
        (["features.0.weight", "classifier.0.weight"], "a VGG or AlexNet"),
        (["backbone.patch_embed1.proj.weight"], "a SegFormer trained with mmsegmentation"),
        (["exp_avg/classifier.weight"], "optimiser state"),
        (["something.weight"], "none of the known kinds"),
    ],
)  # fmt: skip
def test_other_networks_are_named(names: list[str], kind: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2) for name in names}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"seems to be {kind}"):
        load_encoder(small_network().encoder, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"seems to be {kind}"):
        open_checkpoint(tmp_path / "other.pth")


def test_folders_with_one_several_and_no_weights(tmp_path: Path) -> None:
    source, target = small_network(1), small_network(2)
    with pytest.raises(UserError, match="holds no weights"):
        load_network(target, tmp_path)
    save_afa_layout(source, tmp_path / "one.pth")
    load_network(target, tmp_path)
    assert same(source, target)
    save_afa_layout(source, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"several weights files \(one.pth, two.pth\): name one"):
        load_network(target, tmp_path)


# --- reading -------------------------------------------------------------------------------------------------------


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def test_suffix_does_not_decide_the_format(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "really_safetensors.pth")
    assert torch.equal(read_tensors(tmp_path / "really_safetensors.pth")["a"], torch.ones(3))


def test_what_is_not_named_tensors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for content, message in (
        (torch.ones(3), "holds Tensor, not named tensors"),
        ({"a": torch.ones(3), "epoch": 4}, r"holds 'epoch' \(int\) among its tensors"),
        ({}, "holds no tensors"),
    ):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / "odd.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"'torch\.nn\.modules\.linear\.Linear'.*state_dict"):
        read_tensors(tmp_path / "module.pth")


def test_every_flipped_bit_of_our_files_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_network(small_network(), path, {"step": "12"})
    content = path.read_bytes()
    for position in [*range(0, 4000, 251), *range(4000, len(content), len(content) // 20)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 7)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)


def test_saving_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_network(small_network(1), tmp_path / "weights.safetensors", {})
    save_network(small_network(2), tmp_path / "weights.safetensors", {})
    target = small_network(3)
    load_network(target, tmp_path / "weights.safetensors")
    assert same(target, small_network(2))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_hugging_face_folder_is_replaced_but_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    for seed in (1, 2):
        save_huggingface(small_network(seed), folder, class_names=NAMES, image_mean=MEAN, image_std=STD)
    target = small_network(3)
    load_segmenter(target, folder)
    assert same(target.decoder, small_network(2).decoder)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        save_huggingface(small_network(), folder, class_names=NAMES, image_mean=MEAN, image_std=STD)
    assert (folder / "notes.txt").read_text() == "mine"


# --- the hub -------------------------------------------------------------------------------------------------------


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


LOAD_FROM_HUB = """
import logging, sys
logging.basicConfig(format="%(message)s")
logging.getLogger("afa").setLevel(logging.INFO)
from afa.config import ModelConfig
from afa.errors import run_command
from afa.models import build_network
from afa.weights import load_encoder
run_command(lambda: load_encoder(build_network(ModelConfig(encoder="mit_b0"), 21).encoder, "nvidia/mit-b0"))
"""


def run_load_from_hub(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD_FROM_HUB],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1",
             "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", **environment},
    )  # fmt: skip


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


# --- opening -------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, seed: int, step: int) -> None:
    config = Config(model=small_settings())
    folder.mkdir(parents=True)
    save_file(small_network(seed).state_dict(), folder / "weights.safetensors")
    save_file({"exp_avg/classifier.weight": torch.zeros(2)}, folder / "training.safetensors")
    record = {"config": config_to_dict(config), "class_names": NAMES, "step": step}
    (folder / "checkpoint.json").write_text(json.dumps(record))


def test_a_run_opens_at_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run/checkpoints"
    for seed in (1, 2):
        write_checkpoint(checkpoints / f"step_{seed:08d}", seed, step=seed)
    (checkpoints / "last").symlink_to("step_00000002")
    opened = open_checkpoint(tmp_path / "run")
    assert (opened.step, opened.class_names) == (2, NAMES) and same(opened.network, small_network(2))
    assert not opened.network.training
    (checkpoints / "best").symlink_to("step_00000001")
    for path in (tmp_path / "run", checkpoints, checkpoints / "best", checkpoints / "best/weights.safetensors"):
        opened = open_checkpoint(path)
        assert opened.step == 1 and same(opened.network, small_network(1))
    encoder = small_network(3).encoder
    load_encoder(encoder, tmp_path / "run")
    assert same(encoder, small_network(1).encoder)


def test_a_run_without_a_finished_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        open_checkpoint(tmp_path / "run")


def test_a_checkpoint_that_does_not_match_its_checksum_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    write_checkpoint(folder, seed=1, step=1)
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, "sha256": {"weights.safetensors": "0" * 64}}))
    with pytest.raises(UserError, match="does not match its checksum"):
        open_checkpoint(folder)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint\.json is damaged"):
        open_checkpoint(folder)


def test_a_weights_file_of_ours_speaks_for_itself(tmp_path: Path) -> None:
    config = Config(model=small_settings())
    save_network(small_network(1), tmp_path / "alone.safetensors", pack_metadata(config, NAMES, 7))
    opened = open_checkpoint(tmp_path / "alone.safetensors")
    assert (opened.config, opened.class_names, opened.step) == (config, NAMES, 7)
    assert same(opened.network, small_network(1))


@pytest.mark.parametrize(("count", "first"), [(20, "aeroplane"), (80, "person"), (3, "class1")])
def test_released_checkpoint_opens_without_a_configuration(count: int, first: str, tmp_path: Path) -> None:
    network = build_network(ModelConfig(encoder="mit_b0", decoder_width=64), count + 1)
    save_afa_layout(network, tmp_path / "released.pth")
    opened = open_checkpoint(tmp_path / "released.pth")
    assert (len(opened.class_names), opened.class_names[0], opened.step) == (count, first, None)
    assert (opened.config.model.encoder, opened.config.model.decoder_width) == ("mit_b0", 64)
    assert same(opened.network, network)


def test_custom_encoder_needs_its_configuration(tmp_path: Path) -> None:
    save_afa_layout(small_network(1), tmp_path / "custom.pth")
    with pytest.raises(UserError, match="heads cannot be told from its weights; give the configuration"):
        open_checkpoint(tmp_path / "custom.pth")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    write_config(tmp_path / "custom.yaml", small_settings(), type="folder", class_names=str(names))
    opened = open_checkpoint(tmp_path / "custom.pth", tmp_path / "custom.yaml")
    assert opened.class_names == NAMES and same(opened.network, small_network(1))


def write_config(path: Path, settings: ModelConfig, **dataset: str) -> None:
    path.write_text(yaml.safe_dump({"model": vars(settings), "dataset": {"root": "/nowhere", **dataset}}))


# --- the command ---------------------------------------------------------------------------------------------------


def test_command_converts_through_every_layout_and_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run/checkpoints/step_00000004", seed=1, step=4)
    (tmp_path / "run/checkpoints/last").symlink_to("step_00000004")
    ours, released, exported = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c"
    first = ForkedTool("convert_weights.py", tmp_path / "run", ours, "--format", "afa").wait()
    others = [
        ForkedTool("convert_weights.py", ours, released, "--format", "released"),
        ForkedTool("convert_weights.py", ours, exported, "--format", "huggingface"),
    ]
    for outcome in (first, *(other.wait() for other in others)):
        assert outcome.returncode == 0, outcome.stderr
        assert "5 classes and the background" in outcome.stdout and "sha256" in outcome.stderr
    assert open_checkpoint(ours).step == 4
    target, source = small_network(2), small_network(1)
    load_network(target, released)
    assert same(source, target)
    segmenter = small_network(3)
    load_segmenter(segmenter, exported)
    assert same(source.encoder, segmenter.encoder) and same(source.decoder, segmenter.decoder)
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == dict(zip("012345", ["background", *NAMES], strict=True))
    assert config["strides"] == [4, 2, 2, 1]


def test_what_is_no_network_of_ours_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    good, trace = tmp_path / "good.safetensors", tmp_path / "code_ran"
    save_network(small_network(), good, pack_metadata(Config(model=small_settings()), NAMES, None))
    torch.save({"state_dict": small_network().state_dict()}, tmp_path / "good.pth")
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:20000])
    (tmp_path / "truncated.safetensors").write_bytes(good.read_bytes()[:-7])
    flipped = bytearray(good.read_bytes())
    flipped[-1000] ^= 4
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "folder").mkdir()
    torch.save({"w": torch.ones(2), "x": Harmful(trace)}, tmp_path / "code.pth")
    torch.save({"x": Harmful(trace)}, tmp_path / "old_code.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"x": Harmful(trace)}))
    torch.save({"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    torch.save(published("segformer_mit_b2"), tmp_path / "mit_b2.pth")
    torch.save(published("afa_mit_b0_voc"), tmp_path / "afa_b0.pth")
    save_huggingface(small_network(), tmp_path / "exported", class_names=NAMES, image_mean=MEAN, image_std=STD)
    write_config(tmp_path / "b1.yaml", ModelConfig(encoder="mit_b1"), type="voc")
    write_config(tmp_path / "coco.yaml", ModelConfig(encoder="mit_b0"), type="coco")
    cases: list[tuple[str, str, list[object]]] = [
        ("missing.pth", "no such file", []),
        ("truncated.pth", "damaged", []),
        ("truncated.safetensors", "damaged", []),
        ("flipped.safetensors", "checksum", []),
        ("empty.pth", "empty", []),
        ("page.pth", "no weights file", []),
        ("folder", "holds no weights", []),
        ("code.pth", "run code to be read, which is refused; open it where you trust it", []),
        ("old_code.pth", "run code to be read, which is refused; open it where you trust it", []),
        ("pickle.pth", "could run code, which is refused; open it where you trust it", []),
        ("resnet.pth", "seems to be a ResNet", []),
        ("mit_b2.pth", "SegFormer ImageNet weights (mit_b2)", []),
        ("exported", "Hugging Face SegformerForSemanticSegmentation", []),
        ("afa_b0.pth", "set model.encoder=mit_b0", [tmp_path / "b1.yaml"]),
        ("afa_b0.pth", "20 classes without the background", [tmp_path / "coco.yaml"]),
        ("good.safetensors", "no such configuration file", [tmp_path / "none.yaml"]),
    ]
    for name, message, more in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            open_checkpoint(tmp_path / name, *more)
    destination = tmp_path / "out.pth"
    process = ForkedTool("convert_weights.py", tmp_path / "flipped.safetensors", destination, "--format", "released")
    assert "checksum" in refused(process.wait())
    assert not destination.exists()
    assert not trace.exists()


def test_training_refuses_pretrained_weights_that_are_none_and_leaves_nothing(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", train=2, val=1, seed=0, style=ShapesStyle(size=64), workers=1)
    trace = tmp_path / "code_ran"
    torch.save({"w": torch.ones(2), "x": Harmful(trace)}, tmp_path / "code.pth")
    torch.save({"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    torch.save(published("segformer_mit_b2"), tmp_path / "mit_b2.pth")
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "mit_b2.pth").read_bytes()[:20000])
    write_config(tmp_path / "run.yaml", ModelConfig(encoder="mit_b1"), type="voc", root=str(tmp_path / "shapes"))
    cases = {
        "code.pth": "run code to be read, which is refused",
        "resnet.pth": "seems to be a ResNet",
        "mit_b2.pth": "SegFormer ImageNet weights (mit_b2), but the network's encoder is a mit_b1",
        "truncated.pth": "damaged",
    }
    output = tmp_path / "output"
    settings = (f"train.output={output}", "train.device=cpu", "dataset.train_split=train", "train.workers=0")
    processes = [
        ForkedTool("train.py", tmp_path / "run.yaml", *settings, f"model.pretrained={tmp_path / name}")
        for name in cases
    ]
    for process, message in zip(processes, cases.values(), strict=True):
        assert message in refused(process.wait())
    assert not output.exists()
    assert not trace.exists()


@pytest.mark.parametrize(("layout", "name"), [("afa", "a.pth"), ("released", "a"), ("huggingface", "a.safetensors")])
def test_command_refuses_a_destination_of_another_layout(
    layout: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_weights.py", str(tmp_path), str(tmp_path / name), "--format", layout])
    with pytest.raises(UserError, match="writes a"):
        runpy.run_path(str(ROOT / "tools/convert_weights.py"))["main"]()
