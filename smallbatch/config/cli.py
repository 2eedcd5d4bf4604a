"""The command line: flags and `--config` overrides in, one clear line out when something about them is wrong.

One idea: argv is checked word by word against what exists before ml_collections sees it, so that its types
hold and its tracebacks never show. Every command ends in `cli.run(main, define_flags)`.
"""

import decimal
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags, logging

from smallbatch.config.console import tolerant_output
from smallbatch.errors import UserError, did_you_mean

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
UNSET = {"none", "None"}
MOST_DIGITS = 30  # of an integer; int() raises ValueError above 4,300 digits
SWITCH = {"true", "false", "True", "False", "1", "0"}


def run(
    main: Callable[..., int | None],
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    *,
    config: bool = True,
    words: str = "",
    saved_config: Callable[[flags.FlagValues], Any] | None = None,
) -> NoReturn:
    """Parse sys.argv, call `main(config, flags)`, or `main(flags)` when `config` is False, and exit.

    `define_flags(flags)` adds the flags of a command: `DEFINE_string("workdir", None, "...", flag_values=flags)`;
    define numbers with `integer` and `number`, which check a range.
    `main` receives a validated config, reads its flags as `flags.workdir`, and returns the exit code.
    `words` names the positional arguments, such as "WORKDIR ..."; `main` receives their list before the flags.
    `saved_config(flags)` returns the config to use without --config, or None for that of the quickstart.
    A UserError prints one line and exits with code 2. Ctrl-C exits with code 130. Other exceptions keep their
    traceback. A failing standard output does not change the exit code.
    """
    with tolerant_output():
        _run(main, define_flags, config, words, saved_config)
    raise AssertionError("unreachable: _run exits")


def _run(main: Callable, define_flags: Callable | None, config: bool, words: str, saved_config) -> NoReturn:
    logging.set_verbosity(logging.ERROR)  # absl's: libraries chat there
    own = flags.FlagValues()
    if define_flags:
        define_flags(own)
    if config:
        flags.DEFINE_string("config", None, "a config file (default: that of configs/quickstart.py)", flag_values=own)
    try:
        if HELP & set(sys.argv[1:]):
            print(_help(main, own, config, words))
            sys.exit(0)
        settings, found = _settings(sys.argv[1:], own, config, words)
        _parse(own, [_flag(own, name, value) for name, value in settings if not name.startswith("config.")])
        arguments = [_config(settings, own, saved_config)] if config else []
        arguments += [found] if words else []
        sys.exit(main(*arguments, own) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def integer(values: flags.FlagValues, name: str, default: int | None, text: str, lower: int, upper: int) -> None:
    """Define an integer flag with a value from `lower` to `upper`."""
    flags.DEFINE_integer(name, default, text, lower, upper, flag_values=values)


def number(values: flags.FlagValues, name: str, default: float | None, text: str, lower: float, upper: float) -> None:
    """Define a float flag with a value from `lower` to `upper`; NaN is an error."""
    flags.DEFINE_float(name, default, text, lower, upper, flag_values=values)
    refusal = f"it takes a number from {lower:g} to {upper:g}"
    flags.register_validator(name, lambda x: x is None or lower <= x <= upper, refusal, flag_values=values)


def whole_numbers(name: str, texts: list[str], example: str, largest: int = 2**16) -> list[int]:
    """Return the values of a list flag. Raises UserError unless all are integers from 1 to `largest`."""

    def fits(text: str) -> bool:
        return bool(re.fullmatch(rf"[0-9]{{1,{len(str(largest))}}}", text)) and 1 <= int(text) <= largest

    if not texts or not all(map(fits, texts)):
        said = ",".join(texts)[:60]
        raise UserError(f"--{name}={said} is not a list of integers from 1 to {largest:,}; use, for example, {example}")
    return [int(text) for text in texts]


def overridden_keys(argv: list[str]) -> set[str]:
    """Return the config keys that a command line sets."""
    words = [word.lstrip("-").partition("=")[0] for word in argv[1:] if word.startswith("-")]
    return {word.removeprefix("config.") for word in words if word.startswith("config.")}


def _settings(
    argv: list[str], own: flags.FlagValues, config: bool, named_words: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return argv as (name, value) pairs whose names exist, `--name value` and `--switch` spelled out, and words."""
    switches = {name for name in own if own[name].boolean}
    known = {*own}
    if config:
        from smallbatch.config.keys import key_types

        types = {f"config.{key}": kind for key, (kind, _) in key_types().items()}
        switches |= {name for name, kind in types.items() if kind is bool}
        known |= types.keys()
    settings, words, others = [], list(argv), []
    for word in argv:
        _check_utf8(word)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if named_words and not word.startswith("-"):
            others.append(word)
            continue
        if not word.startswith("-") or not name:
            raise UserError(f"unexpected argument {word!r}; settings are written --name=value")
        if name.startswith("no") and name[2:] in switches and not equals:
            name, equals, value = name[2:], "=", "false"
        if name not in known:
            raise UserError(_unknown_flag(name, own, config))
        if not equals and name in switches:
            value = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
            value = words.pop(0)
        settings.append((name, value))
    return settings, others


def _check_utf8(word: str) -> None:
    """Raise UserError, with the flag, if the bytes of an argument are not UTF-8 (Python decodes them as surrogates)."""
    try:
        word.encode()
    except UnicodeEncodeError:
        flag = f"{word.partition('=')[0]}: its value" if word.startswith("-") and "=" in word else f"{word!r}: it"
        raise UserError(f"{flag} is not UTF-8; use a UTF-8 terminal, with LC_ALL=C.UTF-8") from None


def _unknown_flag(name: str, own: flags.FlagValues, config: bool) -> str:
    if name == "flagfile":
        return "--flagfile is not supported; put settings into a config file and name it with --config=FILE.py"
    spelled = name.replace("-", "_")
    near = did_you_mean(spelled, [*own]).replace("mean ", "mean --")
    if config:
        from smallbatch.config.keys import nearest_key, unknown_key

        if name.startswith("config."):
            return unknown_key(name.removeprefix("config."), prefix="--config.")
        if not near and (key := nearest_key(spelled)):
            near = f"; did you mean --config.{key}?"
    near = near or f"; this command takes {', '.join(f'--{n}' for n in [*own, 'help'])}"
    return f"there is no flag --{name}{near}"


def _config(settings: list[tuple[str, str]], own: flags.FlagValues, saved_config: Callable | None) -> Any:
    """Return the validated config with overrides: that of --config, else the saved one, else the quickstart's."""
    from ml_collections import config_flags
    from ml_collections.config_flags import config_path

    from smallbatch import config as configs
    from smallbatch.config import files as config_files

    if own.config is not None:
        config = config_files.load(own.config)
    else:
        config = (saved_config and saved_config(own)) or configs.quickstart()
    types = configs.key_types()
    texts = {name.removeprefix("config."): text for name, text in settings if name.startswith("config.")}
    unset = {key for key, text in texts.items() if text in UNSET and types[key][1] and text not in configs.choices(key)}
    words = [f"--config.{key}={_checked(key, text, *types[key])}" for key, text in texts.items() if key not in unset]

    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *words])
    _parse(values, words)
    for key in unset:  # ml_collections has no word for None
        config_path.set_value(key, config, None)
    configs.validate(config)
    return config


