"""Run the command line as ``python -m harvester``."""

from harvester.cli import main

if __name__ == "__main__":
    main()
