"""Nine training steps of the released program, through the classes that ``tools/train.py`` uses."""

from __future__ import annotations

import pytest
import torch
from golden import Agreement, golden_network, load_golden, normalised, small_config, small_method
from torch import Tensor

from afa.engine.optimisation import build_optimiser, set_learning_rates
from afa.engine.runtime import ProcessRuntime
from afa.methods.afa.config import AFAConfig
from afa.models import AFANet

STEPS = 9
LOSSES = ("cls", "seg", "aff")


def trajectory_config(*, released_decoder_passes: bool, fused_attention: bool) -> AFAConfig:
    return small_config(
        model={"fused_attention": fused_attention},
        augmentation={"crop_size": 128},
        affinity={"radius": 2},
        optimiser={"lr": 1e-3, "warmup_steps": 3},
        schedule={"cls_until": 2, "refined_until": 4, "released_decoder_passes": released_decoder_passes},
        train={"steps": 20},
    )


class Trajectory:
    """The run: what each step gave, and the network at its end.

    With ``tried_by_default`` each step is also tried on a copy of the network as we run it by default, without the
    passes that no loss needs: ``default_losses``, ``default_targets``, and how far its ``gradients`` are away, over the
    largest one.
    """

    def __init__(self, golden: dict[str, Tensor], *, fused_attention: bool, tried_by_default: bool = False) -> None:
        config = trajectory_config(released_decoder_passes=True, fused_attention=fused_attention)
        runtime = ProcessRuntime(torch.device("cpu"))
        method = small_method(config, golden_network().train(), runtime)
        self.network: AFANet = method.network
        optimiser = build_optimiser(method.parameter_groups(), config.optimiser)
        self.losses, self.rates, self.targets, self.totals = [], [], [], []
        self.default_losses, self.default_targets, self.gradients = [], [], []
        for step in range(STEPS):
            rates = set_learning_rates(optimiser, step, steps=config.train.steps, settings=config.optimiser)
            batch = {
                "image": normalised(golden["images_uint8"][step]),
                "class_labels": golden["class_labels"][step],
                "valid_box": golden["boxes"][step],
                "name": ["first", "second"],
            }
            default = None
            if tried_by_default:
                default_config = trajectory_config(released_decoder_passes=False, fused_attention=fused_attention)
                default = small_method(default_config, self.network, runtime)
                tried = default.training_step(default.network, batch, step)
                default.network.zero_grad()
                tried.total().backward()
                self.default_losses.append({name: loss.detach() for name, loss in tried.losses.items()})
                self.default_targets.append(tried.targets)

            result = method.training_step(self.network, batch, step)
            total = result.total()
            optimiser.zero_grad()
            total.backward()
            if default is not None:
                self.gradients.append(gradient_difference(default.network, self.network))
            optimiser.step()
            self.losses.append({name: loss.detach() for name, loss in result.losses.items()})
            self.totals.append(total.detach())
            self.rates.append([rates[name] for name in ("encoder", "norms", "heads", "decoder")])
            self.targets.append(result.targets)


def gradient_difference(found: AFANet, expected: AFANet) -> float:
    """The largest difference between two networks' gradients over the largest gradient; both have the same ones."""
    differences, largest = [], []
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            differences.append((one.grad - other.grad).abs().max())
            largest.append(other.grad.abs().max())
    return float(torch.stack(differences).max() / torch.stack(largest).max())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_golden("train_trajectory")


@pytest.fixture(scope="module")
def run(golden: dict[str, Tensor]) -> Trajectory:
    """The nine steps, attention written out.

    Fused attention rounds otherwise, which moves pixels at a tie to another label, and Adam makes whole steps of that.
    """
    return Trajectory(golden, fused_attention=False, tried_by_default=True)


def test_reference_losses_of_nine_steps(agreement: Agreement, golden: dict[str, Tensor], run: Trajectory) -> None:
    expected = golden["losses_cls_seg_aff_total"]
    for column, name in enumerate((*LOSSES, "total")):
        found = torch.stack(run.totals if name == "total" else [losses[name] for losses in run.losses]).double()
        known = torch.isfinite(expected[:, column])
        agreement.values(f"training: {name} loss", found[known], expected[known, column], 1e-3)


def test_reference_learning_rates(agreement: Agreement, golden: dict[str, Tensor], run: Trajectory) -> None:
    found = torch.tensor(run.rates, dtype=torch.float64)
    agreement.values("training: learning rates", found, golden["learning_rates"], 1e-12)


