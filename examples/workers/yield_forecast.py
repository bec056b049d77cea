#!/usr/bin/env python3
"""A worker for the agent's `process` runner: forecasts a yield series with an autoregressive model.

One JSON object comes in on stdin, JSON lines go out on stdout: progress, then the result. README.md beside this file
tells what both look like. Only Python's standard library is needed (3.8 or newer).
"""

import json
import math
import sys
from datetime import datetime
from pathlib import Path

EXIT_BAD_INPUT = 65  # EX_DATAERR of sysexits.h: trying again with the same input is in vain

MAX_INPUT_BYTES = 16 * 1024 * 1024
MAX_POINTS = 100_000
MAX_HORIZON = 1_000
MIN_POINTS = 40  # leaves 8 points each to choose the order by and to measure the error on
MAX_ORDER = 5

# As a share of the number of equations. Yields hardly move from one step to the next, so the columns of the problem are
# almost equal; this keeps it solvable, and leaves well-determined coefficients as they are.
RIDGE = 1e-6


class BadInput(Exception):
    """The task cannot be done as it was given; the message says what is wrong with it."""


# --- the model: y[t] = mean + sum(coefficient[i] * (y[t-1-i] - mean)) ------------------------------------------------


class Model:
    """An autoregressive model AR(p), fitted by least squares."""

    def __init__(self, mean, coefficients):
        self.mean = mean
        self.coefficients = coefficients

    @classmethod
    def fit(cls, series, order):
        """Fits `order` coefficients to `series`, which is longer than twice `order`."""
        mean = math.fsum(series) / len(series)
        # To a variance of about one, so that the ridge means the same for percent and for shares.
        scale = math.sqrt(math.fsum((y - mean) ** 2 for y in series) / len(series)) or 1.0
        z = [(y - mean) / scale for y in series]
        times = range(order, len(z))
        lagged = [[z[t - 1 - i] for t in times] for i in range(order)]
        target = [z[t] for t in times]

        gram = [[dot(a, b) for b in lagged] for a in lagged]
        for i in range(order):
            gram[i][i] += RIDGE * len(target)
        return cls(mean, solve(gram, [dot(a, target) for a in lagged]))

    def next(self, past):
        """The value expected after `past`, a series of at least p values."""
        return self.mean + sum(c * (past[-1 - i] - self.mean) for i, c in enumerate(self.coefficients))

    def forecast(self, past, horizon):
        """The next `horizon` values, each predicted from those before it."""
        values = list(past[-len(self.coefficients) :])
        for _ in range(horizon):
            values.append(self.next(values))
        return values[-horizon:]

    def is_stationary(self):
        """Whether forecasts return to the mean instead of running away (the Schur-Cohn step-down test)."""
        remaining = list(self.coefficients)
        while remaining:
            last = remaining.pop()
            if abs(last) >= 1.0:
                return False
            remaining = [(c + last * r) / (1.0 - last * last) for c, r in zip(remaining, reversed(remaining))]
        return True


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def solve(matrix, right):
    """Solves matrix * x = right by Gaussian elimination with partial pivoting."""
    size = len(right)
    rows = [list(row) + [value] for row, value in zip(matrix, right)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(column + 1, size):
            factor = rows[r][column] / rows[column][column]
            for c in range(column, size + 1):
                rows[r][c] -= factor * rows[column][c]
    x = [0.0] * size
    for r in reversed(range(size)):
        x[r] = (rows[r][size] - sum(rows[r][c] * x[c] for c in range(r + 1, size))) / rows[r][r]
    return x


def errors(series, start, predict):
    """One-step errors of `predict` on series[start:], each seeing all that came before."""
    misses = [series[t] - predict(series[max(0, t - MAX_ORDER) : t]) for t in range(start, len(series))]
    return {
        "mae": math.fsum(abs(m) for m in misses) / len(misses),
        "rmse": math.sqrt(math.fsum(m * m for m in misses) / len(misses)),
    }


def analyse(series, horizon, report):
    """Chooses p, measures it on points that had no part in the choice, and forecasts with all points.

    The first 60 % fit each candidate, the next 20 % choose among them, and the last 20 % are the hold-out.
    """
    choose_from, hold_out_from = len(series) * 3 // 5, len(series) * 4 // 5

    def rmse_of(order):
        report(0.1 + 0.12 * order, f"trying p = {order}")
        model = Model.fit(series[:choose_from], order)
        return errors(series[:hold_out_from], choose_from, model.next)["rmse"]

    order = min(range(1, MAX_ORDER + 1), key=rmse_of)

    report(0.8, f"p = {order}, measuring on the last {len(series) - hold_out_from} points")
    held_out = errors(series, hold_out_from, Model.fit(series[:hold_out_from], order).next)
    naive = errors(series, hold_out_from, lambda past: past[-1])

    report(0.9, f"forecasting {horizon} steps")
    model = Model.fit(series, order)
    return {
        "forecast": model.forecast(series, horizon),
        "p": order,
        "coefficients": model.coefficients,
        "mean": model.mean,
        "stationary": model.is_stationary(),
        "points": len(series),
        "holdout": {"points": len(series) - hold_out_from, **held_out, "naive": naive},
    }


# --- input -----------------------------------------------------------------------------------------------------------


def read_task(stream):
    """The series and the horizon that the task asks for."""
    task = parse_json(stream.read(MAX_INPUT_BYTES + 1), "the task on stdin")
    payload = task.get("payload") if isinstance(task, dict) else None
    if not isinstance(payload, dict):
        raise BadInput("the task must be an object with an object `payload`")

    horizon = payload.get("horizon", 12)
    if type(horizon) is not int or not 1 <= horizon <= MAX_HORIZON:
        raise BadInput(f"payload.horizon must be a whole number from 1 to {MAX_HORIZON}, not {shown(horizon)}")

    if ("history" in payload) == ("history_file" in payload):
        raise BadInput("the payload needs either `history` or `history_file`")
    if "history" in payload:
        return parse_history(payload["history"], "payload.history"), horizon
    return parse_history(read_file(payload["history_file"]), "history_file"), horizon


def read_file(name):
    """What a JSON file holds; a relative name starts at this file's folder, wherever the agent started the worker."""
    if not isinstance(name, str):
        raise BadInput(f"payload.history_file must be a path, not {shown(name)}")
    try:
        with open(Path(__file__).resolve().parent / name, "rb") as file:
            content = parse_json(file.read(MAX_INPUT_BYTES + 1), name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadInput(f"cannot read payload.history_file {name!r}: {getattr(error, 'strerror', error)}") from error
    return content.get("points") if isinstance(content, dict) else content


def parse_json(data, name):
    def refuse(constant):
        raise BadInput(f"{name} contains {constant}, which is not JSON")

    if len(data) > MAX_INPUT_BYTES:
        raise BadInput(f"{name} is larger than {MAX_INPUT_BYTES} bytes")
    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not JSON: {error}") from error


def parse_history(history, name):
    """The yields as floats, from numbers or from points {t, apy} that are evenly spaced in time."""
    if not isinstance(history, list):
        raise BadInput(f"{name} must be a list of numbers or of {{t, apy}}, not {shown(history)}")
    if not MIN_POINTS <= len(history) <= MAX_POINTS:
        raise BadInput(f"{name} has {len(history)} points: from {MIN_POINTS} to {MAX_POINTS} are needed")
    if not isinstance(history[0], dict):
        return [parse_number(value, f"{name}[{i}]") for i, value in enumerate(history)]

    for i, point in enumerate(history):
        if not isinstance(point, dict) or not {"t", "apy"} <= point.keys():
            raise BadInput(f"{name}[{i}] must be a point {{t, apy}}, not {shown(point)}")
    check_spacing([parse_time(point["t"], f"{name}[{i}].t") for i, point in enumerate(history)], name)
    return [parse_number(point["apy"], f"{name}[{i}].apy") for i, point in enumerate(history)]


def check_spacing(times, name):
    """Refuses gaps: the model counts steps, so a missing hour would silently shift all before it."""
    steps = [b - a for a, b in zip(times, times[1:])]
    usual = sorted(steps)[len(steps) // 2]
    for i, step in enumerate(steps, start=1):
        if step <= 0 or abs(step - usual) > 0.1 * usual:
            raise BadInput(f"{name}[{i}] comes {step:g} s after the point before it, where {usual:g} s are usual")


def parse_time(value, name):
    """Seconds since 1970, from a number or from a text such as 2025-03-01T00:00:00Z."""
    if not isinstance(value, str):
        return parse_number(value, name)
    try:
        time = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        if time.tzinfo is None:
            raise ValueError("without a time zone")
        return time.timestamp()
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{name} must be a time such as 2025-03-01T00:00:00Z, not {shown(value)}") from error


def parse_number(value, name):
    # In Python, but not in JSON, true is a number. Squares of larger numbers would leave the range of floats.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e100:
        raise BadInput(f"{name} must be a finite number, not {shown(value)}")
    return float(value)


def shown(value):
    """A value for a message: on one line and short, whatever it was."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the runner's contract -------------------------------------------------------------------------------------------


def emit(line):
    """One JSON line, at once: the agent shows progress as it comes."""
    print(json.dumps(line, allow_nan=False), flush=True)


def main():
    try:
        emit({"progress": 0.0, "message": "reading"})
        series, horizon = read_task(sys.stdin.buffer)
        emit({"progress": 0.1, "message": f"{len(series)} points"})
        result = analyse(series, horizon, lambda done, text: emit({"progress": round(done, 3), "message": text}))
        if not all(map(math.isfinite, result["forecast"])):
            raise BadInput(f"the series grows so fast that {horizon} steps ahead leave the range of numbers")
        emit({"progress": 1.0, "message": "done"})
        emit({"result": result})
    except BadInput as error:
        print(f"yield_forecast: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
