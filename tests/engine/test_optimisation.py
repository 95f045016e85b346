from __future__ import annotations

import itertools

import pytest
import torch
from golden import small_config, small_method

from afa.config import OptimiserConfig
from afa.engine.optimisation import build_optimiser, lr_factor, set_learning_rates
from afa.methods.base import ParameterGroup

SETTINGS = OptimiserConfig(warmup_steps=1500, warmup_ratio=1e-6, power=1.0, decay_from="start")


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1e-6),
        (750, 1 - 0.5 * (1 - 1e-6)),
        (1499, 1 - (1 - 1499 / 1500) * (1 - 1e-6)),
        (1500, 1 - 1500 / 20_000),
        (10_000, 0.5),
        (19_999, 1 / 20_000),
    ],
)
def test_factor(step: int, factor: float) -> None:
    assert lr_factor(step, steps=20_000, settings=SETTINGS) == pytest.approx(factor, rel=1e-9)


def test_factor_drops_where_warm_up_ends() -> None:
    factors = [lr_factor(step, steps=20_000, settings=SETTINGS) for step in range(20_000)]
    rising = [after > before for before, after in itertools.pairwise(factors)]
    assert rising == [step < 1499 for step in range(19_999)]
    assert factors[1499] - factors[1500] > 0.07


def test_no_warm_up_and_a_power() -> None:
    settings = OptimiserConfig(warmup_steps=0, power=0.9)
    assert lr_factor(0, steps=10, settings=settings) == 1
    assert lr_factor(5, steps=10, settings=settings) == pytest.approx(0.5**0.9)


def test_decay_from_the_end_of_the_warm_up_is_continuous() -> None:
    settings = OptimiserConfig(warmup_steps=10, warmup_ratio=0.1, power=0.9, decay_from="warmup")
    factors = [lr_factor(step, steps=40, settings=settings) for step in range(40)]
    assert factors[:11] == pytest.approx([0.1 + 0.9 * step / 10 for step in range(11)])
    assert factors[10:] == pytest.approx([(1 - (step - 10) / 30) ** 0.9 for step in range(10, 40)])
    assert lr_factor(5, steps=5, settings=settings) > 0, "a warm-up as long as the run is no division by zero"


def groups(**optimiser: object) -> dict[str, ParameterGroup]:
    config = small_config(optimiser=optimiser)
    method = small_method(config)
    return {group["name"]: group for group in method.parameter_groups()}


def test_groups_share_the_parameters_out() -> None:
    method = small_method(small_config())
    network = method.network
    names = {parameter: name for name, parameter in network.named_parameters()}
    found: dict[str, set[str]] = {}
    for group in method.parameter_groups():
        found[group["name"]] = {names.pop(parameter) for parameter in group["params"]}
    assert not names, "every parameter belongs to one group"
    assert all("norm" in name and name.startswith("encoder.") for name in found["norms"])
    assert all("norm" not in name and name.startswith("encoder.") for name in found["encoder"])
    assert found["heads"] == {"classifier.weight", "attn_proj.weight", "attn_proj.bias"}
    assert {"decoder.linear_fuse.bn.weight", "decoder.linear_pred.bias"} <= found["decoder"]
    # Norms inside attention and patch embeddings, and those that end a stage.
    assert {"encoder.norm4.bias", "encoder.patch_embed2.norm.weight", "encoder.block1.0.attn.norm.weight"} <= found[
        "norms"
    ]


def test_rates_and_decay_of_the_groups() -> None:
    frozen = groups()
    assert {name: group["base_lr"] for name, group in frozen.items()} == pytest.approx(
        {"encoder": 6e-5, "norms": 0, "heads": 6e-4, "decoder": 6e-4}
    )
    assert {name: group["weight_decay"] for name, group in frozen.items()} == {
        "encoder": 0.01,
        "norms": 0,
        "heads": 0.01,
        "decoder": 0.01,
    }
    learning = groups(freeze="none", lr=1e-3, head_lr_factor=2)
    assert [group["base_lr"] for group in learning.values()] == pytest.approx([1e-3, 1e-3, 2e-3, 2e-3])
    assert learning["norms"]["weight_decay"] == 0.01


def test_optimiser_follows_its_settings() -> None:
    settings = OptimiserConfig(lr=1e-3, beta1=0.8, beta2=0.99, epsilon=1e-6, warmup_steps=2)
    parameter = torch.nn.Parameter(torch.ones(3))
    group = ParameterGroup(name="encoder", params=[parameter], base_lr=1e-3, weight_decay=0.1)
    optimiser = build_optimiser([group], settings)
    assert optimiser.param_groups[0]["betas"] == (0.8, 0.99)
    assert optimiser.param_groups[0]["eps"] == 1e-6
    assert set_learning_rates(optimiser, 0, steps=10, settings=settings) == {"encoder": pytest.approx(1e-9)}
    assert set_learning_rates(optimiser, 5, steps=10, settings=settings) == {"encoder": pytest.approx(5e-4)}
    # A zero gradient still lets the weight decay run.
    parameter.grad = torch.zeros(3)
    optimiser.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 1 - 5e-4 * 0.1))


def test_frozen_norms_stay_and_learning_norms_move() -> None:
    for freeze in (True, False):
        freezing = "released" if freeze else "none"
        config = small_config(optimiser={"freeze": freezing, "lr": 1e-2, "warmup_steps": 0})
        method = small_method(config)
        network = method.network.eval()
        optimiser = build_optimiser(method.parameter_groups(), config.optimiser)
        before = {name: parameter.clone() for name, parameter in network.encoder.named_parameters() if "norm" in name}
        set_learning_rates(optimiser, 0, steps=10, settings=config.optimiser)
        network(torch.randn(2, 3, 32, 32)).cls_logits.square().sum().backward()
        optimiser.step()
        after = dict(network.encoder.named_parameters())
        assert all(torch.equal(after[name], value) == freeze for name, value in before.items())


def test_sgd_with_momentum_by_hand() -> None:
    settings = OptimiserConfig(name="sgd", momentum=0.5)
    parameter = torch.nn.Parameter(torch.ones(2))
    group = ParameterGroup(name="all", params=[parameter], base_lr=0.1, weight_decay=0.2)
    optimiser = build_optimiser([group], settings)
    velocity, expected = 0.0, 1.0
    for _ in range(3):
        parameter.grad = torch.ones(2)
        optimiser.step()
        velocity = 0.5 * velocity + 1 + 0.2 * expected
        expected -= 0.1 * velocity
    torch.testing.assert_close(parameter.detach(), torch.full((2,), expected))
