"""What the networks of stochastic binary layers have in common: maps, objective, gradients."""

import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from arm_tf import chain, objectives
from arm_tf.expectation import GradientEstimator, draw

_Choice = typing.TypeVar("_Choice")
_Scaling = tuple[float, float | np.ndarray]  # scale and offset
_SCALINGS: dict[str, _Scaling] = {"none": (1.0, 0.0), "symmetric": (2.0, -1.0)}


class Losses(typing.NamedTuple):
    """What training descends, each in the variables of one part of the network.

    Attributes:
      encoder: float [...], in nats, to be differentiated in the encoder's variables.
      decoder: float [...], in nats, to be differentiated in those of decoder and prior.
      estimator: zero, to be differentiated in the estimators' variables.
    """

    encoder: tf.Tensor
    decoder: tf.Tensor
    estimator: tf.Tensor


class BinaryNetwork(keras.Model):
    """T stochastic layers of Bernoulli units above an input, b_1 from it, b_t from b_{t-1}.

    The logits of every layer are a map of what the layer is given. A map is one dense layer
    ("linear") or two dense layers with leaky ReLU before that one ("nonlinear"); kernels are
    Glorot uniform, biases zero. What is common to the networks of this package is here: `encoder`,
    the maps to the stochastic layers, an objective E[f(b_{1:T})], f = log w, and its estimated
    gradients. A subclass says what the first map sees of a datum x, and what log w is, in `visible`
    and `log_weight`; it sets `decoder`, the maps that f is made of, and `prior_logits` or None.

    Args:
      pixels: int, the size of x.
      num_layers: int T >= 1.
      network: "linear" or "nonlinear".
      units: int, width of stochastic and deterministic layers.
      leaky_slope: float, slope of the leaky ReLU below zero.
      input_scaling: what the encoder sees of x: "none", x; "symmetric", 2x - 1; "centered",
        x - pixel_mean.
      code_scaling: what every map sees of a code b: "none", b; "symmetric", 2b - 1.
      output_bias: of the map to the pixels: "zeros", or "data_mean", the logit of pixel_mean.
      pixel_mean: float [pixels], mean of the training images; needed for "centered" and
        "data_mean" alone.
      seed: int, of the initial weights.
      seen: slice, of the pixels that the first map sees.
      drawn: slice, of the pixels that f has a distribution of.

    Raises:
      ValueError: an unknown choice, or one that needs the pixel_mean without it.
    """

    def __init__(
        self,
        pixels: int = 784,
        num_layers: int = 1,
        network: str = "linear",
        units: int = 200,
        leaky_slope: float = 0.1,
        input_scaling: str = "none",
        code_scaling: str = "none",
        output_bias: str = "zeros",
        pixel_mean: np.ndarray | None = None,
        seed: int = 0,
        *,
        seen: slice = slice(None),
        drawn: slice = slice(None),
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pixels, self.units, self._drawn = pixels, units, drawn
        self._hidden_layers = choose("network", network, {"linear": 0, "nonlinear": 2})
        self._leaky_slope = leaky_slope
        self._code_scaling = choose("code_scaling", code_scaling, _SCALINGS)
        scalings = dict(_SCALINGS)
        biases: dict[str, str | Callable[..., tf.Tensor]] = {"zeros": "zeros"}
        if pixel_mean is None and (input_scaling == "centered" or output_bias == "data_mean"):
            raise ValueError(
                "input_scaling='centered' and output_bias='data_mean' need pixel_mean, the mean of "
                f"the training images; received {input_scaling!r}, {output_bias!r} and no mean."
            )
        if pixel_mean is not None:
            mean = np.asarray(pixel_mean)
            scalings["centered"] = (1.0, -mean[seen])
            biases["data_mean"] = _logit_initializer(mean[drawn])
        scaling = choose("input_scaling", input_scaling, scalings)
        self._output_bias = choose("output_bias", output_bias, biases)
        seeds = np.random.SeedSequence(seed).generate_state(2 * num_layers * 3)
        self._seeds = iter(seeds.tolist())
        inputs = len(range(pixels)[seen])
        self.encoder = [self._map("encoder_1", inputs, units, scaling)]
        for t in range(2, num_layers + 1):
            self.encoder.append(self._map(f"encoder_{t}", units, units))

    def _map(
        self,
        name: str,
        inputs: int,
        outputs: int,
        scaling: _Scaling | None = None,
        bias: str | Callable[..., tf.Tensor] = "zeros",
    ) -> keras.Sequential:
        """A map of [N, inputs], scaled as the codes unless told otherwise, to [N, outputs]."""
        dense = lambda size, **kwargs: keras.layers.Dense(
            size,
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(self._seeds)),
            dtype=self.dtype,
            **kwargs,
        )
        scale, offset = scaling or self._code_scaling
        stack = [keras.layers.Rescaling(scale, offset, dtype=self.dtype)]
        for _ in range(self._hidden_layers):
            stack.append(dense(self.units))
            stack.append(keras.layers.LeakyReLU(self._leaky_slope, dtype=self.dtype))
        stack.append(dense(outputs, bias_initializer=bias))
        stochastic_map = keras.Sequential(stack, name=name)
        stochastic_map.build((None, inputs))
        return stochastic_map

    def _map_to_pixels(self, name: str) -> keras.Sequential:
        """A map of units to the logits of the pixels that f has a distribution of."""
        outputs = len(range(self.pixels)[self._drawn])
        return self._map(name, self.units, outputs, bias=self._output_bias)

    def visible(self, x: tf.Tensor) -> tf.Tensor:
        """The pixels of x that the first map sees."""
        return x

    def log_weight(
        self, x: tf.Tensor, path: Sequence[tf.Tensor], path_logits: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """log w = f(b_{1:T}), of which the network ascends the expectation.

        Args:
          x: float [..., pixels].
          path: T arrays b_t, float [S, ..., units] or [1, ..., units] where all S share one.
          path_logits: the logits that they were drawn from, shapes likewise.

        Returns:
          float [S, ...], in nats.
        """
        raise NotImplementedError

    @property
    def _dream_rows(self) -> int:
        """Rows of noise for what is drawn from the model; a VAE has a prior to do so."""
        return 0

    @property
    def num_layers(self) -> int:
        """Number of stochastic layers, T."""
        return len(self.encoder)

    @property
    def variable_groups(self) -> dict[str, list[keras.Variable]]:
        """Variables by the part of the model that trains them: encoder, decoder, prior."""
        prior = self.prior_logits
        return {
            "encoder": [v for m in self.encoder for v in m.trainable_variables],
            "decoder": [v for m in self.decoder for v in m.trainable_variables],
            "prior": [prior] if prior is not None and prior.trainable else [],
        }

    def gradient_estimators(
        self, estimator: str = "arm", num_samples: int | None = None, **options: float
    ) -> list[GradientEstimator]:
        """An `arm_tf.expectation.GradientEstimator` for each stochastic layer; a list."""
        return [
            GradientEstimator(estimator, self.units, num_samples, self.dtype, **options)
            for _ in range(self.num_layers)
        ]

    def noise_rows(
        self, gradient_estimators: Sequence[GradientEstimator], decoder_samples: str = "independent"
    ) -> int:
        """Rows of uniform noise that `losses` needs for one datum; int."""
        return sum(self._noise_rows(gradient_estimators, decoder_samples))

    def _noise_rows(
        self, gradient_estimators: Sequence[GradientEstimator], decoder_samples: str
    ) -> tuple[int, int, int]:
        """Rows for the estimators, for the decoder's further samples, and for dreams; ints."""
        paths = gradient_estimators[0].paths
        further = paths * self.num_layers * _is_independent(decoder_samples)
        dreams = paths * self._dream_rows * gradient_estimators[0].row.rule
        return chain.path_noise_rows(gradient_estimators), further, dreams

    def evaluations(
        self, gradient_estimators: Sequence[GradientEstimator], decoder_samples: str = "independent"
    ) -> int:
        """Evaluations of f = log w that `losses` makes for one datum; int."""
        first = gradient_estimators[0]
        layers = (
            range(self.num_layers, 0, -1) if first.row.through_layers else [1] * self.num_layers
        )
        evaluations = [
            estimator.evaluations * flipped
            for estimator, flipped in zip(gradient_estimators, layers, strict=True)
        ]
        further = first.paths * _is_independent(decoder_samples)
        return (evaluations[0] if first.row.joint else sum(evaluations)) + further

    def elbo(
        self,
        x: tf.Tensor,
        estimator: str = "arm",
        num_samples: int | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        **options: float,
    ) -> tf.Tensor:
        """Estimate of each datum's E[f(b_{1:T})], the ELBO of a VAE, with all its gradients.

        The gradient in the encoder's variables is the estimator's; the value, and the gradient in
        those of decoder and prior, is of one further sample, as in `losses`. To be ascended.

        Args:
          x: float [..., pixels], zeros and ones.
          estimator: a name from `arm_tf.estimators.TABLE`.
          num_samples: int, or None for the estimator's own number.
          seed: int or pair of ints that determines the noise; None draws afresh at each call.
          **options: settings of the estimator, such as temperature.

        Returns:
          float [...], in nats.

        Raises:
          ValueError: the estimator is unknown, of another objective, or learns parameters, for
            which `losses` takes estimators that are kept.
        """
        group = self.gradient_estimators(estimator, num_samples, **options)
        *_, dreams = self._noise_rows(group, "independent")
        if group[0].row.objective != "elbo" or dreams or group[0].parameters:
            raise ValueError(
                "estimator must be one of the ELBO that learns no parameters, "
                f"received {estimator!r}; use losses."
            )
        logits = tf.zeros([*x.shape[:-1], self.units], x.dtype)
        losses = self.losses(x, draw(logits, self.noise_rows(group), seed), group)
        return -losses.decoder - (losses.encoder - tf.stop_gradient(losses.encoder))

    def losses(
        self,
        x: tf.Tensor,
        u: tf.Tensor,
        gradient_estimators: Sequence[GradientEstimator],
        decoder_samples: str = "independent",
        offsets: Sequence[tf.Tensor] | None = None,
    ) -> Losses:
        """Loss of each datum, once for each part of the model that has its own gradient.

        Both are estimates of -E[f(b_{1:T})], the negative ELBO of a VAE, or, for estimators of the
        objective "multisample", of the negative bound -E[log (1/K) sum_k exp f(b_{1:T}^k)].

        Wake-sleep (Hinton et al. 1995) is the exception to the first: its gradient is that of
        -(1/K) sum_k log q(b_{1:T}^k | x_k), for codes and images drawn from the model.

        Args:
          x: float [..., pixels], zeros and ones.
          u: float [noise_rows(...), ..., units], uniform noise.
          gradient_estimators: T instances of `arm_tf.expectation.GradientEstimator`.
          decoder_samples: where the gradient of decoder and prior comes from: "independent",
            one further sample of b_{1:T}, as the paper's authors do (K of them for a
            multi-sample bound), or "shared", the average over the samples that the estimator
            evaluates for the encoder (or the bound on them, as is usual).
          offsets: T arrays of the shape of the layers' logits, [..., units], that are added to
            them; zeros whose gradients in the encoder's loss are those of the logits.

        Returns:
          `Losses`.
        """
        f = functools.partial(self.log_weight, x)
        row = gradient_estimators[0].row
        objective = {"elbo": objectives.elbo, "multisample": objectives.multisample_bound}

        def estimate(u: tf.Tensor) -> tf.Tensor:
            path, logits = self.sample(x, tf.split(u, self.num_layers))
            return objective[row.objective](f(path, [tf.stop_gradient(phi) for phi in logits]))

        maps = self.encoder_maps
        if offsets is not None:
            add = lambda m, o: lambda b: m(b) + o
            maps = [add(m, o) for m, o in zip(maps, offsets, strict=True)]
        sizes = self._noise_rows(gradient_estimators, decoder_samples)
        u, u_decoder, u_dreams = tf.split(u, sizes)
        if row.rule:
            f_mean = estimate(u)
            log_q = self._dream_log_q(maps, tf.stack(tf.split(u_dreams, self._dream_rows)))
            ascended = row.function(log_q)
            surrogate = tf.stop_gradient(f_mean) + (ascended - tf.stop_gradient(ascended))
            estimator_loss = tf.zeros([], x.dtype)
        else:
            surrogate, f_mean, estimator_loss = chain.path_expectation(
                f, maps, self.visible(x), u, gradient_estimators
            )
        if _is_independent(decoder_samples):
            f_mean = estimate(u_decoder)
        return Losses(-surrogate, -f_mean, estimator_loss)

    def sample(
        self, x: tf.Tensor, noise: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Paths b_{1:T} for `x` and their logits, as `arm_tf.chain.sample_path`."""
        return chain.sample_path(self.encoder_maps, self.visible(x), noise)

    def log_weights(self, x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """log w of S independent paths.

        Args:
          x: float [..., pixels].
          u: float [T, S, ..., units], uniform noise.

        Returns:
          float [S, ...], in nats.
        """
        return self.log_weight(x, *self.sample(x, tf.unstack(u)))

    @property
    def encoder_maps(self) -> list[Callable[[tf.Tensor], tf.Tensor]]:
        """The encoder's maps from units to the logits of the next, a list of functions."""
        return [functools.partial(apply_map, m) for m in self.encoder]


def apply_map(dense_map: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor) -> tf.Tensor:
    """`dense_map` of [..., V] as one matrix product, however many leading axes there are."""
    outputs = dense_map(tf.reshape(inputs, [-1, inputs.shape[-1]]))
    return tf.reshape(outputs, [*inputs.shape[:-1], outputs.shape[-1]])


def _logit_initializer(mean: np.ndarray) -> Callable[..., tf.Tensor]:
    """Initialiser of a bias at logit(mean), the means kept 0.001 away from 0 and 1."""
    mean = np.clip(np.asarray(mean, np.float64), 1e-3, 1 - 1e-3)
    logit = np.log(mean) - np.log1p(-mean)
    return lambda shape, dtype=None: tf.cast(tf.reshape(logit, shape), dtype)


def _is_independent(decoder_samples: str) -> bool:
    if decoder_samples == "antithetic":  # the word of earlier versions
        decoder_samples = "shared"
    choices = {"independent": True, "shared": False}
    return choose("decoder_samples", decoder_samples, choices)


def choose(name: str, value: str, choices: Mapping[str, _Choice]) -> _Choice:
    """What `choices` holds for `value`; a ValueError that lists them where it holds nothing."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, received {value!r}.")
    return choices[value]
