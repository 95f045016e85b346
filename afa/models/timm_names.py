"""Networks of the library timm by name."""

from __future__ import annotations

import difflib

from afa.errors import UserError

BUILD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError, AttributeError, KeyError)
"""What timm raises where a network does not take what it is asked for depends on the network."""


def require_timm_network(name: str) -> None:
    """Refuse a name that timm does not know.

    Args:
        name: Without ``timm/``, perhaps with the tag of its weights.

    Raises:
        UserError: There is no such network; the nearest name is given.
    """
    import timm

    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f"; did you mean 'timm/{near[0]}'?" if near else ""
    raise UserError(f"model.encoder: timm has no network '{name}'{hint}")
