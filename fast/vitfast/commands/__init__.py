"""The commands of `vitfast`, one in each module."""
