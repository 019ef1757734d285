"""The conformance kit: cases, tolerances, the check of an implementation, and known deviations."""
