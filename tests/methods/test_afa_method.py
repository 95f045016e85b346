from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from golden import random_image, small_config, small_method, small_network
from torch import Tensor

from afa.engine.runtime import ProcessRuntime
from afa.maps import present_classes
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.labels import box_mask, par_image, restore_image
from afa.methods.base import Batch
from afa.ops.cam import resize
from afa.ops.dense_energy import dense_energy_loss
from afa.ops.par import PAR
from afa.ops.random_walk import TokenAffinity

CPU = torch.device("cpu")


def random_batch(seed: int = 0, size: int = 64) -> Batch:
    image = torch.nn.functional.interpolate(random_image(2, 3, 8, 8, seed=seed), size=(size, size), mode="bilinear")
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    box = torch.tensor([[0, size, 0, size], [8, size, 0, size - 6]])
    return {"image": image, "class_labels": labels, "valid_box": box, "name": ["first", "second"]}


def step_of(config: AFAConfig, step: int, precision: str = "float32", seed: int = 0) -> tuple[Any, Any]:
    method = small_method(config, small_network(seed=seed).train(), ProcessRuntime(CPU, precision=precision))
    torch.manual_seed(0)
    return method, method.training_step(method.network, random_batch(), step)


SCHEDULE = {"cls_until": 1, "refined_until": 3}


def test_weights_of_the_losses_follow_the_schedule() -> None:
    config = small_config(schedule=SCHEDULE)
    for step, weights in ((0, {"cls": 1, "seg": 0, "aff": 0}), (1, {"cls": 1, "seg": 0, "aff": 0})):
        assert step_of(config, step)[1].weights == weights
    for step in (2, 3, 4):
        assert step_of(config, step)[1].weights == {"cls": 1, "seg": 0.1, "aff": 0.1}


@pytest.mark.parametrize(("switches", "same_source"), [(False, False), (True, True)])
def test_labels_follow_the_schedule(switches: bool, same_source: bool) -> None:
    config = small_config(schedule={**SCHEDULE, "affinity_label_switches": switches})
    before = step_of(config, 3)[1].targets
    assert torch.equal(before["seg"], before["aff"])
    after = step_of(config, 4)[1].targets
    assert not torch.equal(after["seg"], before["seg"]), "the propagated label should differ in this case"
    assert torch.equal(after["aff"], after["seg"]) == same_source
    if not switches:
        assert torch.equal(after["aff"], before["aff"])


def test_par_weights_of_a_crop_that_its_image_fills_are_made_once() -> None:
    method = small_method(small_config(schedule=SCHEDULE), small_network().train())
    batch, labels = random_batch(), method.labels
    image = par_image(batch["image"], method.config.dataset.image_mean, method.config.dataset.image_std)
    present = present_classes(batch["class_labels"])
    cams = present.maps(torch.rand(2, 2, 64, 64))
    affinity = TokenAffinity(torch.rand(2, 16, 16), (4, 4)).within(2)
    made: list[int] = []

    class Counting(PAR):
        def weights(self, image: Tensor) -> Tensor:
            made.append(len(image))
            return super().weights(image)

    par = method.config.par
    labels.par = Counting(
        dilations=par.dilations,
        iterations=par.iterations,
        temperature=par.temperature,
        position_weight=par.position_weight,
    )
    apart = [
        labels.propagated(image, cams, affinity, batch["valid_box"]),
        labels.refined(image, cams, batch["valid_box"]),
    ]
    assert sorted(made) == [1, 1, 2]
    made.clear()
    weights = labels.par_weights(image)
    shared = [
        labels.propagated(image, cams, affinity, batch["valid_box"], weights),
        labels.refined(image, cams, batch["valid_box"], weights),
    ]
    # Both images whole for the refined label; for the propagated one inside their boxes, of which the first is whole.
    assert sorted(made) == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(apart, shared, strict=True))


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_every_learning_parameter_has_a_gradient(released: bool, step: int) -> None:
    config = small_config(schedule={**SCHEDULE, "released_decoder_passes": released})
    method, result = step_of(config, step)
    result.total().backward()
    heads = ("decoder.", "attn_proj.")
    for name, parameter in method.network.named_parameters():
        if name.startswith("encoder.") and "norm" in name:
            assert parameter.grad is None, name
        else:
            assert torch.isfinite(parameter.grad).all(), name
            if step == 0 and name.startswith(heads):
                assert not parameter.grad.any(), name


