"""`python -m llamero`: the llamero command."""

from llamero.cli.main import main

if __name__ == "__main__":
    main()
