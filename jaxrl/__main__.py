"""`python -m jaxrl`: the command line."""

from jaxrl.cli.main import main

if __name__ == "__main__":
    main()
