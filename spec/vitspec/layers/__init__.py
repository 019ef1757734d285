"""The layers: each file holds a record, its forward, its backward and its JVP."""
