"""Decision rules restated from METHODS.md sections 4 and 5 as plain loops; imports nothing of ours."""

import math


def patience_walk(
    epochs: list[int], values: list[float], mode: str, patience: int, burn_in: int
) -> tuple[int | None, int | None]:
    """Best epoch and trigger epoch (None: never) of best-and-patience over a whole series at once."""
    counted = [(epoch, value) for epoch, value in zip(epochs, values) if epoch >= burn_in]
    while counted and math.isnan(counted[0][1]):
        counted = counted[1:]
    if not counted:
        return None, None
    best_epoch, best = counted[0]
    bad = 0
    for epoch, value in counted[1:]:
        good = value <= best if mode == "min" else value >= best
        if good:
            best_epoch, best, bad = epoch, value, 0
        else:  # a NaN compares as false, so it lands here
            bad += 1
            if bad == patience:
                return best_epoch, epoch
    return best_epoch, None


def published_fp_walk(scores: list[float], burn_in: int, patience: int) -> tuple[int | None, int | None]:
    """The published functional-persistence procedure by indices: large is good, one score per epoch from 0.

    The best is the last index that attains the running maximum; the trigger is the first index that lies
    `patience` past the last such index.
    """
    record = None
    for index in range(burn_in, len(scores)):
        if scores[index] == max(scores[burn_in : index + 1]):
            record = index
        elif index - record == patience:
            return record, index
    return record, None


def best_of(epochs: list[int], values: list[float], mode: str, burn_in: int) -> int | None:
    """First epoch that holds the extreme value."""
    counted = [(epoch, value) for epoch, value in zip(epochs, values) if epoch >= burn_in and not math.isnan(value)]
    if not counted:
        return None
    extreme = (min if mode == "min" else max)(value for _, value in counted)
    return next(epoch for epoch, value in counted if value == extreme)


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def learning_rates(
    distances: list[float],
    lr0: float,
    T0: float,
    alpha: float = 0.6,
    w: int = 10,
    hi_on: float = 2.0,
    hi_off: float = 1.0,
    lo_on: float = -1.0,
    lo_off: float = -0.5,
    down: float = 0.6,
    up: float = 1.1,
    g_min: float = 0.1,
    g_max: float = 3.0,
    guard: float = 0.01,
) -> list[tuple[float, str, float, float]]:
    """(z, state, g, lr) after every distance; each z is found anew from the whole series before it."""
    trace = []
    state, g = "NEUTRAL", 1.0
    for t, d in enumerate(distances):
        z = math.nan
        past = distances[max(0, t - w) : t]
        if 2 * len(past) >= w:
            m = middle(past)
            mad = middle([abs(x - m) for x in past])
            scale = max(1.4826 * mad, guard * abs(m))
            if scale > 0:
                z = (d - m) / scale
            elif d == m:
                z = 0.0
            else:
                z = math.inf if d > m else -math.inf
            if state == "UNSTABLE" and z < hi_off:
                state = "NEUTRAL"
            if state == "STABLE" and z > lo_off:
                state = "NEUTRAL"
            if state == "NEUTRAL" and z > hi_on:
                state = "UNSTABLE"
            if state == "NEUTRAL" and z < lo_on:
                state = "STABLE"
            if state == "UNSTABLE":
                g = g * down
            if state == "STABLE":
                g = g * up
            if g < g_min:
                g = g_min
            if g > g_max:
                g = g_max
        trace.append((z, state, g, g * lr0 / (1 + t / T0) ** alpha))
    return trace
