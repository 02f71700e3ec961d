"""`python -m histo_ssl.download NAME [--to FOLDER]`."""

import argparse
import logging
import sys
from pathlib import Path

from histo_ssl import signals
from histo_ssl.download.catalogue import CATALOGUE, find, sets_of
from histo_ssl.download.sets import NotObtainedError, obtain
from histo_ssl.folders import disk


def main() -> None:
    """Fetch a set and say how to use it; exit 1 with one sentence where that can't be done."""
    asked = _arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    folder = asked.to or Path("data") / asked.name
    try:
        with signals.answered_by(signals.stop):
            root = obtain(find(asked.name, asked.catalogue), folder)
    except (NotObtainedError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {disk.sentence(error) or error}")
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201 (the program's last line)
        sys.exit(stopped.status)
    print(f"ready: python -m histo_ssl method=... backbone=... task={asked.name} task.root={root}")  # noqa: T201


def _arguments() -> argparse.Namespace:
    sets = [f"  {name:15} {public.about}" for name, public in sets_of(CATALOGUE).items()]
    parser = argparse.ArgumentParser(
        prog="python -m histo_ssl.download",
        description="Fetch a public set of labelled tiles into the layout that its task expects.",
        epilog="\n".join(["sets:", *sets]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the set")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to put it (default: data/NAME)")
    parser.add_argument(
        "--catalogue", type=Path, default=CATALOGUE, metavar="FILE", help="another list of sets, as JSON"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
