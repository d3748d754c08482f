"""What one watched forward pass did, as plain data: module calls, layers, functions, sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynome_recorder.tracing.layers import Layer
    from dynome_recorder.tracing.outputs import Output


@dataclass(frozen=True)
class Call:
    """One call of one module in the traced forward pass.

    Attributes
    ----------
    module, call, type
        The module's path, which call of it (from 0), its class name.
    leaf
        Whether it called no other module.
    layer
        Index of its layer, or None where it is no leaf.
    outputs
        Every leaf of what it returned, in order: one with an empty path where it returned a tensor alone.
    """

    module: str
    call: int
    type: str
    leaf: bool
    layer: int | None
    outputs: tuple[Output, ...]

    @property
    def recordable(self) -> tuple[Output, ...]:
        """The outputs that can be recorded."""
        return tuple(output for output in self.outputs if output.problem is None)

    @property
    def problem(self) -> str | None:
        """Why nothing of its output can be recorded, as the end of the sentence "the module ..."; None where some
        can."""
        return None if self.recordable else self.outputs[0].problem

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Shape of the first output that can be recorded, else of the first; None where that is no tensor."""
        return (*self.recordable, *self.outputs)[0].shape

    @property
    def output_dtype(self) -> str | None:
        """The same output's dtype."""
        return (*self.recordable, *self.outputs)[0].dtype


@dataclass(frozen=True)
class FunctionUse:
    """A function that a container module calls on data: an activation or a weight that no hook sees."""

    module: str
    function: str
    count: int
    is_activation: bool


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    Attributes
    ----------
    calls
        Every module call, in the order in which the calls ended.
    layers
        The leaf calls with their sources, in call order.
    functions
        Activation functions and parameters that container modules use directly.
    never_called
        Paths of modules that the pass did not call.
    output_sources
        Layers whose outputs reach the model's output with no other layer between.
    weighted_sources
        Layers whose outputs some weight matrix reads, in a layer or in a function.
    """

    calls: tuple[Call, ...]
    layers: tuple[Layer, ...]
    functions: tuple[FunctionUse, ...]
    never_called: tuple[str, ...]
    output_sources: tuple[int, ...]
    weighted_sources: tuple[int, ...]
