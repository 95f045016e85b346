"""The interface of a method: all that training, prediction, evaluation and reports need from it.

A method is a network, its training step, and its ``outputs`` for an image. All other code iterates over these outputs.
docs/architecture.md shows a complete method in sixty lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypedDict

import torch
from torch import Tensor, nn

from afa.config import DatasetConfig, RunConfig
from afa.data.dataset import Transform
from afa.data.inputs import CLASS_LABELS, is_named, setting_of
from afa.data.notices import say
from afa.data.samples import Sample
from afa.device import at_precision
from afa.errors import UserError
from afa.maps import Maps
from afa.ops.random_walk import PairAffinity, TokenAffinity

Batch = dict[str, Any]
"""The results of a method's transform, stacked: key -> tensor [B, ...]; ``name`` -> list of B names."""


Said = Maps | Tensor | TokenAffinity | PairAffinity
"""One output for one image: maps [1, c, h, w], a label int64 [h, w], or an affinity."""


@dataclass(frozen=True)
class Output:
    """One output of a method: a kind of map, label or affinity that it computes for an image.

    Attributes:
        name: Its name in files and tables, for example "cam". Letters, digits and ``_``.
        title: Its name for people, for example "CAM".
        kind: ``maps``: scores of classes, from which a label can be made. ``label``: a class per pixel; 255 is no
            class. ``affinity``: of the tokens of a grid, for display.
        logits: The maps are those of all classes and background, and their softmax gives probabilities.
        threshold: For maps without a background: the background score that makes a label from them.
        inputs: What prediction must be given, names as in :class:`afa.data.samples.Sample`; ``class_labels`` are used
            where they are known, and must be named only if the output is impossible without them.
        scored: Whether evaluation scores it by default.
    """

    name: str
    title: str
    kind: Literal["maps", "label", "affinity"]
    logits: bool = False
    threshold: float | None = None
    inputs: tuple[str, ...] = ()
    scored: bool = True

    def label(self, found: Said, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        """The label [H, W] of one image's maps or label, class ids.

        Args:
            found: What :meth:`Method.predict` gave for this output.
            size: (H, W); default: that of the maps.
            dtype: Of the label.

        Raises:
            ValueError: There is no label of an affinity.
        """
        if isinstance(found, Maps):
            if found.has_background:
                return found.label(size, dtype)[0]
            return found.label_above(self._threshold(), size, dtype)[0]
        if not isinstance(found, Tensor):
            raise ValueError(f"there is no label of the output '{self.name}'")
        if size is not None and tuple(found.shape) != tuple(size):
            enlarged = nn.functional.interpolate(found[None, None].float(), size=size, mode="nearest")
            return enlarged[0, 0].to(dtype)
        return found.to(dtype)

    def probabilities(self, found: Said, size: tuple[int, int]) -> Tensor:
        """Softmax of resized logits, [1, C, *size].

        Raises:
            ValueError: This output gives no logits.
        """
        if not self.logits or not isinstance(found, Maps):
            raise ValueError(f"the output '{self.name}' gives no logits")
        return found.resized(size).scores.softmax(dim=1)

    def _threshold(self) -> float:
        if self.threshold is None:
            raise ValueError(f"the output '{self.name}' has no background and no threshold")
        return self.threshold


@dataclass(frozen=True)
class SegmentationProtocol:
    """How a segmentation is predicted. The defaults are one pass over the image as it is, as in training's validation.

    Attributes:
        long_side: Images are resized to this long side first; 0: as they are.
        scales: Of the passes; they hold 1.
        mirror: Average with the mirror image.
    """

    long_side: int = 0
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False


@dataclass(frozen=True)
class Found:
    """The outputs of a method for one image.

    Attributes:
        outputs: Output's name -> maps [1, c, h, w], label int64 [h, w], or affinity of one image.
        class_ids: Of the classes that count, given or predicted: 1..K, rising.
        class_logits: The classifier's, float [K]; None where the method has no classifier.
    """

    outputs: Mapping[str, Said]
    class_ids: tuple[int, ...]
    class_logits: Tensor | None = None


class ParameterGroup(TypedDict):
    """Parameters that share a learning rate; the schedule scales ``base_lr``."""

    name: str
    params: list[nn.Parameter]
    base_lr: float
    weight_decay: float


@dataclass
class StepOutput:
    """The results of one forward pass of a step.

    Attributes:
        losses: Name -> scalar with gradient.
        weights: Name -> weight of that loss in this step's total; the same names.
        scalars: Further figures for the log, as scalars on the device.
        targets: Labels that supervised this step, for tests and displays.
        resting: Parameters that the optimiser leaves alone in this step, with their moments: after many gradients of 0,
            its first steps would be several times too large. They need a gradient of 0 all the same, because several
            processes wait for the gradients of all parameters. Depends on the step alone, not on the batch.
    """

    losses: dict[str, Tensor]
    weights: dict[str, float]
    scalars: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    resting: Sequence[nn.Parameter] = ()

    def total(self) -> Tensor:
        """The weighted sum of the losses."""
        terms = [self.weights[name] * loss for name, loss in self.losses.items()]
        return sum(terms[1:], start=terms[0])


class Runtime(Protocol):
    """The services of the engine for a method."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        ...

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which networks run at the run's precision."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes; all of them must call it."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """The :class:`Runtime` for a method in one process, in float32."""

    device: torch.device = torch.device("cpu")
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Full precision."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


class Method(ABC):
    """A network, with its training and its prediction.

    Args:
        config: An object of :attr:`config_class`.
        class_names: K names, without the background.
        runtime: Where it runs.

    Attributes:
        network: All that is trained and saved, copies such as a moving average included.
        outputs: What it computes for an image; the last one that is scored decides which checkpoint is best.
    """

    name: ClassVar[str]
    """Its name in configurations and checkpoints."""

    config_class: ClassVar[type[RunConfig]]
    """The class of its configuration."""

    needs: tuple[str, ...] = ("class_labels",)
    """What training samples must contain: ``class_labels``, ``pixel_labels``, ``maps/NAME``, ``saliency``. A method
    whose needs depend on its settings sets them in ``__init__``."""

    sampler: ClassVar[Literal["images", "pairs"]] = "images"
    """``pairs``: two images with a class in common are neighbours in a batch."""

    low_precision: ClassVar[bool] = False
    """Whether :meth:`predict` runs its network inside :meth:`network_pass` alone, and makes float32 of what comes out.
    Then two threads may be in it at once. Where it does not, ``test.precision`` other than float32 is refused."""

    precision: str = "float32"
    """Of the network's passes in :meth:`predict`; who opens a trained method sets it. Training leaves it alone."""

    turn: AbstractContextManager[Any] = nullcontext()
    """What a pass of the network waits for; a lock where several threads predict."""

    on_host: ClassVar[frozenset[str]] = frozenset({"class_labels"})
    """Keys of a batch that decide shapes, and so stay on the host: then a step does not wait for a GPU."""

    network: nn.Module
    outputs: tuple[Output, ...]

    def __init__(self, config: Any, class_names: Sequence[str], runtime: Runtime) -> None:
        self.config, self.class_names, self.runtime = config, tuple(class_names), runtime

    @abstractmethod
    def transform(self) -> Transform:
        """The training transform."""

    def validation_transform(self) -> Transform | None:
        """The transform for validation losses without masks: a sample -> the input of a training step.

        None: without masks there is no validation.
        """
        return None

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters to optimise; a frozen group has learning rate 0."""

    @abstractmethod
    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """Forward pass, labels and losses of step ``step``, counted from 0.

        Args:
            network: :attr:`network`, possibly wrapped: the pass that gets gradients goes through it.
            batch: On the device, but for the keys in :attr:`on_host`.
            step: Counted from 0.
        """

    @abstractmethod
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """The outputs for images. The caller sets the mode of the network; this changes no state.

        Args:
            samples: Whose images have one size, and one ``network_size``.
            wanted: Names of outputs, whose inputs the samples have.
            protocol: For segmentations.

        Returns:
            One for each sample, with the wanted outputs. Options of single methods, such as scales of CAMs, are in the
            method's configuration.
        """

    @contextmanager
    def network_pass(self) -> Iterator[None]:
        """Context for one pass of the network in :meth:`predict`: at :attr:`precision`, and not beside another one."""
        with self.turn, at_precision(self.precision, next(self.network.parameters()).device):
            yield

    def most_pixels(self, wanted: Sequence[str]) -> float | None:
        """The largest image, in pixels, that memory allows the network to see at once; None: any.

        Args:
            wanted: Names of outputs.
        """
        return None

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """Parts of the network that start from pretrained weights, and the file, folder or hub name of each."""
        return ()

    def after_step(self, step: int, bad: Tensor) -> None:  # noqa: B027 - nothing to do, for most methods
        """Called after each update.

        Args:
            step: Counted from 0.
            bad: 0-dimensional, 1 if the step was skipped because something was not finite. On the device.
        """

    def concerns(self, means: Mapping[str, float]) -> Mapping[str, str]:
        """What looks wrong in the means since the last record, and what to do about it.

        Each is said once. Without masks, nothing else tells users that labels went wrong.

        Args:
            means: Losses as ``loss/NAME``, and the scalars of :class:`StepOutput`.

        Returns:
            The name of a mean that looks wrong -> a line for people.
        """
        return {}

    def after_training(self, samples: Iterable[Sample]) -> None:  # noqa: B027 - as above
        """Called once, after the last update and before the last checkpoint.

        Args:
            samples: All training images, as they are, in the order of the list. On every process alike.
        """

    def output(self, name: str) -> Output:
        """The output of a name.

        Raises:
            KeyError: There is none.
        """
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(name)


def possible_outputs(method: Method, given: Collection[str]) -> tuple[Output, ...]:
    """The outputs that need only the given inputs.

    Args:
        method: Its outputs count.
        given: Names of inputs, as :attr:`Output.inputs` spells them.
    """
    return tuple(output for output in method.outputs if set(output.inputs) <= set(given))


def named_input_outputs(outputs: Sequence[Output], dataset: DatasetConfig) -> list[Output]:
    """The default outputs: those whose inputs the settings name. A message names the others, which are left out.

    Args:
        outputs: Of a method.
        dataset: Names folders of inputs.

    Returns:
        All of them if the settings are not enough for any: then the missing inputs are a mistake.
    """
    unnamed = {
        output.name: [f"dataset.{setting_of(name)}" for name in output.inputs if not _is_given(dataset, name)]
        for output in outputs
    }
    kept = [output for output in outputs if not unnamed[output.name]]
    if not kept:
        return list(outputs)
    for output in outputs:
        if unnamed[output.name]:
            say(f"the output '{output.name}' is left out: {', '.join(unnamed[output.name])} is not set")
    return kept


def _is_given(dataset: DatasetConfig, name: str) -> bool:
    return name == CLASS_LABELS or is_named(dataset, name)


def missing_inputs(outputs: Sequence[Output]) -> str:
    """A message about outputs that need more than an image: what they need, and how to get them.

    Args:
        outputs: Each with inputs.
    """
    names = ", ".join(output.name for output in outputs)
    needed = list(dict.fromkeys(name for output in outputs for name in output.inputs))
    folders = dict.fromkeys(f"dataset.{setting_of(name)}=FOLDER" for name in needed if name != CLASS_LABELS)
    how = f"'afa label' writes them for the images of a list, with {' '.join(folders)}" if folders else "give them"
    return f"an image alone is not enough for {names}, which needs {', '.join(needed)}: {how}"


def named_outputs(offered: Iterable[Output], names: Sequence[str] | None, what: str) -> list[Output]:
    """The named ones of the offered outputs, in the offered order; all of them if no names are given.

    Args:
        offered: Some outputs of a method.
        names: Of those that are wanted.
        what: Who names them, for the message.

    Raises:
        UserError: None of them has such a name.
    """
    by_name = {output.name: output for output in offered}
    for name in names or ():
        if name not in by_name:
            raise UserError(f"{what}: '{name}' is none of {', '.join(by_name)}")
    return [output for output in by_name.values() if names is None or output.name in names]


def scored_outputs(method: Method) -> tuple[Output, ...]:
    """The outputs that an evaluation scores."""
    return tuple(output for output in method.outputs if output.scored)


def label_output(method: Method, kind: str) -> Output | None:
    """The output whose labels a user means by a name; None where there is none.

    ``x`` is the output ``x_label`` where there is one (labels as training makes them), else the output ``x``.
    ``plain`` is the label of the first maps without background, by a threshold.
    """
    offered = {output.name: output for output in method.outputs if output.kind != "affinity"}
    if kind == "plain":
        return next((output for output in offered.values() if output.threshold is not None), None)
    return offered.get(f"{kind}_label", offered.get(kind))
