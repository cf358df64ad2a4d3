"""`aios`, and `python -m aios_cli`: the command line, or what has to be installed for it."""

import sys

from aios_cli.text import write_any_character

EXIT_NOT_INSTALLED = 2


def main() -> None:
    """Run the command line.

    Who has installed the SDK alone has this script too, and none of the packages that it needs.
    """
    write_any_character()
    try:
        from aios_cli.main import cli  # noqa: PLC0415  may not be there

        cli(prog_name="aios")
    except ModuleNotFoundError as error:
        if (error.name or "aios_").startswith("aios_"):
            raise
        sys.stderr.write(
            f"aios: the package {error.name} is missing: the SDK alone is installed, and the "
            "command line needs the kernel. Install the same wheel with its extra, "
            "pip install 'aios_broker-VERSION-py3-none-any.whl[kernel]'; "
            "of a checkout: pip install '.[kernel]'\n"
        )
        raise SystemExit(EXIT_NOT_INSTALLED) from None


if __name__ == "__main__":
    main()
