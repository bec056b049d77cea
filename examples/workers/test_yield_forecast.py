"""Tests of yield_forecast.py: of its mathematics directly, and of the runner's contract with a real process."""

import json
import math
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import yield_forecast  # noqa: E402  (found through the line above)

WORKER = HERE / "yield_forecast.py"
HOUR = 3600


def autoregressive(coefficients, points, mean=4.0, noise=0.05, seed=1):
    """A series whose true coefficients are known."""
    chance = random.Random(seed)
    z = [0.0] * len(coefficients)
    for _ in range(points + 100):
        z.append(sum(c * z[-1 - i] for i, c in enumerate(coefficients)) + chance.gauss(0.0, noise))
    return [mean + value for value in z[-points:]]


def run_raw(stdin):
    return subprocess.run([sys.executable, str(WORKER)], input=stdin, capture_output=True, timeout=60, check=False)


def run(payload):
    task = {
        "task_id": "0193",
        "attempt": 1,
        "agent_type": "yield",
        "task": "forecast",
        "payload": payload,
        "metadata": {},
    }
    return run_raw(json.dumps(task).encode())


def lines_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


class Mathematics(unittest.TestCase):
    def test_known_coefficients_are_recovered(self):
        for true in ([0.8], [1.5, -0.7], [0.5, 0.2, -0.3]):
            with self.subTest(true=true):
                model = yield_forecast.Model.fit(autoregressive(true, 20_000), len(true))
                for got, expected in zip(model.coefficients, true):
                    self.assertAlmostEqual(got, expected, delta=0.03)
                self.assertAlmostEqual(model.mean, 4.0, delta=0.05)

    def test_equations_are_solved_also_when_the_first_pivot_is_zero(self):
        x = yield_forecast.solve([[0.0, 2.0, 1.0], [1.0, -2.0, -3.0], [-1.0, 1.0, 2.0]], [-8.0, 0.0, 3.0])
        for got, expected in zip(x, [-4.0, -5.0, 2.0]):
            self.assertAlmostEqual(got, expected)

    def test_a_forecast_follows_the_recurrence_and_returns_to_the_mean(self):
        model = yield_forecast.Model(2.0, [0.5])
        self.assertEqual(model.forecast([9.0, 6.0], 3), [4.0, 3.0, 2.5])
        self.assertAlmostEqual(model.forecast([6.0], 200)[-1], 2.0)

    def test_a_model_that_runs_away_is_called_not_stationary(self):
        for coefficients, stationary in (
            ([0.5], True),
            ([1.01], False),
            ([1.5, -0.7], True),
            ([0.6, 0.5], False),
            ([0.0, 0.0, -0.9], True),
            ([0.0, 0.0, -1.1], False),
        ):
            with self.subTest(coefficients=coefficients):
                self.assertEqual(yield_forecast.Model(0.0, coefficients).is_stationary(), stationary)


