"""`aios doctor`: look at every part, say what is wrong and what to do."""

import sys
from collections.abc import Callable

import click

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig
from aios_cli.checks import CHECKS, Finding, check_kernel
from aios_cli.settings import current_config
from aios_cli.tables import show_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(*, as_json: bool) -> None:
    """Check every part of the kernel on this machine; exit code 1 if any is not well.

    Takes a few seconds: both servers are started on data of their own.
    """
    findings = _findings(as_json=as_json)
    ill = [finding for finding in findings if not finding.ok]
    if as_json:
        show_json({"ok": not ill, "findings": findings})
    elif ill:
        click.echo(f"\n{len(ill)} of {len(findings)} checks failed")
    else:
        click.echo(f"\nall {len(findings)} checks passed")
    sys.exit(1 if ill else 0)


def _findings(*, as_json: bool) -> list[Finding]:
    """Run the checks; in words, each is shown as soon as it is known."""
    findings: list[Finding] = []

    def found(new: Finding) -> None:
        findings.append(new)
        if not as_json:
            click.echo(f"{'ok  ' if new.ok else 'FAIL'}  {new.check:<16} {new.detail}")
            if not new.ok:
                click.echo(f"{'':<23}do: {new.remedy}")

    config = _settings(found)
    if config is not None:
        for check in CHECKS:
            found(check(config))
        for finding in check_kernel(config):
            found(finding)
    return findings


def _settings(found: Callable[[Finding], None]) -> KernelConfig | None:
    try:
        config = current_config()
    except InvalidConfig as error:
        found(Finding("settings", False, f"{error.field}: {error.message}", error.remedy or ""))
        return None
    found(Finding("settings", True, f"state directory {config.state_dir}"))
    return config
