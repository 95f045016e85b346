"""Training methods: what one step means. AFA is the first."""

from __future__ import annotations

from afa.config import Config
from afa.methods.afa import AFA
from afa.methods.base import Batch, Method, ParameterGroup, Runtime, StepOutput
from afa.models import AFANet

__all__ = ["AFA", "Batch", "Method", "ParameterGroup", "Runtime", "StepOutput", "build_method"]


def build_method(network: AFANet, config: Config, runtime: Runtime) -> Method:
    """The method that ``config.method`` names."""
    methods = {"afa": AFA}
    return methods[config.method](network, config, runtime)
