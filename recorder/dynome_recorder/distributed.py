"""Several processes, one recording: who this process is, and the few moments at which all of them speak.

The rule to keep: collectives happen only while a recording opens and while a training loop starts, never while it runs;
there each rank writes its own files and the log tells whose are still missing (FORMAT.md, "Ranks").
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dynome_recorder import errors
from dynome_recorder.errors import DynomeError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Which process of how many this is.

    Attributes
    ----------
    rank, world
        As torch.distributed counts them; 0 of 1 outside of it.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process keeps the log, the metrics and the weights: rank 0."""
        return self.rank == 0


def find_place() -> Place:
    """Return the place of this process; never imports torch.distributed and never starts anything."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return Place()
    return Place(rank=distributed.get_rank(), world=distributed.get_world_size())


def lead(place: Place, doing: Callable[[], Result]) -> Result:
    """Do something on rank 0 alone and return its result on every rank; its error is raised on every rank.

    Every rank must call this. The result must be picklable; it travels between the processes of one training run and is
    never stored.
    """
    if place.world == 1:
        return doing()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if place.leads:
        try:
            outcome[0] = doing()
        except Exception as caught:
            error, outcome[1] = caught, _told(caught)
    _distributed().broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise _heard(0, outcome[1])
    result: Result = outcome[0]
    return result


def together(place: Place, doing: Callable[[], Result]) -> Result:
    """Do something on every rank; where it fails on one, it raises on all, so that none waits for the others."""
    if place.world == 1:
        return doing()
    result: Result | None = None
    error: Exception | None = None
    try:
        result = doing()
    except Exception as caught:
        error = caught
    told: list[Any] = [None] * place.world
    _distributed().all_gather_object(told, None if error is None else _told(error))
    if error is not None:
        raise error
    for rank, failure in enumerate(told):
        if failure is not None:
            raise _heard(rank, failure)
    return result  # type: ignore[return-value]


def same(place: Place, name: str, value: Any) -> None:
    """Raise unless ``value`` is equal on all ranks: each would record something else under one name.

    Raises
    ------
    InvalidArgumentError
        On every rank, naming what differs.
    """
    if place.world == 1:
        return
    told: list[Any] = [None] * place.world
    _distributed().all_gather_object(told, value)
    for rank, other in enumerate(told):
        if other != told[0]:
            raise InvalidArgumentError(
                f"{name} must be the same on all ranks; rank 0 has {told[0]!r:.80}, rank {rank} has {other!r:.80}."
            )


def _told(error: Exception) -> tuple[str, str]:
    """Return an error as it travels: its kind and its text."""
    return type(error).__name__, str(error.args[0]) if isinstance(error, DynomeError) and error.args else str(error)


def _heard(rank: int, told: tuple[str, str]) -> Exception:
    """Return an error of another rank: of the same kind where it is one of ours."""
    kind = getattr(errors, told[0], None)
    if isinstance(kind, type) and issubclass(kind, DynomeError):
        return kind(f"rank {rank}: {told[1]}")
    return DynomeError(f"rank {rank}: {told[0]}: {told[1]}")


def _distributed() -> Any:
    return sys.modules["torch.distributed"]
