"""`python -m longspan` is the `longspan` command."""

from longspan.cli import main

if __name__ == "__main__":
    main()
