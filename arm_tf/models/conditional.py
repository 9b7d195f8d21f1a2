"""The stochastic binary network for a part of an image given the rest."""

import typing
from collections.abc import Sequence

import tensorflow as tf

from arm_tf import bernoulli, estimators
from arm_tf.expectation import GradientEstimator
from arm_tf.models.network import BinaryNetwork, apply_map

_COMPLETIONS = 3


class ConditionalNetwork(BinaryNetwork):
    """Stochastic binary network for the rest of an image given its upper half.

    p(x_l|x_u) = E[p(x_l|b_T)] over b_1 ~ p(b_1|x_u), …, b_T ~ p(b_T|b_{T-1}), every factor a
    vector of Bernoulli units whose logits are a map as in `BinaryNetwork`; x_u are the first
    `upper` pixels, x_l the rest. f = log p(x_l|b_T), so that E[f] is a lower bound on
    log p(x_l|x_u) (Yin & Zhou 2019, proposition 3, whose layers are numbered from x_l).

    Args:
      upper: int; None, or 0, where an image has one row, for half of the pixels.
      pixels, num_layers, *args, **kwargs: as of `BinaryNetwork`.

    Raises:
      ValueError: an unknown choice, or one that needs the pixel_mean without it.
    """

    def __init__(
        self,
        pixels: int = 784,
        num_layers: int = 2,
        *args: typing.Any,
        upper: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        upper = upper or pixels // 2
        seen, drawn = slice(None, upper), slice(upper, None)
        super().__init__(pixels, num_layers, *args, seen=seen, drawn=drawn, **kwargs)
        self.upper = upper
        self.decoder = [self._map_to_pixels("decoder")]
        self.prior_logits = None
        self.built = True

    def visible(self, x: tf.Tensor) -> tf.Tensor:
        return x[..., : self.upper]

    def gradient_estimators(
        self, estimator: str = "arm", num_samples: int | None = None, **options: float
    ) -> list[GradientEstimator]:
        """As in `BinaryNetwork`; ValueError where the estimator needs a log q in f, or a prior."""
        row = estimators.get(estimator)
        if row.objective != "elbo" or row.rule:
            raise ValueError(f"{estimator!r} is not for the conditional network, which has no q.")
        return super().gradient_estimators(estimator, num_samples, **options)

    def log_weight(
        self, x: tf.Tensor, path: Sequence[tf.Tensor], path_logits: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        return bernoulli.log_prob(x[..., self.upper :], apply_map(self.decoder[0], path[-1]))

    @property
    def picture_rows(self) -> int:
        """Rows of units' noise that `pictures` needs for one image; int."""
        return _COMPLETIONS * self.num_layers

    def pictures(self, x: tf.Tensor, u: tf.Tensor) -> dict[str, list[tf.Tensor]]:
        """Images, and three completions of each: p(x_l|b_T) at one b_{1:T} under the true x_u.

        Args:
          x: float [N, pixels].
          u: float [picture_rows, N, units], uniform noise.

        Returns:
          By the picture's name, a list of images [N, pixels] in [0, 1].
        """
        path, _ = self.sample(x, tf.split(u, self.num_layers))
        lower = tf.sigmoid(apply_map(self.decoder[0], path[-1]))
        completions = [tf.concat([self.visible(x), half], axis=-1) for half in tf.unstack(lower)]
        return {"completions": [x, *completions]}
