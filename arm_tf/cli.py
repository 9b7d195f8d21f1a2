"""What the command-line programs share: flags from dataclasses, and one line for an error."""

import dataclasses
import os
import signal
import sys
import tempfile

from absl import app, flags, logging

from arm_tf import config, data, run_folder

flags.disclaim_key_flags()  # --help lists the flags under the program, not under this module

# Products of 50-row matrices are too small to share between threads; variables that need no copy
# in each round of the loop of steps save up to a fifth of a step.
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_copy_insertion_use_region_analysis=true"
USER_ERRORS = (config.ConfigError, data.DataError, run_folder.RunError)


def define_flags(flag_values=flags.FLAGS):
    """Defines an absl flag for each field of `config.Config`."""
    for field in dataclasses.fields(config.Config):
        help = field.metadata["help"]
        if field.metadata["choices"]:
            help += f" One of: {', '.join(field.metadata['choices'])}."
        if field.type is bool:
            flags.DEFINE_bool(field.name, field.default, help, flag_values=flag_values)
        elif field.type in (tuple, tuple | None):
            default = field.default and list(map(str, field.default))
            flags.DEFINE_list(field.name, default, help, flag_values=flag_values)
        elif field.type in (int, int | None):
            flags.DEFINE_integer(field.name, field.default, help, flag_values=flag_values)
        elif field.type is float:
            flags.DEFINE_float(field.name, field.default, help, flag_values=flag_values)
        else:
            flags.DEFINE_string(field.name, field.default, help, flag_values=flag_values)


def config_from_flags(flag_values=flags.FLAGS):
    """The configuration that parsed flags describe.

    Raises:
      config.ConfigError: a value outside its limits.
    """
    values = {f.name: flag_values[f.name].value for f in dataclasses.fields(config.Config)}
    for name, value in values.items():
        if name == "track_variance":
            values[name] = tuple(value)
        elif isinstance(value, list):
            try:
                values[name] = tuple(map(int if name == "image_shape" else float, value))
            except ValueError:
                raise config.ConfigError(
                    f"--{name} must be numbers separated by commas, received {','.join(value)!r}."
                ) from None
    return config.Config(**values)


def run(main, argument=None):
    """Runs `main()` after flags are parsed; an error of use is one line and exit status 1 or 2.

    Args:
      main: function without arguments.
      argument: name of the flag that may be given without its name, if there is one.

    TensorFlow is loaded by `main`, not before, so that `--help` and flag errors are quick.
    """

    def guarded_main(argv):
        words = argv[1:]
        if argument and words:
            flags.FLAGS[argument].value = words.pop(0)
        if words:
            _exit(2, f"Unexpected argument {words[0]!r}; settings are given as --name=value.")
        try:
            main()
            return sys.stdout.flush()
        except config.ConfigError as error:
            _exit(2, error)
        except USER_ERRORS as error:
            _exit(1, error)
        except KeyboardInterrupt:
            _exit(130, "interrupted.")
        except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
    app.run(guarded_main, flags_parser=_parse_flags)


def load_tensorflow(distribute="none"):
    """Imports TensorFlow and starts its devices without the notes that it prints meanwhile.

    They are shown after all if that fails, or where the user has set TF_CPP_MIN_LOG_LEVEL.

    Args:
      distribute: as in `config.Config`; several workers wait for one another here.
    """
    logging.set_verbosity(logging.WARNING)
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        _start_devices(distribute)
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            _start_devices(distribute)
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _start_devices(distribute):
    import tensorflow

    from arm_tf import distribution

    # Each evaluation has a compiled function of its own, which TensorFlow would warn of.
    tensorflow.get_logger().setLevel("ERROR")
    distribution.strategy(distribute)
    tensorflow.zeros([])


def _parse_flags(argv):
    try:
        return app.parse_flags_with_usage(argv) if _asks_for_help(argv) else flags.FLAGS(argv)
    except flags.Error as error:
        _exit(2, f"{str(error).removeprefix('ERROR:: ')} (--help lists the flags)")


def _asks_for_help(argv):
    return any(argument.lstrip("-").startswith("help") for argument in argv[1:])


def _exit(status, message):
    print("Error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)
