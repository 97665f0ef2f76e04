"""Names of packages after the files and folders that they come from."""

import re


def package_name(name: str) -> str:
    """``name`` with _ for everything that is no letter, digit or _ of ASCII; a digit first gets a word before it.

    >>> package_name("all-MiniLM-L6-v2")
    'all_MiniLM_L6_v2'
    """
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"model_{cleaned}"
