"""Tensors by site name, as `tap` returns them, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dynome_recorder.capture.reductions import dtype_name
from dynome_recorder.representation import Display

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

Keep = Literal["last", "all"]


class Tensors(Mapping[str, Any]):
    """A mapping from site name to a tensor, or with ``keep="all"`` to a list: one tensor per pass, None for none."""

    def __init__(self, keep: Keep, *, what: str) -> None:
        self.keep = keep
        self._what = what
        self._values: dict[str, list[torch.Tensor | None]] = {}

    def __getitem__(self, site: str) -> Any:
        """Return a site's tensor; with ``keep="all"`` its tensors in the order of the passes."""
        if site not in self:
            import difflib

            near = difflib.get_close_matches(str(site), list(self), n=3, cutoff=0.4) or list(self)[:8]
            shown = f"there is {', '.join(map(repr, near))}" if near else "there is none at all"
            raise KeyError(f"no {self._what} of {site!r}; {shown}")
        return self._values[site] if self.keep == "all" else self._values[site][-1]

    def __contains__(self, site: object) -> bool:
        """Whether the site has a tensor."""
        return any(value is not None for value in self._values.get(site, ()))  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of sites, in the order of their first calls."""
        return (site for site in self._values if site in self)

    def __len__(self) -> int:
        """Return the number of sites."""
        return sum(1 for _ in self)

    def slot(self, site: str) -> Callable[[torch.Tensor], None]:
        """Make room for the tensor of one more pass, and return what puts it there."""
        if self.keep == "last":
            self._values[site] = []  # frees the earlier pass; a gradient of it that comes late goes nowhere
        values = self._values.setdefault(site, [])
        values.append(None)
        place = len(values) - 1

        def put(value: torch.Tensor) -> None:
            values[place] = value

        return put


def show_tensors(tensors: Tensors, *, passes: int, gradients: int | None) -> Display:
    """Return the table of the last tensor of each site.

    Parameters
    ----------
    tensors
        What was kept.
    passes
        Number of forward passes seen.
    gradients
        Number of sites with a gradient; None where none were asked for.
    """
    rows = []
    for site in tensors:
        kept = tensors[site] if tensors.keep == "all" else [tensors[site]]
        last = next(value for value in reversed(kept) if value is not None)
        count = (f"{len(kept)}",) if tensors.keep == "all" else ()
        rows.append((site, *count, " x ".join(map(str, last.shape)) or "scalar", dtype_name(last), *_statistics(last)))
    count = ("passes",) if tensors.keep == "all" else ()
    what = f"{len(rows)} site{'s' * (len(rows) != 1)}, {passes} forward pass{'es' * (passes != 1)}"
    facts = (("gradients", "" if gradients is None else f"of {gradients} sites"),)
    headings = ("site", *count, "shape", "dtype", "mean", "deviation", "zeros")
    return Display(f"Activations: {what}", facts, headings, tuple(rows))


def _statistics(values: torch.Tensor) -> tuple[str, str, str]:
    if values.numel() == 0 or values.is_complex():
        return "", "", ""
    numbers = values.float() if values.device.type == "mps" else values.double()  # which has no float64
    zeros = float((numbers == 0).to(numbers.dtype).mean())
    return f"{float(numbers.mean()):.4g}", f"{float(numbers.std(correction=0)):.4g}", f"{zeros:.1%}"
