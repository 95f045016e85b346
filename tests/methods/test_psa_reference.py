"""PSA's transforms, labels, walk and training steps against the values of the released program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import DATA, Agreement, load_golden
from released_weights import released_weights
from torch import Tensor

from afa.data.samples import Sample
from afa.data.transforms import centre_crop, normalise_exactly, place_crop
from afa.engine.optimisation import build_optimiser, set_learning_rates
from afa.maps import Maps, present_classes
from afa.methods import build_method, config_from_dict
from afa.methods.base import Method, SegmentationProtocol, SingleProcess
from afa.methods.cam_transforms import cut_normalised, resize_long_side, scaled_images
from afa.methods.cam_volumes import build_crf, refined, with_background
from afa.methods.psa.config import CAMCRFConfig
from afa.methods.psa.labels import affinity_map, pair_labels
from afa.ops.cam import fused_cams
from afa.ops.random_walk import PairAffinity, walk
from afa.weights.layouts import recognise

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASS_NAMES = [f"class{index}" for index in range(1, 21)]


def psa_method(method: str, base_width: int, **sections: Any) -> Method:
    """A narrow network without dropout."""
    model = {"encoder": "resnet38", "base_width": base_width, "block_dropout": [0, 0]}
    if method == "psa_cam":
        model["dropout"] = 0
    return build_method(config_from_dict({"method": method, "model": model, **sections}), CLASS_NAMES, SingleProcess())


def one_image(scores: Tensor, class_ids: list[int]) -> Maps:
    counted = torch.ones(1, len(class_ids), dtype=torch.bool)
    return Maps(scores[None], torch.tensor([class_ids]), counted, has_background=class_ids[0] == 0)


def pixels(image: Tensor) -> np.ndarray:
    return image.numpy()


@pytest.mark.parametrize("index", range(4))
def test_reference_crops(agreement: Agreement, index: int) -> None:
    golden = load_golden("psa_data")
    image, size = pixels(golden[f"image{index}"]), int(golden["crop_size"])
    long_side, x, y = golden[f"draws{index}"].tolist()
    resized = resize_long_side(image, long_side)
    assert np.array_equal(resized, pixels(golden[f"resized{index}"]))
    crop = cut_normalised(resized, place_crop(resized.shape[:2], (x, y), size), MEAN, STD)
    agreement.values("PSA: training crop", crop, golden[f"crop{index}"], 1e-6)
    centre = cut_normalised(image, centre_crop(image.shape[:2], size), MEAN, STD)
    agreement.values("PSA: validation crop", centre, golden[f"centre{index}"], 1e-6)


@pytest.mark.parametrize("index", range(2))
def test_reference_images_of_the_cam_passes(index: int) -> None:
    golden = load_golden("psa_data")
    image = pixels(golden[f"multi_scale_image{index}"])
    for number, scaled in enumerate(scaled_images(image, (1.0, 0.5, 1.5, 2.0))):
        planes = torch.from_numpy(scaled.copy()).permute(2, 0, 1)
        assert torch.equal(planes, golden[f"multi_scale{index}_{2 * number}"])
        assert torch.equal(planes.flip(-1), golden[f"multi_scale{index}_{2 * number + 1}"])


@pytest.mark.parametrize("index", range(3))
def test_reference_cams_and_volumes(agreement: Agreement, index: int) -> None:
    golden = load_golden("psa_labels")
    image = golden[f"image{index}"]
    present = present_classes(golden[f"label{index}"][None])
    assert torch.equal(present.channels[0], golden[f"present{index}"])
    passes = [
        torch.stack([golden[f"pass{index}_{number}"], golden[f"pass{index}_{number + 1}"]]) for number in range(0, 8, 2)
    ]
    cams = present.maps(fused_cams(passes, (image.shape[0], image.shape[1]), 1e-5))
    agreement.values("PSA: CAM", cams.scores[0], golden[f"cam{index}"], 1e-5)
    agreement.labels("PSA: label of the CAM", cams.label_above(0.2)[0], golden[f"prediction{index}"], 0)
    alphas = (float(golden["low_alpha"]), float(golden["high_alpha"]))
    volumes = refined(
        build_crf(CAMCRFConfig()), image.permute(2, 0, 1).contiguous(), [with_background(cams, one) for one in alphas]
    )
    for name, volume in zip(("low", "high"), volumes, strict=True):
        expected = golden[f"{name}{index}"]
        agreement.values(f"PSA: CRF, {name} alpha", volume.scores[0], expected, 1e-2)
        agreement.labels(f"PSA: CRF, {name} alpha, arg max", volume.scores[0].argmax(0), expected.argmax(0), 5e-3)


@pytest.mark.parametrize(("index", "draw"), [(index, draw) for index in range(4) for draw in range(2)])
def test_reference_affinity_labels(agreement: Agreement, index: int, draw: int) -> None:
    golden = load_golden("psa_labels")
    ids = list(range(len(golden[f"low{index}"])))
    image = pixels(golden[f"image{index}"])
    x, y, mirrored = golden[f"crop{index}_{draw}"].tolist()
    crop = place_crop(image.shape[:2], (x, y), int(golden["crop_size"]), mirrored=bool(mirrored))
    low, high = (crop.maps(one_image(golden[f"{name}{index}"], ids)) for name in ("low", "high"))
    label = affinity_map(low, high, 8)
    agreement.labels("PSA: affinity label", label, golden[f"map{index}_{draw}"], 0)
    for name, mask in zip(("bg", "fg", "neg"), pair_labels(label[None], 5), strict=True):
        agreement.labels(f"PSA: {name} pairs", mask[0], golden[f"{name}{index}_{draw}"], 0)
    if f"input{index}_{draw}" in golden:
        cut = normalise_exactly(crop.image(image, "pil"), MEAN, STD)
        agreement.values("PSA: AffinityNet's input", cut, golden[f"input{index}_{draw}"], 1e-5)


@pytest.mark.parametrize("index", range(2))
def test_reference_walk(agreement: Agreement, index: int) -> None:
    golden = load_golden("psa_random_walk")
    image = golden[f"image{index}"]
    grid = (-(-image.shape[0] // 8), -(-image.shape[1] // 8))
    affinity = PairAffinity.of_pairs(golden[f"affinity{index}"], grid, 5)
    rows = [affinity.of(*divmod(place, grid[1])).flatten() for place in range(0, grid[0] * grid[1], 17)]
    agreement.values("PSA: affinity matrix", torch.stack(rows), golden[f"dense_rows{index}"], 1e-6)
    scores = golden[f"scores{index}"].unflatten(1, grid)[None]
    walked = walk(scores, affinity, power=float(golden["beta"]), steps=2 ** int(golden["logt"]))
    agreement.values("PSA: random walk", walked[0].flatten(1), golden[f"walked{index}"], 1e-4)


@pytest.mark.parametrize("index", range(2))
def test_reference_propagated_label(agreement: Agreement, index: int) -> None:
    golden = load_golden("psa_random_walk")
    settings = {"alpha": float(golden["alpha"]), "beta": float(golden["beta"]), "log_steps": int(golden["logt"])}
    method = psa_method("psa_affinity", 4, walk=settings)
    names = {name: tuple(tensor.shape) for name, tensor in method.network.state_dict().items()}
    method.network.load_state_dict(recognise(released_state_of("psa_random_walk", names)).tensors)
    method.network.eval()
    cams = one_image(golden[f"cam{index}"], [int(one) + 1 for one in golden[f"present{index}"]])
    sample = Sample("image", pixels(golden[f"image{index}"]), inputs={"maps/cam": cams})
    (found,) = method.predict([sample], ["propagated", "affinity"], SegmentationProtocol())
    affinity = found.outputs["affinity"]
    expected = PairAffinity.of_pairs(golden[f"affinity{index}"], affinity.grid, 5)
    agreement.values("PSA: affinity of an image", affinity.values, expected.values, 1e-4)
    clear = golden[f"margin{index}"] > 1e-3
    label = method.output("propagated").label(found.outputs["propagated"])
    agreement.labels("PSA: propagated label", label[clear], golden[f"prediction{index}"][clear], 0)


def released_state_of(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The released weights of a file that lists no names: those of our network."""
    with np.load(DATA / f"{name}.npz") as arrays:
        prefix = str(arrays["weight_prefix"])
    return released_weights(prefix, {key.removeprefix("encoder."): shape for key, shape in shapes.items()})


