"""A parser of the command line, made from the signatures of the things that it names.

`--rule DGL --rule.head MLP --rule.head.width 64` names a class and gives options of this class. The
parser is made for the names on the command line: `--help` shows only their options, and any other
option is an error. A config file holds the same options, nested; the command line overrides it.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import warnings
from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from layerwise.arguments import alternatives, in_words, is_list, shortened
from layerwise.cli.help import Option, brief, explained
from layerwise.errors import InputError
from layerwise.experiment.catalog import one_line
from layerwise.experiment.config import (
    WEIGHT,
    default_of,
    name_of,
    networks_in,
    parameters,
    suggestion,
    values_of,
)
from layerwise.experiment.registry import GIVEN, find, nested, terms
from layerwise.objectives import Sum
from layerwise.runs import safe_yaml

MORE_HELP = """\
Options are shown with their defaults. More help:
  --rule NAME --help    options of that rule; likewise --model, --rule.head, --optimizer, ...
  --help NAME           the whole explanation of an option, or of all that begin with NAME
  --help all            the whole explanation of every option
  layerwise list        every rule, network, head, objective, data set and recipe by name"""

# A number that YAML 1.1 reads otherwise than a person: 010 is 8, and 1:30 is 90.
MISREAD = re.compile(r"[-+]?0[0-9][0-9_]*|[-+]?[0-9]+(?::[0-9]+)+")
VALUES = "layerwise"  # jsonargparse's name for the way in which values are read

Tokens = list[str]  # always `--key=value`, so that a value is never taken for an option


def _value(text: str) -> Any:
    """The value of an option, as jsonargparse reads it, within the limits of `safe_yaml`."""
    try:
        safe_yaml.check(text)
        return get_loader("yaml")(text)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from error


set_loader(VALUES, _value, exceptions=(yaml.YAMLError,))


class Parser(ArgumentParser):
    """jsonargparse with errors of one line and a help that can be read.

    Args:
        prog: the command.
        description: what it does.
        sections: for a command of many options: title -> names of options (`optimizer` stands for
            all that begin with it), in the order of the help, which then has a line per option.
    """

    def __init__(
        self,
        prog: str,
        description: str | None,
        sections: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__(
            prog=prog,
            description=description,
            exit_on_error=False,
            allow_abbrev=False,
            parser_mode=VALUES,
        )
        self.sections = sections or {}
        self.chosen: dict[str, str] = {}  # option that takes a thing's name -> the name

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        if message.lower().startswith("unrecognized arguments:"):
            words = message.partition(":")[2].split() or ["''"]  # an empty argument
            option = words[0].partition("=")[0]
            known = [
                name.removeprefix("--")
                for name, action in self._option_string_actions.items()
                if name.startswith("--") and name[-1] != "+" and action.help is not SUPPRESS
            ]
            near = suggestion(option.removeprefix("--"), known, flag="--")
            raise InputError(f"{option}: no such option; {near}") from ex
        if missing := re.fullmatch(r"argument (--\S+): expected one argument", message):
            raise InputError(f"{missing[1]}: {self._takes(missing[1])}") from ex
        if wrong := re.fullmatch(r'Parser key "(\S+)":.* (?:Got|Given) value: (.*)', message):
            option = f"--{wrong[1]}"
            raise InputError(f"{option} {wrong[2]}: {self._takes(option)}") from ex
        raise InputError(message.replace('Parser key "', "--").replace('":', ":")) from ex

    def _takes(self, option: str) -> str:
        """The values that an option takes, in words."""
        return f"give {in_words(self._hint(option))}"

    def _hint(self, option: str) -> Any:
        return getattr(self._option_string_actions.get(option), "_typehint", None)

    def _listed(self, token: str) -> str:
        """Replace `--at=layer2,layer3` by `--at=[layer2,layer3]` if the option takes a list.

        Raises:
            InputError: a number that people and YAML read differently.
        """
        option, _, value = token.partition("=")
        numbers = {int, float} & {*alternatives(self._hint(option))}
        if numbers and MISREAD.fullmatch(value):
            raise InputError(f"{option} {value}: {self._takes(option)}, without a leading 0 or a :")
        bare = value and value != "null" and not value.startswith("[")
        hint = self._hint(option)
        single = "," not in value and float in alternatives(hint)  # a number, or a list of them
        return f"{option}=[{value}]" if bare and is_list(hint) and not single else token

    def component(self, tokens: Tokens, key: str, kind: str, default: Any) -> Tokens:
        """Add the options of a named thing, or of each term of a sum, and of the things in it.

        Args:
            tokens: the command line.
            key: the option that names the thing, such as "rule.head".
            kind: a kind of the registry.
            default: a name, or an object whose values are the defaults.

        Returns:
            The command line with `--key=NAME` replaced by `--key.name=NAME`.
        """
        tokens = [replace_key(token, key, f"{key}.name") for token in tokens]
        chosen = last(tokens, f"{key}.name")
        chosen = name_of(default) if chosen is None else chosen
        names = terms(kind, chosen)
        name = "+".join(names.values())
        tokens = [
            f"--{key}.name={name}" if token.startswith(f"--{key}.name=") else token
            for token in tokens
        ]
        self.add_argument(f"--{key}.name", type=str, default=name, help=SUPPRESS)
        if len(names) == 1:
            return self._options(tokens, key, kind, name, default)
        self.add_class_arguments(Sum, key, skip={"terms"})
        self.name_option(key, name, one_line(Sum.__doc__ or ""))
        for term, name in names.items():
            tokens = self._options(tokens, f"{key}.{term}", kind, name, name)
            action = self._option_string_actions.pop(f"--{key}.{term}")  # it takes no value
            action.help = SUPPRESS
            if not parameters(find(kind, name)[1]):
                self._remove_action(action)
            assert self.groups is not None
            self.groups[f"{key}.{term}"].add_argument(
                f"--{key}.{term}.weight",
                type=WEIGHT[0],
                default=WEIGHT[1],
                help="factor in the sum; [a, b]: linear from the first block to the last.",
            )
        return tokens

    def _options(self, tokens: Tokens, key: str, kind: str, name: str, default: Any) -> Tokens:
        """Add the options of the thing called `name`."""
        _, thing = find(kind, name)
        inner = nested(thing)
        if kind == "model" and not inspect.signature(thing).parameters:
            raise InputError(
                f"--{key} {name}: it takes none of the arguments of such a thing; a network is a "
                "function of shape and num_classes, or of either"
            )
        runs = networks_in(thing)
        skip = {*GIVEN.get(kind, ()), *inner, *runs} & set(inspect.signature(thing).parameters)
        if not parameters(thing):  # jsonargparse needs one to make a group
            self.add_function_arguments(_without_options, key, skip={"nothing"})
        elif inspect.isclass(thing):
            self.add_class_arguments(thing, key, skip={*skip})
        else:
            self.add_function_arguments(thing, key, skip={*skip})
        self.name_option(key, name, one_line(thing.__doc__ or ""))
        for run in runs:
            assert self.groups is not None
            about = f"{run}: a network, given as the folder of a complete run."
            self.groups[key].add_argument(f"--{key}.{run}", type=str | None, help=about)
        self.set_defaults({f"{key}.{k}": v for k, v in values_of(default, name).items()})
        for parameter, inner_kind in inner.items():
            given = default_of(thing, parameter, inner_kind)
            tokens = self.component(tokens, f"{key}.{parameter}", inner_kind, given)
        return tokens

    def name_option(self, key: str, name: str, help: str) -> None:
        """Make `--key`, which takes the name of a thing, an option like the others."""
        action = self._option_string_actions.get(f"--{key}")
        if action is None:
            self.add_argument(f"--{key}", metavar="NAME", type=str | None, help=help)
            action = self._option_string_actions[f"--{key}"]
        action.metavar, action.help = "NAME", help
        self.chosen[key] = name

    def options(self) -> list[Option]:
        """The options that the help shows."""
        found = []
        for action in self._actions:
            name = action.option_strings[0] if action.option_strings else ""
            # jsonargparse adds one that takes a file, such as --augment; a config says the same.
            file = type(action).__name__ == "_ActionConfigLoad" and action.metavar != "NAME"
            if not name.startswith("--") or action.help is SUPPRESS or file:
                continue
            key = name.removeprefix("--")
            text = " ".join(str(action.help).split())
            if key in self.chosen:
                found.append(Option(key, self.chosen[key], text, None))
            else:
                found.append(Option(key, self.get_default(key), text, self._hint(name)))
        return found

    def help_text(self, topic: str | None = None) -> str:
        """The help; with a topic, such as `augment` or `all`, the whole explanation of it.

        Raises:
            InputError: no option of this name.
        """
        if topic:
            return f"{explained(self.options(), self.sections, topic)}\n"
        positional = [action for action in self._actions if not action.option_strings]
        names = [f"{a.dest.upper()}{' ...' if a.nargs == '+' else ''}" for a in positional]
        usage = " ".join(["usage:", self.prog, *names, "[--option value ...]"])
        about = "\n".join(textwrap.wrap(" ".join((self.description or "").split()), 80))
        listed = "\n".join(f"  {a.dest.upper():<30}  {a.help}" for a in positional)
        if self.sections:
            options = f"{MORE_HELP}\n\n{brief(self.options(), self.sections)}"
        else:
            options = explained(self.options(), {})
        return "\n\n".join(part for part in (usage, about, listed, options) if part) + "\n"

    def read(self, tokens: Tokens) -> dict[str, Any]:
        """The options as a nested mapping of plain values; or print the help that is asked for,
        and exit."""
        if asks_for_help(tokens):
            print(self.help_text(last(tokens, "help")), end="")
            raise SystemExit(0)
        for token in tokens:
            refuse_unusable(token)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's warnings about how it is called
            found = self.parse_args([self._listed(token) for token in tokens])
        return json.loads(json.dumps(found.as_dict(), default=str))


def _without_options(nothing: None = None) -> None:
    """A thing without options."""


def asks_for_help(tokens: Tokens) -> bool:
    """Whether `-h`, `--help` or `--help NAME` is among the tokens."""
    return any(token.partition("=")[0] in ("-h", "--help") for token in tokens)


def tokens_of(arguments: Iterable[str], positional: bool = False) -> Tokens:
    """Bring `--key value` to `--key=value`, and `positional` arguments to the front if there may be
    any."""
    first: Tokens = []
    tokens: Tokens = []
    for argument in arguments:
        refuse_unusable(argument)
        if argument.startswith("--") or argument in ("-h",):
            tokens.append(argument)
        elif tokens and tokens[-1].startswith("--") and "=" not in tokens[-1]:
            tokens[-1] += f"={argument}"
        elif positional and not argument.startswith("-"):
            first.append(argument)
        else:
            raise InputError(f"{argument!r}: an option was expected here; see --help")
    for token in tokens:
        refuse_unusable(token)
    return first + tokens


def refuse_unusable(token: str) -> None:
    """Refuse an option without a value after its `=`, and text that no file could hold.

    Raises:
        InputError: so.
    """
    option, sign, value = token.partition("=")
    if option.startswith("--") and sign and not value.strip():
        raise InputError(f"{option} {value!r}: there is no value; give one, or leave {option} out")
    if "\0" in token or any("\ud800" <= letter <= "\udfff" for letter in token):
        raise InputError(f"{shortened(token)}: not text in UTF-8; give another value")


def last(tokens: Tokens, key: str) -> str | None:
    """The last value of `--key=`; None if there is none."""
    values = [t.partition("=")[2] for t in tokens if t.startswith(f"--{key}=")]
    return values[-1] if values else None


def take(tokens: Tokens, key: str) -> tuple[str | None, Tokens]:
    """The value of `--key=`, and the other tokens.

    Raises:
        InputError: `--key` without a value.
    """
    if f"--{key}" in tokens:
        raise InputError(f"--{key}: there is no value; give one, or leave --{key} out")
    return last(tokens, key), [t for t in tokens if t.partition("=")[0] != f"--{key}"]


def with_config(tokens: Tokens, config: Mapping[str, Any]) -> Tokens:
    """A config's options, then the command line's. If the command line names another thing than
    the config, the config's options of that thing are dropped, except those of objectives that both
    name, and those of the data, which are the same for all sets."""
    before = list(_flatten(config))
    # From the outside in: the options of a thing matter only once the thing is known.
    for token in sorted(tokens, key=lambda token: token.partition("=")[0].count(".")):
        key, _, value = token[2:].partition("=")
        key = key.removesuffix(".name")
        was = last(before, f"{key}.name") or last(before, key)
        if was is not None and was.lower() != value.lower() and key != "data":
            before = _renamed(before, key, _objectives(was), _objectives(value))
    return before + tokens


def _renamed(tokens: Tokens, key: str, was: list[str], now: list[str]) -> Tokens:
    """The tokens without the options of `key`, except those of objectives that are both in `was`
    and in `now`. A single objective has no name before its options, and no weight."""
    kept = []
    for token in tokens:
        if not token.startswith((f"--{key}.", f"--{key}=")):
            kept.append(token)
        if not token.startswith(f"--{key}.") or token.startswith(f"--{key}.name="):
            continue
        rest = token.removeprefix(f"--{key}.")
        term, _, rest = rest.partition(".") if len(was) > 1 else ("".join(was), "", rest)
        if term in now:
            if len(now) > 1:
                kept.append(f"--{key}.{term}.{rest}")
            elif not rest.startswith("weight="):
                kept.append(f"--{key}.{rest}")
    return kept


def _objectives(name: str) -> list[str]:
    """The objectives in a sum; none if the name is that of another thing."""
    try:
        return list(terms("objective", name))
    except InputError:
        return []


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"--{prefix}{key}={text}"


def replace_key(token: str, key: str, new: str) -> str:
    """Replace `--key=value` by `--new=value`; other tokens stay as they are."""
    return f"--{new}={token.partition('=')[2]}" if token.startswith(f"--{key}=") else token


def read_yaml(path: Path, asked_by: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: no such file, not readable, not a mapping.
    """
    try:
        config = safe_yaml.load_file(path)
    except OSError as error:
        raise InputError(f"{asked_by} {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{asked_by} {path}: cannot be read: not text in UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{asked_by} {path}: not YAML: {safe_yaml.in_one_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{asked_by} {path}: not a mapping of options")
    for key in ("config", "recipe", "resume", "help", "h"):
        if key in config:
            raise InputError(
                f"{asked_by} {path}: {key} is an option of the command line only; leave it out"
            )
    return config
