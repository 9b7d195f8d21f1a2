"""The programs of a run, to be measured or exported."""

from __future__ import annotations

import pathlib
import re
import shutil
import tempfile
import typing
from collections.abc import Callable

import numpy as np

from arm_tf import experiments, files
from arm_tf.benchmark.products import Product, products_of
from arm_tf.data import Dataset
from arm_tf.training import config, run_folder

if typing.TYPE_CHECKING:
    import tensorflow as tf

MODELS = {name: experiments.find(f"yin_zhou_2019/mnist_static-{name}").settings for name in
          ("linear", "nonlinear", "two_layers")}  # fmt: skip


class Bench:
    """A run in a folder that is thrown away, and the programs it consists of."""

    def __init__(self, dataset: Dataset, /, **settings: typing.Any) -> None:
        from arm_tf.training import steps
        from arm_tf.training.run import Run

        self.folder = tempfile.TemporaryDirectory()
        self.config = config.Config(**{**settings, "logdir": self.folder.name, "name": "run"})
        self._run_folder = run_folder.RunFolder(self.config)
        self._run_folder.start(self.config, dataset)
        self._precision = steps.precision(self.config)
        self._precision.__enter__()  # until it is closed
        self.run = Run(self.config, dataset, self._run_folder)
        self.learner, self.steps = self.run.learner, self.config.steps_per_loop
        self.run.run_steps()  # compiles

    def arguments(self, count: int) -> tuple[tf.Tensor, ...]:
        """Arguments of the compiled loop for `count` steps from the present one."""
        return self.run.feed(self.run.step, count)

    def products(self) -> list[Product]:
        """The matrix products of a step; a list of `Product`."""
        program = self.learner.take_steps.experimental_get_compiler_ir(
            *self.run.feed(self.run.step, 1)
        )
        return [p for p in products_of(program(stage="optimized_hlo")) if p.in_loop]

    def optimizer_steps(self) -> Callable[[], object]:
        """A function that takes as many steps of the optimisers alone as a loop does."""
        import tensorflow as tf

        groups = {part: self.learner.groups[part] for part in self.learner.optimizers}
        grads = {part: [tf.fill(v.shape, 1e-3) for v in group] for part, group in groups.items()}

        @tf.function(jit_compile=True, autograph=False)
        def run(grads):
            def body(i):
                for part, optimizer in self.learner.optimizers.items():
                    optimizer.apply([g + 0.0 for g in grads[part]], groups[part])
                return (i + 1,)

            return tf.while_loop(lambda i: i < self.steps, body, (0,))

        return lambda: run(grads)

    def export(self, folder: pathlib.Path) -> None:
        """Takes a loop of steps, and writes it as a program that any XLA runs.

        `program.hlo` is the loop before optimisation, a serialised HloModuleProto.
        `program.json` names its parameters (the arguments of `take_steps` that are not empty,
        then all variables that it reads) and its results (losses, gradient norms, and the new
        values of the variables, under the variables' names), each in order, and says how many
        steps it takes. `arguments.npz` and `expected.npz` hold the values, by name.

        Args:
          folder: path of a folder that exists.
        """
        take_steps, arguments = (
            self.learner.take_steps,
            self.arguments(self.steps),
        )
        compiled = take_steps.get_concrete_function(*arguments)
        program = take_steps.experimental_get_compiler_ir(*arguments)
        by_handle = {id(variable.handle): variable for variable in compiled.variables}
        variables = {}
        for handle in compiled.captured_inputs:
            variable = by_handle[id(handle)]
            variables[variable.name.removesuffix(":0")] = variable
        if len(variables) != len(compiled.captured_inputs):
            raise RuntimeError(f"Variables share names, received {compiled.variables}.")
        names = ("images", "order", "noise", "tracker_noise", "count")
        given = {n: np.asarray(a) for n, a in zip(names, arguments, strict=True)}
        values: dict[str, typing.Any] = {n: value for n, value in given.items() if value.size}
        values |= {name: variable.numpy() for name, variable in variables.items()}
        np.savez_compressed(folder / "arguments.npz", **values)

        losses, norms = take_steps(*arguments)
        results: dict[str, typing.Any] = {"losses": losses.numpy()}
        results |= {f"gradient_norm/{part}": norms[part].numpy() for part in sorted(norms)}
        parameters = list(values)
        aliases, *_ = re.findall("input_output_alias={(.*?) }", program(stage="hlo"))
        for result, parameter in re.findall(r"{(\d+)}: \((\d+),", aliases):
            if int(result) != len(results):
                raise RuntimeError(f"Expected result {len(results)} in {aliases}.")
            name = parameters[int(parameter)]
            results[name] = variables[name].numpy()
        np.savez_compressed(folder / "expected.npz", **results)
        (folder / "program.hlo").write_bytes(program(stage="hlo_serialized"))
        description = {
            "steps": self.steps,
            "parameters": parameters,
            "results": list(results),
            "shapes": {n: [str(v.dtype), *v.shape] for n, v in {**values, **results}.items()},
            "versions": run_folder.versions(),
        }
        files.write_json(folder / "program.json", description)

    def close(self) -> None:
        """Gives back the run's precision and removes its folder."""
        self._precision.__exit__(None, None, None)
        self._run_folder.close()
        self.folder.cleanup()


def export(dataset: Dataset, folder: pathlib.Path) -> None:
    """Writes the three models' programs, and beside them the script that runs them."""
    for name, settings in MODELS.items():
        bench = Bench(dataset, **settings)
        bench.export(files.make_folder(folder / name, "--export"))
        bench.close()
        print(f"Written to {folder / name}.", flush=True)
    script = shutil.copy(pathlib.Path(__file__).with_name("run_exported.py"), folder)
    print(f"python {script} {folder} runs them where numpy and JAX are.")
