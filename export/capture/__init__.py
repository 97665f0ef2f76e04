"""A module as a program: traced or exported, with what it loses on the way."""
