"""The compiled loop of steps as another device would get it: its instructions, and its export."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from arm_tf import data
from arm_tf.benchmark import bench as bench_programs

SCRIPT = pathlib.Path(bench_programs.__file__).with_name("run_exported.py")
IMAGES = (100, 784)
TO_THE_HOST = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done", "custom-call"}
needs_jax = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
UNTOUCHED = {"parameter", "get-tuple-element", "reshape", "bitcast"}  # of the images


@pytest.fixture(
    scope="module",
    params=[
        "linear",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("nonlinear", "two_layers")),
    ],
)
def bench(request):
    images = np.random.default_rng(0).binomial(1, 0.3, IMAGES).astype(np.uint8)
    dataset = data.Dataset("mnist_static", images, images, images, False, None, "")
    small = {"units": 24, "batch_size": 20, "steps_per_loop": 2}
    bench = bench_programs.Bench(dataset, **{**bench_programs.MODELS[request.param], **small})
    yield bench
    bench.close()


def faults(program):
    """What would cost time on another device, in the text of an XLA program; a set of lines."""
    found = set()
    for line in program.splitlines():
        instruction = re.search(r" = (\(?.*?\)?) ([a-z][a-z-]*)\(", line)
        if not instruction:
            continue
        result, operation = instruction.groups()
        if operation in TO_THE_HOST or re.search(r"\b(f64|c128)\[|\b[su]64\[\d", result):
            found.add(line)
        shape = re.match(r"(\w+)\[([\d,]+)\]", result)
        is_large = shape and np.prod(np.int64(shape[2].split(","))) >= np.prod(IMAGES)
        if is_large and (shape[1] != "u8" or operation not in UNTOUCHED):
            found.add(line)
        if operation == "dot" and "operand_precision={highest,highest}" not in line:
            found.add(line)
    return found


@pytest.fixture(scope="module")
def exported(bench, tmp_path_factory):
    """A folder with the bench's program."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "small").mkdir()
    bench.export(folder / "small")
    return folder


def run(elsewhere, *arguments):
    """Runs Python where there are the script, JAX and no TensorFlow."""
    (elsewhere / "tensorflow.py").write_text("raise ImportError('there is no TensorFlow here')")
    shutil.copy(SCRIPT, elsewhere)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(elsewhere), "JAX_PLATFORMS": "cpu"},
    )


def text(function, arguments, stage):
    return function.experimental_get_compiler_ir(*arguments)(stage=stage)


def test_loop_of_steps_stays_on_the_device_and_leaves_the_images_alone(bench):
    arguments = bench.arguments(1)
    for stage in ("hlo", "optimized_hlo"):
        program = text(bench.learner.take_steps, arguments, stage)
        assert len(re.findall(r" while\(", program)) == 1
        assert re.search(r"u8\[20,(1,)?784\]\S* (gather|fusion|dynamic-slice)\(", program)
        assert not faults(program)


@pytest.mark.parametrize(
    "plant, operation",
    [
        (lambda x: tf.cast(x, tf.float32), "convert"),
        (lambda x: x + 1, "add"),
        (lambda x: tf.cast(x[0, 0], tf.float64) * 2, "multiply"),
        (lambda x: tf.cast(x[0], tf.int64), "convert"),
        (lambda x: tf.matmul(*2 * [tf.cast(x[:5, :5], tf.float32)]), "dot"),
    ],
)
def test_planted_faults_are_found(plant, operation):
    function = tf.function(plant, jit_compile=True, autograph=False)
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    program = text(function, [tf.ones(IMAGES, tf.uint8)], "hlo")
    tf.config.experimental.enable_tensor_float_32_execution(before)
    assert any(f" {operation}(" in line for line in faults(program))


def test_planted_ways_to_the_host_are_found():
    line = '  %r = (f32[2]{0}, token[]) %s(f32[2]{0} %x, token[] %t), custom_call_target="c"'
    for operation in TO_THE_HOST:
        assert faults(line.replace("%s", operation))
    assert not faults(line.replace("%s", "tuple"))


def test_export_takes_the_steps_that_it_writes(bench, exported):
    described = json.loads((exported / "small" / "program.json").read_text(encoding="utf-8"))
    arguments = np.load(exported / "small" / "arguments.npz")
    expected = np.load(exported / "small" / "expected.npz")
    optimizers = bench.learner.optimizers
    by_name = lambda variables: {v.value.name.removesuffix(":0"): v for v in variables}
    held = by_name(v for o in optimizers.values() for v in o.variables)
    fixed = {name for name in held if name.endswith("learning_rate")}
    held |= by_name(bench.learner.model.variables)
    fixed |= by_name(bench.learner.model.non_trainable_variables).keys()
    given = ["images", "order", "noise", "count"]  # the tracker's noise is empty
    assert described["steps"] == 2 and described["parameters"][:4] == given
    assert set(described["parameters"][4:]) == set(held)
    norms = [f"gradient_norm/{part}" for part in sorted(optimizers)]
    assert described["results"][: 1 + len(norms)] == ["losses", *norms]
    updated = described["results"][1 + len(norms) :]
    assert set(updated) == set(held) - fixed
    for name in updated:
        np.testing.assert_array_equal(expected[name], held[name].numpy(), err_msg=name)
        assert (expected[name] != arguments[name]).any(), name


@needs_jax
def test_another_xla_runs_the_export_to_the_same_results(exported, tmp_path):
    process = run(tmp_path, "run_exported.py", exported, 2)
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"small: compiled in .* s; agrees", process.stdout)
    assert re.search(r"small: \d+ \(\d+–\d+\) steps a second", process.stdout)


@needs_jax
@pytest.mark.parametrize("bench", ["linear"], indirect=True)
def test_results_in_another_order_differ(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "swapped")
    file = tmp_path / "swapped" / "small" / "program.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    results = described["results"]
    first = next(i for i, name in enumerate(results) if name.endswith("kernel_momentum"))
    second = results.index(results[first].replace("momentum", "velocity"))
    results[first], results[second] = results[second], results[first]
    file.write_text(json.dumps(described), encoding="utf-8")
    process = run(tmp_path, "run_exported.py", tmp_path / "swapped", 2)
    assert process.returncode == 1 and "DIFFERS" in process.stdout, process.stderr


@needs_jax
def test_devices_that_take_stablehlo_alone_take_the_program(exported, tmp_path):
    process = run(
        tmp_path,
        "-c",
        "import pathlib, sys, run_exported as r\n"
        "from jaxlib.mlir.dialects import stablehlo\n"
        "program = r.stablehlo(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "version = stablehlo.get_minimum_version()\n"
        "print(len(r._jax.mlir.serialize_portable_artifact(program, version)))",
        exported / "small" / "program.hlo",
    )
    assert process.returncode == 0 and int(process.stdout) > 1000, process.stderr
