"""`layerwise COMMAND ...`. Input that cannot be used gives one line and exit code 2."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import layerwise
from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.errors import (
    FailedProcess,
    InputError,
    Interrupted,
    LostStage,
    NonFiniteLoss,
    choices,
)

# Command -> module of its `main`; imported when it runs, as some of them take seconds to import.
COMMANDS = {
    "train": "train",
    "sweep": "sweep",
    "evaluate": "evaluate",
    "compare": "compare",
    "analyze": "analyze",
    "labels": "labels",
    "describe": "describe",
    "plan": "plan",
    "bench": "bench",
    "list": "listing",
}

USAGE = f"""\
usage: layerwise COMMAND [options]

{layerwise.__doc__}
commands:
  train      train a network with a learning rule; makes a run folder
  sweep      search options of a training, with the same trials for every rule
  evaluate   measure every exit of a run on its test data
  compare    compare runs: a table and curves
  analyze    analyze what networks have learned, block by block: probes, CKA, alignment, ...
  labels     measure how many labels runs need, by probes or by fine-tuning
  plan       find the ways to train within a memory, or divide a network into stages
  describe   describe the blocks of a network: shapes, receptive fields, costs
  bench      measure a step's time and memory against backpropagation, or the data path
  list       list rules, networks, heads, objectives, data sets and recipes

`layerwise COMMAND --help` explains every option with its default. `layerwise --completion bash`
(or zsh) prints a script that completes commands, options and names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, 1 training failed, 2 bad input, 130 interrupted.
    """
    # Read when PyTorch is imported. Its warnings about lost connections would hide the line that
    # names the lost process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"layerwise {layerwise.__version__}")
        return 0
    command, *rest = arguments
    try:
        if command.partition("=")[0] == "--completion":
            from layerwise.cli.completion import script

            shell = command.partition("=")[2] or "".join(rest[:1])
            print(script(shell, COMMANDS))
            return 0
        if command not in COMMANDS:
            raise InputError(f"{command}: no such command; {choices(command, COMMANDS)}")
        rest = _trusting(rest)
        with interrupts_end_at_once():
            module = importlib.import_module(f"layerwise.cli.{COMMANDS[command]}")
        module.main(rest)
        sys.stdout.flush()
    except InputError as error:
        return _fail(f"layerwise {command}: {error}", 2)
    except LostStage as error:
        if _started_together():
            _let_launcher_speak()
        _fail(f"layerwise {command}: {error}", 1)
        if _started_together():
            os._exit(1)  # threads that wait for the lost process would block the exit
        return 1
    except FailedProcess as error:
        return error.code  # the process has printed what failed
    except NonFiniteLoss as error:
        return _fail(f"layerwise {command}: {error}", 1)
    except Interrupted as error:
        return _fail(str(error), 130) if _leads() else 130
    except KeyboardInterrupt:
        return _fail("interrupted", 130) if "RANK" not in os.environ else 130
    except BrokenPipeError:  # the reader of the output has ended, as in `layerwise list | head`
        _discard(sys.stdout)
        _discard(sys.stderr)
        return 0
    return 0


def _trusting(arguments: list[str]) -> list[str]:
    """Trust the code that the command line names, or with --trust all code that a config names; the
    other arguments."""
    given = [k for k, a in enumerate(arguments) if a.partition("=")[0] == "--trust"]
    named = [a for a in arguments if "." in a]
    if not given and not named:
        return arguments
    from layerwise.experiment import own  # imports PyTorch

    own.trust(*own.named_in(named))
    rest = list(arguments)
    for k in reversed(given):
        _, _, value = rest.pop(k).partition("=")
        if not value and k < len(rest) and rest[k] in ("true", "false"):
            value = rest.pop(k)
        if value not in ("", "true", "false"):
            raise InputError(f"--trust {value}: give true or false")
        if value != "false":
            own.trust_everything()
    return rest


def _started_together() -> bool:
    from layerwise.runtime import processes  # imports PyTorch

    return processes.started_together()


def _let_launcher_speak() -> None:
    from layerwise.runtime.watch import let_launcher_speak

    let_launcher_speak()


def _leads() -> bool:
    from layerwise.runtime import processes

    return processes.leads()


def _fail(message: str, code: int) -> int:
    from layerwise.report.console import console

    try:
        console.print(" ".join(message.split()), soft_wrap=True, markup=False)
    except OSError:  # nobody reads it any more
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Send what is left of a stream whose reader has ended to nowhere, so that the end of the
    program does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
