"""What no input of a program can exceed: intervals and l2 balls carried through its ops, and the hazards that they rule out"""
