"""`aios exec`: interpreters of an agent that keep what was run in them."""

import click

from aios_broker.contract import exec as contract
from aios_cli.call import Fields, text_or_stdin
from aios_cli.session import EXIT_CODES
from aios_cli.state_modules import Operation, commands_of


def _with_code(values: Fields) -> Fields:
    return {**values, "code": text_or_stdin(str(values["code"]))}


_OPERATIONS = {
    "open": Operation(
        contract.ExecOpen,
        "Begin a session; prints its id.",
        words={
            "interpreter": "What runs in it",
            "name": "What people call it",
            "idle_s": "It ends when nothing was run for so long",
        },
        stands_for=("limits", "tools"),
    ),
    "run": Operation(
        contract.ExecRun,
        "Run CODE in a session; `-` reads it from standard input.",
        ("session", "code"),
        words={"timeout_s": "It is interrupted after so long"},
        make=_with_code,
    ),
    "interrupt": Operation(
        contract.ExecInterrupt, "End what runs in a session; what it holds stays.", ("session",)
    ),
    "reset": Operation(
        contract.ExecReset, "Begin a session anew, with nothing in it.", ("session",)
    ),
    "close": Operation(contract.ExecClose, "End a session.", ("session",)),
    "list": Operation(contract.ExecList, "List the agent's sessions."),
}

sessions = click.Group(
    "exec",
    commands_of(_OPERATIONS),
    epilog=EXIT_CODES,
    help="""Open interpreters that keep what is run in them, and run code there.

    \b
    Examples:
      aios exec open --interpreter shell
      aios exec run 3f2a91bc... 'x = 40'
      aios exec run 3f2a91bc... - < script.py
      aios exec list
    """,
)
