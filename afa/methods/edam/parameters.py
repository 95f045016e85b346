"""Which of EDAM's parameters learn how fast."""

from __future__ import annotations

from torch import nn

from afa.methods.base import ParameterGroup
from afa.methods.edam.config import EDAMOptimiserConfig

_ATTENTION = ("embedding.", "trans_list.")


def parameter_groups(network: nn.Module, settings: EDAMOptimiserConfig) -> list[ParameterGroup]:
    """Encoder, new convolutions (``heads``), embedding and transformers (``attention``); what is frozen is left out.

    The encoder's biases, those of its BatchNorms, learn ``optimiser.bias_lr_factor`` times as fast, without weight
    decay. New convolutions learn ``optimiser.head_lr_factor`` times as fast. The attention learns as the encoder does,
    and all of it has weight decay, biases and norms too.

    Args:
        network: With an ``encoder``.
        settings: Of the run.
    """
    factors = {"encoder": 1.0, "encoder_biases": settings.bias_lr_factor, "heads": settings.head_lr_factor}
    factors["attention"] = 1.0
    members: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("encoder."):
            members["encoder_biases" if name.endswith("bias") else "encoder"].append(parameter)
        else:
            members["attention" if name.startswith(_ATTENTION) else "heads"].append(parameter)
    return [
        ParameterGroup(
            name=name,
            params=parameters,
            base_lr=settings.lr * factors[name],
            weight_decay=0.0 if name == "encoder_biases" else settings.weight_decay,
        )
        for name, parameters in members.items()
        if parameters
    ]
