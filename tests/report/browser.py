"""Pages opened in a real browser."""

import shutil
import subprocess

import pytest


def dump_dom(page, profile, *, milliseconds=0):
    """Runs headless Chromium on a page on disk for some milliseconds of its virtual time after loading.

    The document is on stdout, its console on stderr.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom"]
    if milliseconds:
        flags.append(f"--virtual-time-budget={milliseconds}")
    return subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
