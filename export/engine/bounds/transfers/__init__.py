"""From bounds of an op's arguments to bounds of its results, one module a family of ops"""
