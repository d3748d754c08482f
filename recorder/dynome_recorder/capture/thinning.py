"""How often a stream is recorded that comes faster than it can be written: a state machine of plain numbers.

Every snapshot that finds no buffer halves the rate. Every one that is taken while nothing else waits to be written, the
earlier ones all being on disk, doubles it again, up to every due one.
"""

from __future__ import annotations

_LEAST_RATE = 2**20


class Thinning:
    """Says which due snapshots of one stream to take.

    Attributes
    ----------
    stride
        Every how many due snapshots one is taken: 1, 2, 4, ...
    """

    def __init__(self) -> None:
        self.stride = 1
        self._passed = 0  # due snapshots left out since the last one that was to be taken
        self._fresh = True  # whether the rate was changed, or never tried, since a snapshot was taken last

    def wants(self) -> bool:
        """Return whether to try the snapshot that is due now; call it once for each."""
        if self._passed + 1 < self.stride:
            self._passed += 1
            return False
        self._passed = 0
        return True

    def note(self, *, full: bool, idle: bool = True) -> None:
        """Tell how it went with a snapshot that was wanted.

        Parameters
        ----------
        full
            Whether there was no buffer for it.
        idle
            Whether nothing waited to be written just before it was taken.
        """
        if full:
            self.stride = min(2 * self.stride, _LEAST_RATE)
            self._fresh = True
        elif self._fresh:
            self._fresh = False  # the first at this rate: that the queue is empty says nothing of the rate yet
        elif idle and self.stride > 1:
            self.stride //= 2
            self._fresh = True
