"""Studies that come with the package: `tll run NAME WORKDIR`. They need no data."""
