"""`python -m llamero_operator`."""

from llamero_operator.main import main

if __name__ == "__main__":
    main()
