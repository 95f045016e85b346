"""What a configuration must keep to. Each check raises :class:`UserError` with one line that begins with its source."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afa.config.settings import VARIANTS, Config, each_setting
from afa.config.values import shown
from afa.errors import UserError


def check_keys(tree: Any, kind: type, prefix: str, source: str) -> None:
    """Refuse keys that ``kind`` does not have; names the nearest. ``prefix`` is where the section lies."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: '{prefix.rstrip('.')}' is a section: give its settings below it, not {shown(tree)}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    defaults = kind()
    for key, value in tree.items():
        if key not in fields:
            raise UserError(f"{source}: unknown key {shown(f'{prefix}{key}')}{_suggest(str(key), prefix, fields)}")
        section = getattr(defaults, key)
        if dataclasses.is_dataclass(section):
            check_keys(value, type(section), f"{prefix}{key}.", source)
        elif isinstance(value, Mapping):
            raise UserError(f"{source}: '{prefix}{key}' is a setting, not a section: give it one value")


def check_ranges(config: Config, source_of: Callable[[str], str]) -> None:
    """Refuse values outside of their choices or range. ``source_of`` says who gave a setting its value."""
    for key, value, item in each_setting(config):
        limits, source = item.metadata, source_of(key)
        if limits["choices"] is not None and value not in limits["choices"]:
            near = difflib.get_close_matches(str(value), limits["choices"], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{source}: {key}: {shown(value)} is none of {', '.join(limits['choices'])}{hint}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if number != number or number in (float("inf"), float("-inf")):
                raise UserError(f"{source}: {key}: {number} is not a finite number")
            if limits["minimum"] is not None and number < limits["minimum"]:
                raise UserError(f"{source}: {key}: {number} is below {limits['minimum']}")
            if limits["maximum"] is not None and number > limits["maximum"]:
                raise UserError(f"{source}: {key}: {number} is above {limits['maximum']}")
            if limits["above"] is not None and number <= limits["above"]:
                raise UserError(f"{source}: {key}: {number} must be greater than {limits['above']}")
            if limits["below"] is not None and number >= limits["below"]:
                raise UserError(f"{source}: {key}: {number} must be less than {limits['below']}")
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{source}: {key}: {number} is too large")


def check_agreement(config: Config, source: str) -> None:
    """Refuse values that are fine alone but contradict each other."""
    model, augmentation, cam = config.model, config.augmentation, config.cam

    def refuse(message: str) -> None:
        raise UserError(f"{source}: {message}")

    for name in ("image_mean", "image_std"):
        if len(getattr(config.dataset, name)) != 3:
            refuse(f"dataset.{name} needs three values: R, G, B")
    for name in ("widths", "depths", "heads", "reductions", "strides"):
        value = getattr(model, name)
        if value is not None and len(value) != 4:
            refuse(f"model.{name} needs four values, one per stage, not {len(value)}")
        if value is None and model.encoder == "custom":
            refuse(f"model.encoder=custom needs model.{name}")
    variant = VARIANTS.get(model.encoder)
    widths: Sequence[int] = model.widths or (variant.widths if variant else [])
    depths: Sequence[int] = model.depths or (variant.depths if variant else [])
    heads: Sequence[int] = model.heads or (variant.heads if variant else [])
    for width, count in zip(widths, heads, strict=True):
        if width % count:
            refuse(f"model.widths, model.heads: {width} channels cannot be shared by {count} heads")
    if any(int(width * model.mlp_ratio) < 1 for width in widths):
        refuse(f"model.mlp_ratio: {model.mlp_ratio} leaves the MLPs of {min(widths)} channels no hidden one")
    stride = 1
    for step in model.strides:
        stride *= step
    if augmentation.crop_size % stride:
        near = max(stride, round(augmentation.crop_size / stride) * stride)
        refuse(
            f"augmentation.crop_size: {augmentation.crop_size} is not a multiple of {stride}, "
            f"the encoder's stride; the nearest is {near}"
        )
    stages = [3] * depths[3] + [2] * depths[2]
    if model.affinity_blocks > len(stages) or any(
        model.reductions[stage] != 1 for stage in stages[: model.affinity_blocks]
    ):
        refuse(
            f"model.reductions, model.affinity_blocks: the last {model.affinity_blocks} blocks must have reduction 1, "
            "because the affinity needs square attention"
        )
    if stages[model.affinity_blocks - 1] == 2 and model.strides[3] != 1:
        refuse("model.affinity_blocks: it reaches into stage 3, whose token grid is another; set model.strides[3]=1")
    if augmentation.scale_min > augmentation.scale_max:
        refuse(f"augmentation: scale_min {augmentation.scale_min} is above scale_max {augmentation.scale_max}")
    for name, scales in (("cam.scales", cam.scales), ("test.scales", config.test.scales)):
        if 1.0 not in scales:
            refuse(f"{name} must contain 1, not only {scales}")
        if len(set(scales)) != len(scales):
            refuse(f"{name} holds a scale twice: {scales}")
        if name == "cam.scales" and min(scales) * augmentation.crop_size < 16:
            refuse(f"cam.scales: {min(scales)} of a crop of {augmentation.crop_size} is less than 16 pixels")
    if cam.low > cam.high:
        refuse(f"cam.low {cam.low} is above cam.high {cam.high}")
    if not config.par.dilations:
        refuse("par.dilations is empty")
    if config.train.device == "cpu" and config.train.precision == "fp16":
        refuse("train.precision=fp16 needs a GPU; on the CPU use bf16 or float32")


def check_training(config: Config) -> list[str]:
    """What makes a training pointless, which reading and using a configuration need not care about.

    Returns:
        Remarks on what can be meant, but rarely is: one line each.

    Raises:
        UserError: A part of the network would never be trained, yet be scored and stored.
    """
    steps, schedule, loss = config.train.steps, config.schedule, config.loss
    if steps <= schedule.cls_until + 1:
        raise UserError(
            f"train.steps={steps} ends before the decoder is trained for the first time, which it is after "
            f"{schedule.cls_until + 1} steps (schedule.cls_until={schedule.cls_until}): raise train.steps above that, "
            "or lower schedule.cls_until"
        )
    for name, part in (("cls", "the classifier"), ("seg", "the decoder")):
        if getattr(loss, name) == 0:
            raise UserError(f"loss.{name}=0: {part} would never be trained: give it a weight above 0")
    first_propagated = max(schedule.refined_until, schedule.cls_until) + 1
    if loss.aff == 0 and steps > first_propagated:
        raise UserError(
            f"loss.aff=0: the affinity head would never be trained, yet make the decoder's labels after "
            f"{first_propagated} steps (schedule.refined_until={schedule.refined_until}): give loss.aff a weight above "
            f"0, or raise schedule.refined_until to {steps - 1}"
        )
    remarks = []
    if schedule.refined_until < schedule.cls_until:
        remarks.append(
            f"schedule.refined_until={schedule.refined_until} is below schedule.cls_until={schedule.cls_until}: the "
            "refined label is never used"
        )
    warmup = config.optimiser.warmup_steps
    if warmup >= steps:
        remarks.append(
            f"optimiser.warmup_steps={warmup} is not below train.steps={steps}: the learning rate never reaches "
            "optimiser.lr"
        )
    return remarks


def _suggest(key: str, prefix: str, fields: Mapping[str, Any]) -> str:
    everywhere = {name.rsplit(".", 1)[-1]: name for name, _, _ in each_setting(Config())}
    here = {name: f"{prefix}{name}" for name in fields}
    # A slip of the finger, the right name in the wrong section, a distant likeness: in this order.
    for known, cutoff in ((here, 0.8), (everywhere, 1.0), (here, 0.5), (everywhere, 0.75)):
        near = difflib.get_close_matches(key, list(known), n=1, cutoff=cutoff)
        if near:
            return f"; did you mean '{known[near[0]]}'?"
    return f"; known here: {', '.join(fields)}"
