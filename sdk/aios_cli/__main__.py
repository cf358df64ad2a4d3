"""`python -m aios_cli`: what the script `aios` runs."""

from aios_cli.main import main

if __name__ == "__main__":
    main()
