"""Meshes, shardings, processes and compiler settings."""
