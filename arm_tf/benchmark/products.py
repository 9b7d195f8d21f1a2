"""The matrix products of a compiled program, found in its text and taken alone."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [k, n] of a compiled program, and where its operands lie.

    Attributes:
      m, k, n: ints.
      transpose_a, transpose_b: whether an operand is stored the other way round.
      in_loop: whether it is taken in the program's loop or once.
    """

    m: int
    k: int
    n: int
    transpose_a: bool
    transpose_b: bool
    in_loop: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the operands as stored."""
        a, b = (self.m, self.k), (self.k, self.n)
        return a[::-1] if self.transpose_a else a, b[::-1] if self.transpose_b else b


def products_of(program: str) -> list[Product]:
    """The matrix products in the text of an optimised XLA program; a list of `Product`."""
    shape = r"%?([\w.-]+) = \w+\[([\d,]*)\]"
    shapes = {name: size.split(",") for name, size in re.findall(shape, program)}
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    found, computation = [], None
    for line in program.splitlines():
        if line.endswith("{") and "->" in line:
            computation = line.removeprefix("ENTRY ").split()[0].removeprefix("%")
        dot = re.search(
            shape + r"\S* dot\((?:\S+ )?%?([\w.-]+), .*lhs_contracting_dims=\{(\d)\}, "
            r"rhs_contracting_dims=\{(\d)\}",
            line,
        )
        if dot:
            size, a, a_axis, b_axis = dot.groups()[1:]
            m, n = map(int, size.split(","))
            k = int(shapes[a][int(a_axis)])
            found.append(Product(m, k, n, a_axis == "0", b_axis == "1", computation in bodies))
    return found


def products_alone(products: Sequence[Product], times: int) -> Callable[[], np.ndarray]:
    """A compiled function that takes the products in a loop, `times` over, and nothing else.

    Operands on the right that have the same shape, such as weights that are used twice, are one
    array; those on the left change with the last outputs, so that no product can be left out.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    array = lambda shape: tf.constant(rng.normal(scale=0.1, size=shape), tf.float32)
    left = [array(product.shapes[0]) for product in products]
    right = {shape: array(shape) for shape in {product.shapes[1] for product in products}}

    outputs = [tf.zeros([product.m, product.n]) for product in products]

    @tf.function(jit_compile=True, autograph=False)
    def run(left, outputs, right):
        def body(i, left, outputs):
            left = [
                tf.tensor_scatter_nd_update(a, [[0, 0]], [1e-3 * output[0, 0]])
                for a, output in zip(left, outputs, strict=True)
            ]
            outputs = [
                tf.matmul(a, right[p.shapes[1]], p.transpose_a, p.transpose_b)
                for a, p in zip(left, products, strict=True)
            ]
            return i + 1, left, outputs

        _, _, outputs = tf.while_loop(lambda i, *_: i < times, body, (0, left, outputs))
        return tf.add_n([output[0, 0] for output in outputs])

    return lambda: run(left, outputs, right).numpy()
