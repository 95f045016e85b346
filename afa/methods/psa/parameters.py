"""Which of PSA's parameters learn how fast."""

from __future__ import annotations

from torch import nn

from afa.methods.base import ParameterGroup
from afa.methods.cam_config import ReleasedOptimiserConfig


def parameter_groups(network: nn.Module, settings: ReleasedOptimiserConfig) -> list[ParameterGroup]:
    """Encoder and new layers, weights and biases of each; what is frozen, and groups without parameters, are left out.

    Biases are those of convolutions and BatchNorms: ``optimiser.bias_lr_factor`` times as fast, without weight decay.

    Args:
        network: With an ``encoder``; all else of it is new.
        settings: Of the run.
    """
    members: dict[str, list[nn.Parameter]] = {"encoder": [], "encoder_biases": [], "heads": [], "head_biases": []}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        place = ("encoder", "encoder_biases") if name.startswith("encoder.") else ("heads", "head_biases")
        members[place[name.endswith("bias")]].append(parameter)
    groups = []
    for name, parameters in members.items():
        of_biases = name.endswith("biases")
        lr = settings.lr * (settings.head_lr_factor if name.startswith("head") else 1.0)
        if parameters:
            groups.append(
                ParameterGroup(
                    name=name,
                    params=parameters,
                    base_lr=lr * (settings.bias_lr_factor if of_biases else 1.0),
                    weight_decay=0.0 if of_biases else settings.weight_decay,
                )
            )
    return groups
