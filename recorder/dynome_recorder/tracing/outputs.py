"""What a module returned, as a tree: every leaf has a path, and a path leads to the same leaf in the next forward pass.

Tuples, lists, named tuples, mappings and dataclasses (the ``ModelOutput`` of Hugging Face is both of the latter) are
walked; anything else is a leaf. A path is a tuple of positions and names; its text is what follows the colon in a
site's name: ``lstm:1.0``, ``encoder:hidden_states.3``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

OutputPath: TypeAlias = "tuple[str | int, ...]"

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Output:
    """One leaf of what a module returned in the traced pass.

    Attributes
    ----------
    path
        Where it is; empty where the module returned it alone.
    shape
        With the sample axis first; None where it is no tensor.
    dtype
        ``"float32"`` and so on; None as above.
    problem
        Why it cannot be recorded, as the end of the sentence "the module ..."; None where it can.
    """

    path: OutputPath
    shape: tuple[int, ...] | None
    dtype: str | None
    problem: str | None


def leaves(output: Any, path: OutputPath = ()) -> Iterator[tuple[OutputPath, Any]]:
    """Yield path and value of every leaf of a module's output, in order; an empty container is a leaf."""
    members = [(key, value) for key, value in _members(output) if _is_key(key)]
    if not members or _has_odd_keys(output):
        yield path, output
    for key, value in members:
        yield from leaves(value, (*path, key))


def extract_output(output: Any, path: OutputPath) -> Any:
    """Return the leaf at ``path`` of what a module returned; for the empty path, the output itself.

    Raises
    ------
    InvalidDataError
        If the output has nothing there: its form has changed since it was traced.

    Notes
    -----
    Cost: one look-up per part of the path.
    """
    found = output
    for key in path:
        try:
            found = found[key] if isinstance(key, int) or isinstance(found, Mapping) else getattr(found, key)
        except (LookupError, TypeError, AttributeError) as error:
            raise InvalidDataError(
                f"the output has no {path_text(path)!r}: a {type(found).__name__} came where {key!r} was looked for;"
                " modules must return the same form in all passes."
            ) from error
    return found


def path_text(path: OutputPath) -> str:
    """Return what names a path in a site's name: ``"1.0"``, ``"hidden_states.3"``; odd keys are quoted."""
    return ".".join(str(key) if isinstance(key, int) or _PLAIN_KEY.fullmatch(key) else repr(key) for key in path)


def judge(path: OutputPath, value: Any, samples: int) -> Output:
    """Say what a leaf is and what stands in the way of recording it, in a batch of ``samples`` samples."""
    import torch

    if not isinstance(value, torch.Tensor):
        return Output(path, None, None, f"returns {_kind(value)}, no tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    if _is_transformed(value):
        return Output(
            path, None, dtype, "runs inside torch.func (vmap, grad): its values exist only there; record around it"
        )
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        return Output(path, None, dtype, f"returns a {kind} tensor; only dense ones can be recorded")
    shape = tuple(value.shape)
    if not value.is_floating_point():
        way = "; record its real and imaginary parts, or its magnitude, by a module" if value.is_complex() else ""
        return Output(path, shape, dtype, f"returns {dtype} values, not floating-point ones{way}")
    if not shape or shape[0] != samples:
        second = len(shape) > 1 and shape[1] == samples
        way = " (its second is: batch_first=True, or a module that transposes it, helps)" if second else ""
        return Output(
            path,
            shape,
            dtype,
            f"returns shape {shape}, whose first axis is not the batch's {samples} samples{way};"
            " only outputs with one row per sample can be recorded",
        )
    return Output(path, shape, dtype, None)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
        return
    for _, member in _members(value):
        yield from tensors_in(member)


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        yield from zip(names, value, strict=True) if names is not None else enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name, None)


def _is_key(key: Any) -> bool:
    return type(key) in (str, int)


def _has_odd_keys(value: Any) -> bool:
    return isinstance(value, Mapping) and not all(map(_is_key, value))


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    if _has_odd_keys(value):
        return f"a {name} with keys that are neither texts nor integers"
    empty = isinstance(value, (tuple, list, Mapping)) and len(value) == 0
    return f"an empty {name}" if empty else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _is_transformed(value: torch.Tensor) -> bool:
    import torch

    # A tensor inside vmap or grad is a wrapper that is dead outside; torch has no public way to ask.
    functorch = getattr(torch._C, "_functorch", None)
    is_wrapped = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return bool(is_wrapped is not None and is_wrapped(value))
