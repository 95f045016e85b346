"""The method ``segment``: losses by hand, its transform, its training and prediction, its settings."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from afa.data.samples import Sample
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, config_from_dict, load_config
from afa.methods.base import Method, SegmentationProtocol, SingleProcess
from afa.methods.segmentation import segmentation_loss, soft_segmentation_loss

MODEL = {
    "encoder": "custom",
    "widths": [8, 16, 20, 32],
    "depths": [1, 1, 1, 1],
    "heads": [1, 2, 5, 8],
    "strides": [4, 2, 1, 1],
    "drop_path": 0.0,
    "decoder_width": 16,
}
TREE = {
    "method": "segment",
    "dataset": {"pixel_labels": "labels"},
    "augmentation": {"crop_size": 32, "scale_min": 0.8, "scale_max": 1.25},
    "model": MODEL,
    "optimiser": {"lr": 2e-3, "head_lr_factor": 2.0, "weight_decay": 0.01},
}
SOFT = {"dataset": {"maps": "folder"}, "loss": {"soft_labels": "propagated"}}


def method(**sections: dict[str, object]) -> Method:
    config = config_from_dict({**TREE, **sections})
    return build_method(config, ["circle", "square"], SingleProcess())


def sample(index: int, *, soft: bool = False) -> Sample:
    """A red or a green square on blue; its label says 1 or 2."""
    image = np.zeros((40, 45, 3), np.uint8)
    image[..., 2] = 200
    label = np.zeros((40, 45), np.uint8)
    square = (slice(8 + index, 30), slice(10, 28 + index))
    image[square] = (220, 20, 20) if index % 2 else (20, 220, 20)
    label[square] = 1 if index % 2 else 2
    if not soft:
        return Sample(f"image{index}", image, inputs={"pixel_labels": label})
    one_hot = F.one_hot(torch.from_numpy(label).long(), 3).permute(2, 0, 1)[None].float()
    return Sample(f"image{index}", image, inputs={"maps/propagated": Maps.of_all_classes(one_hot, has_background=True)})


# Two pixels of background with losses log 2 and log 4, one of class 1 with log 4; the last one is ignored.
LOGITS = torch.tensor([[0.5, 0.25, 0.25, 0.9], [0.25, 0.5, 0.25, 0.05], [0.25, 0.25, 0.5, 0.05]]).log().view(1, 3, 2, 2)
LABEL = torch.tensor([[[0, 0], [1, 255]]])


def test_losses_by_hand() -> None:
    even = segmentation_loss(LOGITS, LABEL, background_share=None)
    assert even.item() == pytest.approx((math.log(2) + math.log(4) + math.log(4)) / 3)
    apart = segmentation_loss(LOGITS, LABEL, background_share=0.25)
    assert apart.item() == pytest.approx(0.25 * (math.log(2) + math.log(4)) / 2 + 0.75 * math.log(4))


@pytest.mark.parametrize("share", [None, 0.5, 0.25])
def test_one_hot_soft_labels_are_hard_labels(share: float | None) -> None:
    logits, label = torch.randn(2, 3, 7, 5, requires_grad=True), torch.randint(0, 3, (2, 7, 5))
    label[:, :2] = 255
    target = F.one_hot(label.clamp(max=3), 4)[..., :3].permute(0, 3, 1, 2).float()
    assert set(target.sum(dim=1).unique().tolist()) == {0.0, 1.0}
    soft = soft_segmentation_loss(logits, target, background_share=share)
    hard = segmentation_loss(logits, label, background_share=share)
    torch.testing.assert_close(soft, hard)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (soft, hard)))


def test_soft_labels_by_hand() -> None:
    target = torch.tensor([0.75, 0.25, 0.0]).view(1, 3, 1, 1)
    loss = soft_segmentation_loss(LOGITS[:, :, :1, :1], target, background_share=None)
    assert loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(4))


@pytest.mark.parametrize("share", [None, 0.5])
def test_labels_that_are_ignored_everywhere_cost_nothing(share: float | None) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    ignored = torch.full((1, 4, 4), 255)
    for loss in (
        segmentation_loss(logits, ignored, background_share=share),
        soft_segmentation_loss(logits, torch.zeros(1, 3, 4, 4), background_share=share),
    ):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and not gradient.any()


def test_hard_and_soft_labels_see_the_same_crop() -> None:
    hard = method()
    soft = method(**SOFT)
    assert (hard.needs, soft.needs) == (("pixel_labels",), ("maps/propagated",))
    for seed in range(6):
        first = pickle.loads(pickle.dumps(hard.transform()))(sample(1), np.random.default_rng(seed))
        second = pickle.loads(pickle.dumps(soft.transform()))(sample(1, soft=True), np.random.default_rng(seed))
        assert torch.equal(first["image"], second["image"])
        total = second["target"].sum(dim=0)
        assert torch.equal(total == 0, first["label"] == 255)
        torch.testing.assert_close(total[total > 0], torch.ones(int((total > 0).sum())))
        # Bilinear against nearest: they differ where a pixel lies between two classes.
        sure = second["target"].amax(dim=0) > 0.8
        assert torch.equal(second["target"].argmax(dim=0)[sure], first["label"][sure].long())
        assert sure.float().mean() > 0.5


def test_maps_of_some_classes_without_background() -> None:
    still = {"augmentation": {"crop_size": 32, "scale_min": 1.0, "scale_max": 1.0, "mirror_probability": 0.0}}
    scores = torch.full((1, 1, 32, 32), 0.75)
    cam = Maps(scores, torch.tensor([[2]]), torch.tensor([[True]]), has_background=False)
    found = Sample("cat", np.ones((32, 32, 3), np.uint8), inputs={"maps/propagated": cam})
    loss = {"soft_labels": "propagated", "soft_background": 0.25}
    target = method(**{**SOFT, **still, "loss": loss}).transform()(found, np.random.default_rng(0))["target"]
    torch.testing.assert_close(target, torch.tensor([0.25, 0.0, 0.75])[:, None, None].expand(3, 32, 32))
    with pytest.raises(UserError, match=r"maps/propagated of cat has no background: set loss.soft_background"):
        method(**SOFT).transform()(found, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("value", "class_id", "message"),
    [(-0.1, 1, "negative or not finite"), (math.nan, 1, "negative or not finite"), (0.5, 3, "holds the class 3, but")],
)
def test_maps_that_cannot_be_labels_are_refused(value: float, class_id: int, message: str) -> None:
    scores = torch.full((1, 2, 40, 45), value)
    maps = Maps(scores, torch.tensor([[0, class_id]]), torch.tensor([[True, True]]), has_background=True)
    wrong = Sample("cat", np.ones((40, 45, 3), np.uint8), inputs={"maps/propagated": maps})
    with pytest.raises(UserError, match=f"maps/propagated of cat .*{message}"):
        method(**SOFT).transform()(wrong, np.random.default_rng(0))


@pytest.mark.parametrize(("decoder", "soft"), [("segformer", False), ("deeplab_largefov", False), ("deeplab_v2", True)])
def test_a_few_steps_lower_the_loss(decoder: str, soft: bool) -> None:
    model = {**MODEL, "decoder": decoder}
    if decoder == "deeplab_v2":
        del model["decoder_width"]
    built = method(model=model, **(SOFT if soft else {}))
    groups = built.parameter_groups()
    in_groups = [parameter for group in groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in in_groups}) == len(in_groups) == len(list(built.network.parameters()))
    optimiser = torch.optim.AdamW([{**group, "lr": group["base_lr"]} for group in groups])
    transform, rng = built.transform(), np.random.default_rng(0)
    losses = []
    for step in range(16):
        crops = [transform(sample(index, soft=soft), rng) for index in range(4)]
        batch = {key: torch.stack([crop[key] for crop in crops]) for key in crops[0]}
        result = built.training_step(built.network, batch, step)
        optimiser.zero_grad()
        result.total().backward()
        optimiser.step()
        losses.append(result.total().item())
        assert sum(share.item() for share in result.scalars.values()) == pytest.approx(1)
        assert result.targets["seg"].shape == (4, 32, 32)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])


def test_groups_have_the_rates_of_the_settings() -> None:
    rates = {"lr": 1e-3, "head_lr_factor": 10.0, "bias_lr_factor": 2.0, "weight_decay": 0.1}
    groups = {group["name"]: group for group in method(optimiser=rates).parameter_groups()}
    found = {name: (group["base_lr"], group["weight_decay"]) for name, group in groups.items()}
    assert found == {"encoder": (1e-3, 0.1), "decoder": (1e-2, 0.1), "decoder_biases": (2e-2, 0.0)}
    assert all(parameter.dim() == 1 for parameter in groups["decoder_biases"]["params"])


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (37, 51)])
def test_prediction_of_any_size(size: tuple[int, int]) -> None:
    built = method()
    built.network.eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    unknown, known = Sample("a", image), Sample("b", image, class_labels=np.array([0, 1], np.float32))
    protocols = (SegmentationProtocol(), SegmentationProtocol(long_side=64, scales=(1.0, 0.5), mirror=True))
    for protocol in protocols:
        first, second = built.predict([unknown, known], ["segmentation"], protocol)
        maps = first.outputs["segmentation"]
        assert isinstance(maps, Maps) and maps.scores.shape[:2] == (1, 3)
        label = built.output("segmentation").label(maps, size)
        assert tuple(label.shape) == size
        assert first.class_logits is None
        assert first.class_ids == tuple(index for index in maps.label().unique().tolist() if index)
        assert second.class_ids == (2,)
    assert built.predict([unknown], [], SegmentationProtocol())[0].outputs == {}


def test_mirror_and_scales_change_the_prediction_and_batches_do_not() -> None:
    built = method()
    built.network.eval()
    images = [np.random.default_rng(seed).integers(0, 256, (33, 47, 3), np.uint8) for seed in range(2)]
    samples = [Sample(str(index), image) for index, image in enumerate(images)]
    rich = SegmentationProtocol(scales=(1.0, 0.5), mirror=True)
    both = built.predict(samples, ["segmentation"], rich)
    alone = built.predict(samples[1:], ["segmentation"], rich)[0].outputs["segmentation"]
    plain = built.predict(samples[1:], ["segmentation"], SegmentationProtocol())[0].outputs["segmentation"]
    assert isinstance(alone, Maps) and isinstance(plain, Maps)
    torch.testing.assert_close(both[1].outputs["segmentation"].scores, alone.scores)
    assert not torch.allclose(alone.scores, plain.scores)
    # The mirror image of an image has the mirror image of its prediction.
    mirrored = built.predict(
        [Sample("m", images[1][:, ::-1].copy())], ["segmentation"], SegmentationProtocol(mirror=True)
    )
    same = built.predict(samples[1:], ["segmentation"], SegmentationProtocol(mirror=True))
    torch.testing.assert_close(
        mirrored[0].outputs["segmentation"].scores, same[0].outputs["segmentation"].scores.flip(-1)
    )


@pytest.mark.parametrize("preset", ["demo", "voc"])
def test_presets_are_valid_and_open_with_their_command(preset: str) -> None:
    path = f"configs/segment/{preset}.yaml"
    assert load_config(path).method == "segment"
    with open(path, encoding="utf-8") as file:
        assert f"afa train segment/{preset}" in file.read()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dataset": {}}, "dataset.pixel_labels is not set"),
        ({"dataset": {"pixel_labels": "a", "maps": "b"}}, "dataset.maps is not read without loss.soft_labels"),
        ({"loss": {"soft_labels": "cam"}}, "loss.soft_labels needs dataset.maps"),
        ({**SOFT, "dataset": {"pixel_labels": "a", "maps": "b"}}, "dataset.pixel_labels is not read where"),
        ({"loss": {"soft_background": 0.4}}, "loss.soft_background is for maps"),
        ({"loss": {"background_share": 1.5}}, "loss.background_share: 1.5 is above 1"),
        ({"model": {"decoder": "deeplab_v3"}}, "model.decoder: .*did you mean 'deeplab_v2'"),
        ({"model": {"decoder": "deeplab_v2", "strides": [4, 2, 2, 2]}}, "stride 8 or 16, not 32"),
        ({"model": {"decoder": "deeplab_v2", "decoder_width": 8}}, "decoder_width: deeplab_v2 has no hidden layers"),
        ({"model": {"decoder": "deeplab_v2", "decoder_dropout": 0.1}}, "decoder_dropout: deeplab_v2 has no hidden"),
        ({"model": {"decoder": "deeplab_v2", "decoder_rates": []}}, "model.decoder_rates is empty"),
        ({"model": {"decoder": "deeplab_v2", "decoder_rates": [3]}}, "halved at stride 16"),
        ({"model": {"decoder": "deeplab_largefov", "decoder_rates": [6, 12]}}, "deeplab_largefov has one, not 2"),
        ({"model": {"decoder_rates": [6]}}, "model.decoder_rates: segformer has no dilations"),
        ({"model": {"widths": [8, 16, 20]}}, "model.widths needs four values"),
        ({"augmentation": {"crop_size": 40}, "model": {}}, "not a multiple of 16"),
        ({"optimiser": {"freeze": "released"}}, "optimiser.freeze: there is no released program of the method segment"),
    ],
)
def test_settings_that_contradict_each_other(sections: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict({**TREE, **sections})