def test_only_released_passes_touch_the_decoder_s_statistics() -> None:
    counts = {}
    for released in (True, False):
        for step in (0, 2):
            method, _ = step_of(small_config(schedule={**SCHEDULE, "released_decoder_passes": released}), step)
            counts[released, step] = int(method.network.decoder.linear_fuse.bn.num_batches_tracked)
    assert counts == {(True, 0): 4, (True, 2): 4, (False, 0): 0, (False, 2): 1}


@pytest.mark.parametrize("step", [2, 4])
def test_regularised_loss_sees_the_decoder_s_target(step: int) -> None:
    config = small_config(schedule=SCHEDULE, loss={"reg": {"weight": 0.01}})
    result = step_of(config, step)[1]
    batch = random_batch()
    torch.manual_seed(0)
    seg_logits = resize(small_network().train()(batch["image"]).seg_logits, (64, 64))
    expected = dense_energy_loss(
        restore_image(batch["image"], config.dataset.image_mean, config.dataset.image_std),
        seg_logits.softmax(dim=1),
        box_mask(batch["valid_box"], (64, 64), CPU).float(),
        result.targets["seg"],
        weight=config.loss.reg.energy_weight,
        sigma_rgb=config.loss.reg.sigma_rgb,
        sigma_xy=config.loss.reg.sigma_xy,
        scale=config.loss.reg.scale,
    )
    assert result.weights["reg"] == 0.01
    torch.testing.assert_close(result.losses["reg"], expected, atol=1e-9, rtol=1e-4)
    assert "reg" not in step_of(config, 1)[1].losses
    assert "reg" not in step_of(small_config(schedule=SCHEDULE), step)[1].losses


@pytest.mark.parametrize("step", [0, 2, 4])
def test_mixed_precision_stays_near(step: int) -> None:
    config = small_config(schedule=SCHEDULE)
    exact, mixed = step_of(config, step)[1], step_of(config, step, "bf16")[1]
    for name, loss in mixed.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], atol=0.05, rtol=0.05)
    mixed.total().backward()


def test_stochastic_depth_and_finer_strides() -> None:
    config = small_config(schedule=SCHEDULE, model={"drop_path": 0.2, "decoder_dropout": 0.1, "strides": [4, 2, 1, 1]})
    torch.manual_seed(0)
    network = small_network(drop_path=0.2, decoder_dropout=0.1, strides=[4, 2, 1, 1]).train()
    method = small_method(config, network)
    result = method.training_step(method.network, random_batch(), 4)
    assert torch.isfinite(result.total())


class TwoProcesses:
    """A runtime that answers as the second of two equal processes would."""

    device, world_size = CPU, 2

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def autocast(self) -> AbstractContextManager[Any]:
        return ProcessRuntime(CPU).autocast()

    def sum(self, values: Tensor) -> Tensor:
        self.asked.append(values)
        return 2 * values


def test_counts_go_through_the_runtime() -> None:
    runtime = TwoProcesses()
    config = small_config(schedule=SCHEDULE, loss={"normalisation": "global"})
    method = small_method(config, small_network().train(), runtime)
    method.training_step(method.network, random_batch(), 2)
    # Pixels of background and foreground, positive and negative pairs.
    assert [tuple(counts.shape) for counts in runtime.asked] == [(2,), (2,)]
    asked = TwoProcesses()
    alone = small_method(small_config(schedule=SCHEDULE), small_network().train(), asked)
    alone.training_step(alone.network, random_batch(), 2)
    assert not asked.asked, "by default each process counts for itself"
