"""The cards of rules and objectives, docs/rules/NAME.md and docs/objectives/NAME.md.

A card has three sources: the class's docstring and signature; facts that the class declares (what a
block waits for) and the recipes that use it; and its story, docs/rules/stories/NAME.md, for what
only prose can say: what a rule is good for and bad for, what it reached, what it costs. A class
without a story has a complete card, too. A story may begin with an example of its own, in Python,
and a command after it; they replace those that are made from the signature.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from layerwise import objectives, rules
from layerwise.errors import InputError
from layerwise.objectives import Objective
from layerwise.rules import families
from layerwise.rules.base import Needs, Rule
from pages import card_results
from pages.docstring import Docstring, cell, linked, prose
from pages.figures import inserted
from pages.files import ROOT

RULES, OBJECTIVES = ROOT / "docs" / "rules", ROOT / "docs" / "objectives"
RECIPES = ROOT / "src" / "layerwise" / "recipes"

# What a block's gradient waits for, and what follows from that.
WAITS = {
    Needs.FORWARD: "its input and the labels",
    Needs.NEXT: "what the next block finds, which only its auxiliary networks need and which may "
    "come late",
    Needs.ERROR: "the error of the network's output",
    Needs.BACKWARD: "a signal that passes back through later blocks",
    Needs.WEIGHTS: "weights of the next block, as they were one step before",
    Needs.READOUT: "weights of the network's classifier",
}
# Arguments that are no options: functions, and what the command line takes from network and data.
IN_PYTHON = ("blocks", "criterion", "num_classes", "normalization")
# Arguments without a default, in the example of a call.
REQUIRED = {
    "objectives": (
        "lw.objectives.Classify(lw.heads.MLP())",
        "--rule.objectives Classify --rule.objectives.head MLP",
    ),
}


def pages() -> dict[Path, str]:
    """Every card, and an index of each kind."""
    found = {RULES / f"{_module(rule)}.md": _rule(rule) for rule in all_rules()}
    found |= {OBJECTIVES / f"{_module(o)}.md": _objective(o) for o in all_objectives()}
    found[RULES / "README.md"] = _rules_index()
    found[OBJECTIVES / "README.md"] = _objectives_index()
    return found


def leftovers(written: Iterable[Path]) -> list[Path]:
    """Cards of rules and objectives that are gone."""
    return sorted({*RULES.glob("*.md"), *OBJECTIVES.glob("*.md")} - set(written))


def all_rules() -> list[type[Rule]]:
    """The rules that the library exports, by name."""
    return [getattr(rules, name) for name in sorted(rules.__all__, key=str.lower)]


def all_objectives() -> list[type[Objective]]:
    """The objectives that the library exports, by name; not the base class and sums."""
    exported = (getattr(objectives, name) for name in sorted(objectives.__all__, key=str.lower))
    return [
        found
        for found in exported
        if isinstance(found, type)
        and issubclass(found, Objective)
        and found not in (Objective, objectives.Sum)
    ]


def _rule(rule: type[Rule]) -> str:
    read, links = Docstring.of(rule), _links(RULES, rule)
    example, command, story = _story(RULES, rule, links)
    return (
        "\n\n".join(
            [
                *_head(rule, RULES, read, links),
                example or _rule_example(rule, read),
                command or _code("", f"layerwise train {_rule_command(rule, read)}"),
                *_definition(read, links),
                f"## What a block waits for\n\n{_waits(rule)}",
                *story,
                *card_results.of_rule(rule.__name__),
                *_family(rule, links),
                *_arguments(rule, read, links, "--rule."),
                *_errors(read, links),
                *_recipes(lambda config: config["rule"]["name"] == rule.__name__),
            ]
        )
        + "\n"
    )


def _objective(objective: type[Objective]) -> str:
    read, links = Docstring.of(objective), _links(OBJECTIVES, objective)
    example, command, story = _story(OBJECTIVES, objective, links)
    name = objective.__name__
    views = " --views 2" if _needs_views(objective) else ""
    return (
        "\n\n".join(
            [
                *_head(objective, OBJECTIVES, read, links),
                example or _objective_example(objective),
                command
                or _code("", f"layerwise train --rule Greedy --rule.objectives {name}{views}"),
                *_definition(read, links),
                f"## What it reads and gives\n\n{_gives(objective)}",
                *story,
                *card_results.of_objective(objective),
                *_family(objective, links),
                *_arguments(objective, read, links, "--rule.objectives."),
                *_errors(read, links),
                *_recipes(lambda config: name in card_results.objectives_of(config["rule"])),
            ]
        )
        + "\n"
    )


def _head(of: type, folder: Path, read: Docstring, links: dict[str, str]) -> list[str]:
    source = Path(inspect.getfile(of)).relative_to(ROOT / "src")
    story = _story_file(folder, of)
    sources = [f"src/{source}", *([str(story.relative_to(ROOT))] if story.exists() else [])]
    return [
        f"<!-- Written by `make tables` from {' and '.join(sources)}. -->",
        f"# {of.__name__}",
        prose(read.summary, links),
    ]


def _rule_example(rule: type[Rule], read: Docstring) -> str:
    call = ", ".join(["blocks", *(REQUIRED[name][0] for name in _required(rule))])
    model = _model(read)
    return _code(
        "python",
        "import layerwise as lw\n",
        f"blocks = lw.cut({f'lw.models.{model}()' if model else 'model'}, "
        f"blocks={chr(34) + 'all' + chr(34) if model else 4}, example=images)",
        f"rule = lw.rules.{rule.__name__}({call})",
        "report = rule.backward(images, labels)  # was: loss.backward()",
    )


def _rule_command(rule: type[Rule], read: Docstring) -> str:
    model = _model(read)
    network = f"--model {model} --blocks all " if model else ""
    return " ".join(
        [f"{network}--rule {rule.__name__}", *(REQUIRED[name][1] for name in _required(rule))]
    )


def _objective_example(objective: type[Objective]) -> str:
    views = _needs_views(objective)
    return _code(
        "python",
        "import layerwise as lw\n",
        "blocks = lw.cut(model, blocks=4, example=images)",
        f"rule = lw.rules.Greedy(blocks, lw.objectives.{objective.__name__}())",
        "report = rule.backward(images, labels)"
        + ("  # images: two augmented views of every sample, view after view" if views else ""),
    )


def _model(read: Docstring) -> str | None:
    """The network that a rule is made for, from its description of `blocks`."""
    found = re.search(r"`models\.(\w+)`", read.sections.get("Args", {}).get("blocks", ""))
    return found[1] if found else None


def _required(rule: type[Rule]) -> list[str]:
    """Arguments without a default, `blocks` aside."""
    _, *parameters = inspect.signature(rule).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def _definition(read: Docstring, links: dict[str, str]) -> list[str]:
    parts = ["## Definition", *(prose(paragraph, links) for paragraph in read.body)]
    for title, text in read.remarks:
        parts += [f"## {title}", prose(text[0].upper() + text[1:], links)]
    return parts if len(parts) > 1 else []


def _waits(rule: type[Rule]) -> str:
    needs = rule.needs
    listed = [text for need, text in WAITS.items() if need in needs]
    sentences = [f"A block's gradient waits for {', and for '.join(listed)}."]
    if rule.phases is not Rule.phases:
        sentences.append(
            "Blocks train in phases, one after the other, so a block also waits for the whole "
            "training of those before it."
        )
    elif needs in (Needs.FORWARD, Needs.FORWARD | Needs.NEXT):
        sentences.append(
            "This removes the update lock and the backward lock: a block learns as soon as it has "
            "its input. Blocks can train in several processes (`--stages`)."
        )
    elif rule is rules.DelayedGradient:
        sentences.append(
            "The backward lock is loosened: blocks train in several processes (`--stages`), each a "
            "step late."
        )
    elif Needs.BACKWARD in needs:
        sentences.append(
            "The backward lock stays, so blocks cannot train in several processes (`--replicas` "
            "works)."
        )
    elif Needs.ERROR in needs:
        sentences.append(
            "This removes the backward lock between blocks: nothing passes back from one to the "
            "other. Every block waits for the network's output, so blocks cannot train in several "
            "processes (`--replicas` works)."
        )
    else:
        sentences.append(
            "This removes the backward lock. Blocks cannot train in several processes, because "
            "they read weights that live in another one (`--replicas` works)."
        )
    if rule.stochastic:
        sentences.append(
            "A step draws random numbers: the same batch gives a different gradient the next time."
        )
    if rule.forward is not Rule.forward:
        sentences.append("Predictions are `rule(x)`, not `model(x)`.")
    return textwrap.fill(" ".join(sentences), 100)


def _gives(objective: type[Objective]) -> str:
    scores = objective.predict is not Objective.predict
    sentences = [
        "It gives class scores, so a block with it is an early exit (`rule.exits`)."
        if scores
        else "It gives no class scores, so a block with it is no early exit."
    ]
    if views := _needs_views(objective):
        sentences.insert(0, f"It compares at least {views} augmented views of every sample.")
    if objective.illustrate is not Objective.illustrate:
        sentences.append("It gives images, which are pictured during training.")
    return textwrap.fill(" ".join(sentences), 100)


def _needs_views(objective: type[Objective]) -> int:
    try:
        return objective().needs_views
    except InputError:  # it has no default
        return 0


def _family(of: type, links: dict[str, str]) -> list[str]:
    """What the docstring of a shared base class says, for a rule that has one."""
    parts = []
    for base in of.__mro__[1:]:
        if not base.__module__.startswith(f"{families.__name__}."):
            continue
        read = Docstring.of(base)
        parts += [
            f"## Shared with other rules: `{base.__name__}`",
            prose(read.summary, links),
            *(prose(paragraph, links) for paragraph in read.body),
        ]
    return parts


def _arguments(of: type, read: Docstring, links: dict[str, str], prefix: str) -> list[str]:
    described = read.sections.get("Args", {})
    written = _defaults(of)
    if not written:
        return []
    lines = ["| argument | type | default | |", "|---|---|---|---|"]
    for name, (annotation, default) in written.items():
        value = "required" if default is None else f"`{_bar(default)}`"
        text = cell(described.get(name, ""), links)
        lines.append(f"| `{name}` | `{_bar(annotation)}` | {value} | {text} |")
    table = ["## Arguments", "\n".join(lines)]
    if set(written) <= set(IN_PYTHON):
        return table
    own = ", ".join(f"`{name}`" for name in written if name in IN_PYTHON)
    every = f"every argument except {own}" if own else "every argument"
    return [*table, f"On the command line, {every} is an option `{prefix}NAME`."]


def _defaults(of: type) -> dict[str, tuple[str, str | None]]:
    """Type and default of every argument, as the source has them."""
    if of.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    [function] = ast.parse(textwrap.dedent(inspect.getsource(of.__init__))).body  # type: ignore
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args.args[1:]
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + [
        ast.unparse(default) for default in function.args.defaults
    ]
    return {
        argument.arg: (ast.unparse(argument.annotation) if argument.annotation else "", default)
        for argument, default in zip(arguments, defaults, strict=True)
    }


def _errors(read: Docstring, links: dict[str, str]) -> list[str]:
    raised = read.sections.get("Raises", {})
    if not raised:
        return []
    lines = []
    for error, causes in raised.items():
        items = dict.fromkeys(_causes(causes))
        lines.append(f"`{error}` for:\n")
        lines += [f"- {linked(item, links)}" for item in items]
    return ["## Errors", "\n".join(lines)]


def _causes(text: str) -> list[str]:
    """Causes of an error, with those of a class that the text refers to."""
    found = []
    for cause in re.split(r";\s+(?![^(]*\))", text.rstrip(".")):
        referred = re.fullmatch(r"as `(\w+)`", cause.strip())
        shared = _shared_class(referred[1]) if referred else None
        if shared is None:
            found.append(cause.strip())
        else:
            raised = Docstring.of(shared).sections.get("Raises", {})
            found += [more for causes in raised.values() for more in _causes(causes)]
    return found


@functools.cache
def _shared_class(name: str) -> type | None:
    """The class of that name that rules share; None if there is none."""
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        if hasattr(found := importlib.import_module(module.name), name):
            return getattr(found, name)
    return None


def _recipes(uses: Callable[[dict[str, Any]], bool]) -> list[str]:
    lines = []
    for name, comment, config in _all_recipes():
        if uses(config):
            lines.append(f"- `layerwise train --recipe {name}`: {linked(comment, {})}")
    return ["## Recipes", "\n".join(lines)] if lines else []


@functools.cache  # reading YAML takes most of the time that all cards take
def _all_recipes() -> list[tuple[str, str, dict[str, Any]]]:
    """Name, comment and config of every recipe, in the order of their names."""
    found = []
    for path in sorted(RECIPES.glob("*.yaml")):
        text = path.read_text()
        comment = " ".join(re.findall(r"^# ?(.*)$", text.partition("\ndata:")[0], re.M))
        found.append((path.stem, comment, yaml.safe_load(text)))
    return found


def _story(folder: Path, of: type, links: dict[str, str]) -> tuple[str, str, list[str]]:
    """The story's own example and command, empty if it has none, and the story."""
    path = _story_file(folder, of)
    if not path.exists():
        return "", "", []
    # A story's links hold where it lies; a card lies one folder higher.
    text = inserted(path.read_text()).strip().replace("](../", "](")
    own = re.match(r"(```python\n.*?\n```)\n*(```\nlayerwise .*?\n```)?\n*", text, re.DOTALL)
    example, command = (own[1], own[2] or "") if own else ("", "")
    text = text[own.end() :] if own else text
    return example, command, ["## In practice", linked(text, links)] if text else []


