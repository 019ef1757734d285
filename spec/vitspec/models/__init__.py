"""The models, made of the layers."""
