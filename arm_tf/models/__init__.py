"""Networks of stochastic binary layers: variational autoencoders, and the conditional network."""

import functools

import keras
import numpy as np
import tensorflow as tf

from arm_tf import bernoulli, estimators, layers, objectives

_SCALINGS = {"none": (1.0, 0.0), "symmetric": (2.0, -1.0)}  # scale and offset
_COMPLETIONS = 3


class BinaryNetwork(keras.Model):
    """T stochastic layers of Bernoulli units above an input, b_1 from it, b_t from b_{t-1}.

    The logits of every layer are a map of what the layer is given. A map is one dense layer
    ("linear") or two dense layers with leaky ReLU before that one ("nonlinear"); kernels are
    Glorot uniform, biases zero. What is common to the networks of this module is here: an
    objective E[f(b_{1:T})], f = log w, and its estimated gradients. A subclass says what the first
    map sees of a datum x, and what log w is, in `visible` and `log_weight`; it sets `encoder`, the
    maps to the stochastic layers, `decoder`, those that f is made of, and `prior_logits` or None.
    """

    _dream_rows = 0  # of noise for what is drawn from the model; a VAE has a prior to do so

    def __init__(self, num_layers, network, units, leaky_slope, code_scaling, seed, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self._hidden_layers = _choose("network", network, {"linear": 0, "nonlinear": 2})
        self._leaky_slope = leaky_slope
        self._code_scaling = _choose("code_scaling", code_scaling, _SCALINGS)
        seeds = np.random.SeedSequence(seed).generate_state(2 * num_layers * 3)
        self._seeds = iter(seeds.tolist())

    def _map(self, name, inputs, outputs, scaling=None, bias="zeros"):
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

    def _encoder(self, num_layers, pixels, scaling):
        """The maps to the stochastic layers, the first of them from scaled pixels; a list."""
        first = self._map("encoder_1", pixels, self.units, scaling)
        others = range(2, num_layers + 1)
        return [first, *(self._map(f"encoder_{t}", self.units, self.units) for t in others)]

    def visible(self, x):
        """The pixels of x that the first map sees."""
        return x

    def log_weight(self, x, path, path_logits):
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
    def num_layers(self):
        """Number of stochastic layers, T."""
        return len(self.encoder)

    @property
    def variable_groups(self):
        """Variables by the part of the model that trains them: encoder, decoder, prior."""
        prior = self.prior_logits
        return {
            "encoder": [v for m in self.encoder for v in m.trainable_variables],
            "decoder": [v for m in self.decoder for v in m.trainable_variables],
            "prior": [prior] if prior is not None and prior.trainable else [],
        }

    def gradient_estimators(self, estimator="arm", num_samples=None, **options):
        """An `arm_tf.layers.GradientEstimator` for each stochastic layer; a list."""
        return [
            layers.GradientEstimator(estimator, self.units, num_samples, self.dtype, **options)
            for _ in range(self.num_layers)
        ]

    def noise_rows(self, gradient_estimators, decoder_samples="independent"):
        """Rows of uniform noise that `losses` needs for one datum; int."""
        return sum(self._noise_rows(gradient_estimators, decoder_samples))

    def _noise_rows(self, gradient_estimators, decoder_samples):
        """Rows for the estimators, for the decoder's further samples, and for dreams; ints."""
        paths = gradient_estimators[0].paths
        further = paths * self.num_layers * _is_independent(decoder_samples)
        dreams = paths * self._dream_rows * gradient_estimators[0].row.dreams
        return layers.path_noise_rows(gradient_estimators), further, dreams

    def evaluations(self, gradient_estimators, decoder_samples="independent"):
        """Evaluations of f = log w that `losses` makes for one datum; int."""
        first = gradient_estimators[0]
        evaluations = [estimator.evaluations for estimator in gradient_estimators]
        further = first.paths * _is_independent(decoder_samples)
        return (evaluations[0] if first.row.joint else sum(evaluations)) + further

    def losses(self, x, u, gradient_estimators, decoder_samples="independent", offsets=None):
        """Loss of each datum, once for each part of the model that has its own gradient.

        Both are estimates of -E[f(b_{1:T})], the negative ELBO of a VAE, or, for estimators of the
        objective "multisample", of the negative bound -E[log (1/K) sum_k exp f(b_{1:T}^k)].

        Wake-sleep (Hinton et al. 1995) is the exception to encoder_loss: its gradient is that of
        -(1/K) sum_k log q(b_{1:T}^k | x_k), for codes and images drawn from the model.

        Args:
          x: float [..., pixels], zeros and ones.
          u: float [noise_rows(...), ..., units], uniform noise.
          gradient_estimators: T instances of `arm_tf.layers.GradientEstimator`.
          decoder_samples: where the gradient of decoder and prior comes from: "independent",
            one further sample of b_{1:T}, as the paper's authors do (K of them for a
            multi-sample bound), or "antithetic", the average over the samples that the
            estimator evaluates for the encoder (or the bound on them, as is usual).
          offsets: T arrays of the shape of the layers' logits, [..., units], that are added to
            them; zeros whose gradients in encoder_loss are those of the logits.

        Returns:
          encoder_loss: float [...], in nats, to be differentiated in the encoder's variables.
          decoder_loss: float [...], in nats, to be differentiated in those of decoder and prior.
          estimator_loss: zero, to be differentiated in the estimators' variables.
        """
        f = functools.partial(self.log_weight, x)
        row = gradient_estimators[0].row
        objective = {"elbo": objectives.elbo, "multisample": objectives.multisample_bound}
        estimate = lambda u: objective[row.objective](
            f(*self.sample(x, tf.split(u, self.num_layers)))
        )
        maps = self.encoder_maps
        if offsets is not None:
            maps = [lambda b, m=m, o=o: m(b) + o for m, o in zip(maps, offsets, strict=True)]
        sizes = self._noise_rows(gradient_estimators, decoder_samples)
        u, u_decoder, u_dreams = tf.split(u, sizes)
        if row.dreams:
            f_mean = estimate(u)
            log_q = self._dream_log_q(maps, tf.stack(tf.split(u_dreams, self._dream_rows)))
            log_q = tf.reduce_mean(log_q, axis=0)
            surrogate = tf.stop_gradient(f_mean) + (log_q - tf.stop_gradient(log_q))
            estimator_loss = tf.zeros([], x.dtype)
        else:
            surrogate, f_mean, estimator_loss = layers.path_expectation(
                f, maps, self.visible(x), u, gradient_estimators
            )
        if _is_independent(decoder_samples):
            f_mean = estimate(u_decoder)
        return -surrogate, -f_mean, estimator_loss

    def sample(self, x, noise):
        """Paths b_{1:T} for `x` and their logits, as `arm_tf.layers.sample_path`."""
        return layers.sample_path(self.encoder_maps, self.visible(x), noise)

    def log_weights(self, x, u):
        """log w of S independent paths.

        Args:
          x: float [..., pixels].
          u: float [T, S, ..., units], uniform noise.

        Returns:
          float [S, ...], in nats.
        """
        return self.log_weight(x, *self.sample(x, tf.unstack(u)))

    @property
    def encoder_maps(self):
        """The encoder's maps from units to the logits of the next, a list of functions."""
        return [lambda b, m=m: _apply(m, b) for m in self.encoder]


class BinaryVAE(BinaryNetwork):
    """Binary VAE with T stochastic layers of Bernoulli units (Yin & Zhou 2019, section 3.2).

    Recognition q(b_1|x) q(b_2|b_1) … q(b_T|b_{T-1}), generation p(b_T) … p(b_1|b_2) p(x|b_1),
    every factor a vector of Bernoulli units whose logits are a map of what it is given; maps are
    those of `BinaryNetwork`. f = log p(x, b_{1:T}) - log q(b_{1:T}|x), so that E_q[f] is the ELBO.

    Args:
      pixels: int, the size of x.
      num_layers: int T >= 1.
      network: "linear" or "nonlinear".
      units: int, width of stochastic and deterministic layers.
      leaky_slope: float, slope of the leaky ReLU below zero.
      input_scaling: what the encoder sees of x: "none", x; "symmetric", 2x - 1; "centered",
        x - pixel_mean.
      code_scaling: what every map sees of a code b: "none", b; "symmetric", 2b - 1.
      prior: "learned" logits of p(b_T), from zero, or "uniform", fixed at zero.
      output_bias: of the map to the pixels: "zeros", or "data_mean", the logit of pixel_mean.
      pixel_mean: float [pixels], mean of the training images; needed for "centered" and
        "data_mean" alone.
      seed: int, of the initial weights.

    Raises:
      ValueError: an unknown choice, or one that needs the pixel_mean without it.
    """

    def __init__(
        self,
        pixels=784,
        num_layers=1,
        network="linear",
        units=200,
        leaky_slope=0.1,
        input_scaling="none",
        code_scaling="none",
        prior="learned",
        output_bias="zeros",
        pixel_mean=None,
        seed=0,
        **kwargs,
    ):
        super().__init__(num_layers, network, units, leaky_slope, code_scaling, seed, **kwargs)
        x_scaling, output_bias = _at_the_pixels(input_scaling, output_bias, pixel_mean)
        self.encoder = self._encoder(num_layers, pixels, x_scaling)
        self.decoder = [
            self._map(f"decoder_{t + 1}", units, units)
            if t
            else self._map("decoder_1", units, pixels, bias=output_bias)
            for t in range(num_layers)
        ]
        self.prior_logits = self.add_weight(
            shape=(units,),
            initializer="zeros",
            trainable=_choose("prior", prior, {"learned": True, "uniform": False}),
            name="prior_logits",
        )
        self.pixels = pixels
        self.built = True

    def log_weight(self, x, path, path_logits):
        """log w = log p(x, b_{1:T}) - log q(b_{1:T} | x).

        Args:
          x: float [..., pixels].
          path: T arrays b_t, float [S, ..., units] or [1, ..., units] where all S share one.
          path_logits: the logits of q that they were drawn from, shapes likewise.

        Returns:
          float [S, ...], in nats.
        """
        log_w = bernoulli.log_prob(path[-1], self.prior_logits)
        for b, below, decoder_map in zip(path, [x, *path], self.decoder, strict=False):
            log_w += bernoulli.log_prob(below, _apply(decoder_map, b))
        for b, logits in zip(path, path_logits, strict=True):
            log_w -= bernoulli.log_prob(b, logits)
        return log_w

    def decode(self, b, u):
        """Pixel probabilities p(x_d = 1 | b_1), b_1 reached from the top layer's units.

        Args:
          b: float [..., units], units of the top layer.
          u: float [T - 1, ..., units], noise for the layers below it, top first.

        Returns:
          float [..., pixels].
        """
        return tf.sigmoid(_apply(self.decoder[0], self._descend(b, u)[0]))

    def _descend(self, b, u):
        """Units of all layers, lowest first, from those of the top layer; arguments of `decode`."""
        path = [b]
        for decoder_map, noise in zip(self.decoder[:0:-1], tf.unstack(u), strict=True):
            path.insert(0, bernoulli.sample(_apply(decoder_map, path[0]), noise))
        return path

    def generate(self, u):
        """Pixel probabilities of samples from the model.

        Args:
          u: float [T, ..., units], uniform noise, top layer first.

        Returns:
          float [..., pixels].
        """
        return self.decode(bernoulli.sample(self.prior_logits, u[0]), u[1:])

    def dream(self, u):
        """Images drawn from the model, and the codes that they were drawn from.

        Args:
          u: float [T + ceil(pixels / units), ..., units], uniform noise of the layers, top
            first, and of the pixels.

        Returns:
          x: float [..., pixels], zeros and ones.
          path: T arrays b_t, float [..., units].
        """
        layer_noise, pixel_noise = u[: self.num_layers], tf.unstack(u[self.num_layers :])
        path = self._descend(bernoulli.sample(self.prior_logits, layer_noise[0]), layer_noise[1:])
        pixel_noise = tf.concat(pixel_noise, axis=-1)[..., : self.pixels]
        return bernoulli.sample(_apply(self.decoder[0], path[0]), pixel_noise), path

    def _dream_log_q(self, maps, u):
        """log q(b_{1:T}|x), by the encoder's `maps`, of what `dream` makes of `u`; float [...]."""
        x, path = self.dream(u)
        inputs = [x, *path[:-1]]
        log_q = [bernoulli.log_prob(b, m(i)) for b, m, i in zip(path, maps, inputs, strict=True)]
        return tf.add_n(log_q)

    def reconstruct(self, x, u):
        """Pixel probabilities p(x | b_1) at one sample b_1 ~ q(b_1 | x).

        Args:
          x: float [..., pixels].
          u: float [..., units], uniform noise.

        Returns:
          float [..., pixels].
        """
        b = bernoulli.sample(self.encoder_maps[0](x), u)
        return tf.sigmoid(_apply(self.decoder[0], b))

    @property
    def _dream_rows(self):
        """Rows of units' noise that cover a code of all layers and an image."""
        return self.num_layers + -(-self.pixels // self.units)

    @property
    def picture_rows(self):
        """Rows of units' noise that `pictures` needs for one image; int."""
        return self.num_layers + 1

    def pictures(self, x, u):
        """Samples from the model; images and their reconstructions.

        Args:
          x: float [N, pixels].
          u: float [picture_rows, N, units], uniform noise.

        Returns:
          By the picture's name, a list of images [N, pixels] in [0, 1].
        """
        return {
            "samples": [self.generate(u[1:])],
            "reconstructions": [x, self.reconstruct(x, u[0])],
        }


class ConditionalNetwork(BinaryNetwork):
    """Stochastic binary network for the rest of an image given its upper half.

    p(x_l|x_u) = E[p(x_l|b_T)] over b_1 ~ p(b_1|x_u), …, b_T ~ p(b_T|b_{T-1}), every factor a
    vector of Bernoulli units whose logits are a map as in `BinaryNetwork`; x_u are the first
    `upper` pixels, x_l the rest. f = log p(x_l|b_T), so that E[f] is a lower bound on
    log p(x_l|x_u) (Yin & Zhou 2019, proposition 3, whose layers are numbered from x_l).

    Args:
      upper: int; None, or 0, where an image has one row, for half of the pixels.
      pixels, num_layers, network, units, leaky_slope, code_scaling, seed: as in `BinaryVAE`.
      input_scaling, output_bias, pixel_mean: as in `BinaryVAE`.

    Raises:
      ValueError: an unknown choice, or one that needs the pixel_mean without it.
    """

    def __init__(
        self,
        pixels=784,
        num_layers=2,
        network="linear",
        units=200,
        leaky_slope=0.1,
        input_scaling="none",
        code_scaling="none",
        output_bias="zeros",
        pixel_mean=None,
        seed=0,
        upper=None,
        **kwargs,
    ):
        super().__init__(num_layers, network, units, leaky_slope, code_scaling, seed, **kwargs)
        self.upper = upper or pixels // 2
        halves = [None, None] if pixel_mean is None else np.split(pixel_mean, [self.upper])
        x_scaling = _at_the_pixels(input_scaling, "zeros", halves[0])[0]
        output_bias = _at_the_pixels("none", output_bias, halves[1])[1]
        self.encoder = self._encoder(num_layers, self.upper, x_scaling)
        self.decoder = [self._map("decoder", units, pixels - self.upper, bias=output_bias)]
        self.prior_logits = None
        self.built = True

    def visible(self, x):
        return x[..., : self.upper]

    def gradient_estimators(self, estimator="arm", num_samples=None, **options):
        """As in `BinaryNetwork`; ValueError where the estimator needs a log q in f, or a prior."""
        row = estimators.get(estimator)
        if row.objective != "elbo" or row.dreams:
            raise ValueError(f"{estimator!r} is not for the conditional network, which has no q.")
        return super().gradient_estimators(estimator, num_samples, **options)

    def log_weight(self, x, path, path_logits):
        return bernoulli.log_prob(x[..., self.upper :], _apply(self.decoder[0], path[-1]))

    @property
    def picture_rows(self):
        """Rows of units' noise that `pictures` needs for one image; int."""
        return _COMPLETIONS * self.num_layers

    def pictures(self, x, u):
        """Images, and three completions of each: p(x_l|b_T) at one b_{1:T} under the true x_u.

        Args:
          x: float [N, pixels].
          u: float [picture_rows, N, units], uniform noise.

        Returns:
          By the picture's name, a list of images [N, pixels] in [0, 1].
        """
        path, _ = self.sample(x, tf.split(u, self.num_layers))
        lower = tf.sigmoid(_apply(self.decoder[0], path[-1]))
        completions = [tf.concat([self.visible(x), half], axis=-1) for half in tf.unstack(lower)]
        return {"completions": [x, *completions]}


def _at_the_pixels(input_scaling, output_bias, pixel_mean):
    """Scale and offset of an input of pixels, and the initial bias of a map to pixels."""
    scalings, biases = dict(_SCALINGS), {"zeros": "zeros"}
    if pixel_mean is not None:
        mean = np.asarray(pixel_mean)
        scalings["centered"] = (1.0, -mean)
        biases["data_mean"] = _logit_initializer(mean)
    return (
        _choose("input_scaling", input_scaling, scalings),
        _choose("output_bias", output_bias, biases),
    )


def _apply(dense_map, inputs):
    """`dense_map` of [..., V] as one matrix product, however many leading axes there are."""
    outputs = dense_map(tf.reshape(inputs, [-1, inputs.shape[-1]]))
    return tf.reshape(outputs, [*inputs.shape[:-1], outputs.shape[-1]])


def _logit_initializer(mean):
    """Initialiser of a bias at logit(mean), the means kept 0.001 away from 0 and 1."""
    mean = np.clip(np.asarray(mean, np.float64), 1e-3, 1 - 1e-3)
    logit = np.log(mean) - np.log1p(-mean)
    return lambda shape, dtype=None: tf.cast(tf.reshape(logit, shape), dtype)


def _is_independent(decoder_samples):
    choices = {"independent": True, "antithetic": False}
    return _choose("decoder_samples", decoder_samples, choices)


def _choose(name, value, choices):
    """What `choices` holds for `value`; a ValueError that lists them where it holds nothing."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, received {value!r}.")
    return choices[value]
