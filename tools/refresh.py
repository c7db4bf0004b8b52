"""Run the notebooks at their defaults and store their outputs: the only way outputs get into git.

For each notebook this is, with build/refresh/ in between,

    papermill --cwd notebooks -k python3 NB NB
    nbstripout --keep-output --keep-count --keep-id --extra-keys "..." NB

so that outputs, execution counts and cell ids stay and run times, versions and paths go. Twice in a row changes
nothing. A notebook that fails leaves all stored ones as they were. `--only 04,06` refreshes just these.
"""

import argparse
import logging
import shutil
import subprocess
import sys

from study import NOTEBOOKS, ROOT, StudyError, find_notebooks, run_all, stop_on_signals

VOLATILE = "metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution"


def main(arguments: list[str] | None = None) -> int:
    """Execute, clean, put in place; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the notebooks at their defaults and store their outputs.")
    parser.add_argument(
        "--only", default="", metavar="NN,NN", help="numbers of the notebooks to refresh (default: all)"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    folder = ROOT / "build/refresh"
    try:
        notebooks = find_notebooks(NOTEBOOKS, options.only)
        run_all({path: {} for path in notebooks}, folder)
    except StudyError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    strip = [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--keep-id"]
    strip += ["--extra-keys", VOLATILE, *(str(folder / path.name) for path in notebooks)]
    subprocess.run(strip, check=True)
    for path in notebooks:
        shutil.move(folder / path.name, path)
    return 0


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
