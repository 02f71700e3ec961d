"""`python -m histo_ssl`."""

from histo_ssl.cli import main

if __name__ == "__main__":
    main()
