"""What TorchLean's own text says where this specification departs from it: `docs/deviations.md`."""
