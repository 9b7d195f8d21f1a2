"""Trains a grid of runs on Ray: `python -m arm_tf.sweep --flagfiles=FILE,… --estimators=arm,loo`.

Every flag file with every estimator, learning rate and seed, a processor for each run; other
settings, given as to `arm_tf.train`, hold for all. A run that fails is tried again from its last
checkpoint; the same command after a stop or a crash does only what is left. For each flag file and
estimator the learning rate is the one of the best validation, as the paper chooses it. Writes
sweep.json and sweep.md into --logdir, which all machines must see; `arm_tf.report` reads the runs.
Needs the extra `[sweep]`.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import sys
import time

from absl import flags

from arm_tf import cli, data, train
from arm_tf.training import run_folder, trials
from arm_tf.training.config import Config, ConfigError

_SECONDS_BETWEEN_VIEWS = 10


@dataclasses.dataclass
class Cell:
    """A run of the grid: the flag file that it comes from, its configuration, and how it went."""

    source: str
    config: Config
    failures: list = dataclasses.field(default_factory=list)

    @property
    def path(self):
        """Of the run's folder."""
        return run_folder.run_path(self.config)

    @property
    def result(self):
        """The result of a finished run, a dict, or None."""
        return run_folder.read_result(self.path)

    @property
    def progress(self):
        """Fraction of the epochs that have been evaluated."""
        with contextlib.suppress(run_folder.RunError, KeyError):
            rows = run_folder.read_metrics(self.path)
            return rows[-1]["epoch"] / self.config.epochs if rows else 0.0
        return 0.0


def grid(flag_files, overrides, estimators=(), learning_rates=(), seeds=()):
    """The cells of a sweep.

    Args:
      flag_files: paths; none stands for the default settings.
      overrides: flags, "--name=value", for every run.
      estimators, learning_rates, seeds: values; none of one kind stands for the flag file's own.

    Returns:
      A list of `Cell`.

    Raises:
      ConfigError: a flag file or a combination that cannot be used.
    """
    varied = {"estimator": estimators, "learning_rate": learning_rates, "seed": seeds}
    varied = {name: list(dict.fromkeys(values)) for name, values in varied.items() if values}
    cells = []
    for file in flag_files or [None]:
        parsed = flags.FlagValues()
        cli.define_flags(parsed)
        try:
            own_flags = cli.with_flag_files([f"--flagfile={file}"] if file else [])
            parsed(["sweep", *own_flags, *overrides])
        except flags.Error as error:
            raise ConfigError(f"{file or 'flags'}: {error}") from None
        if parsed["name"].value:
            raise ConfigError("--name is not for a sweep, whose runs are named by their settings.")
        config = cli.config_from_flags(parsed)
        for values in itertools.product(*varied.values()):
            settings = dict(zip(varied, values, strict=True))
            source = pathlib.Path(file).stem if file else "defaults"
            cells.append(Cell(source, dataclasses.replace(config, **settings)))
    by_path = {}
    for cell in cells:
        other = by_path.setdefault(cell.path, cell)
        if other.config != cell.config:
            raise ConfigError(
                f"{other.source} and {cell.source} have runs of one name, {cell.config.name}, "
                "on other data; rename a file, or use another --logdir."
            )
    return cells


def train_in_worker(settings):
    """What a Ray worker does: trains the run of the settings, a dict; its output to output.txt.

    Returns:
      None, or the one line that says why the run cannot be finished.
    """
    config = Config.from_dict(settings)
    path = run_folder.make_folder(run_folder.run_path(config))
    with open(path / "output.txt", "a", encoding="utf-8", buffering=1) as output:
        with contextlib.redirect_stdout(output):
            try:
                train.train(config)
            except cli.USER_ERRORS as error:
                print("Error:", error)
                return " ".join(str(error).split())
    return None


def run(cells, connection, retries):
    """Trains the cells that have no result yet, as many at once as there are processors.

    Args:
      cells: a list of `Cell`; failures are added to them.
      connection: arguments of `ray.init`.
      retries: int, how often a failed run is tried again.

    Returns:
      How many "workers" there were, the "steps" of the runs that they finished, and the "seconds"
      that took, start and evaluation of runs included; a dict.
    """
    import ray

    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(
        **connection,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {**threads, **variables}},
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own would end at once
    remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(train_in_worker)
    slots = int(ray.cluster_resources().get("CPU", 1))
    waiting = collections.deque(cell for cell in cells if not cell.result)
    missing, running, begun = list(waiting), {}, time.monotonic()
    shown = begun
    print(
        f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished before; {slots} at once.",
        flush=True,
    )
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                cell = waiting.popleft()
                running[remote.remote(dataclasses.asdict(cell.config))] = cell
            done, _ = ray.wait(list(running), timeout=1)
            for task in done:
                cell = running.pop(task)
                reason = _outcome(ray, task, cell)
                if reason:
                    cell.failures.append(reason)
                    again = len(cell.failures) <= retries
                    waiting.extend([cell] if again else [])
                    print(f"{cell.config.name} failed{', will be tried again' * again}: {reason}")
                else:
                    print(f"{cell.config.name}: test bound {cell.result['test_nll']:.2f}")
            if done or time.monotonic() - shown > _SECONDS_BETWEEN_VIEWS:
                shown = time.monotonic()
                print(view(cells, running.values(), waiting), flush=True)
    finally:
        ray.shutdown()
    steps = sum(cell.result["steps"] for cell in missing if cell.result)
    return {"workers": slots, "steps": steps, "seconds": time.monotonic() - begun}


