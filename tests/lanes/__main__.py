"""`python -m tests.lanes`: what `./aios test` runs."""

from tests.lanes.command import test_command

if __name__ == "__main__":
    test_command(prog_name="aios test")
