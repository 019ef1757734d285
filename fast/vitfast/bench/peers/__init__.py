"""Who takes part. Each module imports one framework, so only workers import these modules."""