def _outcome(ray, task, cell):
    """Why a task that has ended left no result, in one line; None if it did leave one."""
    try:
        reason = ray.get(task)
    except ray.exceptions.RayError as error:
        reason = f"the worker died ({type(error).__name__})"
        if isinstance(error, ray.exceptions.RayTaskError):
            reason = str(error).strip().splitlines()[-1]
    return reason or (None if cell.result else "it was stopped")


def view(cells, running, waiting):
    """One line on all runs."""
    finished = sum(bool(cell.result) for cell in cells)
    failed = len(cells) - finished - len(running) - len(waiting)
    under_way = ", ".join(f"{cell.config.name} {cell.progress:.0%}" for cell in running)
    return (
        f"finished {finished} of {len(cells)}, failed {failed}, waiting {len(waiting)}, "
        f"running {len(running)}{': ' * bool(under_way)}{under_way}"
    )


def summarise(cells):
    """For each flag file and estimator the learning rate of the best validation, and its bounds.

    Returns:
      Dicts with "source", "estimator", "learning_rate", "valid_nll" (a mean over seeds), "test_nll"
      (each seed's), "mean", "deviation", and "tried" (validation bounds by learning rate).
    """
    groups = {}
    for cell in cells:
        if cell.result:
            group = groups.setdefault((cell.source, cell.config.estimator), {})
            group.setdefault(cell.config.learning_rate, []).append(cell.result)
    rows = []
    for (source, estimator), by_rate in groups.items():
        tried = {
            rate: trials.Figure.of(result["valid_nll"] for result in results).mean
            for rate, results in by_rate.items()
        }
        best = min(tried, key=tried.get)
        bounds = [result["test_nll"] for result in by_rate[best]]
        rows.append(
            {
                "source": source,
                "estimator": estimator,
                "learning_rate": best,
                "valid_nll": tried[best],
                "test_nll": bounds,
                **trials.Figure.of(bounds)._asdict(),
                "tried": {str(rate): bound for rate, bound in tried.items()},
            }
        )
    return sorted(rows, key=lambda row: (row["source"], row["mean"]))


def markdown(rows):
    """The rows of `summarise` as a Markdown table."""
    lines = [
        "| flag file | estimator | learning rate | validation | test −log p ≤ | trials |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound = trials.Figure(row["mean"], row["deviation"])
        lines.append(
            f"| {row['source']} | {row['estimator']} | {row['learning_rate']:g} | "
            f"{row['valid_nll']:.2f} | {bound} | {len(row['test_nll'])} |"
        )
    return "\n".join(lines) + "\n"


def _numbers(name, kind):
    try:
        return [kind(text) for text in flags.FLAGS[name].value]
    except ValueError:
        given = ",".join(flags.FLAGS[name].value)
        raise ConfigError(f"--{name} must be numbers with commas, received {given!r}.") from None


def main():
    values = flags.FLAGS
    own = {"objective", *(field.name for field in dataclasses.fields(Config))}
    overrides = [values[name].serialize() for name in sorted(own) if values[name].present]
    cells = grid(
        values.flagfiles,
        overrides,
        values.estimators,
        _numbers("learning_rates", float),
        _numbers("seeds", int),
    )
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("arm_tf.sweep needs Ray; pip install 'arm_tf[sweep]'.") from None
    for dataset, folder, shape in {
        (cell.config.dataset, cell.config.data_dir, cell.config.image_shape) for cell in cells
    }:
        data.load(dataset, folder, image_shape=shape)
    logdir = run_folder.make_folder(values.logdir)
    connection = {"address": values.address} if values.address else {"address": "local"}
    if values.workers and not values.address:
        connection["num_cpus"] = values.workers
    try:
        throughput = run(cells, connection, values.retries)
    except KeyboardInterrupt:
        print("Stopped; the same command does what is left.")
        return
    except ConnectionError as error:
        raise run_folder.RunError(
            f"No Ray cluster at --address={values.address}: {error}"
        ) from None
    rows = summarise(cells)
    table = markdown(rows)
    failed = [cell for cell in cells if not cell.result]
    record = {
        "chosen": rows,
        "throughput": throughput,
        "failed": {c.config.name: c.failures for c in failed},
    }
    run_folder.write_json(logdir / "sweep.json", record)
    run_folder.write_text(logdir / "sweep.md", table)
    print(table, end="")
    if throughput["steps"]:
        rate = throughput["steps"] / throughput["seconds"]
        print(f"{rate:.0f} steps/s by {throughput['workers']} workers, starts and tests included.")
    if failed:
        raise run_folder.RunError(
            f"{len(failed)} of {len(cells)} runs failed: "
            f"{', '.join(cell.config.name for cell in failed)}; see output.txt in their folders."
        )


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_list("flagfiles", [], "Flag files, such as those in runs/paper.")
    flags.DEFINE_list("estimators", [], "Estimators; unset: that of each flag file.")
    flags.DEFINE_list("learning_rates", ["5e-4", "1e-4", "5e-5"], "Learning rates to choose from.")
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds, a trial each.")
    flags.DEFINE_string("address", None, "Of a Ray cluster; unset: Ray on this machine alone.")
    flags.DEFINE_integer("workers", None, "Runs at once on this machine; unset: its processors.")
    flags.DEFINE_integer("retries", 2, "How often a failed run is tried again.", lower_bound=0)
    cli.run(main)
