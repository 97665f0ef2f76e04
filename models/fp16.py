"""The numbers of fp16: its largest and smallest numbers and its unit roundoff. Standard library only."""

MAX = 65504.0
SMALLEST_NORMAL = 2.0**-14
SMALLEST_SUBNORMAL = 2.0**-24
# The most by which one rounding changes a normal number, relative to it.
UNIT_ROUNDOFF = 2.0**-11
