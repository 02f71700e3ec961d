"""`python -m histo_ssl view runs/`: the viewer in a browser, or a picture of one slide."""

import argparse
import logging
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from histo_ssl import signals
from histo_ssl.folders import disk
from histo_ssl.viewer.answers import Answers
from histo_ssl.viewer.poster import WIDTH_PX, write_poster
from histo_ssl.viewer.server import Server
from histo_ssl.viewer.shelf import Shelf, fill

PORT = 8642
OPACITY = 0.55
DESCRIPTION = """Show slides in the browser, with maps of tiles: attention, predictions, clusters, labels.

Only this machine is answered, and nothing is written."""


def main(arguments: Sequence[str]) -> None:
    """Do what was asked; exit 1 with one sentence where that can't be done."""
    asked = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with signals.answered_by(signals.stop):
            shelf = fill(asked.given, slides=asked.slides, values=asked.values)
            if asked.png:
                _draw(shelf, asked)
            else:
                _serve(shelf, port=asked.port, has_browser=not asked.no_browser)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {(isinstance(error, OSError) and disk.sentence(error)) or error}")
    except signals.Stopped as stopped:
        sys.exit(stopped.status)


def _draw(shelf: Shelf, asked: argparse.Namespace) -> None:
    to = asked.to or Path(f"{asked.png}.png")
    write_poster(shelf, to, slide=asked.png, layer=asked.layer, width_px=asked.width, opacity=asked.opacity)
    print(to)  # noqa: T201 (the program's last line)


def _serve(shelf: Shelf, *, port: int, has_browser: bool) -> None:
    answers = Answers(shelf)
    try:
        with Server(answers, port=port) as server:
            words = f"{len(shelf.slides)} slides at {server.address} (Ctrl-C ends it)"
            print(words, flush=True)  # noqa: T201 (the address, for people and for programs)
            if has_browser:
                webbrowser.open(server.address)
            server.serve_forever()
    finally:
        answers.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m histo_ssl view",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("given", nargs="*", type=Path, metavar="FOLDER", help="of runs, or one of tiles, embeddings, results")
    add("--slides", nargs="+", type=Path, default=[], metavar="FILE", help="slides of no run")
    add(
        "--values",
        nargs="+",
        type=Path,
        default=[],
        metavar="CSV",
        help="maps: x,y (level-0 px), slide, numbers",
    )
    add("--port", type=int, default=PORT, metavar="N", help=f"of this machine (default: {PORT}; 0: any)")
    add("--no-browser", action="store_true", help="only say the address")
    drawing = parser.add_argument_group("a picture in place of the browser")
    add = drawing.add_argument
    add("--png", default="", metavar="SLIDE", help="its name")
    add("--layer", default="", metavar="TITLE", help="beginning or part of a map's title (default: no map)")
    add("--width", type=int, metavar="PX", help=f"of the slide (default: {WIDTH_PX}, if it has as many)")
    add("--opacity", type=float, default=OPACITY, metavar="SHARE", help=f"of the map (default: {OPACITY})")
    add("--to", type=Path, metavar="FILE", help="where to (default: SLIDE.png here)")
    return parser
