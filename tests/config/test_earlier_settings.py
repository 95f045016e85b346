"""What runs and checkpoints of earlier versions say in settings that have other names by now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import NAMES, same, small_network, small_settings

from afa.config import config_to_dict, config_to_yaml
from afa.engine.output import check_output
from afa.errors import UserError
from afa.methods import config_from_dict
from afa.methods.afa.config import AFAConfig
from afa.weights import open_checkpoint, save_network


def earlier(config: AFAConfig) -> dict[str, Any]:
    """The configuration as a version before wrote it."""
    tree = config_to_dict(config)
    for key in ("name", "momentum", "decay_from"):
        del tree["optimiser"][key]
    for key in ("pixel_labels", "maps", "saliency", "pairs"):
        del tree["dataset"][key]
    del tree["train"]["init"]
    tree["optimiser"]["freeze_norms"] = tree["optimiser"].pop("freeze") == "released"
    tree["validation"]["cam"] = tree["validation"].pop("outputs") is None
    return tree


@pytest.mark.parametrize(("freeze", "outputs"), [("released", None), ("none", ["segmentation"])])
def test_a_checkpoint_of_an_earlier_version_opens(freeze: str, outputs: list[str] | None, tmp_path: Path) -> None:
    config = AFAConfig(model=small_settings())
    config.optimiser.freeze, config.validation.outputs = freeze, outputs
    assert config_from_dict(earlier(config)) == config
    metadata = {"config": json.dumps(earlier(config)), "class_names": json.dumps(NAMES), "step": "7"}
    save_network(small_network(1), tmp_path / "old.safetensors", metadata)
    opened = open_checkpoint(tmp_path / "old.safetensors")
    assert opened.config == config and opened.step == 7
    assert same(opened.method.network, small_network(1))


def test_a_run_of_an_earlier_version_goes_on_unless_something_else_is_trained(tmp_path: Path) -> None:
    config = AFAConfig(model=small_settings())
    (tmp_path / "config.yaml").write_text(config_to_yaml(earlier(config)))
    facts = {"config": config_to_dict(config)}
    assert not check_output(tmp_path, facts, resume=True)
    config.validation.outputs = ["cam"]  # may change while a run goes on
    assert not check_output(tmp_path, {"config": config_to_dict(config)}, resume=True)
    config.optimiser.freeze = "none"
    with pytest.raises(UserError, match=r"another configuration \(optimiser\.freeze: released -> none\)"):
        check_output(tmp_path, {"config": config_to_dict(config)}, resume=True)