def test_reference_targets(agreement: Agreement, golden: dict[str, Tensor], run: Trajectory) -> None:
    found = torch.stack([targets["seg"] for targets in run.targets])
    agreement.labels("training: targets of the decoder", found, golden["seg_targets"], 1e-4)


def test_reference_weights(agreement: Agreement, golden: dict[str, Tensor], run: Trajectory) -> None:
    """Where the gradient is mathematically zero, Adam turns rounding noise into steps: up to 9 learning rates."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"rest": [], "key": [], "projection": []}
    for name, found in run.network.state_dict().items():
        expected = golden[f"final/{name}"]
        if name.endswith("attn.kv.bias"):
            for kind, one, other in zip(("key", "rest"), found.chunk(2), expected.chunk(2), strict=True):
                pairs[kind].append((one, other))
        elif name.startswith("decoder.linear_c") and name.endswith(".bias"):
            pairs["projection"].append((found, expected))
        elif ".bn.running" not in name and "num_batches" not in name:
            pairs["rest"].append((found, expected))
    parts = {
        "rest": ("weights after 9 steps", 1e-3),
        "key": ("key biases (no true gradient)", 9 * 1e-3),
        "projection": ("biases of the decoder's projections (no true gradient)", 9 * 1e-2),
    }
    for kind, (part, tolerance) in parts.items():
        found, expected = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*pairs[kind], strict=True))
        agreement.values(f"training: {part}", found, expected, tolerance)


def test_reference_running_statistics(agreement: Agreement, golden: dict[str, Tensor], run: Trajectory) -> None:
    bn = run.network.decoder.linear_fuse.bn
    prefix = "final/decoder.linear_fuse.bn."
    assert bn.num_batches_tracked == golden[f"{prefix}num_batches_tracked"] == 4 * STEPS
    agreement.values("training: running variance", bn.running_var, golden[f"{prefix}running_var"], 1e-3)
    agreement.values("training: running mean", bn.running_mean, golden[f"{prefix}running_mean"], 0.1)


def test_reference_empty_sides_count_zero(golden: dict[str, Tensor], run: Trajectory) -> None:
    empty = ~torch.isfinite(golden["losses_cls_seg_aff_total"][:, 1])
    assert empty.nonzero().flatten().tolist() == [5, 6]
    for step in (5, 6):
        labels = set(golden["seg_targets"][step].unique().tolist())
        assert 0 not in labels or labels <= {0, 255}
        assert torch.isfinite(run.losses[step]["seg"])


def test_reference_steps_without_superfluous_passes(
    agreement: Agreement, golden: dict[str, Tensor], run: Trajectory
) -> None:
    how = ", each step without superfluous passes"
    expected = golden["losses_cls_seg_aff_total"]
    for column, name in enumerate(LOSSES):
        # While only the classification counts, the other losses are not computed at all.
        known = torch.isfinite(expected[:, column]) & ((torch.arange(STEPS) > 2) | (name == "cls"))
        found = torch.stack([losses[name] for losses in run.default_losses]).double()
        agreement.values(f"training: {name} loss{how}", found[known], expected[known, column], 1e-3)
    targets = torch.stack([targets["seg"] for targets in run.default_targets[3:]])
    agreement.labels(f"training: targets of the decoder{how}", targets, golden["seg_targets"][3:], 1e-4)
    assert max(run.gradients) < 1e-3


def test_reference_fused_attention(agreement: Agreement, golden: dict[str, Tensor]) -> None:
    how = ", fused attention, whose rounding adds up"
    fused = Trajectory(golden, fused_attention=True)
    expected = golden["losses_cls_seg_aff_total"]
    for column, name in enumerate(LOSSES):
        known = torch.isfinite(expected[:, column])
        found = torch.stack([losses[name] for losses in fused.losses]).double()
        agreement.values(f"training: {name} loss{how}", found[known], expected[known, column], 2e-2)
    targets = torch.stack([targets["seg"] for targets in fused.targets])
    agreement.labels(f"training: targets of the decoder{how}", targets, golden["seg_targets"], 1e-3)


def test_classification_steps_compute_nothing_else(run: Trajectory) -> None:
    for step in range(3):
        assert run.default_losses[step]["seg"] == run.default_losses[step]["aff"] == 0
        assert run.default_targets[step] == {}
        assert run.gradients[step] < 1e-4
