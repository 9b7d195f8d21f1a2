"""The compiled loop of training steps keeps to its device: what a GPU would run, read as text.

What XLA gets to compile is read as well as what a CPU's passes make of it, since a GPU's differ.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

from arm_tf import benchmark, data

IMAGES, PIXELS = 123, 784  # no other array of the program has as many rows
HOST = re.compile(r"infeed|outfeed|send|recv|custom-call|.*callback")
FREE = {"parameter", "get-tuple-element", "tuple", "while", "bitcast", "conditional", "call"}


def instructions(program):
    """By computation, what its lines say: type of the result, operation, and the whole line."""
    found, lines = {}, []
    for line in program.splitlines():
        if line.endswith("{") and "->" in line:
            lines = found[line.removeprefix("ENTRY ").split()[0].removeprefix("%")] = []
        match = re.match(r"\s+(?:ROOT )?\S+ = (\(.*?\)|\S+) ([\w-]+)\(", line)
        if match:
            lines.append((*match.groups(), line))
    return found


def in_loop(program):
    """The instructions of the program's loops, with those of the computations they call."""
    computations = instructions(program)
    called = {
        name: {word for _, _, line in lines for word in re.findall(r"[\w.-]+", line)}
        & computations.keys()
        for name, lines in computations.items()
    }
    left = set(re.findall(r"(?:body|condition)=%?([\w.-]+)", program))
    reached = set()
    while left:
        name = left.pop()
        reached.add(name)
        left |= called[name] - reached
    return [each for name in reached for each in computations[name]]


def faults(program, images):
    """What a program should not hold, a list of its lines.

    Args:
      program: text of an XLA program.
      images: int, rows of the array of images.
    """
    everything = [each for lines in instructions(program).values() for each in lines]
    found = [line for _, operation, line in everything if HOST.match(operation)]
    found += [line for kind, _, line in everything if re.search(r"\b(f64|c128)\[", kind)]
    for kind, operation, line in in_loop(program):
        whole = re.search(rf"[\[,]{images}[\],]", kind) and operation not in FREE
        renamed = operation == "reshape" and f"reshape({kind} " in line
        if whole and not renamed:
            found.append(line)
    return found


@pytest.fixture(scope="module", params=list(benchmark._MODELS))
def programs(request):
    """Texts of a model's loop of training steps, by stage of compilation."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (IMAGES, PIXELS)).astype(np.uint8)
    dataset = data.Dataset("glyphs", images, images, images, False, None, "")
    settings = {**benchmark._MODELS[request.param], "units": 8, "batch_size": 5}
    bench = benchmark.Bench(dataset, **settings, steps_per_loop=3)
    arguments = bench.trainer.arguments(3)
    program = bench.trainer.take_steps.experimental_get_compiler_ir(*arguments)
    texts = {stage: program(stage=stage) for stage in ("hlo", "optimized_hlo")}
    bench.close()
    return texts


@pytest.mark.parametrize("stage", ["hlo", "optimized_hlo"])
def test_steps_stay_on_the_device(programs, stage):
    program = programs[stage]
    assert not faults(program, IMAGES)
    loop = in_loop(program)
    assert any(operation == "dot" for _, operation, _ in loop)
    (gather,) = (
        line for kind, operation, line in loop if operation == "gather" and kind.startswith("u8[")
    )
    assert f"5,{PIXELS}]" in gather or f"5,1,{PIXELS}]" in gather


def planted(body):
    """A loop over images with something in it, as XLA gets it."""

    @tf.function(jit_compile=True, autograph=False)
    def program(images):
        step = lambda i, total: (i + 1, total + body(images, i))
        return tf.while_loop(lambda i, _: i < 3, step, (0, 0.0))[1]

    images = tf.zeros([IMAGES, PIXELS], tf.uint8)
    return program.experimental_get_compiler_ir(images)(stage="hlo")


@pytest.mark.parametrize(
    "body, operation",
    [
        (lambda images, i: tf.cast(images, tf.float32)[i, 0], "convert"),
        (lambda images, i: tf.cast(tf.transpose(images)[0, i], tf.float32), "transpose"),
        (lambda images, i: tf.cast(tf.cast(images[i, 0], tf.float64), tf.float32), "convert"),
    ],
)
def test_faults_are_found(body, operation):
    found = faults(planted(body), IMAGES)
    assert found and all(f" {operation}(" in line for line in found)


def test_a_gather_of_a_batch_is_none():
    body = lambda images, i: tf.reduce_sum(tf.cast(tf.gather(images, [i, 2]), tf.float32))
    assert not faults(planted(body), IMAGES)


@pytest.mark.parametrize("operation", ["custom-call", "outfeed", "send-done", "recv"])
def test_ways_to_the_host_are_found(operation):
    program = planted(lambda images, i: tf.cast(images[i, 0], tf.float32))
    assert not faults(program, IMAGES)
    assert faults(program.replace(" convert(", f" {operation}("), IMAGES)
