"""EDAM's pairs and training steps against the values of the released program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import DATA, Agreement, load_golden
from released_weights import released_weights

from afa.data.pair_lists import read_pairs
from afa.data.transforms import place_crop
from afa.engine.optimisation import build_optimiser, set_learning_rates
from afa.methods import build_method, config_from_dict
from afa.methods.base import Method, SingleProcess
from afa.methods.cam_transforms import cut_normalised, resize_long_side
from afa.weights.layouts import recognise

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASS_NAMES = [f"class{index}" for index in range(1, 21)]


def edam_method(**sections: Any) -> Method:
    """The narrow network of the golden file, without dropout."""
    model = {"encoder": "resnet38", "base_width": 2, "block_dropout": [0, 0]}
    model |= {"attention_width": 16, "attention_dropout": 0}
    return build_method(config_from_dict({"method": "edam", "model": model, **sections}), CLASS_NAMES, SingleProcess())


def test_reference_pairs(agreement: Agreement, tmp_path: Path) -> None:
    golden = load_golden("edam_pairs")
    labels = np.stack([golden[f"label{index}"].numpy() for index in range(6)])
    lines = []
    for pair in range(3):
        first, second = (f"/JPEGImages/2007_00000{2 * pair + place}.jpg" for place in range(2))
        lines.append(f"{first} {second} {int(golden[f'common{pair}'])}")
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    names = [f"2007_00000{index}" for index in (3, 1, 5, 0, 2, 4)]
    pairs = read_pairs(tmp_path / "pairs.txt", names, labels[[3, 1, 5, 0, 2, 4]], CLASS_NAMES, "train")
    assert [[names[number][-1] for number in pair] for pair in pairs] == [["0", "1"], ["2", "3"], ["4", "5"]]
    for pair in range(3):
        draws = golden[f"draws{pair}"].view(2, 3).tolist()
        for place, (long_side, x, y) in enumerate(draws):
            image = golden[f"image{2 * pair + place}"].numpy()
            resized = resize_long_side(image, long_side)
            crop = place_crop(resized.shape[:2], (x, y), int(golden["crop_size"]))
            found = cut_normalised(resized, crop, MEAN, STD)
            agreement.values("EDAM: training crop", found, golden[f"input{pair}"][place], 1e-6)
        targets = torch.from_numpy(labels[2 * pair : 2 * pair + 2])[:, golden[f"class_order{pair}"]]
        agreement.values("EDAM: targets", targets.flatten(), golden[f"target{pair}"], 0)


def test_reference_edam_training(agreement: Agreement) -> None:
    golden = load_golden("edam_train")
    with np.load(DATA / "edam_train.npz") as arrays:
        prefix = str(arrays["weight_prefix"])
        names = {key: arrays[key].tolist() for key in arrays.files if arrays[key].dtype.kind == "U"}
    steps = int(golden["max_step"])
    optimiser = {
        "lr": float(golden["lr"]),
        "weight_decay": float(golden["weight_decay"]),
        "warmup_steps": int(golden["warm_up_steps"]),
    }
    method = edam_method(optimiser=optimiser, train={"steps": steps})
    network = method.network
    shapes = {name.removeprefix("encoder."): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = released_weights(prefix, shapes)
    network.load_state_dict(recognise(weights).tensors, strict=False)
    network.train()
    torch_optimiser = build_optimiser(method.parameter_groups(), method.config.optimiser)
    released = {"encoder": 0, "heads": 2, "attention": 4}
    assert [group["name"] for group in torch_optimiser.param_groups] == list(released)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    images = ((golden["images_uint8"].double() - mean) / std).float()
    rates, losses = [], []
    for step in range(steps):
        found = set_learning_rates(torch_optimiser, step, steps=steps, settings=method.config.optimiser)
        rates.append([found[name] for name in released])
        torch_optimiser.zero_grad()
        batch = {"image": images[step], "class_labels": golden["labels"][step]}
        total = method.training_step(network, batch, step).total()
        total.backward()
        if step == 0:
            norms = {
                name.removeprefix("encoder."): float(parameter.grad.norm())
                for name, parameter in network.named_parameters()
                if parameter.grad is not None
            }
        torch_optimiser.step()
        losses.append(float(total.detach()))
    expected_rates = golden["learning_rates"][:, list(released.values())]
    agreement.values("EDAM: learning rates", torch.tensor(rates, dtype=torch.float64), expected_rates, 1e-15)
    agreement.values("EDAM: loss", torch.tensor(losses, dtype=torch.float64), golden["losses"], 1e-4)
    for group in released.values():
        theirs = dict(
            zip(names[f"group{group}_names"], golden[f"group{group}_first_gradient_norms"].tolist(), strict=True)
        )
        assert {name for name, norm in theirs.items() if norm >= 0} == {name for name in norms if name in theirs}
        for name in set(theirs) & set(norms):
            assert norms[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    for group in torch_optimiser.param_groups:
        row = golden["optimizer_groups"][released[group["name"]]].tolist()
        facts = [group["base_lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]]
        assert facts == pytest.approx(row)
    state = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    kept = [key.removeprefix("last/") for key in golden if key.startswith("last/")]
    agreement.values(
        "EDAM: weights after 7 steps",
        torch.cat([state[name].flatten() for name in kept]),
        torch.cat([golden[f"last/{name}"].flatten() for name in kept]),
        2e-5,
    )
    moved = [
        float((state[name] - weights[name]).double().norm()) if name in weights else 0.0
        for name in names["change_names"]
    ]
    agreement.values("EDAM: how far each weight moved", torch.tensor(moved), golden["change_norms"], 2e-5)
