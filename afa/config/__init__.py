"""What a run is: a typed tree of settings, filled from a YAML file and ``key=value`` overrides.

``tools/train.py --settings`` prints them all; :func:`load_config` refuses a mistake before anything is created.
"""

from __future__ import annotations

from afa.config.checks import check_training
from afa.config.reading import (
    config_differences,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_config,
)
from afa.config.settings import (
    VARIANTS,
    AffinityConfig,
    AugmentationConfig,
    CamConfig,
    Config,
    DatasetConfig,
    EncoderVariant,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    ParConfig,
    RegularisedLossConfig,
    ScheduleConfig,
    TestConfig,
    TrainConfig,
    ValidationConfig,
    describe_settings,
)

__all__ = [
    "VARIANTS",
    "AffinityConfig",
    "AugmentationConfig",
    "CamConfig",
    "Config",
    "DatasetConfig",
    "EncoderVariant",
    "LossConfig",
    "ModelConfig",
    "OptimiserConfig",
    "ParConfig",
    "RegularisedLossConfig",
    "ScheduleConfig",
    "TestConfig",
    "TrainConfig",
    "ValidationConfig",
    "check_training",
    "config_differences",
    "config_from_dict",
    "config_to_dict",
    "config_to_yaml",
    "describe_settings",
    "load_config",
]