@pytest.mark.parametrize("kind", ["cls", "aff"])
def test_reference_training(agreement: Agreement, kind: str) -> None:
    file = f"psa_train_{kind}"
    golden = load_golden(file)
    with np.load(DATA / f"{file}.npz") as arrays:
        names = {key: arrays[key].tolist() for key in arrays.files if arrays[key].dtype.kind == "U"}
    optimiser = {"lr": float(golden["lr"]), "weight_decay": float(golden["weight_decay"])}
    method = psa_method(
        "psa_cam" if kind == "cls" else "psa_affinity", 2, optimiser=optimiser, train={"steps": int(golden["max_step"])}
    )
    network = method.network
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = released_state_of(file, shapes)
    network.load_state_dict(recognise(weights).tensors, strict=False)
    network.train()
    torch_optimiser = build_optimiser(method.parameter_groups(), method.config.optimiser)
    released_groups = dict(zip(("encoder", "encoder_biases", "heads", "head_biases"), range(4), strict=True))
    rates, losses = [], []
    images = (golden["images_uint8"].double() - torch.tensor(MEAN, dtype=torch.float64)[:, None, None]) / torch.tensor(
        STD, dtype=torch.float64
    )[:, None, None]
    for step in range(int(golden["max_step"])):
        found = set_learning_rates(
            torch_optimiser, step, steps=method.config.train.steps, settings=method.config.optimiser
        )
        rates.append([found[name] for name in ("encoder", "heads")])
        torch_optimiser.zero_grad()
        result = method.training_step(network, batch_of(golden, kind, images, step), step)
        total = result.total()
        total.backward()
        if step == 0:
            norms = {
                name.removeprefix("encoder."): float(parameter.grad.norm())
                for name, parameter in network.named_parameters()
                if parameter.grad is not None
            }
        torch_optimiser.step()
        losses.append(
            {
                **{name: float(loss.detach()) for name, loss in result.losses.items()},
                "total": float(result.total().detach()),
            }
        )
    agreement.values(
        f"PSA, {kind}: learning rates",
        torch.tensor(rates, dtype=torch.float64),
        golden["learning_rates"][:, [0, 2]],
        0,
    )
    tolerance = 1e-6 if kind == "cls" else 1e-4
    columns = (
        {"losses": "cls"} if kind == "cls" else {"loss": "total", **{f"{one}_loss": one for one in ("bg", "fg", "neg")}}
    )
    for key, name in columns.items():
        found_losses = torch.tensor([row[name] for row in losses], dtype=torch.float64)
        agreement.values(f"PSA, {kind}: {name} loss", found_losses, golden[key], tolerance)
    for group in (0, 2):
        expected = dict(
            zip(names[f"group{group}_names"], golden[f"group{group}_first_gradient_norms"].tolist(), strict=True)
        )
        assert {name for name, norm in expected.items() if norm >= 0} == {name for name in norms if name in expected}
        for name in set(expected) & set(norms):
            assert norms[name] == pytest.approx(expected[name], rel=1e-4)
    for group in torch_optimiser.param_groups:
        row = golden["optimizer_groups"][released_groups[group["name"]]].tolist()
        facts = [group["base_lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]]
        assert facts == pytest.approx(row)
    state = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    kept = [key.removeprefix("last/") for key in golden if key.startswith("last/")]
    agreement.values(
        f"PSA, {kind}: weights after 6 steps",
        torch.cat([state[name].flatten() for name in kept]),
        torch.cat([golden[f"last/{name}"].flatten() for name in kept]),
        1e-6 if kind == "cls" else 2e-5,
    )
    changes = torch.tensor(
        [
            float((state[name] - weights[name]).double().norm()) if name in weights else 0.0
            for name in names["change_names"]
        ]
    )
    agreement.values(f"PSA, {kind}: how far each weight moved", changes, golden["change_norms"], 2e-5)
    if kind == "cls":
        network.eval()
        with torch.no_grad():
            held_out = method.training_step(network, batch_of(golden, kind, images, 6), 6).total()
        agreement.values("PSA, cls: validation loss", held_out[None], golden["validation_loss"], 1e-6)


def batch_of(golden: dict[str, Tensor], kind: str, images: Tensor, step: int) -> dict[str, Tensor]:
    extra = {"class_labels": golden["labels"][step]} if kind == "cls" else {"label": golden["maps"][step]}
    return {"image": images[step].float(), **extra}
