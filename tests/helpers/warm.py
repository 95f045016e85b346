"""Imported by the process that others are forked from: all that a command imports, and what it builds once."""

from __future__ import annotations

import faults  # noqa: F401 - what runs in the processes
import mmcv  # noqa: F401 - imported where the package needs it
import torch._dynamo  # noqa: F401 - imported by PyTorch's optimisers
from PIL import Image

import afa.data.check
import afa.engine.training
import afa.prediction.model  # noqa: F401
from afa.methods import config_from_dict

Image.init()
config_from_dict({})
