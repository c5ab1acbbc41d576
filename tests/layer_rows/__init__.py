"""Rows of the table of layers, one file for each family."""
