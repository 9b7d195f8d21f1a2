"""Runs, compares and times what `python -m arm_tf.benchmark --export=FOLDER` has written.

    python run_exported.py FOLDER [rounds]

Needs numpy and JAX, no TensorFlow and nothing else of this package; the programs run on the first
device that JAX has. Each is run once from its exported arguments and compared with TensorFlow's
results; the exit status is 1 if they differ by more than the tolerances below. Then it is timed: a
round is `CALLS` calls, each on the variables that the one before has left on the device, where all
other arguments lie already.

JAX's public functions run JAX's programs alone; to run another's takes two of jaxlib that other
versions may name otherwise. It was tried with JAX 0.6.2 and 0.10.2 on CPUs, and with 0.11.2 on
an H100 (and on CPUs, where that needs XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=).
"""

import json
import pathlib
import sys
import time

import jax
import numpy as np
from jax.interpreters import mlir
from jaxlib import _jax

CALLS = 10  # in a round
# Another order of summation rounds otherwise, and now and then a unit whose noise lies at its
# threshold turns over. From there two runs part slowly, so that the first loss, which no update
# precedes, agrees best.
FIRST_LOSS, LOSSES, NORMS = 1e-4, 2e-3, 5e-2  # largest relative difference
CHANGE = 5e-2  # difference of a variable over how far the steps moved it, both as L2 norms


def stablehlo(program: bytes) -> str:
    """The text in StableHLO of a serialised HloModuleProto.

    Copies are left out: StableHLO has no word for them, so that devices that are given programs as
    StableHLO, as GPUs are, would refuse them; values have no places, so that they mean nothing.
    """
    copies = []

    def visit(operation):
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return mlir.ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        module = mlir.ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))
        module.operation.walk(visit)
        for copy in copies:
            copy.result.replace_all_uses_with(copy.operands[0])
            copy.erase()
        return str(module)


class Program:
    """A program in a folder, compiled for a device."""

    def __init__(self, folder: pathlib.Path, device: jax.Device) -> None:
        described = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        self.steps, self.results = described["steps"], described["results"]
        with np.load(folder / "arguments.npz") as file:
            self.arguments = {name: file[name] for name in described["parameters"]}
        with np.load(folder / "expected.npz") as file:
            self.expected = {name: file[name] for name in self.results}
        module = stablehlo((folder / "program.hlo").read_bytes())
        self.executable = device.client.compile_and_load(
            module, _jax.DeviceList((device,)), _jax.CompileOptions()
        )
        self.device = device

    def place(self) -> dict[str, jax.Array]:
        """The arguments on the device, by name."""
        placed = {n: jax.device_put(value, self.device) for n, value in self.arguments.items()}
        return jax.block_until_ready(placed)

    def call(self, arguments: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Results by name; `arguments` takes up those of them that are variables.

        The variables' old arrays are the program's to write to, and gone afterwards.
        """
        outputs = self.executable.execute_sharded(list(arguments.values()))
        outputs = [each[0] for each in outputs.disassemble_into_single_device_arrays()]
        results = dict(zip(self.results, outputs, strict=True))
        arguments |= {name: value for name, value in results.items() if name in arguments}
        return results


def differences(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], before: dict[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """What is compared: by name, a difference and its tolerance.

    Args:
      got, expected: arrays by name, the results.
      before: arrays by name, the arguments.
    """

    found = {"first loss": (abs(got["losses"][0] / expected["losses"][0] - 1), FIRST_LOSS)}
    for name, wanted in expected.items():
        error = np.abs(got[name] - wanted)
        if name == "losses":
            found[name] = (np.max(error / np.abs(wanted)), LOSSES)
        elif name not in before:
            found[name] = (error / wanted, NORMS)
        elif wanted.dtype.kind == "f":
            moved = np.linalg.norm(wanted - before[name])
            found[name] = (np.linalg.norm(error) / (moved or 1), CHANGE)
        else:
            found[name] = (np.max(error), 0)
    return found


def main(folder: str, rounds: int = 15) -> int:
    jax.config.update("jax_enable_x64", True)  # the optimisers count steps in 64-bit integers
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    paths = sorted(path.parent for path in pathlib.Path(folder).glob("*/program.json"))
    if not paths:
        sys.exit(f"Error: {folder} holds no exported programs, FOLDER/NAME/program.json.")
    differ = False
    for path in paths:
        begin = time.perf_counter()
        program = Program(path, device)
        compiled = time.perf_counter() - begin
        placed = program.place()
        got = {name: np.asarray(value) for name, value in program.call(placed).items()}
        found = differences(got, program.expected, program.arguments)
        wrong = [name for name, (value, limit) in found.items() if not value <= limit]
        for name in found if wrong else ():
            print(f"  {name}: differs by {found[name][0]:.2g}, tolerance {found[name][1]:g}")
        differ = differ or bool(wrong)
        verdict = "DIFFERS" if wrong else "agrees"
        worst = max(value for name, (value, _) in found.items() if name in program.arguments)
        print(
            f"{path.name}: compiled in {compiled:.1f} s; {verdict}, losses to "
            f"{found['losses'][0]:.1g}, variables' changes to {worst:.1g}",
            flush=True,
        )
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(CALLS):
                program.call(placed)
            jax.block_until_ready(placed)
            seconds.append(time.perf_counter() - begin)
        rates = CALLS * program.steps / np.array(seconds)
        low, median, high = np.percentile(rates, [25, 50, 75])
        print(f"{path.name}: {median:.0f} ({low:.0f}–{high:.0f}) steps a second", flush=True)
    return int(differ)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("Error: usage is python run_exported.py FOLDER [rounds]")
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
