"""``python -m burnish.cli``."""

from burnish.cli.main import main

if __name__ == "__main__":
    main()