def _story_file(folder: Path, of: type) -> Path:
    return folder / "stories" / f"{_module(of)}.md"


def _rules_index() -> str:
    links = _links(RULES)
    lines = ["| rule | | a block waits for | source |", "|---|---|---|---|"]
    for rule in all_rules():
        read = Docstring.of(rule)
        waits = "; ".join(text for need, text in WAITS.items() if need in rule.needs)
        lines.append(
            f"| [`{rule.__name__}`]({_module(rule)}.md) | {cell(read.sentence, links)} | {waits} "
            f"| {read.source()} |"
        )
    return _index("Rules", "rule", lines)


def _objectives_index() -> str:
    links = _links(OBJECTIVES)
    lines = ["| objective | | class scores | source |", "|---|---|---|---|"]
    for objective in all_objectives():
        read = Docstring.of(objective)
        scores = "yes" if objective.predict is not Objective.predict else "no"
        lines.append(
            f"| [`{objective.__name__}`]({_module(objective)}.md) | {cell(read.sentence, links)} "
            f"| {scores} | {read.source()} |"
        )
    return _index("Objectives", "objective", lines)


def _index(title: str, kind: str, lines: list[str]) -> str:
    return (
        f"<!-- Written by `make tables`. -->\n\n# {title}\n\nOne card for each {kind}. The "
        "[guide](../guide/README.md) shows how they are used, and the [results](../results.md) "
        "what was measured.\n\n" + "\n".join(lines) + "\n"
    )


def _links(folder: Path, besides: type | None = None) -> dict[str, str]:
    """The card of every rule and objective, from a folder, under the class's name."""
    found = {}
    for place, classes in ((RULES, all_rules()), (OBJECTIVES, all_objectives())):
        here = "" if place == folder else f"../{place.name}/"
        found |= {c.__name__: f"{here}{_module(c)}.md" for c in classes if c is not besides}
    return found


def _module(of: type) -> str:
    return of.__module__.rpartition(".")[2]


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _bar(text: str) -> str:
    return text.replace("|", "\\|")
