"""What happens to a saved program before it is put in place: it is repaired if that is asked for, and proven to be its module."""
