"""Programs planned before they run: lowerings, arguments, roundings, lifetimes."""
