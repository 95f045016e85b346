"""What a run is: a typed tree of settings, filled from a YAML file and ``key=value`` overrides.

The sections that every run has stand here; a method's own stand in its room. ``afa train --settings METHOD``
prints them all; :func:`afa.methods.load_config` reads a file, and refuses a mistake before anything is created.
"""

from __future__ import annotations

from afa.config.checks import check_training
from afa.config.encoders import VARIANTS, EncoderConfig, EncoderVariant
from afa.config.reading import config_differences, config_to_dict, config_to_yaml
from afa.config.settings import (
    AugmentationConfig,
    CropConfig,
    DatasetConfig,
    OptimiserConfig,
    RunConfig,
    TestConfig,
    TrainConfig,
    ValidationConfig,
    describe_settings,
    setting,
)

__all__ = [
    "VARIANTS",
    "AugmentationConfig",
    "CropConfig",
    "DatasetConfig",
    "EncoderConfig",
    "EncoderVariant",
    "OptimiserConfig",
    "RunConfig",
    "TestConfig",
    "TrainConfig",
    "ValidationConfig",
    "check_training",
    "config_differences",
    "config_to_dict",
    "config_to_yaml",
    "describe_settings",
    "setting",
]
