"""`python -m infra.cli` is the command `splitstack`."""

from infra.cli.app import main

if __name__ == "__main__":
    main()
