"""Dataclasses filled from a YAML file and the command line; an unknown key is an error."""

import dataclasses
import difflib
import operator
import re
import sys
import traceback
import types
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class _Option(NamedTuple):
    owner: type
    field: dataclasses.Field
    hint: Any

    @property
    def is_flag(self) -> bool:
        """Whether `--key` alone means true."""
        return self.hint is bool or set(get_args(self.hint)) == {bool, types.NoneType}

    @property
    def is_required(self) -> bool:
        missing = dataclasses.MISSING
        return self.field.default is missing and self.field.default_factory is missing


def parse_arguments(
    *dataclass_types: type,
    args: Sequence[str] | None = None,
    adjust: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> tuple:
    """Fill dataclasses from a YAML file, then from `--key value` overrides.

    The first argument, where it does not start with `--`, is the YAML file: a flat mapping of field
    names. Overrides are `--key value`, `--key=value`, and `--flag` or `--no-flag` for a bool. Lists
    and dicts are written as YAML (`--ks "[5, 10]"`). The command line wins over the file, the file
    over defaults. YAML is read by the rules of version 1.2: `no` is a word, `1e-3` a number.

    Args:
        dataclass_types: dataclasses, also `transformers.TrainingArguments`; no two may own a key.
        args: the words of the command line; `None` reads them from `sys.argv`.
        adjust: gives what the dataclasses are made of, from the values that were read by key.

    Returns:
        One instance of each dataclass, in the order given.

    Raises:
        ValueError: an unknown key, a wrong type, a missing field, or what a dataclass refuses. From
            `sys.argv` it is a `SystemExit` with the same message in one line, without a traceback.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Arguments:
    ...     output_dir: str
    ...     learning_rate: float = 1e-3
    >>> parse_arguments(Arguments, args=["--output_dir", "out", "--learning_rate=3e-4"])
    (Arguments(output_dir='out', learning_rate=0.0003),)
    """
    words = list(sys.argv[1:] if args is None else args)
    options = _collect_options(dataclass_types)
    if "--help" in words or "-h" in words:
        print(_help_text(options))
        raise SystemExit(0)
    try:
        values = _read_values(words, options)
        values = values if adjust is None else adjust(values)
        return tuple(
            owner(**{key: value for key, value in values.items() if options[key].owner is owner})
            for owner in dataclass_types
        )
    except ValueError as error:
        if args is None:
            raise SystemExit(f"error: {' '.join(str(error).split())}") from None
        raise


def check_numbers(arguments: object, *bounds: str) -> None:
    """Refuse a number that is out of its bounds, by the name that its user gave it.

    Args:
        arguments: whose attributes are checked; of a list each number, and of `None` nothing.
        bounds: such as `"days steps >= 0"`: attributes, one of `> >= < <=`, and a number.

    Raises:
        ValueError: for the first bound that does not hold; NaN is within none.

    >>> from types import SimpleNamespace
    >>> check_numbers(SimpleNamespace(ks=[5, 0], seed=None), "ks >= 1", "seed >= 0")
    Traceback (most recent call last):
    ValueError: ks must be >= 1, got [5, 0]
    """
    for bound in bounds:
        *names, sign, limit = bound.split()
        for name in names:
            given = getattr(arguments, name)
            numbers = given if isinstance(given, list) else [given]
            if not all(one is None or COMPARISONS[sign](one, float(limit)) for one in numbers):
                raise ValueError(f"{name} must be {sign} {limit}, got {given!r}")


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main`; what this package refuses is one line on the terminal, without a traceback.

    Args:
        main: reads its arguments from the command line.

    Raises:
        SystemExit: for a `ValueError`, `FileNotFoundError` or `ImportError` that a module of this package
            raised, with its message, and for a value in `model:` of another type than the configuration
            has; and with 130 at Ctrl-C. All other errors keep their traceback.

    >>> def main():
    ...     parse_arguments(int, args=[])
    >>> run_recipe(main)
    Traceback (most recent call last):
    SystemExit: error: expected dataclasses, got <class 'int'>
    """
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] != __package__:
            raise
        raise SystemExit(f"error: {error}") from None
    except StrictDataclassFieldValidationError as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None  # as shells have it


def _collect_options(dataclass_types: Sequence[type]) -> dict[str, _Option]:
    options: dict[str, _Option] = {}
    for owner in dataclass_types:
        if not dataclasses.is_dataclass(owner):
            raise ValueError(f"expected dataclasses, got {owner!r}")
        hints = get_type_hints(owner)
        for field in dataclasses.fields(owner):
            if not field.init:
                continue
            if field.name in options:
                first = options[field.name].owner.__name__
                raise ValueError(f"{field.name!r} is a field of both {first} and {owner.__name__}")
            options[field.name] = _Option(owner, field, hints[field.name])
    return options


def _read_values(words: list[str], options: dict[str, _Option]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if words and not words[0].startswith("--"):
        values.update(_read_file(words.pop(0), options))
    values.update(_read_command_line(words, options))
    missing = [key for key, option in options.items() if option.is_required and key not in values]
    if missing:
        raise ValueError(
            f"missing required {', '.join(map(repr, missing))}: set in the YAML file or by --key"
        )
    return values


# The YAML file


class _Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `no` is a string, `1e-3` a float; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(
                    f"a key must be a name, got a list or mapping{key_node.start_mark}"
                )
            if key_node.value in seen:
                raise yaml.YAMLError(f"key {key_node.value!r} is given twice{key_node.start_mark}")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Yaml12Loader)  # a SafeLoader: plain values only


def _read_file(path: str, options: dict[str, _Option]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"no YAML file at {path!r}; overrides are written --key value")
    try:
        content = _load_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a YAML file of keys and values, got {type(content).__name__}; "
            "overrides are written --key value"
        )
    values = {}
    for key, value in content.items():
        option = _find(str(key), options, path)
        values[str(key)] = _checked(str(key), value, option, path)
    return values


# The command line


def _read_command_line(words: list[str], options: dict[str, _Option]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    source = "the command line"
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise ValueError(
                f"unexpected {word!r} on the command line; overrides are written --key value"
            )
        name, equals, text = word[2:].partition("=")
        key = name.replace("-", "_")
        positive = key.removeprefix("no_")
        if key not in options and not equals and positive in options and options[positive].is_flag:
            values[positive] = False
            continue
        option = _find(key, options, source)
        if not equals:
            if option.is_flag and not (words and words[0].lower() in ("true", "false", "null")):
                values[key] = True
                continue
            if not words or words[0].startswith("--"):
                raise ValueError(
                    f"--{name} on the command line expects a {_type_name(option.hint)}, got nothing"
                )
            text = words.pop(0)
        values[key] = _checked(key, _read_text(text, option), option, source)
    return values


def _read_text(text: str, option: _Option) -> Any:
    """The YAML value of a word where the field takes it, else the word itself."""
    try:
        value = _load_yaml(text)
        if not isinstance(value, str):
            _coerce(value, option.hint)
            return value
    except (yaml.YAMLError, TypeError):
        pass
    return text


def _find(key: str, options: dict[str, _Option], source: str) -> _Option:
    if key in options:
        return options[key]
    close = difflib.get_close_matches(key, options, n=3)
    hint = (
        f"; did you mean {' or '.join(map(repr, close))}?" if close else "; --help lists the keys"
    )
    raise ValueError(f"unknown key {key!r} in {source}{hint}")


# Types


def _checked(key: str, value: Any, option: _Option, source: str) -> Any:
    try:
        return _coerce(value, option.hint)
    except TypeError:
        expected = _type_name(option.hint)
        got = f"{type(value).__name__} {value!r}"
        raise ValueError(f"{key!r} in {source}: expected {expected}, got {got}") from None


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it; a `TypeError` where it does not fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, inner)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in inner):
            return value
    elif (origin or hint) in (list, tuple, Sequence):
        return _coerce_list(value, origin or hint, inner)
    elif (origin or hint) is dict:
        if isinstance(value, dict):
            kinds = inner or (Any, Any)
            return {_coerce(k, kinds[0]): _coerce(v, kinds[1]) for k, v in value.items()}
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(hint, type) and issubclass(hint, Enum) and not isinstance(value, hint):
        if value in [member.value for member in hint]:
            return hint(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return _not_a_bool(value) if hint is int else value
    raise TypeError


def _not_a_bool(value: Any) -> int:
    if isinstance(value, bool):  # bool is a subclass of int
        raise TypeError
    return value


def _coerce_union(value: Any, kinds: tuple) -> Any:
    # A kind that holds the value as it is comes before one that would convert it.
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return _coerce(value, kind)
        except TypeError:
            continue
    raise TypeError


def _coerce_list(value: Any, kind: Any, inner: tuple) -> Any:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            raise TypeError
        return tuple(_coerce(item, hint) for item, hint in zip(value, inner, strict=True))
    items = [_coerce(item, inner[0] if inner else Any) for item in value]
    return tuple(items) if kind is tuple else items


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_name(kind) for kind in get_args(hint))
    if hint is types.NoneType:
        return "null"
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _help_text(options: dict[str, _Option]) -> str:
    lines = [f"usage: {Path(sys.argv[0]).name} [FILE.yaml] [--key value] [--flag | --no-flag] ..."]
    if told := sys.modules["__main__"].__doc__:
        lines += ["", told.strip()]  # what the recipe does, in its own words
    owner = None
    for key, option in options.items():
        if option.owner is not owner:
            owner = option.owner
            lines.append(f"\n{owner.__name__}")
        default: Any = option.field.default
        if default is dataclasses.MISSING and not option.is_required:
            default = option.field.default_factory()  # type: ignore[operator]
        state = "required" if option.is_required else f"default {default!r}"
        lines.append(f"  --{key}  {_type_name(option.hint)}, {state}")
        described = option.field.metadata.get("help")
        if described:
            described = str(described).replace("%%", "%")  # as argparse wants it
            lines.append(f"      {' '.join(described.split())}")
    return "\n".join(lines)
