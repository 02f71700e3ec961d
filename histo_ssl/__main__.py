"""`python -m histo_ssl`; `python -m histo_ssl view` shows slides."""

import sys

from histo_ssl.cli import main

VIEW = "view"

if __name__ == "__main__":
    if sys.argv[1:2] == [VIEW]:
        from histo_ssl.viewer.command import main as view

        view(sys.argv[2:])
    else:
        main()
