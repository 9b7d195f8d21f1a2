"""Several trials of one configuration, which differ in the seed, at once on one machine."""

import dataclasses
import math
import pathlib
import statistics
import typing
from collections.abc import Iterable, Mapping, Sequence

from arm_tf import files
from arm_tf.errors import RunError
from arm_tf.training import run_folder, scheduler, workers
from arm_tf.training.config import Config

_FIGURES = ("test_nll", "test_neg_elbo", "valid_nll")


class Figure(typing.NamedTuple):
    """A figure over trials; as a text, "107.20 ± 0.28", or "107.20" of one trial.

    Attributes:
      mean: float.
      deviation: float, the standard deviation between trials; None for a single one.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        """The figure of a sequence of floats, one a trial."""
        values = list(values)
        if not all(map(math.isfinite, values)):
            return cls(sum(values) / len(values), math.nan if len(values) > 1 else None)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{deviation}"


def best_rate(bounds: Mapping[float, Mapping[int, float]]) -> float:
    """The learning rate of the best validation bound, a float.

    Of several seeds the mean counts, over those that every rate has been run with if there are any.

    Args:
      bounds: validation bounds on -log p in nats, by learning rate and seed.
    """
    common = set.intersection(*map(set, bounds.values()))
    means = {
        rate: statistics.fmean(v for seed, v in by_seed.items() if seed in common or not common)
        for rate, by_seed in bounds.items()
    }
    return min(means, key=means.__getitem__)


def configurations(config: Config, trials: int) -> list[Config]:
    """The configurations of `trials` trials, with the seeds that follow `config.seed`; a list."""
    seeds = range(config.seed, config.seed + trials)
    name = config.asked("name")
    return [
        dataclasses.replace(config, seed=seed, name=name and f"{name}-seed{seed}") for seed in seeds
    ]


def run(configs: Sequence[Config]) -> dict[str, typing.Any] | None:
    """Trains each configuration in a process of its own, several at once, and sums them up.

    There are as many processes as cores, each with its share of threads: more of either slow one
    another down. Output appears with the seed in front. A finished trial is left as it is; SIGINT
    and SIGTERM stop all of them where they can go on.

    Args:
      configs: of the trials, a list from `configurations`.

    Returns:
      Summary of the results, a dict as written to the file; None if the trials were stopped.

    Raises:
      RunError: some trials failed; the others are finished.
    """
    at_once = concurrency(len(configs))
    jobs = [scheduler.Job(config) for config in configs]
    threads = workers.usable_cores() // at_once
    with scheduler.processes(at_once, threads, _print_with_seed) as (slots, start):
        came_to_an_end = scheduler.run(jobs, slots, start)
    if not came_to_an_end:
        print("Stopped; the same command goes on from there.")
        return None
    failed = [job.config.seed for job in jobs if job.failures]
    if failed:
        raise RunError(
            f"The trials with seed {', '.join(map(str, failed))} failed; see their output "
            "above. The same command tries them again."
        )
    return summarise(configs)


def concurrency(trials: int) -> int:
    """How many of a number of trials run at once; int."""
    return min(trials, workers.usable_cores())


def summarise(configs: Sequence[Config]) -> dict[str, typing.Any]:
    """Writes, and returns, the figures of finished trials one by one and together.

    The file is `logdir/NAME.json`, NAME that of the first trial with all seeds. Figures are in
    nats; "deviation" is the standard deviation between trials.
    """
    first, last = configs[0], configs[-1]
    results = [run_folder.read_result(run_folder.run_path(config)) or {} for config in configs]
    summary: dict[str, typing.Any] = {
        "seeds": [c.seed for c in configs],
        "runs": [c.name for c in configs],
    }
    for figure in _FIGURES:
        values = [result[figure] for result in results]
        summary[figure] = {"trials": values, **Figure.of(values)._asdict()}
    name = first.name.removesuffix(f"-seed{first.seed}")
    if name == first.name:  # the digest of further settings follows the seed
        name = first.name.replace(f"-seed{first.seed}-", "-")
    file = pathlib.Path(first.logdir) / f"{name}-seeds{first.seed}to{last.seed}.json"
    files.write_json(file, summary)
    bounds = summary["test_nll"]["trials"]
    print(
        f"Test bound on -{first.likelihood} over {len(configs)} trials: {Figure.of(bounds)} nats "
        f"(mean and standard deviation; {', '.join(f'{value:.2f}' for value in bounds)}). "
        f"Written to {file}."
    )
    return summary


def _print_with_seed(config: Config, line: str) -> None:
    print(f"[seed {config.seed}] {line}", end="", flush=True)
