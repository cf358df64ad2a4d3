"""`python -m aios_broker.cli`: what the script `aios` runs."""

from aios_broker.cli.main import main

if __name__ == "__main__":
    main()
