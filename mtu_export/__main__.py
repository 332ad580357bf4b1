"""``python -m mtu_export``."""

from mtu_export.cli import main

if __name__ == "__main__":
    main()
