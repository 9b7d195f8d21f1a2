"""In a graph, every read of a variable comes before the step that writes it.

TensorFlow puts them in order, and its graph optimiser may lose it (see
`arm_tf.expectation.gradient_after`); which is read here in the optimised graph, since what it does
to the weights depends on the moment.
"""

import keras
import pytest
import tensorflow as tf
from kinds import KINDS
from small_runs import configure, mirrored, small_dataset
from tensorflow.python.eager import context
from test_keras import ELBO, FORMS, X, Y, build

from arm_tf.training.learner import Learner

QUICK = ("arm", "relax")
slow = lambda estimator: () if estimator in QUICK else pytest.mark.slow
EACH_KIND = [name for name in ELBO if name in KINDS]


def optimised_graphs(function, *args):
    concrete = function.get_concrete_function(*args)
    context.enable_run_metadata()
    try:
        concrete(*args)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    return [graph.post_optimization_graph for graph in graphs]


def ancestors(nodes, name):
    """The nodes that are done before one, within a pass of a loop."""
    found, left = set(), [name]
    while left:
        node = nodes[left.pop()]
        inputs = [] if node.op == "NextIteration" else node.input
        new = {i.lstrip("^").split(":")[0] for i in inputs} - found
        found |= new
        left += new
    return found


def variable_of(nodes, name):
    while nodes[name].op not in ("_Arg", "VarHandleOp", "Placeholder"):
        name = nodes[name].input[0].split(":")[0]
    return name


def reads_and_races(graph):
    """How many variables are written after a read, and the (read, write) without an order."""
    nodes = {node.name: node for node in graph.node}
    by_variable = {}
    for node in graph.node:
        is_write = node.op.startswith("Assign") or "ResourceApply" in node.op
        if is_write or node.op == "ReadVariableOp":
            pair = by_variable.setdefault(variable_of(nodes, node.name), ([], []))
            pair[is_write].append(node.name)
    before = {name: ancestors(nodes, name) for _, writes in by_variable.values() for name in writes}
    pairs = [(r, w) for reads, writes in by_variable.values() for w in writes for r in reads]
    races = [(r, w) for r, w in pairs if r not in before[w] and w not in ancestors(nodes, r)]
    return sum(r in before[w] for r, w in pairs), races


def assert_ordered(function, *args):
    results = [reads_and_races(graph) for graph in optimised_graphs(function, *args)]
    assert max(reads for reads, _ in results) > 5
    assert [races for _, races in results if races] == []


@pytest.mark.parametrize(
    ("estimator", "form"),
    [pytest.param(n, "sequential", marks=slow(n)) for n in EACH_KIND]
    + [(n, form) for n in QUICK for form in FORMS if form != "sequential"],
)
def test_keras_step(estimator, form):
    keras.utils.set_random_seed(0)
    model, loss = build(form, estimator)
    model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    model.train_on_batch(X, Y)
    step = tf.function(lambda x, y: model.train_step((x, y)), autograph=False)
    assert_ordered(step, tf.constant(X), tf.constant(Y))


def trainer_step(estimator, tmp_path, replicas=1, **settings):
    config = configure(tmp_path, estimator=estimator, jit=False, **settings)
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        learner = Learner(config, small_dataset(), strategy)
    shape = [config.steps_per_loop, config.batch_size, config.units]
    noise = lambda rows: tf.random.uniform([shape[0], rows, *shape[1:]])
    images = tf.constant(small_dataset().train)
    order = tf.zeros(shape[:2], tf.int32)
    noises = (noise(learner.noise_rows[of]) for of in ("train", "variance"))
    return learner.take_steps, images, order, *noises, tf.constant(1)


@pytest.mark.parametrize(
    ("estimator", "layers"),
    [(n, 1) for n in QUICK] + [pytest.param(n, 3, marks=slow(n)) for n in EACH_KIND],
)
def test_trainer_step(estimator, layers, tmp_path):
    assert_ordered(*trainer_step(estimator, tmp_path, layers=layers))


def test_step_of_replicas(tmp_path):
    assert_ordered(*trainer_step("arm", tmp_path, replicas=2, layers=2))
