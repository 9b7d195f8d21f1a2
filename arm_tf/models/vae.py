"""Variational autoencoders with stochastic binary layers."""

import typing
from collections.abc import Callable, Sequence

import tensorflow as tf

from arm_tf import bernoulli
from arm_tf.models.network import BinaryNetwork, apply_map, choose


class BinaryVAE(BinaryNetwork):
    """Binary VAE with T stochastic layers of Bernoulli units (Yin & Zhou 2019, section 3.2).

    Recognition q(b_1|x) q(b_2|b_1) … q(b_T|b_{T-1}), generation p(b_T) … p(b_1|b_2) p(x|b_1),
    every factor a vector of Bernoulli units whose logits are a map of what it is given; maps are
    those of `BinaryNetwork`. f = log p(x, b_{1:T}) - log q(b_{1:T}|x), so that E_q[f] is the ELBO.

    Args:
      prior: "learned" logits of p(b_T), from zero, or "uniform", fixed at zero.
      *args, **kwargs: as of `BinaryNetwork`.

    Raises:
      ValueError: an unknown choice, or one that needs the pixel_mean without it.
    """

    def __init__(self, *args: typing.Any, prior: str = "learned", **kwargs: typing.Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder = [self._map_to_pixels("decoder_1")]
        for t in range(2, self.num_layers + 1):
            self.decoder.append(self._map(f"decoder_{t}", self.units, self.units))
        self.prior_logits = self.add_weight(
            shape=(self.units,),
            initializer="zeros",
            trainable=choose("prior", prior, {"learned": True, "uniform": False}),
            name="prior_logits",
        )
        self.built = True

    def log_weight(
        self, x: tf.Tensor, path: Sequence[tf.Tensor], path_logits: Sequence[tf.Tensor]
    ) -> tf.Tensor:
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
            log_w += bernoulli.log_prob(below, apply_map(decoder_map, b))
        for b, logits in zip(path, path_logits, strict=True):
            log_w -= bernoulli.log_prob(b, logits)
        return log_w

    def decode(self, b: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Pixel probabilities p(x_d = 1 | b_1), b_1 reached from the top layer's units.

        Args:
          b: float [..., units], units of the top layer.
          u: float [T - 1, ..., units], noise for the layers below it, top first.

        Returns:
          float [..., pixels].
        """
        return tf.sigmoid(apply_map(self.decoder[0], self._descend(b, u)[0]))

    def _descend(self, b: tf.Tensor, u: tf.Tensor) -> list[tf.Tensor]:
        """Units of all layers, lowest first, from those of the top layer; arguments of `decode`."""
        path = [b]
        for decoder_map, noise in zip(self.decoder[:0:-1], tf.unstack(u), strict=True):
            path.insert(0, bernoulli.sample(apply_map(decoder_map, path[0]), noise))
        return path

    def generate(self, u: tf.Tensor) -> tf.Tensor:
        """Pixel probabilities of samples from the model.

        Args:
          u: float [T, ..., units], uniform noise, top layer first.

        Returns:
          float [..., pixels].
        """
        return self.decode(bernoulli.sample(self.prior_logits, u[0]), u[1:])

    def dream(self, u: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
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
        return bernoulli.sample(apply_map(self.decoder[0], path[0]), pixel_noise), path

    def _dream_log_q(
        self, maps: Sequence[Callable[[tf.Tensor], tf.Tensor]], u: tf.Tensor
    ) -> tf.Tensor:
        """log q(b_{1:T}|x), by the encoder's `maps`, of what `dream` makes of `u`; float [...]."""
        x, path = self.dream(u)
        inputs = [x, *path[:-1]]
        log_q = [bernoulli.log_prob(b, m(i)) for b, m, i in zip(path, maps, inputs, strict=True)]
        return tf.add_n(log_q)

    def reconstruct(self, x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Pixel probabilities p(x | b_1) at one sample b_1 ~ q(b_1 | x).

        Args:
          x: float [..., pixels].
          u: float [..., units], uniform noise.

        Returns:
          float [..., pixels].
        """
        b = bernoulli.sample(self.encoder_maps[0](x), u)
        return tf.sigmoid(apply_map(self.decoder[0], b))

    @property
    def _dream_rows(self) -> int:
        """Rows of units' noise that cover a code of all layers and an image."""
        return self.num_layers + -(-self.pixels // self.units)

    @property
    def picture_rows(self) -> int:
        """Rows of units' noise that `pictures` needs for one image; int."""
        return self.num_layers + 1

    def pictures(self, x: tf.Tensor, u: tf.Tensor) -> dict[str, list[tf.Tensor]]:
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
