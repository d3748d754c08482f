"""Vertices and connections of a weight graph; while a model is walked, which vertices are one, what bypasses what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Structure", "VertexForest", "VertexGroup"]


@dataclass(frozen=True)
class VertexGroup:
    """Vertices of one layer, numbered from ``start``.

    Attributes
    ----------
    name
        ``"input"``, or the layer: module path, ``@call`` behind it from the second call on. Layers whose outputs are
        added share their vertices and are joined by ``+``.
    start, size
        First vertex, number of vertices.
    """

    name: str
    start: int
    size: int

    @property
    def vertices(self) -> slice:
        """Where the group lies in a vector over all vertices."""
        return slice(self.start, self.start + self.size)


class _Edges(Protocol):
    @property
    def parameter(self) -> str | None: ...
    @property
    def n_edges(self) -> int: ...


ConnectionType = TypeVar("ConnectionType", bound=_Edges)


@dataclass(frozen=True)
class Structure(Generic[ConnectionType]):
    """Vertices and connections of a weight graph, before any weight."""

    groups: tuple[VertexGroup, ...]
    connections: tuple[ConnectionType, ...]

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return sum(group.size for group in self.groups)

    @property
    def n_edges(self) -> int:
        """Number of edges; edges of weight zero count, parallel edges count each."""
        return sum(connection.n_edges for connection in self.connections)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the recorded weights that the graph needs, each once."""
        return tuple(dict.fromkeys(link.parameter for link in self.connections if link.parameter is not None))


class VertexForest:
    """Groups by number, in the order in which they were made; merged groups answer to the lowest of their numbers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes: list[int] = []
        self._merged_into: list[int] = []
        self._parents: list[set[int]] = []
        self._bypassed: list[tuple[int, int]] = []

    def add(self, name: str, size: int, *, parents: Iterable[int] = ()) -> int:
        """Make a group that reads from ``parents`` and return its number."""
        self.names.append(name)
        self.sizes.append(size)
        self._merged_into.append(len(self.names) - 1)
        self._parents.append(set(parents))
        return len(self.names) - 1

    def find(self, group: int) -> int:
        """Return the present number of a group."""
        while self._merged_into[group] != group:
            group = self._merged_into[group]
        return group

    def upstream(self, group: int) -> set[int]:
        """Return every group that a group depends on, by present numbers."""
        found: set[int] = set()
        frontier = [group]
        while frontier:
            fresh = {self.find(parent) for parent in self._parents[frontier.pop()]} - found
            found |= fresh
            frontier += fresh
        return found

    def merge(self, groups: Sequence[int]) -> int:
        """Let groups of one size, none upstream of another, be one, and return its number."""
        first, *others = groups
        for other in others:
            self._merged_into[other] = first
            self.names[first] += "+" + self.names[other]
            self._parents[first] |= self._parents[other]
        return first

    def bypass(self, group: int, head: int) -> bool:
        """Note an identity shortcut; False where a chain of earlier shortcuts leads there already.

        A function adds without being seen: after two blocks the sum of both shortcuts reaches the next layer, the
        first of them through the second alone.
        """
        reached, frontier = {head}, [head]
        while frontier:
            target = frontier.pop()
            fresh = {self.find(first) for first, second in self._bypassed if self.find(second) == target} - reached
            reached |= fresh
            frontier += fresh
        if group in reached:
            return False
        self._bypassed.append((group, head))
        return True

    def number(self) -> tuple[tuple[VertexGroup, ...], dict[int, int]]:
        """Return the groups that are left, their vertices numbered, and each present number's place among them."""
        groups: list[VertexGroup] = []
        places: dict[int, int] = {}
        start = 0
        for group, size in enumerate(self.sizes):
            if self.find(group) == group:
                places[group] = len(groups)
                groups.append(VertexGroup(self.names[group], start, size))
                start += size
        return tuple(groups), places
