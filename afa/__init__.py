"""AFA: weakly supervised semantic segmentation. Training uses image-level labels only.

import afa

model = afa.load("work_dirs/voc")
found = model.predict("cat.jpg")
found.mask, found.maps["cam"], found.class_names
found.plot().save("result.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afa.errors import UserError
    from afa.methods import register_method
    from afa.prediction.model import Model, load
    from afa.prediction.predictor import Prediction

__version__ = "0.1.0"

__all__ = ["Model", "Prediction", "UserError", "__version__", "load", "register_method"]

# Where they are. PyTorch, which takes seconds, is imported when one of them is used.
_PLACES = {
    "Model": "afa.prediction.model",
    "Prediction": "afa.prediction.predictor",
    "UserError": "afa.errors",
    "load": "afa.prediction.model",
    "register_method": "afa.methods",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'afa' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
