"""`layerwise --completion bash`: a script that completes commands, options and names.

The options of a command depend on the names that stand on it, and a parser that knows them imports
PyTorch, for which nobody waits at a press of Tab. So the script holds the words of the help.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Mapping

from layerwise.cli.recipes import recipes
from layerwise.errors import InputError
from layerwise.experiment.catalog import data_sets, things
from layerwise.experiment.kinds import KINDS

SHELLS = ("bash", "zsh")
# What stands before the options, for commands that need something there.
NEEDED = {"bench": [["step"], ["data"]], "describe": [["mlp"]], "plan": [["mlp"]]}
FUNCTION = """\
_layerwise() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=
    case $before in
        layerwise) words="@COMMANDS" ;;
        list) words="@LISTED" ;;
        bench) words="step data" ;;
@NAMES
    esac
    if [[ $word == -* ]]; then
        case ${COMP_WORDS[1]} in
@OPTIONS
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _layerwise layerwise"""


def script(shell: str, commands: Mapping[str, str]) -> str:
    """The script that a shell reads.

    Args:
        shell: bash or zsh.
        commands: names of commands and of the modules of their `main`.

    Raises:
        InputError: another shell.
    """
    if shell not in SHELLS:
        raise InputError(f"{shell or 'no shell'}: give one of {', '.join(SHELLS)}")
    names = {kind: list(things(kind)) for kind in KINDS}
    names |= {"data": data_sets(), "recipe": list(recipes())}
    options = {command: _options(module) for command, module in commands.items()}
    texts = {
        "COMMANDS": " ".join(commands),
        "LISTED": " ".join(names),
        "NAMES": "\n".join(
            f'        --{kind}|--*.{kind}|--*.{kind}s) words="{" ".join(known)}" ;;'
            for kind, known in names.items()
        ),
        "OPTIONS": "\n".join(
            f'            {command}) words="{" ".join(known)}" ;;'
            for command, known in options.items()
        ),
    }
    text = re.sub("@([A-Z]+)", lambda found: texts[found[1]], FUNCTION)
    return f"autoload -U bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _options(module: str) -> list[str]:
    """The options in the help of a command."""
    run = importlib.import_module(f"layerwise.cli.{module}").main
    said = io.StringIO()
    for arguments in NEEDED.get(module, [[]]):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            run([*arguments, "--help", *([] if module == "listing" else ["all"])])
    return list(dict.fromkeys(re.findall(r"^  (--[\w.]+)", said.getvalue(), re.MULTILINE)))
