"""A network opens with its settings and class names from whatever holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import NAMES, same, small_network, small_settings, write_checkpoint, write_config

from afa.errors import UserError
from afa.methods.afa.config import AFAConfig, ModelConfig
from afa.methods.afa.network import build_network
from afa.weights import load_encoder, open_checkpoint, pack_metadata, save_afa_layout, save_network
from afa.weights.facts import CHECKSUMS, FACTS_FILE, WEIGHTS_FILE, pack_facts, read_facts


def test_a_run_opens_at_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run/checkpoints"
    for seed in (1, 2):
        write_checkpoint(checkpoints / f"step_{seed:08d}", seed, step=seed)
    (checkpoints / "last").symlink_to("step_00000002")
    opened = open_checkpoint(tmp_path / "run")
    assert (opened.step, opened.class_names) == (2, NAMES) and same(opened.method.network, small_network(2))
    assert not opened.method.network.training
    (checkpoints / "best").symlink_to("step_00000001")
    for path in (tmp_path / "run", checkpoints, checkpoints / "best", checkpoints / "best/weights.safetensors"):
        opened = open_checkpoint(path)
        assert opened.step == 1 and same(opened.method.network, small_network(1))
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
    facts = read_facts(folder)
    content = {key: value for key, value in facts.items() if key != CHECKSUMS}
    (folder / FACTS_FILE).write_text(pack_facts(content, {WEIGHTS_FILE: "0" * 64}))
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged: it does not match its checksum"):
        open_checkpoint(folder)
    facts["config"]["cam"]["background"] = 0.55
    (folder / FACTS_FILE).write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"checkpoint\.json does not match its checksum"):
        open_checkpoint(folder)
    (folder / FACTS_FILE).write_text("{")
    with pytest.raises(UserError, match=r"damaged: checkpoint\.json does not hold what it should"):
        open_checkpoint(folder)


def test_a_weights_file_of_ours_speaks_for_itself(tmp_path: Path) -> None:
    config = AFAConfig(model=small_settings())
    save_network(small_network(1), tmp_path / "alone.safetensors", pack_metadata(config, NAMES, 7))
    opened = open_checkpoint(tmp_path / "alone.safetensors")
    assert (opened.config, opened.class_names, opened.step) == (config, NAMES, 7)
    assert same(opened.method.network, small_network(1))


@pytest.mark.parametrize(("count", "first"), [(20, "aeroplane"), (80, "person"), (3, "class1")])
def test_released_checkpoint_opens_without_a_configuration(count: int, first: str, tmp_path: Path) -> None:
    network = build_network(ModelConfig(encoder="mit_b0", decoder_width=64), count + 1)
    save_afa_layout(network, tmp_path / "released.pth")
    opened = open_checkpoint(tmp_path / "released.pth")
    assert (len(opened.class_names), opened.class_names[0], opened.step) == (count, first, None)
    assert (opened.config.model.encoder, opened.config.model.decoder_width) == ("mit_b0", 64)
    assert same(opened.method.network, network)


def test_custom_encoder_needs_its_configuration(tmp_path: Path) -> None:
    save_afa_layout(small_network(1), tmp_path / "custom.pth")
    with pytest.raises(UserError, match="heads cannot be told from its weights; give the configuration"):
        open_checkpoint(tmp_path / "custom.pth")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    write_config(tmp_path / "custom.yaml", small_settings(), type="folder", class_names=str(names))
    opened = open_checkpoint(tmp_path / "custom.pth", tmp_path / "custom.yaml")
    assert opened.class_names == NAMES and same(opened.method.network, small_network(1))
