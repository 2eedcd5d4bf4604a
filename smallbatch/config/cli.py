"""Command lines: parse flags and config overrides, print help, and turn a usage error into one line and exit code 2.

Every command ends in `cli.run(main, FLAGS)`, where FLAGS are `Key` rows like the table of config keys.
"""

import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NoReturn

from absl import logging

from smallbatch import config as configs
from smallbatch.config import files, keys
from smallbatch.config.console import tolerant_output
from smallbatch.config.key_types import Key, is_utf8
from smallbatch.errors import UserError, did_you_mean

HELP = ("--help", "-help", "-h")
CONFIG = Key(
    "--config", None, str, "config FILE.py[:ARGUMENT], or the config.json of a run; unset: configs/quickstart.py"
)


def run(
    main: Callable[..., int | None],
    flags: Iterable[Key] = (),
    *,
    config: bool = True,
    words: str = "",
    saved_config: Callable[[Any], Any] | None = None,
) -> NoReturn:
    """Parse sys.argv, call `main(config, flags)`, or `main(flags)` if `config` is False, and exit.

    The config is validated. The flag --dry_run is available as `flags.dry_run`, and `flags.overrides` holds the config
    keys from the command line. A UserError is printed as one line with exit code 2. Ctrl-C exits with code 130.

    Args:
        words: positional arguments as shown in the help, such as "WORKDIR ..."; `main` gets them as its first argument.
        saved_config: called with the flags without --config; returns a config, or None for the quickstart.
    """
    logging.set_verbosity(logging.ERROR)  # absl's logger, which libraries use
    known = {flag.name: flag for flag in [*flags, *([CONFIG] if config else [])]}
    with tolerant_output():
        try:
            if sys.argv[1:] and (topic := _help_topic(sys.argv[1:])) is not None:
                print(_help(main, known, words, topic))
                sys.exit(0)
            values, found = _parse(sys.argv[1:], known, bool(words))
            arguments = [_config(values, saved_config)] if config else []
            sys.exit(main(*arguments, *([found] if words else []), values) or 0)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)


def _parse(argv: list[str], flags: dict[str, Key], takes_words: bool) -> tuple[SimpleNamespace, list[str]]:
    """Return the values of the flags, with config overrides as `overrides`, and the positional arguments."""
    values = {name: flag.default for name, flag in flags.items()}
    overrides, words, rest = {}, [], iter(argv)
    for word in rest:
        if not is_utf8(word):
            raise UserError(f"{word!r} is not UTF-8; use a UTF-8 terminal, with LC_ALL=C.UTF-8")
        if takes_words and not word.startswith("-"):
            words.append(word)
            continue
        if not word.startswith("-") or not word.strip("-"):
            raise UserError(f"unexpected argument {word!r}; write a flag as --name=value")
        name, equals, text = word.partition("=")
        key, negated = _find(f"--{name.lstrip('-')}", flags)
        if key.type is bool and not equals:
            text = "false" if negated else "true"
        elif not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise UserError(f"{name} has no value; write {name}=VALUE")
        if key.name not in flags:
            overrides[key.name] = _override(key, text)
            continue
        values[key.name] = key.parse(text)
        if problem := key.problem(values[key.name]):
            raise UserError(problem)
    return SimpleNamespace(**{name[2:]: value for name, value in values.items()}, overrides=overrides), words


def _find(name: str, flags: dict[str, Key]) -> tuple[Key, bool]:
    """Return the flag or config key called `name`, and whether it is a switch written as --noNAME."""
    known = flags | ({f"--config.{key.name}": key for key in keys.KEYS} if CONFIG.name in flags else {})
    if name in known:
        return known[name], False
    positive = f"--{name.removeprefix('--no')}"
    if name.startswith("--no") and positive in known and known[positive].type is bool:
        return known[positive], True
    if CONFIG.name in flags and name.startswith("--config."):
        raise UserError(keys.unknown_key(name.removeprefix("--config.")))
    spelled = name.removeprefix("--").replace("-", "_")
    near = did_you_mean(spelled, [flag.removeprefix("--") for flag in flags]).replace("mean ", "mean --")
    if not near and CONFIG.name in flags and (key := keys.nearest_key(spelled)):
        near = f"; did you mean --config.{key}?"
    raise UserError(f"there is no flag {name}{near or '; the flags are ' + ', '.join([*flags, '--help'])}")


def _override(key: Key, text: str) -> Any:
    value = key.parse(text)
    if value == "None":
        raise UserError(f"{key.name} cannot be unset; its default is {key.default_text()}")
    return value


def _config(flags: SimpleNamespace, saved_config: Callable | None) -> configs.Config:
    """Return the validated config with overrides: that of --config, else the saved one, else the quickstart's."""
    if flags.config is not None:
        config = files.load(flags.config)
    else:
        config = (saved_config and saved_config(flags)) or configs.quickstart()
    for name, value in flags.overrides.items():
        section, _, last = name.partition(".")
        config[section][last] = value
    configs.validate(config)
    return config


def _help_topic(argv: list[str]) -> str | None:
    """Return the section in `--help SECTION` or `--help=SECTION`, "" for a plain --help, or None without --help."""
    for i, word in enumerate(argv):
        name, _, topic = word.partition("=")
        if name in HELP:
            following = argv[i + 1] if i + 1 < len(argv) else ""
            return topic or ("" if following.startswith("-") else following)
    return None


def _help(main: Callable, flags: dict[str, Key], words: str, topic: str) -> str:
    """Return the help of a command, or of the config keys of one section."""
    module = sys.modules[main.__module__]
    command = f"python -m {module.__spec__.name if module.__spec__ else module.__name__}"
    if topic and CONFIG.name in flags:
        return _section_help(topic.removeprefix("--config.").removeprefix("config."))
    lines = [(module.__doc__ or "").strip(), "", f"usage: {command} {words}{' ' * bool(words)}[--flag=value ...]", ""]
    for flag in flags.values():
        lines += _entry(flag.name, flag)
    if CONFIG.name in flags:
        lines += [
            "",
            "Config keys: --config.SECTION.KEY=VALUE sets a key, and None unsets an optional one.",
            f"`{command} --help SECTION` explains the keys of a section:",
            "",
        ]
        for section, found in keys.sections().items():
            names = ", ".join(key.name.partition(".")[2] for key in found)
            lines += textwrap.wrap(names, 106, initial_indent=f"  {section:<12}", subsequent_indent=" " * 14)
    return "\n".join(lines)


def _section_help(topic: str) -> str:
    """Return the meaning, type, allowed values and default of each key of a section, or of one key."""
    found = [key for key in keys.KEYS if topic in (key.name, key.name.partition(".")[0])]
    if not found:
        raise UserError(f"there is no section or key {topic!r}; the sections are {', '.join(keys.sections())}")
    return "\n".join(line for key in found for line in _entry(f"--config.{key.name}", key))


def _entry(name: str, key: Key) -> list[str]:
    kind = re.sub("^an? |^one of |, or None$", "", key.expected)
    head = textwrap.wrap(f"{name}  {kind} (default: {key.default_text()})", 106, subsequent_indent=" " * 4)
    return [f"  {line}" for line in [*head, *textwrap.wrap(key.meaning, 100, initial_indent=" " * 4)]]