def _checked(key: str, text: str, kind: type, optional: bool) -> str:
    """Return an override's text if its key can hold it. Raises UserError that says how to write it."""
    wrong = None
    if kind is int:
        text = _as_whole(text)
    if kind is bool and text not in SWITCH:
        wrong = "takes true or false"
    elif kind is int and (len(text) > MOST_DIGITS or not re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text)):
        wrong = f"takes a whole number{_whole(text)}"
    elif kind is float and _number(text) is None:
        wrong = "takes a number, such as 0.003 or 1e6"
    elif kind is str and text == "None":
        wrong = "takes text and cannot be unset"
    if wrong and optional:
        wrong += ", or None to unset it"
    if wrong:
        raise UserError(f"--config.{key}={text}: {key} {wrong}")
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _as_whole(text: str) -> str:
    """Return a whole number written as a float (0.0, 1e3) as an integer; return any other text unchanged."""
    number = _number(text)
    if number is None or not abs(number) < 2.0**63 or re.fullmatch(r"[+-]?[0-9_]+", text):
        return text
    exact = decimal.Decimal(text)
    return str(int(exact)) if exact == exact.to_integral_value() else text


def _flag(own: flags.FlagValues, name: str, value: str) -> str:
    """Return `--name=value`, with a whole number in the form that absl parses."""
    return f"--{name}={_as_whole(value) if own[name].flag_type() == 'int' else value}"


def _whole(text: str) -> str:
    number = _number(text.replace(",", ""))
    return f"; write {int(number)}" if number is not None and number.is_integer() else ""


def _parse(values: flags.FlagValues, words: list[str]) -> None:
    try:
        values(["", *words])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error


def _help(main: Callable, own: flags.FlagValues, config: bool, words: str) -> str:
    """Return what --help prints: the command's docstring, its flags, how a config is named and changed."""
    module = sys.modules[main.__module__]
    command = module.__spec__.name if module.__spec__ else str(module.__file__)
    lines = [
        (module.__doc__ or "").strip(),
        "",
        f"usage: python -m {command} {words}{' ' * bool(words)}[--flag=value ...]",
        "",
    ]
    for name in own:
        default = own[name].default
        shown = "" if default is None or own[name].boolean else f" (default: {default})"
        value = "" if own[name].boolean else f"={own[name].flag_type().split()[0].upper()}"
        value = "=FILE.py[:ARGUMENT]" if name == "config" else value
        lines += _entry(f"--{name}{value}", f"{own[name].help}{shown}")
    if config:
        from smallbatch.config.keys import sections

        lines += _entry("--config.SECTION.KEY=VALUE", "change a key; the last one wins; None unsets an optional key")
        lines += ["", "keys, by section (their meaning, unit and default: smallbatch/config/keys.py):"]
        for section, keys in sections().items():
            lines += _entry(section, ", ".join(keys))
    return "\n".join(lines)


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 14
    wrapped = textwrap.wrap(text, 106, initial_indent=indent, subsequent_indent=indent)
    if len(name) < 12 and wrapped:
        wrapped[0] = f"  {name:<11} {wrapped[0].strip()}"
        return wrapped
    return [f"  {name}", *wrapped]
