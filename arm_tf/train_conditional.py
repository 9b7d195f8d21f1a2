"""Trains the network for an image's lower half: `python -m arm_tf.train_conditional`.

p(lower half | upper half) through stochastic binary layers; `arm_tf.train` with --model=conditional
and two layers, whose settings, run folder, resuming and TensorBoard it shares.
"""

from absl import flags

from arm_tf import cli, train

if __name__ == "__main__":
    train.define_flags()
    flags.adopt_module_key_flags(train)  # for --help
    flags.FLAGS.set_default("model", "conditional")
    flags.FLAGS.set_default("layers", 2)
    cli.run(train.main)
