"""`python -m histo_ssl.download NAME [--to FOLDER]`; `gdc --slides FILE [--classes A,B]` in place of NAME."""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from histo_ssl import signals
from histo_ssl.download import gdc
from histo_ssl.download.catalogue import CATALOGUE, find, sets_of
from histo_ssl.download.manifest import MANIFEST, SLIDES, Written, write_manifest
from histo_ssl.download.sets import NotObtainedError, obtain
from histo_ssl.folders import disk

GDC = "gdc"  # no set, but the place that slides of TCGA come from


def main() -> None:
    """Do what was asked and say how to go on; exit 1 with one sentence where that can't be done."""
    asked = _arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    folder = asked.to or Path("data") / asked.name
    fetch = _fetch_manifest if asked.name == GDC else _fetch_set
    try:
        with signals.answered_by(signals.stop):
            said = fetch(asked, folder)
    except (NotObtainedError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {disk.sentence(error) or error}")
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201 (the program's last line)
        sys.exit(stopped.status)
    print(said)  # noqa: T201


def _fetch_set(asked: argparse.Namespace, folder: Path) -> str:
    root = obtain(find(asked.name, asked.catalogue), folder)
    return f"ready: python -m histo_ssl method=... backbone=... task={asked.name} task.root={root}"


def _fetch_manifest(asked: argparse.Namespace, folder: Path) -> str:
    classes = [name for name in asked.classes.split(",") if name]
    return _next_steps(write_manifest(asked.slides, folder, classes=classes, address=gdc.FILES))


def _next_steps(written: Written) -> str:
    """What was found, what was not, and how the slides come."""
    folder, n_absent = written.folder, len(written.absent)
    manifest, slides, place = (
        shlex.quote(str(path)) for path in (folder / MANIFEST, folder / SLIDES, folder)
    )
    absent = [
        f"the GDC does not list {n_absent} of {written.n_slides + n_absent} slides (withdrawn, or under "
        "another name; its portal finds them by their barcodes):",
        *written.absent,
    ]
    return "\n".join(
        [
            *(absent if n_absent else []),
            f"{manifest}: {written.n_slides} slides, {written.n_bytes:,} bytes",
            f"next: gdc-client download -m {manifest} -d {place}",
            f"then: python -m histo_ssl method=... backbone=... data=slides data.manifest={slides}",
        ]
    )


def _arguments() -> argparse.Namespace:
    sets = [f"  {name:15} {public.about}" for name, public in sets_of(CATALOGUE).items()]
    sets += [f"  {GDC:15} slides of TCGA: a manifest for gdc-client, and a slide list"]
    parser = argparse.ArgumentParser(
        prog="python -m histo_ssl.download",
        description="Fetch a public set of labelled tiles into the layout that its task expects, or make a "
        "manifest of slides for gdc-client.",
        epilog="\n".join(["sets:", *sets]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the set")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to put it (default: data/NAME)")
    parser.add_argument(
        "--catalogue", type=Path, default=CATALOGUE, metavar="FILE", help="another list of sets, as JSON"
    )
    slides = parser.add_argument_group(f"only with {GDC}")
    slides.add_argument(
        "--slides", type=Path, metavar="FILE", help="CSV with a column slide_id, or CLAM's split files"
    )
    slides.add_argument("--classes", default="", metavar="A,B", help="labels of the slides (default: all)")
    asked = parser.parse_args()
    if (asked.name == GDC) != (asked.slides is not None):
        parser.error(f"{GDC} needs --slides" if asked.name == GDC else f"--slides belongs to {GDC}")
    return asked


if __name__ == "__main__":
    main()
