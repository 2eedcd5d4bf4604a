"""Paths, JSON files and file locks."""
