"""The command line: one file per command. The commands import torch when they run, so that help is fast."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import get_args, get_origin

from cyclopts import App, Argument
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from secateurs.cli import config
from secateurs.cli.bench import bench
from secateurs.cli.compare import compare
from secateurs.cli.compare_criteria import compare_criteria
from secateurs.cli.demo import demo
from secateurs.cli.env import env
from secateurs.cli.evaluate import evaluate
from secateurs.cli.export import export
from secateurs.cli.inspect import inspect
from secateurs.cli.methods import methods
from secateurs.cli.options import again
from secateurs.cli.prune import prune
from secateurs.cli.redesign import redesign
from secateurs.cli.report import report
from secateurs.cli.sensitivity import sensitivity
from secateurs.cli.spelling import option, speaking
from secateurs.errors import (
    BudgetError,
    ConfigError,
    Message,
    SecateursError,
    Setting,
    SpecError,
    a_or_an,
    fraction,
    with_point,
)
from secateurs.foreign import suggestion
from secateurs.version import __version__

__all__ = ["app", "main"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130
OF_METHODS = ("--set", "--preset", "--ranking")
VERBS = ("show", "list", "info", "get", "describe")

app = App(
    name="secateurs",
    version=__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main sees to it
    help="Cut whole channels out of trained CNNs, and prove that nothing else changed.\n\n"
    "`--debug`, with any command, shows the traceback of a failure.",
)
for verb in (
    demo,
    methods,
    inspect,
    prune,
    redesign,
    evaluate,
    bench,
    export,
    report,
    compare,
    sensitivity,
    compare_criteria,
    env,
):
    app.command(verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 success, 1 error, 2 wrong usage (an option that does not exist, a value that
    cannot be used), 130 interrupted.

    A failure is one message on stderr, whatever failed.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [t for t in tokens if t != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # names of files hold bytes, and messages signs, that a terminal can't show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Spelled("%(message)s"))
    logging.basicConfig(handlers=[handler])
    with speaking(_flags(tokens)):
        return _told(tokens, debug)


def _told(tokens: Sequence[str], debug: bool) -> int:
    """Run one command, and say what failed."""
    try:
        status = _run(tokens)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt as interrupt:  # which may say how to continue
        text = " ".join(part.text(option) if isinstance(part, Message) else str(part) for part in interrupt.args)
        print(f"Interrupted. {text}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except CycloptsError as error:
        return _fail(_usage(error), USAGE)
    except Exception as error:
        if debug:
            traceback.print_exc()
            return FAILED
        if isinstance(error, SecateursError):
            return _fail(error.text(option), USAGE if _is_usage(error) else FAILED)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", FAILED)


def _flags(tokens: Sequence[str]) -> frozenset[str] | None:
    """The options of the command."""
    if not tokens or not _is_command(tokens[0]):
        return None
    return frozenset(name for argument in _arguments(tokens[0]) for name in argument.names)


def _is_command(word: str) -> bool:
    return not word.startswith("-") and word in app  # --help is a command of cyclopts'


@functools.cache
def _arguments(command: str) -> Sequence[Argument]:
    """The arguments of a command, to be read only: to collect them takes longer than to read the command line."""
    return tuple(app[command].assemble_argument_collection())


class _Spelled(logging.Formatter):
    """Settings that a message names are spelled as options."""

    def format(self, record: logging.LogRecord) -> str:
        return record.msg.text(option) if isinstance(record.msg, Message) else super().format(record)


def _run(tokens: Sequence[str]) -> object:
    """Run one command with the options of its file, if it has one; or print them."""
    command, usual = tokens[0] if tokens else "", app.config
    _check_integers(command, tokens[1:])
    file, prints = config.named(tokens), config.prints(tokens)
    if (file is None and not prints) or "--config" not in (_flags(tokens) or ()):
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    try:
        app.config = (config.source(app, command, file, tokens, whole=not prints),)
        if not prints:
            return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        _, bound, *_ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        print(config.as_yaml(config.effective(app, command, bound.arguments)), end="")
        return 0
    finally:
        app.config = usual


def _check_integers(command: str, tokens: Sequence[str]) -> None:
    """Raise ConfigError for a fraction where an option takes integers, which cyclopts would round."""
    if not _is_command(command):
        return
    whole = {
        name
        for argument in _arguments(command)
        for name in argument.names
        if _has(argument.hint, int) and not _has(argument.hint, float)
    }
    words = [part for token in tokens for part in (token.split("=", 1) if token.startswith("--") else [token])]
    for name, value in pairwise(words):
        if name in whole and not _is_whole(value):
            raise ConfigError(f"{name} {value} is not valid: it must be an integer.")


def _is_whole(text: str) -> bool:
    """Whether a text is a whole number, or not a number."""
    try:
        return float(text).is_integer()
    except ValueError:
        return True


def _has(hint: object, kind: type) -> bool:
    """Whether an option with this type hint takes values of a kind."""
    return hint is kind or any(_has(part, kind) for part in get_args(hint))


def _is_usage(error: SecateursError) -> bool:
    """Whether a value of an option cannot be used."""
    return isinstance(error, ConfigError | BudgetError | SpecError) or isinstance(next(iter(error.args), None), Setting)


def _usage(error: CycloptsError) -> str:
    """What is wrong with the command line, and where to read what is right."""
    command = " ".join(error.command_chain or ())
    flags = _flags([command]) or ()
    if isinstance(error, MissingArgumentError):
        said = _missing(command, error)
    elif isinstance(error, CoercionError) and (advice := _meant(error)):
        said = advice
    elif isinstance(error, UnknownOptionError) and error.token.keyword in OF_METHODS and "--method" in flags:
        said = f'{error.token.keyword} is not an option here: settings follow the method, --method "pff preset=paper lr=0.01".'
    elif isinstance(error, UnknownOptionError) and (ours := _ours(error.token.keyword or "", flags)) is not None:
        said = f"{error.token.keyword} is not an option here. {ours}"
    elif isinstance(error, UnusedCliTokensError) and command in app:
        said = _unused(command, error.unused_tokens or [], error.root_input_tokens or [])
    else:
        said = str(error).rstrip()
    return f"{said} See {f'secateurs {command}'.rstrip()} --help."


def _ours(keyword: str, flags: Collection[str]) -> str | None:
    """What to write for an option that has another name elsewhere, if the command has ours. What is no option is part of the
    text of a method or a budget."""
    found = suggestion(keyword, option)
    options = {word.strip(".,:") for word in (found or "").split() if word.startswith("--")} or {"--method"}
    return found if options <= set(flags) else None


def _missing(command: str, error: MissingArgumentError) -> str:
    """What was left out: an argument, an option, or the value of one."""
    argument = error.argument
    if argument is None or not set(argument.names).isdisjoint(error.root_input_tokens or ()):
        return str(error).rstrip()
    if argument.index is None:
        typed = get_close_matches(argument.name, error.unused_tokens or [], n=1)
        meant = f" Did you mean {argument.name} instead of {typed[0]}?" if typed else ""
        return f'Command "{command}" needs {argument.name}.{meant}'
    name = argument.name.lstrip("-")
    example = ", such as zoo:resnet56" if name == "model" else ""
    return f'Command "{command}" needs {a_or_an(name).replace(name, name.upper())}{example}.'


def _meant(error: CoercionError) -> str | None:
    """What to write for 50%, and for several values in one."""
    if error.token is None or error.argument is None:
        return None
    name, value, hint = error.argument.name, error.token.value, error.argument.hint
    decimal = float in (hint, *get_args(hint))
    if decimal and (number := fraction(value)) is not None:
        return f"{name} {value}: write it as a fraction, {name} {number}."
    if "," not in value:
        return None
    if (point := with_point(value)) is not None and (decimal or "=" in value):
        return f"{name} {value}: write {name} {point}."
    several = get_origin(hint) is tuple
    return f"{name} {value}: {again(name, value.split(',')) if several else 'give one value'}."


def _unused(command: str, unused: Sequence[str], tokens: Sequence[str]) -> str:
    """What to write for a command with more words than it takes."""
    words = [a.name.lstrip("-").upper() for a in _arguments(command) if a.index is not None]
    takes = f"takes one argument, {words[0]}, and" if words else "takes options only,"
    said = f'Command "{command}" {takes} not {shlex.join(unused)} as well.'
    if tokens[1:] and tokens[1] in VERBS:  # as in tools whose commands have commands
        said += f" Did you mean {shlex.join(['secateurs', command, *tokens[2:]])}?"
    return said


def _fail(message: str, status: int) -> int:
    print(f"secateurs: {message}", file=sys.stderr)
    return status
