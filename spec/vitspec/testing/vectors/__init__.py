"""Test vectors: inputs and true outputs as files, to grade a program in any language."""
