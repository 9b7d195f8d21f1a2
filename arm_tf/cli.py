"""What the command-line programs share: flags from dataclasses, and one line for an error."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from arm_tf import experiments
from arm_tf.errors import ConfigError, DataError, RunError
from arm_tf.training import config

flags.disclaim_key_flags()  # --help lists the flags under the program, not under this module

# Products of 50-row matrices are too small to share between threads; variables that need no copy
# in each round of the loop of steps save up to a fifth of a step.
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_copy_insertion_use_region_analysis=true"
_MOST = 500  # characters of each end of an error that are shown
USER_ERRORS = (ConfigError, DataError, RunError)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines an absl flag for each field of `config.Config`."""
    for field in dataclasses.fields(config.Config):
        help: str = field.metadata["help"]
        default: typing.Any = field.default
        if field.metadata["choices"] and "--estimator=help" not in help:
            help += f" One of: {', '.join(field.metadata['choices'])}."
        if field.type is bool:
            flags.DEFINE_bool(field.name, default, help, flag_values=flag_values)
        elif field.type in (tuple, tuple | None):
            default = default and list(map(str, default))
            flags.DEFINE_list(field.name, default, help, flag_values=flag_values)
        elif field.type in (int, int | None):
            flags.DEFINE_integer(field.name, default, help, flag_values=flag_values)
        elif field.type is float:
            flags.DEFINE_float(field.name, default, help, flag_values=flag_values)
        else:
            flags.DEFINE_string(field.name, default, help, flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> config.Config:
    """The configuration that parsed flags describe.

    Raises:
      ConfigError: a value outside its limits.
    """
    names = [field.name for field in dataclasses.fields(config.Config)]
    values = {name: _value(name, flag_values) for name in names}
    if values["experiment"]:
        own = experiments.find(values["experiment"]).settings_with(values["estimator"])
        values |= {name: v for name, v in own.items() if not flag_values[name].present}
    return config.Config(**values)


def settings_given(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, typing.Any]:
    """The settings that flags were given for, by name.

    Raises:
      ConfigError: a value cannot be read.
    """
    names = (field.name for field in dataclasses.fields(config.Config))
    return {name: _value(name, flag_values) for name in names if flag_values[name].present}


def _value(name: str, flag_values: flags.FlagValues) -> typing.Any:
    value: typing.Any = flag_values[name].value
    if name == "track_variance":
        return tuple(value)
    if not isinstance(value, list):
        return value
    try:
        return tuple(map(int if name in ("image_shape", "keep_epochs") else float, value))
    except ValueError:
        raise ConfigError(
            f"--{name} must be numbers separated by commas, received {','.join(value)!r}."
        ) from None


def check_integer(name: str, low: int, high: int = 1_000_000) -> None:
    """Raises ConfigError unless the flag of a name is an integer within its limits."""
    value = getattr(flags.FLAGS, name)
    if not low <= value <= high:
        limit = f"least {low:,}" if value < low else f"most {high:,}"
        raise ConfigError(f"--{name} must be an integer of at {limit}, received {value}.")


def run(main: Callable[[], object], argument: str | None = None) -> None:
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
        except ConfigError as error:
            _exit(2, error)
        except USER_ERRORS as error:
            _exit(1, error)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # what nothing nearer has a word for
                where = f"{error.filename}: " * bool(error.filename)
                _exit(1, f"{where}{error.strerror or error}; once that is mended, try again.")
            # whoever read the output, such as `head`, has seen enough
            _silence(sys.stdout)
            sys.exit(128 + 13)  # as if ended by SIGPIPE, which Windows lacks

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; opened in this order they are 0, 1 and 2 again
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        with contextlib.redirect_stderr(_Output(sys.stderr)):
            try:
                app.run(guarded_main, flags_parser=_parse_flags)
            except KeyboardInterrupt:
                _exit(130, "interrupted.")


class _Output:
    """A stream to which printing does not fail, unless whoever read it has gone.

    What the encoding lacks is printed as an escape; once the stream cannot be written, on a
    full disk or to a terminal that was closed, nothing is printed any more.
    """

    def __init__(self, stream: typing.TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., object], *arguments: typing.Any) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            raise
        except OSError:
            _silence(self._stream)


