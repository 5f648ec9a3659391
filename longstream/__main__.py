"""``python -m longstream``: the command line, for Pythons whose scripts are not on the path."""

from pipelines.cli.main import main

if __name__ == "__main__":
    main()
