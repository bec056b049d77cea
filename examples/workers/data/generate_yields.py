"""Prints yields.json: a made-up series of hourly supply yields of a lending pool.

Nothing in it was measured. It imitates what such a series looks like:

- use of the pool drifts around 76 % and comes back, with a daily rhythm (momentum makes it an AR(2) process);
- the yield follows use gently below 80 % and steeply above it, as the rate models of lending pools do;
- a large borrower comes now and then, and its loan shrinks over the following hours.

The seed is fixed and only `random.random()` is drawn from, so every machine prints the same bytes.
"""

import json
import math
import random

SEED = 11
POINTS = 400
STEP_SECONDS = 3600
START = 1740787200  # 2025-03-01T00:00:00Z

KINK = 0.80  # share of the pool that is lent out where the rate turns steep


def gaussian(chance):
    """About normal with variance 1: twelve uniform draws, whose sequence is the same in every Python."""
    return sum(chance.random() for _ in range(12)) - 6.0


def yield_at(use):
    """Supply yield in percent a year when `use` (0 to 1) of the pool is lent out."""
    borrow_rate = 6.0 * min(use, KINK) / KINK + 60.0 * max(0.0, use - KINK) / (1.0 - KINK)
    return borrow_rate * use * 0.9


def series():
    chance = random.Random(SEED)
    drift = before = 0.0
    loan = 0.0
    for hour in range(POINTS):
        drift, before = 1.55 * drift - 0.60 * before + 0.003 * gaussian(chance), drift
        loan *= 0.90
        if chance.random() < 0.012:
            loan += 0.01 + 0.03 * chance.random()
        daily = 0.012 * math.sin(2.0 * math.pi * (hour % 24 - 8) / 24.0)
        use = min(0.97, max(0.30, 0.76 + drift + daily + loan))
        yield {"t": START + hour * STEP_SECONDS, "apy": round(yield_at(use), 3)}


def main():
    points = ",\n    ".join(json.dumps(point) for point in series())
    print(
        "{\n"
        '  "about": "SYNTHETIC: made by generate_yields.py, measured nowhere",\n'
        '  "unit": "percent a year",\n'
        f'  "step_seconds": {STEP_SECONDS},\n'
        f'  "points": [\n    {points}\n  ]\n'
        "}"
    )


if __name__ == "__main__":
    main()