def _silence(stream: typing.TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def load_tensorflow(
    distribute: str = "none",
    starting: Callable[..., contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Imports TensorFlow, sets XLA's flags, and starts devices without the notes printed meanwhile.

    The flags count unless XLA has compiled something before. The notes are shown after all if that
    fails, or where the user has set TF_CPP_MIN_LOG_LEVEL.

    Args:
      distribute: as in `config.Config`.
      starting: function of a file, or its descriptor, for errors; what it returns is a context to
        start the devices in.
    """
    logging.set_verbosity(logging.WARNING)
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _XLA_FLAGS not in xla_flags:  # before the user's, which count where they contradict
        os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {xla_flags}".strip()
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        _start_devices(distribute, starting(2))
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            _start_devices(distribute, starting(stderr))
        except (*USER_ERRORS, KeyboardInterrupt):
            raise
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _start_devices(distribute: str, context: contextlib.AbstractContextManager) -> None:
    import tensorflow

    from arm_tf.training import replicas

    # Each evaluation has a compiled function of its own, which TensorFlow would warn of.
    tensorflow.get_logger().setLevel("ERROR")
    with context:
        replicas.strategy(distribute)
    tensorflow.zeros([])


def with_flag_files(arguments: Sequence[str], within: Sequence[str] = ()) -> list[str]:
    """Arguments with those of the flag files among them, --flagfile=FILE, in their place; a list.

    absl would read the files in the encoding of the locale; they are in UTF-8 everywhere.

    Args:
      arguments: texts.
      within: the files that these arguments come from.

    Raises:
      flags.Error: a file cannot be read, or includes itself.
    """
    expanded = []
    for argument in arguments:
        name, _, file = argument.partition("=")
        if name not in ("-flagfile", "--flagfile") or not file:
            expanded.append(argument)
            continue
        try:
            file = os.path.expanduser(file)
            lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise flags.Error(f"Unable to read the flag file {file}: {error}") from None
        if file in within:
            raise flags.Error(f"The flag file {file} includes itself")
        lines = [line.strip() for line in lines if line.strip()]
        lines = [line for line in lines if not line.startswith(("#", "//"))]
        expanded += with_flag_files(lines, (*within, file))
    return expanded


def _help() -> str:
    """What --help prints: docstring, common settings, the program's flags, settings by kind."""
    fields = dataclasses.fields(config.Config)
    settings = fields if all(field.name in flags.FLAGS for field in fields) else ()
    known = {field.name for field in settings}
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    groups = {
        "settings that people vary": [f.name for f in settings if f.metadata["common"]],
        "flags of this program": [name for name in own if name not in known],
    }
    for kind, what in config.KINDS.items():
        groups[f"{kind}: {what}"] = [
            f.name for f in settings if f.metadata["of"] == kind and not f.metadata["common"]
        ]
    lines = [(sys.modules["__main__"].__doc__ or "").rstrip()]
    for title, names in groups.items():
        lines += ["", f"{title}:"] if names else []
        for name in names:
            flag = flags.FLAGS[name]
            default = f" (default: {flag.default_as_str})" if flag.default_as_str else ""
            text = f"--{'[no]' * flag.boolean}{name}: {flag.help}{default}"
            lines.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="      "))
    return "\n".join([*lines, "", "--helpfull lists the flags of all libraries, too."])


def _parse_flags(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(argv[1:]):
        print(_help())
        sys.exit(0)
    try:
        return flags.FLAGS([argv[0], *with_flag_files(argv[1:])])
    except (flags.Error, ValueError) as error:  # the second for a value of --noNAME
        _exit(2, f"{str(error).removeprefix('ERROR:: ')} (--help lists the flags)")
    except SystemExit:  # after the help that was asked for, which absl ends as an error
        sys.exit(0)


def _exit(status: int, message: object) -> typing.NoReturn:
    line = " ".join(str(message).split())
    if len(line) > 2 * _MOST:
        line = f"{line[:_MOST]} … {line[-_MOST:]}"
    print("Error:", line, file=sys.stderr)
    sys.exit(status)
