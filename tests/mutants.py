"""Wrong copies of the package, and the tests that must notice: `python tests/mutants.py`.

Each mutant is a file, a text that it holds once, what stands there in its place, and the tests of
which one must fail. On a copy of the working tree, the tests have to pass as it is, and to fail
with each mutant alone. Before tests are cut, merged or made faster, run this; after it, no mutant
may survive that was killed before. It takes some ten minutes. `python tests/mutants.py WORD`
takes the mutants whose file or tests hold the word.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
MUTANTS = [
    # Estimators, and what binds them to gradients.
    ("arm_tf/estimators/antithetic.py",
     "f_delta[..., tf.newaxis] * (u - 0.5)", "f_delta[..., tf.newaxis] * (u - 0.4)",
     "test_estimators.py::test_arm_merges_ar_at_u_and_one_minus_u"),
    ("arm_tf/estimators/antithetic.py",
     "weight = 0.5 * (b_anti - b) * tf.sigmoid(tf.abs(logits))",
     "weight = 0.5 * (b_anti - b) * tf.sigmoid(logits)",
     "test_proofs.py::test_estimator_is_proved[disarm]"),
    ("arm_tf/estimators/multisample.py",
     "_replace_each(log_w, 0.0), axis=0) / (log_w.shape[0] - 1)",
     "_replace_each(log_w, 0.0), axis=0) / log_w.shape[0]",
     "test_multisample.py::test_baselines_are_those_of_the_papers"),
    ("arm_tf/estimators/rebar.py",
     'temperature = tf.exp(parameters["log_temperature"])',
     'temperature = tf.stop_gradient(tf.exp(parameters["log_temperature"]))',
     "test_relaxations.py::test_learned_parameters_descend_on_the_squared_gradient"),
    ("arm_tf/estimators/score_function.py", "_DECAY = 0.99", "_DECAY = 0.9",
     "test_estimators.py::test_moving_averages_decay_by_a_hundredth"),
    ("arm_tf/expectation.py",
     "return row(f, tf.stop_gradient(logits), u, *arguments, **options)",
     "return row(f, logits, u, *arguments, **options)",
     "test_relaxations.py::test_gradients_reach_only_what_they_should"),
    ("arm_tf/expectation.py", "grad = tf.cast(upstream, grad_logits.dtype)[..., tf.newaxis]",
     "grad = tf.ones_like(upstream, grad_logits.dtype)[..., tf.newaxis]",
     "test_layers.py::test_upstream_gradient_multiplies"),
    # The chain of layers, and models.
    ("arm_tf/chain.py",
     "sample_path(later_maps, b, cycle(noise, size), sample)",
     "sample_path(later_maps, b, cycle(noise, size))",
     "test_relaxations.py::test_each_of_two_layers_is_exact"),
    ("arm_tf/chain.py",
     "cycle(noise, size), sample)", "cycle([u[:1] for u in noise], size), sample)",
     "test_layers.py::test_samples_are_continued_independently_unless_an_estimator_shares_the_noise"),
    ("arm_tf/chain.py", "path_logits[: t + 1], maps[t + 1 :]", "path_logits[: t + 1], maps[t:]",
     "test_models.py::test_encoder_gradient_of_each_layer_is_exact"),
    ("arm_tf/models/vae.py", "[x, *path], self.decoder, strict=False):\n            log_w += ",
     "[x, *path], self.decoder, strict=False):\n            log_w = log_w * 0.5 + ",
     "test_models.py::test_log_weight_is_that_of_the_model_written_with_distributions"),
    # The Keras layer and model.
    ("arm_tf/layers.py", "context.num_replicas_in_sync > 1", "context.num_replicas_in_sync > 9",
     "test_keras.py::test_replicas_draw_noise_of_their_own"),
    ("arm_tf/layers.py", "() if training is False else estimator.update",
     "estimator.update",
     "test_keras.py::test_averages_move_where_the_gradient_is_taken"),
    ("arm_tf/layers.py",
     "self._has_sample = row.relaxation is not None", "self._has_sample = False",
     "test_keras.py::test_relaxing_estimators_train_without_a_model_around_them"),
    ("arm_tf/stochastic_model/path.py",
     "b_j = sample(each(tf.cast(", "b_j = bernoulli.sample(each(1.1 * tf.cast(",
     "test_stochastic_model.py::"
     "test_expected_gradient_is_the_gradient_of_the_expected_loss[chain-arm]"),
    ("arm_tf/stochastic_model/rest.py",
     "self.divisor = tf.cast(self.size *", "self.divisor = tf.cast(2 * self.size *",
     "test_stochastic_model.py::"
     "test_expected_gradient_is_the_gradient_of_the_expected_loss[chain-arm]"),
    # Training: steps, what stops and goes on.
    ("arm_tf/training/learner.py", "[self.tracker, *self.estimators]", "[self.tracker]",
     "test_training.py::test_what_an_estimator_learns_is_kept_over_a_stop"),
    ("arm_tf/training/replicas.py",
     "return tensors if replicas == 1 else [tensor / replicas for tensor in tensors]",
     "return tensors",
     "test_replicas.py::test_four_replicas_compute_the_gradient_of_one"),
    ("arm_tf/training/feed.py", "noise.key(config.seed, purpose), step,",
     "noise.key(config.seed, purpose), step - step % config.steps_per_loop,",
     "test_training.py::test_stopping_and_resuming_changes_nothing "
     "test_training.py::test_steps_per_loop_changes_nothing"),
    ("arm_tf/training/feed.py", "self.images is None or self._dataset.dynamic",
     "self.images is None",
     "test_training.py::test_dynamic_images_are_drawn_anew_each_epoch"),
    ("arm_tf/training/run.py", "self.checkpoints.restore_best()", "pass",
     "test_training.py::test_best_weights_are_those_of_the_best_validation"),
    ("arm_tf/training/run.py", "self.step if self.is_evaluated else self.step - 1", "self.step",
     "test_faults.py::test_death_between_the_metrics_and_the_checkpoint_after_an_evaluation"),
    ("arm_tf/training/bounds.py",
     "nll = math.log(self.num_samples)", "nll = math.log(self.samples)",
     "test_bounds.py::test_pieces_are_put_together_rightly"),
    ("arm_tf/training/tracker.py", "weight = 1.0 - _DECAY ** float(self.steps.numpy())",
     "weight = 1.0",
     "test_training.py::test_variance_without_noise_is_zero"),
    # Checkpoints and data.
    ("arm_tf/training/checkpoints.py", "if path == paths[0]:", "if True:",
     "test_faults.py::test_damaged_checkpoint"),
    ("arm_tf/training/checkpoints.py", 'if not whole and (folder / "checkpoint").exists():',
     "if False:",
     "test_faults.py::test_damaged_list_of_checkpoints"),
    ("arm_tf/training/run_folder.py", "if begun_with != dataset.checksum:", "if False:",
     "test_training.py::test_training_from_python"),
    ("arm_tf/data/own.py", "grey += [split] * dynamic", "pass",
     "test_data.py::test_own_images_are_bits_or_grey_levels"),
    ("arm_tf/data/own.py", "if high < _DARKEST_WHITE:", "if False:",
     "test_data.py::test_bad_arrays"),
    # What compares runs.
    ("arm_tf/training/config.py", '"num_samples": num_samples,', '"num_samples": 1,',
     "test_multisample.py::test_objective_follows_from_the_estimator"),
    ("arm_tf/training/trials.py",
     "for seed, v in by_seed.items() if seed in common or not common)",
     "for seed, v in by_seed.items())",
     "test_sweep.py::test_the_rate_is_chosen_over_the_seeds_that_all_rates_have"),
    ("arm_tf/report/tables.py", "else ours.mean - number", "else number - ours.mean",
     "test_report.py::test_full_runs_on_published_data_stand_beside_the_published_figures"),
    ("arm_tf/variance/moments.py", "each.settle(own_key, adapt_steps)", "each.settle(own_key, 0)",
     "test_moments.py::test_variances_at_a_frozen_model_are_in_the_published_order"),
    ("arm_tf/variance/moments.py", "start + group * group_draws + done", "start + done",
     "test_moments.py::test_moments_are_those_by_cells"),
    ("arm_tf/benchmark/history.py", "now > _TOLERATED * float", "now > 2 * _TOLERATED * float",
     "test_benchmark.py::test_history_notices_a_slower_step"),
    ("arm_tf/benchmark/cost.py", 'config.dataset.endswith("_dynamic")', "False",
     "test_benchmark.py::test_speeds_are_of_an_epoch_of_each_estimator"),
]  # fmt: skip


def failures(tree, tests):
    """Whether one of these tests fails in a tree, and pytest's last lines."""
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
         *(f"tests/{test}" for test in tests.split())],
        cwd=tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    if process.returncode not in (0, 1):
        sys.exit(f"{tests}: pytest did not come to an end.\n{process.stdout}{process.stderr}")
    return process.returncode == 1, "\n".join(process.stdout.splitlines()[-15:])


def main(word=""):
    chosen = [mutant for mutant in MUTANTS if any(word in text for text in (mutant[0], mutant[3]))]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", "*.pyc"))
        fails, lines = failures(tree, " ".join(dict.fromkeys(tests for *_, tests in chosen)))
        if fails:
            sys.exit(f"These tests fail as it is.\n{lines}")
        for name, text, other, tests in chosen:
            file = tree / name
            original = file.read_text(encoding="utf-8")
            if original.count(text) != 1:
                sys.exit(f"{name} holds {original.count(text)} times, and has to hold once: {text}")
            file.write_text(original.replace(text, other), encoding="utf-8")
            is_killed, _ = failures(tree, tests)
            file.write_text(original, encoding="utf-8")
            survivors += [] if is_killed else [name]
            print(f"{'killed  ' if is_killed else 'SURVIVED'}  {name}: {other.strip()}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed.")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
