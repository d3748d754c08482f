"""``python -m dynome_recorder``: the command line without its script."""

from dynome_recorder.cli import main

if __name__ == "__main__":
    main(prog_name="dynome")
