"""Tables of what the toy, the benchmark, sweeps and `arm_tf.variance` have written."""

import math
import os
import pathlib
import typing

from arm_tf import estimators, experiments, files
from arm_tf.report.runs import reading
from arm_tf.report.tables import table


def measurements(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Tables of what the toy, the benchmark, sweeps and `arm_tf.variance` have written; Markdown.

    Args:
      folder: path; toy.json, benchmark.json and variance.csv are looked for in it, sweep.json below
        it, too.

    Returns:
      A list of str, and notes on what cannot be read and was passed over, another.
    """
    folder = pathlib.Path(folder)
    tables: list[str] = []
    notes: list[str] = []

    for name, render in (("toy.json", _toy_tables), ("benchmark.json", _benchmark_tables)):
        if (folder / name).exists():
            with reading(name, notes):
                tables += render(files.read_json(folder / name))
    sweeps = []
    for path in sorted(folder.rglob("sweep.json")):
        with reading(path.relative_to(folder).as_posix(), notes):
            sweeps.append(_throughput(files.read_json(path)["throughput"]))
    sweeps = sorted(sweep for sweep in sweeps if sweep[1])
    if sweeps:
        tables.append(table(
            ["workers", *(f"{workers:g}" for workers, *_ in sweeps)],
            [["seconds", *(f"{seconds:.0f}" for *_, seconds in sweeps)],
             ["steps a second", *(f"{steps / seconds:.0f}" for _, steps, seconds in sweeps)]],
        ))  # fmt: skip
    if (path := folder / "variance.csv").exists():
        with reading(path.name, notes):
            tables += _variance_tables(files.read_csv(path))
    return tables, notes


def _throughput(record: dict[str, float]) -> tuple[float, float, float]:
    workers, steps, seconds = (float(record[name]) for name in ("workers", "steps", "seconds"))
    if not 0 <= steps / seconds < math.inf:
        raise ValueError("steps or seconds that cannot be")
    return workers, steps, seconds


def _variance_tables(rows: list[dict[str, str]]) -> list[str]:
    """A table for each objective, by the variance of the last step; of earlier versions, none."""
    if not rows or "objective" not in rows[0]:
        return []
    steps = list(dict.fromkeys(row["step"] for row in rows))
    last = [row for row in rows if row["step"] == steps[-1]]
    last.sort(key=lambda row: float(row["variance_logits"]))
    step_of = "variance" if len(steps) == 1 else "variance at step {:,}"
    header = ["evaluations of f", "needs its derivative", "bias",
              *(step_of.format(int(step)) for step in steps), "µs", "variance × ms"]  # fmt: skip
    found = []
    for objective, title in (("elbo", "ELBO"), ("multisample", "multi-sample bound")):
        body = []
        for row in (row for row in last if row["objective"] == objective):
            name = row["estimator"]
            cells = [f"`{name}`", row["evaluations"]]
            cells.append("yes" if estimators.get(name).derivative else "no")
            cells.append(_bias(row["bias_logits"], row["bias_noise_logits"]))
            for step in steps:
                at = next(r for r in rows if (r["estimator"], r["step"]) == (name, step))
                value, error = (at[f"variance{x}_logits"] for x in ("", "_stderr"))
                cells.append(f"{float(value):.3g} ± {float(error):.1g}")
            cells.append(f"{float(row['microseconds']):,.0f}")
            cells.append(f"{1e3 * float(row['variance_seconds_logits']):.2g}")
            body.append(cells)
        if body:
            found.append(table([f"{title}: gradient in the logits", *header], body))
    return found


def _bias(bias: str, noise: str) -> str:
    """A bias where it is seen, else what it is below; texts."""
    if not bias:
        return "–"
    size = 2 * float(noise)
    return f"{float(bias):.2g}" if float(bias) > size else f"< {size:.1g}"


def _toy_tables(record: dict[str, typing.Any]) -> list[str]:
    rows = [
        [f"`{name}`", *(f"{ends[str(p0)]:.3f}" for p0 in record["p0"])]
        for name, ends in record["final_probability"].items()
    ]
    return [table(["probability of 1 at the end", *(f"p0 = {p0}" for p0 in record["p0"])], rows)]


def _benchmark_tables(results: dict[str, typing.Any]) -> list[str]:
    def spread(value):
        return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"

    tables = []
    if "steps" in results:
        steps = results["steps"].values()
        rows = [["steps a second", *(f"{s['steps_per_second']['median']:.0f}" for s in steps)]]
        for title, key in (("times the plain reference", "speed_over_plain"),
                           ("time over that of the products", "time_over_products")):  # fmt: skip
            rows.append([title, *(spread(s[key]) for s in steps)])
        for part in ("products", "elementwise and rest", "optimiser", "noise", "boundary"):
            rows.append([f"µs: {part}", *(f"{s['microseconds'][part]:.0f}" for s in steps)])
        names = [name.replace("_", " ") for name in results["steps"]]
        tables.append(table(["a step of training", *names], rows))
    if "fit" in results:
        fit = results["fit"]
        rows = [[name, f"{rate['median']:.0f}",
                 spread(fit["speed_over_loop"][name]) if name in fit["speed_over_loop"] else "–"]
                for name, rate in fit["steps_per_second"].items()]  # fmt: skip
        tables.append(table(["the linear model", "steps a second", "of the loop's"], rows))
    if "cost" in results:
        cost = results["cost"]
        rows = [[f"`{name}`", f"{rate:.0f}"] for name, rate in cost["steps_per_second"].items()]
        tables.append(table(["estimator, linear model", "steps a second"], rows))
        rows = [[experiments.title(name), f"{rate:.0f}"]
                for name, rate in cost["steps_per_second_of_arm"].items()]  # fmt: skip
        tables.append(table(["experiment, ARM", "steps a second"], rows))
        dearest = " and ".join(f"`{name}`" for name in cost["dearest"])
        rows = [
            [
                name,
                f"{cost[f'core_hours{which}']:,.0f}",
                f"{cost[f'longest_run_hours{which}']:.1f} h",
                *(f"{days:.1f} days" for days in cost[f"days{which}"].values()),
            ]
            for which, name in (
                ("", f"all, {cost['runs']} runs"),
                ("_without_dearest", f"without {dearest}"),
            )
        ]
        cores = [f"{int(number):,} cores" for number in cost["days"]]
        tables.append(table(["comparison", "core hours", "longest run", *cores], rows))
    return tables
