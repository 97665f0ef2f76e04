"""What a report says of the machine, and how all that is personal is kept out of its texts."""

import contextlib
import getpass
import os
import platform
import re
import socket
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("coreflow-ml", "coremltools", "torch", "numpy")


def describe_machine() -> dict[str, str]:
    """Chip, system and memory; neither a name nor a serial number."""
    system = (platform.mac_ver()[0] and f"macOS {platform.mac_ver()[0]}") or f"{platform.system()} {platform.release().split('-')[0]}"
    return {"chip": _chip(), "system": system, "architecture": platform.machine(), "memory_gib": f"{_memory_gib():.0f}"}


def describe_versions() -> dict[str, str]:
    """Versions of what takes part."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _chip() -> str:
    if platform.system() != "Darwin":
        return platform.processor() or platform.machine()
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False, timeout=10)
    return answer.stdout.strip() or platform.machine()


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return 0.0


def without_personal(text: str) -> str:
    """``text`` with folders, the name of the user and that of the machine replaced by what they are."""
    secrets: dict[str, str] = {}
    for word, find in (
        ("FOLDER", Path.cwd),
        ("TEMPORARY", lambda: Path(tempfile.gettempdir()).resolve()),
        ("TEMPORARY", tempfile.gettempdir),
        ("HOME", Path.home),
        ("USER", getpass.getuser),
        ("MACHINE", socket.gethostname),
    ):
        with contextlib.suppress(OSError, KeyError, RuntimeError):
            secrets.setdefault(str(find()), word)
    longest_first = sorted((secret for secret in secrets if secret.strip("/")), key=len, reverse=True)
    # Whole words only: a user called "a" is in many words.
    pattern = "|".join(rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in longest_first)
    return re.sub(pattern, lambda matched: secrets[matched[0]], text) if pattern else text