class Contract(unittest.TestCase):
    def result(self, payload):
        done = run(payload)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return lines_of(done)[-1]["result"]

    def assert_refused(self, done, *words):
        """Exit code 65 and one line that has these words."""
        message = done.stderr.decode()
        self.assertEqual(done.returncode, 65, message)
        self.assertEqual(message.count("\n"), 1, message)
        for word in words:
            self.assertIn(word, message)
        self.assertNotIn(b'"result"', done.stdout)

    def test_an_ar2_series_is_forecast_better_than_by_its_last_value(self):
        result = self.result({"history": autoregressive([1.5, -0.7], 400)})
        holdout = result["holdout"]
        self.assertLess(holdout["mae"], 0.8 * holdout["naive"]["mae"])
        self.assertLess(holdout["rmse"], 0.8 * holdout["naive"]["rmse"])
        self.assertEqual(holdout["points"], 80)
        self.assertGreaterEqual(result["p"], 2)
        self.assertEqual(len(result["coefficients"]), result["p"])
        self.assertTrue(result["stationary"])
        self.assertEqual(len(result["forecast"]), 12)

    def test_the_holdout_errors_are_those_of_a_model_that_has_not_seen_the_holdout(self):
        series = autoregressive([0.7], 100)
        result = self.result({"history": series})
        model = yield_forecast.Model.fit(series[:80], result["p"])
        misses = [abs(series[t] - model.next(series[:t])) for t in range(80, 100)]
        self.assertAlmostEqual(result["holdout"]["mae"], math.fsum(misses) / 20)
        naive = [abs(series[t] - series[t - 1]) for t in range(80, 100)]
        self.assertAlmostEqual(result["holdout"]["naive"]["mae"], math.fsum(naive) / 20)

    def test_progress_rises_from_nothing_to_all_and_the_result_comes_last(self):
        lines = lines_of(run({"history": autoregressive([0.7], 60)}))
        self.assertEqual([list(line) for line in lines[:-1]], [["progress", "message"]] * (len(lines) - 1))
        self.assertEqual(list(lines[-1]), ["result"])
        progress = [line["progress"] for line in lines[:-1]]
        self.assertEqual((progress[0], progress[-1]), (0.0, 1.0))
        self.assertEqual(progress, sorted(progress))
        self.assertGreater(len(set(progress)), 5)

    def test_the_shipped_series_is_forecast_better_than_by_its_last_value(self):
        result = self.result({"history_file": "data/yields.json", "horizon": 24})
        self.assertEqual((result["points"], len(result["forecast"])), (400, 24))
        self.assertLess(result["holdout"]["rmse"], result["holdout"]["naive"]["rmse"])

    def test_points_with_times_give_the_same_result_as_bare_numbers(self):
        series = autoregressive([0.7], 60)
        seconds = [{"t": 1740787200 + i * HOUR, "apy": y} for i, y in enumerate(series)]
        texts = [{"t": f"2025-03-0{1 + i // 24}T{i % 24:02}:00:00Z", "apy": y} for i, y in enumerate(series)]
        expected = self.result({"history": series})
        self.assertEqual(self.result({"history": seconds}), expected)
        self.assertEqual(self.result({"history": texts}), expected)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(seconds, file)
            file.flush()
            self.assertEqual(self.result({"history_file": file.name}), expected)

    def test_a_constant_series_stays_constant(self):
        result = self.result({"history": [4.25] * 50, "horizon": 3})
        self.assertEqual(result["forecast"], [4.25] * 3)
        self.assertEqual(result["holdout"]["mae"], 0.0)

    def test_input_that_is_no_task_is_refused(self):
        self.assert_refused(run_raw(b""), "not JSON")
        self.assert_refused(run_raw(b"\xff\xfe"), "not JSON")
        self.assert_refused(run_raw(b"[" * 100_000), "not JSON")
        self.assert_refused(run_raw(b"[]"), "payload")
        self.assert_refused(run_raw(b'{"payload": []}'), "payload")
        self.assert_refused(run_raw(b'{"payload": {"history": [1, NaN]}}'), "NaN")

    def test_a_bad_history_is_refused_with_the_place_of_its_fault(self):
        good = [4.0] * 50
        for fault in ("4.1", None, True, [1], 1e300):
            with self.subTest(fault=fault):
                self.assert_refused(run({"history": good + [fault]}), "payload.history[50]", "finite number")
        self.assert_refused(run({"history": good[:10]}), "10 points", "40")
        self.assert_refused(run({"history": "4.0"}), "list")
        self.assert_refused(run({}), "history_file")
        self.assert_refused(run({"history": good, "history_file": "data/yields.json"}), "either")

    def test_a_bad_horizon_is_refused(self):
        for horizon in (0, -1, 1001, 1.5, "12", True, None):
            with self.subTest(horizon=horizon):
                self.assert_refused(run({"history": [4.0] * 50, "horizon": horizon}), "payload.horizon")

    def test_gaps_and_disorder_in_time_are_refused(self):
        points = [{"t": i * HOUR, "apy": 4.0} for i in range(50)]
        self.assert_refused(run({"history": points[:20] + points[21:]}), "payload.history[20]", "7200 s", "3600 s")
        self.assert_refused(run({"history": points[:20] + [points[10]] + points[21:]}), "payload.history[20]")
        self.assert_refused(run({"history": list(reversed(points))}), "payload.history[1]")
        self.assert_refused(run({"history": points + [{"t": "yesterday", "apy": 4.0}]}), "payload.history[50].t")
        self.assert_refused(run({"history": points + [{"t": "2025-03-01", "apy": 4.0}]}), "payload.history[50].t")
        self.assert_refused(run({"history": points + [4.0]}), "payload.history[50]", "{t, apy}")

    def test_a_file_that_cannot_be_read_is_named(self):
        self.assert_refused(run({"history_file": "data/missing.json"}), "data/missing.json", "No such file")
        self.assert_refused(run({"history_file": "data"}), "data", "directory")
        self.assert_refused(run({"history_file": "a\nb\0"}), "cannot read")
        self.assert_refused(run({"history_file": 5}), "history_file must be a path")
        self.assert_refused(run({"history_file": "README.md"}), "README.md is not JSON")

    def test_a_forecast_that_leaves_the_range_of_numbers_is_refused(self):
        self.assert_refused(run({"history": [4.0 * 3.0**i for i in range(60)], "horizon": 1000}), "grows so fast")


if __name__ == "__main__":
    unittest.main()
