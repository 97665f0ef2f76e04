"""Diagnosis: the cause of a failure, and the ops to blame."""
