"""The commands of `vitspec`, a file each; `vitspec.cli` puts them together."""
